"""How fast a whole volume is scored: `python -m jaxsr.bench.metrics [--shape X,Y,Z] [--metrics NAMES] [--peer]`.

A volume of noise and a noisier copy, both in the device's memory, no mask: none of these metrics takes longer for one content than for
another. With `--peer` scikit-image's SSIM and PSNR of the same arrays follow in the same process, with the convention of ours.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.bench.measure import call_times, describe_times, peak_memory, summary
from jaxsr.evaluate.metrics.registry import METRICS
from jaxsr.evaluate.metrics.ssim import K1, K2, SIGMA

GIVEN = {"data_range": 1.0, "voxel_size": 0.7}


def bench_metrics(shape: tuple[int, int, int], names: Sequence[str], repeats: int = 5, peer: bool = False) -> dict[str, Any]:
    """Seconds of each metric after a first call, which compiles; of scikit-image's too where `peer`; as JSON can hold it.

    Raises:
      ValueError: for a metric that is not one of an image and its reference.
    """
    if wrong := [name for name in names if name not in _timed()]:
        raise ValueError(f"{', '.join(wrong)}: no metric of an image and its reference, as {', '.join(_timed())} are")
    rng = np.random.default_rng(0)
    reference = rng.random(shape, np.float32)
    image = reference + np.float32(0.05) * rng.standard_normal(shape, np.float32)
    on_device = jax.block_until_ready([jnp.asarray(a) for a in (image, reference)])

    def call(name: str) -> Callable[[], Any]:
        return lambda: METRICS[name].function(*on_device, **{key: GIVEN[key] for key in METRICS[name].needs})

    result: dict[str, Any] = {"shape": list(shape), "first_seconds": {}, "seconds": {}, "peer_seconds": {}}
    for name in names:
        result["first_seconds"][name] = call_times(call(name), 1)[0]
        result["seconds"][name] = summary(call_times(call(name), repeats))
    result |= peak_memory()
    if peer:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        convention = {"gaussian_weights": True, "sigma": SIGMA, "use_sample_covariance": False, "K1": K1, "K2": K2}
        theirs = {
            "psnr": lambda: peak_signal_noise_ratio(reference, image, data_range=1.0),
            "ssim": lambda: structural_similarity(reference, image, data_range=1.0, **convention),
        }
        result["peer_seconds"] = {name: summary(call_times(theirs[name], repeats)) for name in names if name in theirs}
    result["device"] = jax.devices()[0].device_kind
    result["versions"] = {package: version(package) for package in ("jaxsr", "jax", "numpy", *(["scikit-image"] if peer else []))}
    return result


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    rows = [("volume", " × ".join(map(str, result["shape"])))]
    rows += [(name, f"{describe_times(times)}, first {result['first_seconds'][name]:.2f} s") for name, times in result["seconds"].items()]
    rows += [(f"{name}, scikit-image", describe_times(times)) for name, times in result["peer_seconds"].items()]
    rows.append(("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB of the {result['peak_memory_of']}, before scikit-image"))
    return [*rows, ("on", result["device"]), ("with", ", ".join(f"{name} {number}" for name, number in result["versions"].items()))]


def _timed() -> list[str]:
    return [name for name, metric in METRICS.items() if metric.operands == "images" and GIVEN.keys() >= set(metric.needs)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxsr.bench.metrics", description="Time metrics of a whole volume.")
    parser.add_argument("--shape", default="260,310,260", help="X,Y,Z in voxels")
    parser.add_argument("--metrics", default="psnr,ssim,resolution", help=f"of {', '.join(_timed())}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="scikit-image's SSIM and PSNR too")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    try:
        x, y, z = (int(side) for side in words.shape.split(","))
        result = bench_metrics((x, y, z), words.metrics.split(","), words.repeats, words.peer)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    print(json.dumps(result) if words.json else "\n".join(f"{name:<24}{value}" for name, value in describe(result)))


if __name__ == "__main__":
    main()
