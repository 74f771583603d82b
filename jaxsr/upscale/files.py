"""Files in, files out: what `jaxsr upscale` does with a file once it is read."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsr.evaluate.files import sidecar_path
from jaxsr.files import Writer, shown
from jaxsr.methods.base import Mixture
from jaxsr.methods.precision import held_to_upscale
from jaxsr.runtime.distributed import Place
from jaxsr.runtime.memory import OutOfMemory
from jaxsr.runtime.mesh import MeshError, make_mesh
from jaxsr.upscale.batches import BatchSize
from jaxsr.upscale.consistency import consistency_map
from jaxsr.upscale.engine import Engine, Progress, Upscaled
from jaxsr.upscale.explain import Explained, draw_attention, draw_experts, explain, other_units, read_reference
from jaxsr.upscale.guide_maps import guidance_facts, read_guides
from jaxsr.upscale.guides import Guides, check_guides
from jaxsr.upscale.inputs import Job, check_target, memory_needed, read_input
from jaxsr.upscale.model import Model, Recipe
from jaxsr.upscale.plan import NothingToDo, is_told
from jaxsr.upscale.samples import Samples, draw
from jaxsr.upscale.settings import Settings, notes_of, settled
from jaxsr.upscale.sidecar import (
    EXPLAINING,
    check_maps,
    check_sidecar,
    describe,
    describe_map,
    json_writer,
    map_path,
    millimetres,
    picture_path,
    sample_name,
    stale_maps,
)
from jaxsr.volume.geometry import Grid, target_grid
from jaxsr.volume.io import Volume, VolumeError, volume_writer, write_volume
from jaxsr.volume.memory import free_memory
from jaxsr.volume.slices import SliceMapKind

BESIDE = 3  # of what one volume takes must be free for others to be read and written beside it


def share(jobs: list[Job], place: Place) -> list[Job]:
    """The jobs of one of several processes, out of *all*, done or not: so processes that look at different moments agree."""
    return jobs[place.process :: place.processes]


def make_engine(model: Model, *, batch_size: BatchSize, slice_map: SliceMapKind = "pad", apart: bool = False) -> Engine:
    """Over all devices of this process; `apart`: of a mixture, each expert on devices of its own.

    Raises:
      MeshError: where there are no so many devices as experts, or a multiple.
    """
    count = len(model.method.experts) if apart and isinstance(model.method, Mixture) else 1
    if (found := jax.local_device_count()) % count:
        raise MeshError(f"{count} experts run apart on {count} devices or a multiple, and {found} are here: ask for all or top1 of them")
    return Engine(
        model.method,
        held_to_upscale(model.method, model.variables, model.experiment.precision),
        make_mesh(expert=count, devices=jax.local_devices()),
        batch_size=batch_size,
        slice_map=slice_map,
        interpolation=model.experiment.data.interpolation,
    )


def read_source(path: Path, settings: Settings, note: Callable[[str], None] = lambda text: None) -> Volume:
    """`read_input` with these settings."""
    return read_input(
        path, to_mm=settings.to_mm, axes=settings.axes, volume=settings.volume, nan=settings.nan, note=note, **settings.memory
    )


class Written(NamedTuple):
    """What `upscale_file` did: the input as read, the output as written, its sidecar, and where its maps are."""

    low: Volume
    output: Volume
    facts: dict[str, Any]
    maps: tuple[Path, ...] = ()


class Made(NamedTuple):
    """A volume that is upscaled and not yet written: what will have been done, and what does it."""

    result: Written
    write: Callable[[], None]


def upscale_file(engine: Engine, model: Model, job: Job, settings: Settings, **how: Any) -> Written:
    """`make_file`, which takes the same, and then writes the volume, its maps and its sidecar.

    Raises: as that; VolumeError for what cannot be written.
    """
    made = make_file(engine, model, job, settings, **how)
    made.write()
    return made.result


def make_file(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    *,
    volume: Volume | None = None,
    guides: Guides = Guides(),
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Made:
    """Reads (unless `volume` is what `read_input` made of the source) and upscales; of what it makes only single samples are written.

    Raises:
      VolumeError: for what cannot be read or upscaled; NothingToDo: where there is no stage to run.
      FloatingPointError: where the model returns NaN.
      OutOfMemory: of the host, or of the device after all retries.
    """
    with told_of(job):
        return _make_file(engine, model, job, settings, volume, guides, progress, note)


def read_job(job: Job, settings: Settings, note: Callable[[str], None] = lambda text: None) -> Volume:
    """`read_source` of a job, as `make_file` takes it. Raises: as that."""
    with told_of(job):
        return read_source(job.source, settings, note)


def room_beside(recipe: Recipe, volume: Volume, settings: Settings) -> bool:
    """Whether memory has room for another volume to be read, and one to be written, beside `volume` while that is upscaled."""
    to_mm = settled(settings, recipe, volume).to_mm
    target, free = target_grid(volume.grid, to_mm) if to_mm else volume.grid, free_memory()
    return free is None or free > BESIDE * memory_needed(volume, target, **settings.memory)


@contextlib.contextmanager
def told_of(job: Job) -> Iterator[None]:
    """What memory was too short for, and what there is nothing to do with, is said with the name of the volume."""
    name = shown(job.source)
    try:
        yield
    except (OutOfMemory, NothingToDo) as error:
        raise type(error)(f"{name}: {error}") from error
    except MemoryError as error:
        why = str(error) or "no memory left on the host"
        raise OutOfMemory(f"{name}: out of memory ({why}): choose a larger --to-mm; --dry-run says how much is needed") from error


def _make_file(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    volume: Volume | None,
    guides: Guides,
    progress: Progress,
    note: Callable[[str], None],
) -> Made:
    check_sidecar(job.output, picture=settings.picture, explain=settings.explain)
    check_maps([job], settings.maps)
    if volume is None:
        volume = read_source(job.source, settings, note)
    settings = settled(settings, model.recipe, volume)
    check_target(volume, settings.to_mm, **settings.memory)
    odd = notes_of(volume, settings, model.recipe)
    for sentence in odd:
        note(f"{shown(job.source.name)}: {sentence}")
    volume = replace(volume, notes=(*volume.notes, *odd))
    check_guides(model.experiment, guides)
    plan = engine.plan(volume, settings.to_mm, settings.axes, settings.request, settings.resolves)
    if plan.work is not plan.grid:
        check_target(volume, min(plan.work.voxel_size), **settings.memory)
    truth = read_reference(settings.reference, plan.grid) if settings.reference else None
    guiding = read_guides(model.experiment, guides, plan.work, volume)
    guidance = {"Guidance": guidance_facts(model.experiment, guides)} if guiding else {}
    started = time.monotonic()

    def facts_of(result: Upscaled, **more: Any) -> dict[str, Any]:
        seconds = round(time.monotonic() - started, 2)
        own = {
            "Seed": settings.seed,
            **({"ToldVoxelSize": millimetres(settings.resolves)} if is_told(model.method) else {}),
            **guidance,
            **more,
            "BatchSize": engine.batch_size,
            "Compilations": result.compilations,
            "Seconds": seconds,
        }
        return describe(model, job, result, settings.request, **own)

    kept: list[Path] = []

    def look_at(sample: int, result: Upscaled) -> None:
        if not np.isfinite(result.volume.data).all():
            raise FloatingPointError(f"{shown(job.source)}: the model returned NaN or Inf; try --precision f32")
        if settings.keep_samples:
            path, name = map_path(job.output, sample_name(sample)), sample_name(sample)
            kept.append(path)
            own = describe_map(job, facts_of(result), name, result.volume, Sample=sample)
            write_volume(path, result.volume, description="jaxsr: synthetic", before={sidecar_path(path): json_writer(own)})

    drawn = draw(
        engine, volume, settings.request, settings.samples, sampling=settings.samples == 1 or model.method.most_steps > 1,
        to_mm=settings.to_mm, from_mm=settings.resolves, maps=guiding, axes=settings.axes, seed=settings.seed, each=look_at,
        progress=progress, note=note,
    )  # fmt: skip
    maps, more = _maps(volume, drawn, settings, lambda sentence: note(f"{shown(job.source.name)}: {sentence}"))
    if settings.explain:
        explained = _explained(engine, model, job, settings, volume, drawn.mean, truth, progress, note)
        for kind, found in (("attention", explained.attention), ("weight", explained.local), ("error", explained.errors)):
            maps |= {f"{kind}-{i + 1}": (of, {"Expert": name}) for i, (name, of) in enumerate(zip(explained.experts, found, strict=False))}
        more |= explained.facts
    facts = facts_of(drawn.mean, **more)
    before: dict[Path, Writer] = {}
    for name, (image, own) in maps.items():
        path = map_path(job.output, name)
        before[sidecar_path(path)] = json_writer(describe_map(job, facts, name, image, **own))
        before[path] = volume_writer(path, image, "jaxsr: map of a synthetic volume")
    before[sidecar_path(job.output)] = json_writer(facts)
    pictures = EXPLAINING if settings.explain and settings.picture else ()
    stale = [*maps, *pictures, *(sample_name(sample) for sample in range(len(kept)))]

    def write() -> None:
        with told_of(job):
            for path in stale_maps(job.output, stale):
                path.unlink(missing_ok=True)
            write_volume(job.output, drawn.mean.volume, description="jaxsr: synthetic", before=before)

    return Made(Written(volume, drawn.mean.volume, facts, (*kept, *(map_path(job.output, name) for name in maps))), write)


def _maps(
    low: Volume, drawn: Samples, settings: Settings, note: Callable[[str], None]
) -> tuple[dict[str, tuple[Volume, dict[str, Any]]], dict[str, Any]]:
    """Maps to be written beside an output, by name, with what is said of each; and what the output's sidecar says of them."""
    maps: dict[str, tuple[Volume, dict[str, Any]]] = {}
    facts: dict[str, Any] = {}
    if drawn.std is not None:
        said = {"Note": drawn.same} if drawn.same else {}
        maps["std"] = drawn.std, {"Units": "of the input", **said}
        facts |= {"Samples": settings.samples, **{f"Samples{key}": value for key, value in said.items()}}
        for sentence in said.values():
            note(sentence)
    if settings.consistency:
        try:
            found = consistency_map(low, drawn.mean.volume, settings.consistency)
        except VolumeError as error:  # the output is worth keeping without it
            note(f"no consistency map: {error}")
            facts["Consistency"] = {"LeftOut": str(error)}
        else:
            note(found.sentence)
            facts["Consistency"] = {**found.facts, "Sentence": found.sentence}
            maps["consistency"] = found.map, found.facts
    return maps, facts


def _explained(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    volume: Volume,
    result: Upscaled,
    truth: np.ndarray | None,
    progress: Progress,
    note: Callable[[str], None],
) -> Explained:
    """What experts did, and pictures of it beside the output."""
    assert isinstance(model.method, Mixture)  # the command line has seen to it
    how: dict[str, Any] = {"seed": settings.seed, "reference": truth, "progress": progress, "note": note}
    if truth is not None and (said := other_units(truth, result.volume.data)):
        note(said)
    explained = explain(engine, model.method, volume, result.volume, result.plan, **how)
    if settings.picture:
        title = f"{shown(job.source.name)} by expert (synthetic)"
        for name, draw_it in zip(EXPLAINING, (draw_experts, draw_attention), strict=True):
            draw_it(picture_path(map_path(job.output, name)), explained, result.volume, title)
    return explained


def montage(path: Path, low: Volume, output: Volume, title: str) -> None:
    """Input (as measured), cubic interpolation and output, three planes, at one window."""
    from jaxsr.evaluate.interpolation import interpolate
    from jaxsr.evaluate.montage import save_montage

    grid = Grid(output.data.shape, output.affine)  # type: ignore[arg-type]
    views = {"input": interpolate(low, grid, "nearest").data, "cubic": interpolate(low, grid, "tricubic").data, "output": output.data}
    save_montage(path, views, voxel_size=output.voxel_size, title=title)
