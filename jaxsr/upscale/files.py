"""Files in, files out: what `jaxsr upscale` does with a file once it is read."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxsr.files import shown
from jaxsr.methods.base import Request
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine, Progress
from jaxsr.upscale.inputs import Job, check_target, read_input
from jaxsr.upscale.model import Model
from jaxsr.upscale.sidecar import check_sidecar, describe, json_writer, sidecar_path
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import Volume, write_volume
from jaxsr.volume.slices import AXES


class Settings(NamedTuple):
    """The options of `jaxsr upscale` that concern the result; see `jaxsr upscale --help`."""

    to_mm: float
    request: Request
    axes: tuple[str, ...] = tuple(AXES)
    seed: int = 0
    volume: int | None = None
    nan: Literal["refuse", "zero"] = "refuse"


def make_engine(model: Model, *, batch_size: int, slice_map: Literal["pad", "resize"] = "pad") -> Engine:
    return Engine(
        model.method,
        model.variables,
        make_mesh(),
        batch_size=batch_size,
        slice_map=slice_map,
        interpolation=model.experiment.data.interpolation,
    )


def read_source(path: Path, settings: Settings, note: Callable[[str], None] = lambda text: None) -> Volume:
    """`read_input` with these settings."""
    return read_input(path, to_mm=settings.to_mm, axes=settings.axes, volume=settings.volume, nan=settings.nan, note=note)


def upscale_file(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    *,
    volume: Volume | None = None,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Volume:
    """Reads (unless `volume` is what `read_input` made of the source), upscales, writes the volume and its sidecar; returns the result."""
    check_sidecar(job.output)
    if volume is None:
        volume = read_source(job.source, settings, note)
    else:
        check_target(volume, settings.to_mm)
    started = time.monotonic()
    result = engine.upscale(volume, settings.request, to_mm=settings.to_mm, axes=settings.axes, seed=settings.seed, progress=progress)
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
    return result.volume


def montage(path: Path, source: Path, output: Volume, settings: Settings) -> None:
    """Input (as measured), cubic interpolation and output, three planes, at one window."""
    from jaxsr.evaluate.interpolation import interpolate
    from jaxsr.evaluate.montage import save_montage

    low = read_source(source, settings)
    grid = Grid(output.data.shape, output.affine)  # type: ignore[arg-type]
    views = {"input": interpolate(low, grid, "nearest").data, "cubic": interpolate(low, grid, "tricubic").data, "output": output.data}
    save_montage(path, views, voxel_size=output.voxel_size, title=f"{shown(source.name)} at {settings.to_mm:g} mm (synthetic)")
