"""How fast devices exchange: all-reduces over all of them, of growing size, and the rate and latency that a ring's time has

    t = 2 ((n − 1)/n S/r + l ⌈log₂ n⌉)

fitted to their medians (least squares of t/t, so that small and large count alike): what `jaxsr bench scale` takes of a machine.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsr.bench.count import quantity
from jaxsr.bench.measure import call_times, processor, summary, versions
from jaxsr.runtime.mesh import make_mesh

SIZES = tuple(2**i for i in range(12, 27, 2))  # bytes of the payload: 4 KiB … 64 MiB


def bench_links(sizes: Sequence[int] = SIZES, repeats: int = 20) -> dict[str, Any]:
    """Times all-reduces of `sizes` bytes over all devices, as JSON can hold it.

    Raises:
      ValueError: for a single device.
    """
    devices = jax.device_count()
    if devices < 2:
        raise ValueError("one device has nobody to exchange with: start several, as with launch/local.sh 2 bench links")
    mesh = make_mesh(data=devices)
    lies = NamedSharding(mesh, PartitionSpec("data"))
    reduced = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    measured = []
    for size in sizes:
        parts = jax.jit(jnp.ones, static_argnums=0, out_shardings=lies)((devices, size // 4))
        once = functools.partial(reduced, parts)
        call_times(once, 3)  # compiles, and connects
        measured.append({"bytes": size, **summary(call_times(once, repeats))})
    rate, latency = fit(devices, [m["bytes"] for m in measured], [m["median"] for m in measured])
    about = {"device": jax.devices()[0].device_kind, "devices": devices, "processes": jax.process_count(), "processor": processor()}
    return {"bytes_per_second": rate, "latency": latency, "measured": measured, **about, **versions()}


def fit(devices: int, sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """r in bytes/s and l in seconds, above; no latency where times are so noisy that one of the two would be negative."""
    t = np.asarray(seconds)
    of_size, of_hop = 2 * (devices - 1) / devices * np.asarray(sizes, float), np.full(len(t), 2.0 * math.ceil(math.log2(devices)))
    (slope, latency), *_ = np.linalg.lstsq(np.stack([of_size / t, of_hop / t], 1), np.ones(len(t)))
    if latency < 0 or slope <= 0:
        slope, latency = float(np.sum(of_size / t) / np.sum((of_size / t) ** 2)), 0.0
    return float(1 / slope), float(latency)


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    rows = [
        (quantity(one["bytes"], "B", 1024), f"{one['median'] * 1e6:.0f} µs, {quantity(one['bytes'] / one['median'], 'B/s')}")
        for one in result["measured"]
    ]
    links = f"{{devices: {result['devices']}, bytes_per_second: {result['bytes_per_second']:.3e}, latency: {result['latency']:.2e}}}"
    where = f"{result['devices']} × {result['device']} in {result['processes']} processes ({result['processor']})"
    return [("all-reduce over", where), *rows, ("for a machine's YAML", f"inside: {links}")]
