"""How near a mixture's experts come to the truth, in latents and decoded, and what the signal is worth that their last steps still have.

    python docs/measure_experts.py RUN HIGH LOW          a run of kind moediff, a head of its target's voxel size, its acquisition

Of every second axial slice each expert's chain is sampled from pure noise, and from the noised truth of its own last step, which nobody
has. A table goes to standard output.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.diffusion import sampling
from jaxsr.diffusion.process import add_noise
from jaxsr.diffusion.schedule import Level, level_at
from jaxsr.losses.pixels import cosine
from jaxsr.methods.moediff import Moediff
from jaxsr.methods.vqvae import of_frozen
from jaxsr.upscale.model import load_model
from jaxsr.volume.geometry import resample
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import read_volume
from jaxsr.volume.slices import take_slices


def slices_of(high: Path, low: Path, multiple: int) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Truth and condition `[B, H, W, 1]`, padded to multiples, and where they are no padding."""
    truth, scan = read_volume(high), read_volume(low)
    shown = resample(scan.data, scan.grid, truth.grid)
    window = fit_window(shown)
    x, y = (take_slices(np.asarray(window.forward(data)), "axial")[::2, ..., None] for data in (truth.data, shown))
    pad = [(0, 0), *((0, -side % multiple) for side in x.shape[1:3]), (0, 0)]
    real = np.pad(np.ones(x.shape, bool), pad)
    return *(jnp.asarray(np.pad(z, pad, constant_values=-1), jnp.float32) for z in (x, y)), real  # type: ignore[return-value]


def main(run: Path, high: Path, low: Path) -> None:
    model = load_model(run)
    method, variables = model.method, jax.tree.map(jnp.asarray, model.variables)
    assert isinstance(method, Moediff)
    x, y, real = slices_of(high, low, method.multiple)
    vqvae = of_frozen(variables["frozen"]["vqvae"])
    z0 = jax.jit(functools.partial(method.vqvae.encode, vqvae))(x, None, None)
    decode = jax.jit(functools.partial(method.vqvae.decode, vqvae))
    condition = method._show(variables["params"], y).condition
    keys = jax.vmap(jax.random.key)(jnp.arange(len(x)))
    pure = sampling.draw_noise
    print(f"{len(x)} slices; the VQ-VAE of the truth: {psnr(decode(z0), x, real):.2f} dB")
    print(f"{'expert':10}{'start':8}{'signal':>8}{'cosine':>8}{'PSNR':>8}")
    for name, schedule in method.schedules.items():
        last = level_at(schedule, jnp.full(len(x), schedule.steps))
        starts: dict[str, Any] = {"noise": pure, "truth": functools.partial(noised, pure, z0, last)}
        for start, draw in starts.items():
            chain = functools.partial(method._chain, name, shape=z0.shape[1:], request=method.default_request)
            with mock.patch.object(sampling, "draw_noise", draw):
                z = jax.jit(chain)(variables["params"]["experts"], condition, keys)
            print(f"{name:10}{start:8}{last.signal[0]:8.4f}{cosine(z, z0).mean():8.3f}{psnr(decode(z), x, real):8.2f}")


def noised(pure: Callable[..., jax.Array], z0: jax.Array, last: Level, *draw: Any) -> jax.Array:
    """What a chain starts from, with the truth's signal in it; with η = 0 nothing else is drawn."""
    return add_noise(z0, pure(*draw), last)


def psnr(image: jax.Array, truth: jax.Array, real: np.ndarray) -> float:
    """Of all pixels, the window's range, 2."""
    return float(10 * np.log10(4 / np.mean(np.square(np.asarray(image - truth))[real])))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
