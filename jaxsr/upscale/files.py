"""Files in, files out: what `jaxsr upscale` does with its arguments."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxsr.methods.base import Request
from jaxsr.runtime.distributed import Place
from jaxsr.runtime.memory import OutOfMemory
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import BatchSize, Engine, Progress
from jaxsr.upscale.model import Model
from jaxsr.upscale.sidecar import check_sidecar, describe, sidecar_path, write_json
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import SUFFIXES, Volume, VolumeError, read_volume, straighten, write_volume
from jaxsr.volume.slices import AXES

MOST_VOXELS = 2**31


class Job(NamedTuple):
    """One input and where its output goes."""

    source: Path
    output: Path


class Settings(NamedTuple):
    """The options of `jaxsr upscale` that concern the result; see `jaxsr upscale --help`."""

    to_mm: float
    request: Request
    axes: tuple[str, ...] = tuple(AXES)
    seed: int = 0
    volume: int | None = None
    nan: Literal["refuse", "zero"] = "refuse"


def find_jobs(source: Path, output: Path) -> list[Job]:
    """Inputs and outputs: a file to a file, a folder (its volumes, not those of folders in it) to a folder, a `.txt` list to a folder.

    Raises:
      VolumeError: for inputs that are not there, an output that is an input, or a folder without volumes.
    """
    if source.suffix == ".txt" and source.is_file():
        lines = [line.strip() for line in source.read_text().splitlines()]
        paths = [Path(line) if Path(line).is_absolute() else source.parent / line for line in lines if line and not line.startswith("#")]
        jobs = [Job(path, output / path.name) for path in paths]
    elif source.is_dir():
        jobs = [Job(path, output / path.name) for path in _volumes_in(source)]
    else:
        into = output.is_dir() or not output.name.endswith(SUFFIXES)
        jobs = [Job(source, output / source.name if into else output)]
    for job in jobs:
        if job.output.exists() and job.source.exists() and job.output.samefile(job.source):
            raise VolumeError(f"{job.output}: the output is the input; choose another -o")
    repeated = {job.output for job in jobs if sum(other.output == job.output for other in jobs) > 1}
    if repeated:
        raise VolumeError(f"several inputs would be written to {sorted(map(str, repeated))}: give them different names")
    return jobs


def _volumes_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))


def share(jobs: list[Job], place: Place) -> list[Job]:
    """The jobs of one of several processes, out of *all*, done or not: so processes that look at different moments agree."""
    return jobs[place.process :: place.processes]


def is_done(job: Job) -> bool:
    """The output is there: it is written whole or not at all, after its sidecar; and what is there is never ours to replace unasked."""
    return job.output.exists()


def make_engine(model: Model, *, batch_size: BatchSize, slice_map: Literal["pad", "resize"] = "pad") -> Engine:
    """Over all devices of this process."""
    return Engine(
        model.method,
        model.variables,
        make_mesh(devices=jax.local_devices()),
        batch_size=batch_size,
        slice_map=slice_map,
        interpolation=model.experiment.data.interpolation,
    )


def read_input(path: Path, settings: Settings, note: Callable[[str], None] = lambda text: None) -> Volume:
    """The volume, on right-angled axes, with everything checked that can be before anything is computed.

    Raises:
      VolumeError: as `read_volume`, and where the target grid is out of proportion.
    """
    volume = straighten(read_volume(path, volume=settings.volume, nan=settings.nan))
    for sentence in volume.notes:
        note(f"{path.name}: {sentence}")
    voxels = float(np.prod(np.array(volume.data.shape) * volume.voxel_size)) / settings.to_mm**3
    if voxels > MOST_VOXELS:
        raise VolumeError(f"{path}: at {settings.to_mm:g} mm the volume would have {voxels:.2g} voxels; choose a larger --to-mm")
    return volume


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
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Written:
    """Reads, upscales, writes the volume and its sidecar.

    Raises:
      VolumeError: for what cannot be read, upscaled or written.
      FloatingPointError: where the model returns NaN.
      OutOfMemory: of the host, or of the device after all retries.
    """
    try:
        return _upscale_file(engine, model, job, settings, progress, note)
    except OutOfMemory as error:
        raise OutOfMemory(f"{job.source}: {error}") from error
    except MemoryError as error:
        why = str(error) or "no memory left on the host"
        raise OutOfMemory(f"{job.source}: out of memory ({why}): choose a larger --to-mm; --dry-run says how much is needed") from error


def _upscale_file(engine: Engine, model: Model, job: Job, settings: Settings, progress: Progress, note: Callable[[str], None]) -> Written:
    check_sidecar(job.output)
    volume = read_input(job.source, settings, note)
    started = time.monotonic()
    result = engine.upscale(
        volume, settings.request, to_mm=settings.to_mm, axes=settings.axes, seed=settings.seed, progress=progress, note=note
    )
    for sentence in result.plan.left_out:
        note(f"{job.source.name}: {sentence}, so that axis is left out")
    if not np.isfinite(result.volume.data).all():
        raise FloatingPointError(f"{job.source}: the model returned NaN or Inf; try --precision f32")
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
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(sidecar_path(job.output), facts)
    write_volume(job.output, result.volume, description="jaxsr: synthetic")
    return Written(volume, result.volume, facts)


def montage(path: Path, low: Volume, output: Volume, title: str) -> None:
    """Input (as measured), cubic interpolation and output, three planes, at one window."""
    from jaxsr.evaluate.interpolation import interpolate
    from jaxsr.evaluate.montage import save_montage

    grid = Grid(output.data.shape, output.affine)  # type: ignore[arg-type]
    views = {"input": interpolate(low, grid, "nearest").data, "cubic": interpolate(low, grid, "tricubic").data, "output": output.data}
    save_montage(path, views, voxel_size=output.voxel_size, title=title)
