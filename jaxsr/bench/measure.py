"""Measuring: what is timed, and against what it is held.

Devices work while Python goes on, so a time is one only when the result has been waited for. A step is timed from the end of the one before
to its own, with the next one already given to the device: as in training, the host's work is hidden where it can be.
"""

import datetime
import hashlib
import json
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled, Wrapped

import jaxsr
from jaxsr.bench.count import quantity
from jaxsr.config import to_dict
from jaxsr.experiment import Experiment


class Peak(NamedTuple):
    """Dense multiply-and-add rates of one device in FLOP/s, from its data sheet; None where the hardware has no such mode."""

    bf16: float
    tf32: float | None = None
    f32: float | None = None


# By a part of the device kind that JAX reports; the first that fits. NVIDIA without sparsity: H100, H200 and A100 data sheets.
PEAKS: tuple[tuple[str, Peak], ...] = (
    ("H100 PCIe", Peak(756e12, 378e12, 51e12)),
    ("H100 NVL", Peak(835.5e12, 417.5e12, 60e12)),
    ("H100", Peak(989.5e12, 494.7e12, 67e12)),
    ("H200 NVL", Peak(835.5e12, 417.5e12, 60e12)),
    ("H200", Peak(989.5e12, 494.7e12, 67e12)),
    ("A100", Peak(312e12, 156e12, 19.5e12)),
    ("TPU v5p", Peak(459e12)),
)

MATRIX = "a large matrix product's rate"

_CACHE_LISTENERS: list[list[str]] = []  # each gets a line for every program that the persistent compilation cache held


def _hear(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        for listener in _CACHE_LISTENERS:
            listener.append(event)


jax.monitoring.register_event_listener(_hear)  # cannot be taken back, so once


def compiled(function: Wrapped, *arguments: Any) -> tuple[Compiled, dict[str, Any]]:
    """The program of a jitted `function` for `arguments`; the seconds to trace and lower it, and to compile it; whether a cache held it."""
    hits: list[str] = []
    _CACHE_LISTENERS.append(hits)
    try:
        start = time.perf_counter()
        lowered = function.lower(*arguments)
        between = time.perf_counter()
        program = lowered.compile()
        end = time.perf_counter()
    finally:
        _CACHE_LISTENERS.remove(hits)
    return program, {"trace_seconds": between - start, "compile_seconds": end - between, "compile_cached": bool(hits)}


def step_times(dispatch: Callable[[], Any], repeats: int, warmup: int) -> list[float]:
    """Seconds of each of `repeats` steps after `warmup` others. `dispatch` starts one and returns arrays that are ready when it is done."""
    return interval_times(dispatch, jax.block_until_ready, repeats, warmup)


def interval_times(dispatch: Callable[[], Any], wait: Callable[[Any], Any], repeats: int, warmup: int) -> list[float]:
    """Seconds from the end of each step to that of the next, of `repeats` after `warmup` others, by whatever library: `dispatch` starts a
    step and returns what `wait` waits for.

    One step more than that is run, before all others: its end is where the first interval starts.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"at least 1 step must be timed after 0 or more that are not, got {repeats} and {warmup}")
    ends, pending = [], dispatch()
    for _ in range(warmup + repeats):
        following = dispatch()
        wait(pending)
        ends.append(time.perf_counter())
        pending = following
    wait(pending)
    ends.append(time.perf_counter())
    return list(np.diff(ends)[warmup:])


def call_times(function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, its result waited for."""
    if repeats < 1:
        raise ValueError(f"at least 1 call must be timed, got {repeats}")
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times


def summary(seconds: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles and how many."""
    lower, median, upper = (float(q) for q in np.percentile(seconds, (25, 50, 75)))
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper, "repeats": len(seconds)}


def peak_memory() -> dict[str, Any]:
    """The most memory held at a time since the process started: of the fullest device; where the platform does not say, of the process."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in of_device for of_device in statistics):
        return {"peak_memory_bytes": max(of_device["peak_bytes_in_use"] for of_device in statistics), "peak_memory_of": "device"}
    return {"peak_memory_bytes": _most_resident(), "peak_memory_of": "process"}


def _most_resident() -> int:
    """Bytes. What Linux counts for `getrusage` is at least what the process had that this one was started from."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_peak(kind: str, precision: str) -> float | None:
    """FLOP/s of the data sheet for a computation in `precision` ('bf16' or 'f32') on a device of `kind`; None for one not in the table.

    JAX computes float32 products in TF32 where there is such a mode, unless `jax_default_matmul_precision` asks for more.
    """
    peak = next((peak for name, peak in PEAKS if name in kind), None)
    if peak is None or precision == "bf16":
        return peak and peak.bf16
    exact = jax.config.jax_default_matmul_precision in ("float32", "highest")  # type: ignore[attr-defined]
    return peak.f32 if exact else peak.tf32


def matrix_rate(precision: str, repeats: int = 10) -> float:
    """FLOP/s that one device reaches in a large square matrix product: the practical ceiling."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    # Not of ones: a chip multiplies constants with less power, and so faster.
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16 if precision == "bf16" else jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / summary(step_times(lambda: product(a, a), repeats, warmup=2))["median"]


def rates(multiply_adds: int | None, seconds: float, precision: str) -> dict[str, float | None]:
    """FLOP/s of `multiply_adds` in `seconds` over all devices, also as shares of the data sheet's and of a large matrix product's;
    `floor_seconds` is what the same work would take at that product's rate."""
    achieved = None if multiply_adds is None else 2 * multiply_adds / seconds
    # Simulated devices of one process share its cores.
    devices = jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
    peak, measured = device_peak(jax.devices()[0].device_kind, precision), matrix_rate(precision)
    return {
        "flops_per_second": achieved,
        "peak_flops_per_second": peak and peak * devices,
        "share_of_peak": achieved and peak and achieved / (peak * devices),
        "matrix_flops_per_second": measured * devices,
        "share_of_matrix_rate": achieved and achieved / (measured * devices),
        "floor_seconds": None if multiply_adds is None else 2 * multiply_adds / (measured * devices),
    }


def circumstances(experiment: Experiment) -> dict[str, Any]:
    """What a figure is worth nothing without: config, versions, machine, date."""
    return {
        "config_digest": config_digest(experiment),
        "method": experiment.method.kind,
        "precision": experiment.precision,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": processor(),
        **versions(),
    }


def versions() -> dict[str, Any]:
    """Of what computed, and when."""
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    return {
        "versions": {"jaxsr": jaxsr.__version__, "python": platform.python_version(), **packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def config_digest(experiment: Experiment) -> str:
    """Twelve hexadecimal digits that are equal for equal experiments."""
    return hashlib.sha256(json.dumps(to_dict(experiment), sort_keys=True).encode()).hexdigest()[:12]


def describe_rates(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows that every timed benchmark has."""
    shares = {"the data sheet's peak": result["share_of_peak"], MATRIX: result["share_of_matrix_rate"]}
    achieved = [quantity(result["flops_per_second"], "FLOP/s"), *(f"{share:.1%} of {what}" for what, share in shares.items() if share)]
    floor = result["floor_seconds"]
    return [
        ("achieved", ", ".join(achieved)),
        *([("floor", f"{floor:.4g} s at that product's rate; this took {1 / shares[MATRIX]:.2f} times as long")] if floor else []),
        ("peak memory", f"{quantity(result['peak_memory_bytes'], 'B', 1024)} of the {result['peak_memory_of']}"),
        ("parameters", f"{result['parameters']:,}"),
        ("precision", result["precision"]),
        ("on", f"{result['devices']} × {result['device']} ({result['processor']})"),
        ("with", ", ".join(f"{name} {number}" for name, number in result["versions"].items())),
        ("config", result["config_digest"]),
        ("date", result["date"]),
    ]


def describe_times(times: dict[str, Any]) -> str:
    """Median and quartiles as a phrase."""
    return f"{times['median']:.4g} s (quartiles {times['lower_quartile']:.4g} … {times['upper_quartile']:.4g}, {times['repeats']} times)"


def processor() -> str:
    """The host's, as Linux names it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
