"""Files in, files out: what `jaxsr upscale` does with a file once it is read."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxsr.evaluate.files import sidecar_path
from jaxsr.experiment import Experiment
from jaxsr.files import shown
from jaxsr.methods.base import Request
from jaxsr.runtime.distributed import Place
from jaxsr.runtime.memory import OutOfMemory
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import BatchSize, Engine, Progress
from jaxsr.upscale.inputs import Job, check_target, read_input, scale_notes
from jaxsr.upscale.model import Model
from jaxsr.upscale.sidecar import check_sidecar, describe, json_writer
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import Volume, write_volume
from jaxsr.volume.slices import AXES, SliceMapKind


class Settings(NamedTuple):
    """The options of `jaxsr upscale` that concern the result; see `jaxsr upscale --help`."""

    to_mm: float
    request: Request
    axes: tuple[str, ...] = tuple(AXES)
    seed: int = 0
    volume: int | None = None
    nan: Literal["refuse", "zero"] = "refuse"
    picture: bool = True


def share(jobs: list[Job], place: Place) -> list[Job]:
    """The jobs of one of several processes, out of *all*, done or not: so processes that look at different moments agree."""
    return jobs[place.process :: place.processes]


def make_engine(model: Model, *, batch_size: BatchSize, slice_map: SliceMapKind = "pad") -> Engine:
    """Over all devices of this process."""
    return Engine(
        model.method,
        model.variables,
        make_mesh(devices=jax.local_devices()),
        batch_size=batch_size,
        slice_map=slice_map,
        interpolation=model.experiment.data.interpolation,
    )


def read_source(path: Path, settings: Settings, note: Callable[[str], None] = lambda text: None) -> Volume:
    """`read_input` with these settings."""
    how = {"axes": settings.axes, "volume": settings.volume, "nan": settings.nan, "picture": settings.picture}
    return read_input(path, to_mm=settings.to_mm, note=note, **how)  # type: ignore[arg-type]


def training_scans(experiment: Experiment) -> tuple[float, float, float]:
    """Voxel size in mm of the scans that a model learnt from: that of the acquisition, or of the heads where they were coarser."""
    if experiment.data.acquired:
        return experiment.data.acquired
    x, y, z = (max(mm, experiment.data.voxel_size) for mm in experiment.data.acquisition.typical.spacing)
    return x, y, z


class Written(NamedTuple):
    """What `upscale_file` did: the input as read, the output as written, and its sidecar."""

    low: Volume
    output: Volume
    facts: dict[str, Any]


def upscale_file(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    *,
    volume: Volume | None = None,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Written:
    """Reads (unless `volume` is what `read_input` made of the source), upscales, writes the volume and its sidecar.

    Raises:
      VolumeError: for what cannot be read, upscaled or written.
      FloatingPointError: where the model returns NaN.
      OutOfMemory: of the host, or of the device after all retries.
    """
    name = shown(job.source)
    try:
        return _upscale_file(engine, model, job, settings, volume, progress, note)
    except OutOfMemory as error:
        raise OutOfMemory(f"{name}: {error}") from error
    except MemoryError as error:
        why = str(error) or "no memory left on the host"
        raise OutOfMemory(f"{name}: out of memory ({why}): choose a larger --to-mm; --dry-run says how much is needed") from error


def _upscale_file(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    volume: Volume | None,
    progress: Progress,
    note: Callable[[str], None],
) -> Written:
    check_sidecar(job.output, picture=settings.picture)
    if volume is None:
        volume = read_source(job.source, settings, note)
    else:
        check_target(volume, settings.to_mm, picture=settings.picture)
    odd = scale_notes(volume, settings.to_mm, training_scans(model.experiment))
    for sentence in odd:
        note(f"{shown(job.source.name)}: {sentence}")
    volume = replace(volume, notes=(*volume.notes, *odd))
    started = time.monotonic()
    result = engine.upscale(
        volume, settings.request, to_mm=settings.to_mm, axes=settings.axes, seed=settings.seed, progress=progress, note=note
    )
    if not np.isfinite(result.volume.data).all():
        raise FloatingPointError(f"{shown(job.source)}: the model returned NaN or Inf; try --precision f32")
    facts = describe(
        model,
        job.source,
        job.output,
        result,
        settings.request,
        Seed=settings.seed,
        BatchSize=engine.batch_size,
        Compilations=result.compilations,
        Seconds=round(time.monotonic() - started, 2),
    )
    write_volume(job.output, result.volume, description="jaxsr: synthetic", before={sidecar_path(job.output): json_writer(facts)})
    return Written(volume, result.volume, facts)


def montage(path: Path, low: Volume, output: Volume, title: str) -> None:
    """Input (as measured), cubic interpolation and output, three planes, at one window."""
    from jaxsr.evaluate.interpolation import interpolate
    from jaxsr.evaluate.montage import save_montage

    grid = Grid(output.data.shape, output.affine)  # type: ignore[arg-type]
    views = {"input": interpolate(low, grid, "nearest").data, "cubic": interpolate(low, grid, "tricubic").data, "output": output.data}
    save_montage(path, views, voxel_size=output.voxel_size, title=title)
