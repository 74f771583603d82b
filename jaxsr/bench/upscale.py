"""How fast volumes are upscaled: the engine of `jaxsr upscale`, fed a synthetic head or a scan, with weights drawn at random.

The head has the voxels of the configured acquisition over the same field of view, so that bringing it to the target grid counts too; files
are neither read nor written while it counts. What devices take alone is measured with slices that lie there already; its share of a
volume's time says what is lost to the host. Multiply-adds are those that the devices do: of padded slices and full batches. Of slices that
go to one expert each they are what that takes at most, and so are the rates made of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsr.bench.count import quantity
from jaxsr.bench.measure import call_times, circumstances, describe_rates, describe_times, peak_memory, rates, summary
from jaxsr.bench.synthetic import synthetic_head, synthetic_variables
from jaxsr.experiment import Experiment
from jaxsr.methods.condition import Batch
from jaxsr.methods.precision import held_to_upscale
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.build import build_method
from jaxsr.upscale.batches import BatchSize
from jaxsr.upscale.engine import Engine, ways
from jaxsr.upscale.forecast import batch_sizes, trace_batches, volume_multiply_adds
from jaxsr.upscale.plan import Plan
from jaxsr.volume.io import Volume
from jaxsr.volume.slices import AXES, SliceMapKind

IN_A_ROW = 4


def bench_upscale(
    experiment: Experiment,
    of: tuple[int, int, int] | Volume,
    sampling_steps: int | None = None,
    batch_size: BatchSize = 16,
    *,
    repeats: int = 3,
    slice_map: SliceMapKind = "pad",
) -> dict[str, Any]:
    """Times `repeats` volumes after a first, which compiles; as JSON can hold it.

    Args:
      of: the shape of the result, of a synthetic head; or a scan.
      sampling_steps: None for the method's own number.
    """
    method = build_method(experiment)
    default = method.default_request
    request = default._replace(steps=default.steps if sampling_steps is None else sampling_steps)
    image = jax.ShapeDtypeStruct((1, method.multiple, method.multiple, 1), jnp.float32)
    variables = synthetic_variables(method, Batch(high=image, low=image), experiment.seed)  # type: ignore[arg-type]
    mesh = make_mesh(**dict(experiment.mesh))
    engine = Engine(
        method,
        held_to_upscale(method, variables, experiment.precision),
        mesh,
        batch_size=batch_size,
        slice_map=slice_map,
        interpolation=experiment.data.interpolation,
    )
    volume = of if isinstance(of, Volume) else synthetic_head(of, experiment)
    to_mm = experiment.data.voxel_size
    plan = engine.plan(volume, to_mm, tuple(AXES), request)

    first = call_times(lambda: engine.upscale(volume, request, to_mm=to_mm).volume.data, 1)[0]
    times = summary(call_times(lambda: engine.upscale(volume, request, to_mm=to_mm).volume.data, repeats))
    devices = device_seconds(engine, plan, repeats) if len(ways(method, request)) == 1 else None
    memory = peak_memory()  # before the matrix product of `rates` adds its own
    sizes = batch_sizes(method, plan, engine.batch_size, mesh.shape["data"] * mesh.shape["fsdp"])
    work = volume_multiply_adds(trace_batches(method, variables, sizes), plan, sizes, method, variables)
    return {
        "shape": list(plan.grid.shape),
        "input": "a scan" if isinstance(of, Volume) else "synthetic",
        "sampling_steps": request.steps,
        "batch_size": engine.batch_size,
        "batch_sizes": sorted(set(sizes.values())),
        "slice_map": slice_map,
        "slices": plan.slices,
        "seconds_per_volume": times["median"],
        "passes": plan.passes,
        "slices_per_second": plan.passes * plan.slices / times["median"],
        "device_seconds": devices,
        "device_share": devices and devices / times["median"],
        "first_volume_seconds": first,
        "compilations": engine.compilations,
        "compile_seconds": engine.compile_seconds,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "multiply_adds": work,
        **rates(work, times["median"], experiment.precision),
        **memory,
        "volume_seconds": times,
        **circumstances(experiment),
    }


def device_seconds(engine: Engine, plan: Plan, repeats: int) -> float:
    """What the batches of a volume take where the host does nothing: of each shape the median of `repeats` times `IN_A_ROW`."""
    several = lambda call: [call() for _ in range(IN_A_ROW)]  # noqa: E731
    each = {
        (of.sides, of.work.request): (size, summary(call_times(partial(several, call), repeats))["median"] / IN_A_ROW)
        for of, size, call in engine.alone()
    }
    runs = [(each[sides, request], count) for sides, request, count in plan.runs]
    return float(sum(seconds * -(-count // size) for (size, seconds), count in runs))


def _took(result: dict[str, Any]) -> str:
    return f" ({seconds:.1f} s)" if (seconds := result.get("compile_seconds")) else ""


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    sizes = result.get("batch_sizes") or [result["batch_size"]]
    scan = ", of a scan" if result.get("input") == "a scan" else ""
    again = f", {passes} passes" if (passes := result.get("passes", 1)) > 1 else ""
    return [
        ("volume", f"{' × '.join(map(str, result['shape']))}, {result['slices']} slices{again}, {result['slice_map']}{scan}"),
        ("sampling", f"{result['sampling_steps']} steps, {' or '.join(map(str, sizes))} slices at a time"),
        ("seconds a volume", describe_times(result["volume_seconds"])),
        ("slices/s", f"{result['slices_per_second']:.4g}"),
        *([("devices alone", f"{devices:.4g} s, {result['device_share']:.1%}")] if (devices := result.get("device_seconds")) else []),
        ("first volume", f"{result['first_volume_seconds']:.1f} s, with {result['compilations']} compilations{_took(result)}"),
        ("multiply-adds a volume", quantity(result["multiply_adds"])),
        *describe_rates(result),
    ]
