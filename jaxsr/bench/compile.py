"""What the training step, or a batch of `upscale`, needs of each device: compiled for a mesh from shapes alone, nothing is allocated.

The devices may be simulated: a CPU's compiler partitions a program for as many as are asked for, and its plan of the buffers is of the same
program. It computes bfloat16 in float32, though, so the program is compiled in float32 there, and of a configuration in bfloat16 what is
temporary is taken at half, but for gradients, which have the parameters' precision: an estimate, and called one. What is held is counted as
it is held, weights in bfloat16 where they are given so (`jaxsr.methods.precision`), whatever the program was compiled for. Compilers for
accelerators choose other layouts, workspaces and fusions.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from jaxsr.bench.collectives import collectives, summed
from jaxsr.bench.count import check_size, quantity
from jaxsr.bench.measure import circumstances, compiled
from jaxsr.bench.train import step_multiply_adds
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Condition, abstract_condition, takes_cubes
from jaxsr.methods.precision import held_to_train, held_to_upscale
from jaxsr.nn.attend import using
from jaxsr.precompute.teacher_cache import check_teacher, distill_slices, maps_seen
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated
from jaxsr.train.build import abstract_batch, build_method, variables_to_upscale
from jaxsr.train.state import abstract_state, abstract_variables, frozen_shardings, make_optimizer, players_of, shardings_of
from jaxsr.train.step import make_step
from jaxsr.upscale.forecast import dearest
from jaxsr.upscale.guides import maps_to_upscale


def compile_train(experiment: Experiment, encoded: bool = False) -> dict[str, Any]:
    """The trainer's step of `experiment` on its mesh over all devices, as JSON can hold it; bytes are of one device.

    A batch that training would refuse, as it does not divide over the devices, is rounded up, of cubes to whole ones: `asked_batch_size` is
    what it was.

    Args:
      encoded: of slices that were encoded before.

    Raises:
      ConfigError: as `abstract_batch`.
    """
    asked = experiment
    experiment, estimated = _compilable(experiment)
    mesh, method = make_mesh(**dict(experiment.mesh)), build_method(experiment)
    cubes = 3 * experiment.data.crop if takes_cubes(experiment.method) else 1
    batch_size = _rounded_up(experiment.train.batch_size, math.lcm(_devices_of_slices(mesh) * experiment.train.accumulate, cubes))
    experiment = experiment.model_copy(update={"train": experiment.train.model_copy(update={"batch_size": batch_size})})
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, players_of(method))
    batch = abstract_batch(experiment, encoded=encoded)
    state = abstract_state(method, optimizer, batch, mesh)
    shapes, laid = abstract_variables(method, batch)["frozen"], frozen_shardings(method, mesh, batch)
    frozen = _laid(held_to_train(method, shapes, batch, experiment.precision), laid)
    held_frozen = _laid(held_to_train(build_method(asked), shapes, batch, asked.precision), laid) if estimated else frozen
    placed = _laid(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))
    key = _laid(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    step = jax.jit(
        make_step(method, optimizer, ema=experiment.train.ema, steps=experiment.train.steps, accumulate=experiment.train.accumulate),
        donate_argnums=0,
        out_shardings=(shardings_of(state), replicated(mesh)),
    )
    with jax.set_mesh(mesh), _as_planned(estimated):
        program, times = compiled(step, state, placed, key, frozen)
    held = {"state": _bytes(state), "frozen": _bytes(held_frozen), "batch": _bytes(placed)}
    what = "training step, encoded slices" if encoded else "training step"
    facts = {"what": what, "batch_size": batch_size, "asked_batch_size": asked.train.batch_size, "size": experiment.data.crop}
    facts["multiply_adds"] = step_multiply_adds(method, batch)
    memory = _memory(program, held, estimated, _bytes(state.params))
    return {**facts, **memory, **_spoken(program, mesh), **times, **_about(asked, mesh, estimated)}


def compile_upscale(experiment: Experiment, batch_size: int, size: int) -> dict[str, Any]:
    """A batch of slices of `size`² pixels in `upscale`, with the maps that the method takes.

    Where slices go to one expert each it is a batch of the one with most to do. Like the engine's, the batch is rounded up to a multiple of
    the devices; `asked_batch_size` is what it was.

    Raises:
      ConfigError: where `size` does not suit the network.
    """
    found = build_method(experiment)
    check_size(found, size)
    request = dearest(found, variables_to_upscale(experiment, found), (size, size), found.default_request)
    alone = "" if request.expert is None else f", by the dearest of {len(found.experts)} experts"  # type: ignore[attr-defined]

    def upscale(method: Any, variables: Any, maps: dict[str, Any], keys: Any) -> Any:
        return method.upscale(variables, Condition(**maps), keys, request)

    return _of_slices(experiment, batch_size, size, upscale, f"upscaling in {request.steps} steps{alone}")


def compile_distill(experiment: Experiment, batch_size: int, size: int, steps: int) -> dict[str, Any]:
    """The same of a batch in `distill`, of which the teacher, that `experiment` describes, makes what a student learns from.

    Raises:
      ConfigError: for a method that is no teacher, or cannot sample in so many steps, or where `size` does not suit its network.
    """
    check_teacher(build_method(experiment), f"method.kind={experiment.method.kind}", steps)
    check_size(build_method(experiment), size)

    def distill(method: Any, variables: Any, maps: dict[str, Any], keys: Any) -> Any:
        return distill_slices(method.sampler(variables, Condition(**maps)), keys, Request(steps, method.default_request.eta))

    return _of_slices(experiment, batch_size, size, distill, f"distilling in {steps} steps, {maps_seen(steps, 1)} images on the way")


def _of_slices(experiment: Experiment, batch_size: int, size: int, do: Callable[..., Any], what: str) -> dict[str, Any]:
    """Of the program `do(method, variables, maps, keys)`."""
    asked = experiment
    experiment, estimated = _compilable(experiment)
    mesh, method = make_mesh(**dict(experiment.mesh)), build_method(experiment)
    shapes = variables_to_upscale(experiment, method)
    laid = jax.tree.map(lambda _: replicated(mesh), shapes)
    variables = _laid(held_to_upscale(method, shapes, experiment.precision), laid)
    held_variables = _laid(held_to_upscale(build_method(asked), shapes, asked.precision), laid) if estimated else variables
    names = ("low", *maps_to_upscale(experiment))
    given, batch_size = batch_size, _rounded_up(batch_size, _devices_of_slices(mesh))
    maps = {name: of for name, of in abstract_condition(method, (batch_size, size, size), names)._asdict().items() if of is not None}
    placed = _laid(maps, {name: batch_sharding(mesh) for name in maps})
    keys = _laid(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size)), batch_sharding(mesh))
    with jax.set_mesh(mesh), _as_planned(estimated):
        program, times = compiled(jax.jit(lambda v, c, k: do(method, v, c, k)), variables, placed, keys)
    facts = {"what": what, "batch_size": batch_size, "asked_batch_size": given, "size": size}
    held = {"parameters": _bytes(held_variables), "batch": _bytes(placed)}
    return {**facts, **_memory(program, held, estimated), **_spoken(program, mesh), **times, **_about(asked, mesh, estimated)}


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    batch = result["batch_size"]
    held = ", ".join(f"{name} {quantity(value, 'B', 1024)}" for name, value in result["held_bytes"].items())
    temporary = quantity(result["temporary_bytes"], "B", 1024)
    whole = quantity(result["device_bytes"], "B", 1024)
    mesh = ", ".join(f"{name} {size}" for name, size in result["mesh"].items() if size > 1) or "one device"
    rounded = f" ({asked} asked for: rounded up to the devices)" if (asked := result.get("asked_batch_size", batch)) != batch else ""
    said = " (estimate: gradients, and half of what else the CPU's compiler plans in float32)" if result["estimated"] else ""
    return [
        (result["what"], f"{batch} slices of {result['size']} × {result['size']} over {mesh}{rounded}"),
        ("each device holds", held),
        ("temporary", temporary + said),
        ("in all", f"{whole} a device"),
        *_describe_spoken(result),
        ("compilation", f"{result['compile_seconds']:.0f} s, traced and lowered in {result['trace_seconds']:.0f} s"),
    ]


def _devices_of_slices(mesh: Any) -> int:
    """Over which a batch is divided."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _compilable(experiment: Experiment) -> tuple[Experiment, bool]:
    """With the precision that this platform's compiler computes in, and whether that is another than was asked for."""
    estimated = jax.default_backend() == "cpu" and experiment.precision == "bf16"
    return (experiment.model_copy(update={"precision": "f32"}) if estimated else experiment), estimated


def _as_planned(estimated: bool) -> AbstractContextManager[None]:
    """An estimate is of an accelerator, which may hold all scores of attention; a CPU does not."""
    return using("xla") if estimated else nullcontext()


def _memory(program: Any, held: dict[str, int], estimated: bool, gradients: int = 0) -> dict[str, Any]:
    stats = program.memory_analysis()
    if stats is None:
        return {"held_bytes": held, "temporary_bytes": None, "device_bytes": None}
    temporary = int(stats.temp_size_in_bytes)
    if estimated:
        whole = min(gradients, temporary)
        temporary = whole + (temporary - whole) // 2
    return {"held_bytes": held, "temporary_bytes": temporary, "device_bytes": sum(held.values()) + temporary}


def _spoken(program: Any, mesh: Any) -> dict[str, Any]:
    """What the devices say to one another in one run; nothing for one device."""
    notes: list[str] = []
    text = program.as_text() if mesh.size > 1 else ""
    if text is None:
        notes.append("what devices exchange: this compiler does not show its program")
    found = collectives(text or "", dict(mesh.shape), notes)
    return {"collectives": summed(found), "notes": list(dict.fromkeys(notes))}


def _describe_spoken(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            f"{row['kind']} over {' × '.join(row['axes'])}",
            f"each device sends {quantity(row['sent_bytes'], 'B', 1024)}, in {row['times']} of {row['devices']} devices",
        )
        for row in result["collectives"]
    ]
    return rows + [("not counted", note) for note in result["notes"]]


def _about(experiment: Experiment, mesh: Any, estimated: bool) -> dict[str, Any]:
    return {"mesh": dict(mesh.shape), "estimated": estimated, **circumstances(experiment)}


def _laid(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings)


def _bytes(tree: Any) -> int:
    """Of the shards of one device."""
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
