"""How fast volumes are upscaled: the engine of `jaxsr upscale`, fed a synthetic head, with weights drawn at random.

The input has the voxels of the configured acquisition over the same field of view, so that bringing it to the target grid counts too; files
are neither read nor written. Multiply-adds are those that the devices do: of padded slices and full batches.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsr.bench.count import multiply_adds, quantity
from jaxsr.bench.measure import call_times, circumstances, describe_rates, describe_times, peak_memory, rates, summary
from jaxsr.bench.synthetic import synthetic_head, synthetic_variables
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Batch, Condition, Method, Request, Variables
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.loop import build_method
from jaxsr.upscale.engine import Engine, Plan
from jaxsr.volume.slices import AXES


def bench_upscale(
    experiment: Experiment,
    shape: tuple[int, int, int],
    sampling_steps: int | None = None,
    batch_size: int = 16,
    *,
    repeats: int = 3,
    slice_map: Literal["pad", "resize"] = "pad",
) -> dict[str, Any]:
    """Times `repeats` volumes of `shape` (of the result) after a first, which compiles; as JSON can hold it.

    Args:
      sampling_steps: None for the method's own number.
    """
    method = build_method(experiment)
    default = method.default_request
    request = default._replace(steps=default.steps if sampling_steps is None else sampling_steps)
    image = jax.ShapeDtypeStruct((1, method.multiple, method.multiple, 1), jnp.float32)
    variables = synthetic_variables(method, Batch(high=image, low=image), experiment.seed)  # type: ignore[arg-type]
    engine = Engine(
        method,
        variables,
        make_mesh(**dict(experiment.mesh)),
        batch_size=batch_size,
        slice_map=slice_map,
        interpolation=experiment.data.interpolation,
    )
    volume, to_mm = synthetic_head(shape, experiment), experiment.data.voxel_size
    plan = engine.plan(volume, to_mm, tuple(AXES))

    first = call_times(lambda: engine.upscale(volume, request, to_mm=to_mm).volume.data, 1)[0]
    times = summary(call_times(lambda: engine.upscale(volume, request, to_mm=to_mm).volume.data, repeats))
    memory = peak_memory()  # before the matrix product of `rates` adds its own
    work = volume_multiply_adds(method, variables, plan, shape, request, engine.batch_size)
    return {
        "shape": list(shape),
        "sampling_steps": request.steps,
        "batch_size": engine.batch_size,
        "slice_map": slice_map,
        "slices": plan.slices,
        "seconds_per_volume": times["median"],
        "slices_per_second": plan.slices / times["median"],
        "first_volume_seconds": first,
        "compilations": engine.compilations,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "multiply_adds": work,
        **rates(work, times["median"], experiment.precision),
        **memory,
        "volume_seconds": times,
        **circumstances(experiment),
    }


def volume_multiply_adds(
    method: Method, variables: Variables, plan: Plan, shape: tuple[int, int, int], request: Request, batch_size: int
) -> int | None:
    """Of all batches of one volume, the last one of each axis filled up; None where shapes do not tell."""

    def of_batch(sides: tuple[int, int]) -> int | None:
        low = jax.ShapeDtypeStruct((batch_size, *sides, 1), jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
        return multiply_adds(functools.partial(method.upscale, request=request), variables, Condition(low), keys)  # type: ignore[arg-type]

    known = {sides: of_batch(sides) for sides in set(plan.shapes)}
    total = 0
    for axis, sides in zip(plan.axes, plan.shapes, strict=True):
        if (work := known[sides]) is None:
            return None
        total += work * -(-shape[AXES[axis]] // batch_size)
    return total


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    return [
        ("volume", f"{' × '.join(map(str, result['shape']))}, {result['slices']} slices, {result['slice_map']}"),
        ("sampling", f"{result['sampling_steps']} steps, {result['batch_size']} slices at a time"),
        ("seconds a volume", describe_times(result["volume_seconds"])),
        ("slices/s", f"{result['slices_per_second']:.4g}"),
        ("first volume", f"{result['first_volume_seconds']:.1f} s, with {result['compilations']} compilations"),
        ("multiply-adds a volume", quantity(result["multiply_adds"])),
        *describe_rates(result),
    ]
