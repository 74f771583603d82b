"""What `jaxsr upscale --dry-run` says: everything about an output that can be known before anything is computed, weights unread.

Multiply-adds are counted in the traced program. Memory of the host is that of the volumes held at once. Memory of a device is an estimate
from the same trace: parameters, and the most that is alive at a time between the operations of one batch. A compiler fuses operations, and
needs less; a convolution's workspace comes on top. Nothing is compiled, for that takes longer than many volumes.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from jaxsr.bench.count import operations, quantity
from jaxsr.files import shown
from jaxsr.methods.base import Method, Mixture, Request
from jaxsr.methods.condition import abstract_condition
from jaxsr.methods.precision import held_to_upscale
from jaxsr.nn.attend import using
from jaxsr.train.build import variables_to_upscale
from jaxsr.upscale.batches import BatchSize, first_batch_size, fitting_size
from jaxsr.upscale.engine import programs_each, ways
from jaxsr.upscale.guide_maps import read_guides
from jaxsr.upscale.guides import Guides
from jaxsr.upscale.inputs import Job, memory_needed
from jaxsr.upscale.model import Recipe
from jaxsr.upscale.plan import Plan, make_plan
from jaxsr.upscale.settings import Settings, notes_of, settled
from jaxsr.upscale.sidecar import check_maps, check_sidecar, map_path
from jaxsr.volume.io import Volume
from jaxsr.volume.orientation import from_ras, turn_from
from jaxsr.volume.slices import SliceMapKind


def forecast(
    recipe: Recipe,
    job: Job,
    volume: Volume,
    settings: Settings,
    *,
    batch_size: BatchSize,
    slice_map: SliceMapKind,
    guides: Guides = Guides(),
) -> dict[str, Any]:
    """The plan for `volume`, as JSON can hold it; `guides` are read, as they may be refused.

    Raises:
      VolumeError: for what would be refused.
    """
    check_sidecar(job.output, picture=settings.picture, explain=settings.explain)
    check_maps([job], settings.maps)
    settings = settled(settings, recipe, volume)
    plan = make_plan(recipe.method, volume.grid, settings.to_mm, settings.axes, slice_map, settings.request, settings.resolves)
    read_guides(recipe.experiment, guides, plan.work, volume)
    devices = jax.local_device_count()
    size = -(-(first_batch_size() if batch_size == "auto" else batch_size) // devices) * devices
    voxels, affine = from_ras(np.broadcast_to(np.float32(0), plan.grid.shape), plan.grid.affine, turn_from(volume.orientation))
    variables = _abstract_variables(recipe)
    sizes = batch_sizes(recipe.method, plan, size, devices)
    traces = trace_batches(recipe.method, variables, sizes)
    draws = settings.samples if settings.samples == 1 or recipe.method.most_steps > 1 else 1
    work = volume_multiply_adds(traces, plan, sizes, recipe.method, variables)
    explained = explained_multiply_adds(plan, size, devices, recipe.method, variables) if settings.explain else 0
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    return {
        "Input": str(job.source),
        "Output": str(job.output),
        "Maps": [str(map_path(job.output, name)) for name in settings.maps],
        "Shape": list(voxels.shape),
        "VoxelSize": list(plan.grid.voxel_size),
        "Orientation": "".join(volume.orientation),
        "Affine": affine.tolist(),
        "Axes": {
            axis: {"Slices": count, "Padded": list(sides)} for axis, count, sides in zip(plan.axes, plan.counts, plan.shapes, strict=True)
        },
        "Slices": plan.slices,
        "Passes": plan.passes,
        "Compilations": plan.compilations * programs_each(recipe.method, settings.request, settings.explain),
        "BatchSize": size,
        "BatchSizeMayShrink": batch_size == "auto",
        "Batches": sum(batches for *_, batches in _of_axes(plan, sizes)),
        "SamplingSteps": settings.request.steps,
        "Samples": draws,
        "MultiplyAdds": None if work is None or explained is None else draws * work + explained,
        "HostBytes": memory_needed(volume, plan.work, **settings.memory),
        "DeviceBytes": weights + max(live_bytes(trace) for trace in traces.values()) // devices,
        "Devices": devices,
        "Notes": [*volume.notes, *notes_of(volume, settings, recipe), *plan.left_out],
    }


def lines(facts: Mapping[str, Any]) -> list[str]:
    """A forecast for people."""
    sides, size = (" × ".join(f"{v:g}" for v in facts[name]) for name in ("Shape", "VoxelSize"))
    origin = ", ".join(f"{row[3]:.4g}" for row in facts["Affine"][:3])
    axes = ", ".join(f"{axis} {of['Slices']} of {of['Padded'][0]} × {of['Padded'][1]}" for axis, of in facts["Axes"].items())
    kept = "fewer where memory is short" if facts["BatchSizeMayShrink"] else "as asked"
    again = f", gone over {facts['Passes']} times" if facts["Passes"] > 1 else ""
    steps = f"{'1, then ' if facts['Passes'] > 1 and facts['SamplingSteps'] > 1 else ''}{facts['SamplingSteps']}"
    host, device = (quantity(facts[name], "B", 1024) for name in ("HostBytes", "DeviceBytes"))
    return [
        f"{shown(facts['Input'])} → {shown(facts['Output'])}",
        f"  output      {sides} voxels of {size} mm, {facts['Orientation']}, the first at ({origin}) mm",
        *(f"  map         {shown(path)}" for path in facts["Maps"]),
        f"  work        {facts['Slices']} slices{again}, padded ({axes}), in {facts['Batches']} batches of at most {facts['BatchSize']} "
        f"({kept})" + (f", for each of {facts['Samples']} samples" if facts["Samples"] > 1 else ""),
        f"              sampling steps of each: {steps}; multiply-adds: {quantity(facts['MultiplyAdds'])}; "
        f"programs to compile: {facts['Compilations']}",
        f"  memory      host: {host} for volumes; each of the devices ({facts['Devices']}): about {device}, estimated from shapes",
        *(f"  note        {note}" for note in facts["Notes"]),
    ]


def live_bytes(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """The most that arrays made within `jaxpr` occupy at a time, each alive from its making to its last use; arguments are not counted."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    last = {v: i for i, equation in enumerate(jaxpr.eqns) for v in equation.invars if isinstance(v, Var)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)}
    made: set[Var] = set()
    now = most = 0
    for i, equation in enumerate(jaxpr.eqns):
        inner = max((live_bytes(j) for value in equation.params.values() for j in _jaxprs(value)), default=0)
        written = sum(_bytes(v) for v in equation.outvars)
        most = max(most, now + max(inner, written))
        made.update(v for v in equation.outvars if v in last)
        now += sum(_bytes(v) for v in equation.outvars if v in last)
        for v in {v for v in equation.invars if not isinstance(v, Literal) and last.get(v) == i} & made:
            now -= _bytes(v)
    return most


Program = tuple[tuple[int, int], Request]  # the sides of its slices, and what is asked for
Sizes = Mapping[Program, int]  # slices at a time
Traces = Mapping[Program, ClosedJaxpr]  # of a batch


def batch_sizes(method: Method, plan: Plan, most: int, devices: int) -> Sizes:
    """Of each program of `plan`, for a first volume; at most `most`, and that of slices that go to one expert each."""
    return {
        (sides, request): most if len(ways(method, request)) > 1 else fitting_size(plan.counts_of(sides, request), most, devices)
        for sides, request in plan.programs
    }


def trace_batches(method: Method, variables: Any, sizes: Sizes) -> Traces:
    """The traced programs; `variables` may be abstract."""
    return {
        (sides, request): _trace(method, variables, sides, size, dearest(method, variables, sides, request))
        for (sides, request), size in sizes.items()
    }


def dearest(method: Method, variables: Any, sides: tuple[int, int], request: Request) -> Request:
    """What is asked for of slices of `sides`; of those that go to one expert each, the one with most to do: which it will be is not known
    before."""
    asked = ways(method, request)
    return asked[0] if len(asked) == 1 else max(asked, key=lambda alone: _work(_trace(method, variables, sides, 1, alone), []))


def volume_multiply_adds(traces: Traces, plan: Plan, sizes: Sizes, method: Method, variables: Any) -> int | None:
    """Of all batches of one volume, the last one of each axis filled up; None where shapes do not tell.

    Of slices that go to one expert each it is what that takes at most: what says which, the dearest expert for all, and the last batch of
    each filled up.
    """
    notes: list[str] = []
    total = 0
    for sides, request, batches in _of_axes(plan, sizes):
        count = len(ways(method, request))
        total += _work(traces[sides, request], notes) * (batches + count - 1)
        if count > 1:
            total += _work(_trace(method, variables, sides, sizes[sides, request], "route"), notes) * batches
    return None if notes else total


def explained_multiply_adds(plan: Plan, batch_size: int, devices: int, method: Method, variables: Any) -> int | None:
    """What explaining takes beside it: attention, and each expert of a mixture alone; None where shapes do not tell."""
    notes: list[str] = []
    assert isinstance(method, Mixture)  # the command line has seen to it
    sizes = {program: fitting_size(plan.counts_of(*program), batch_size, devices) for program in plan.programs}
    total = 0
    for sides, _, batches in _of_axes(plan, dict.fromkeys(plan.programs, batch_size)):
        total += batches * _work(_trace(method, variables, sides, batch_size, "explain"), notes)
    for sides, request, batches in _of_axes(plan, sizes):
        for expert in range(len(method.experts)):
            alone = request._replace(expert=expert)
            total += batches * _work(_trace(method, variables, sides, sizes[sides, request], alone), notes)
    return None if notes else total


def _of_axes(plan: Plan, sizes: Sizes) -> list[tuple[tuple[int, int], Request, int]]:
    """Sides, request and batches of each axis whose slices are upscaled, of each pass."""
    return [(sides, request, -(-count // sizes[sides, request])) for sides, request, count in plan.runs]


def _trace(method: Method, variables: Any, sides: tuple[int, int], batch_size: int, what: Request | str) -> ClosedJaxpr:
    """A batch of slices of `sides`, upscaled as asked, or given to the mixture's function of that name."""
    condition = abstract_condition(method, (batch_size, *sides))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    with using("xla"):  # as networks are counted
        if isinstance(what, str):
            return jax.make_jaxpr(getattr(method, what))(variables, condition)
        return jax.make_jaxpr(functools.partial(method.upscale, request=what))(variables, condition, keys)


def _work(trace: ClosedJaxpr, notes: list[str]) -> int:
    return sum(operation.multiply_adds for operation in operations(trace, notes))


def _abstract_variables(recipe: Recipe) -> Any:
    return held_to_upscale(recipe.method, variables_to_upscale(recipe.experiment, recipe.method), recipe.experiment.precision)


def _jaxprs(value: Any) -> list[ClosedJaxpr | Jaxpr]:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return [value]
    return [inner for item in value for inner in _jaxprs(item)] if isinstance(value, tuple | list) else []


def _bytes(variable: Any) -> int:
    aval = variable.aval
    return int(aval.size) * int(getattr(aval.dtype, "itemsize", 4)) if hasattr(aval, "size") else 0
