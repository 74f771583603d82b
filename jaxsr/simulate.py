"""Files in, files out: what `jaxsr simulate` does with a high-resolution volume.

What is drawn for a file goes by its name without the suffix, and the seed: not by its folder, nor by what else is simulated with it.
Reading and checking need no JAX, so that what cannot be used is said within a second.
"""

import datetime
import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

import jaxsr
from jaxsr.config import to_dict
from jaxsr.evaluate.files import sidecar_path, stem
from jaxsr.files import shown
from jaxsr.physics.protocol import Acquisition
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.sidecar import check_sidecar, json_writer
from jaxsr.volume.io import SMALLEST_SIDE, Volume, VolumeError, read_volume, straighten, write_volume
from jaxsr.volume.memory import free_memory

if TYPE_CHECKING:
    import jax

    from jaxsr.volume.geometry import Kind

WARNING = "Simulated: a finer volume degraded by a model of an acquisition; no scanner measured it. For research only, not for diagnosis."

# Bytes a voxel of the input on the host, beside it, on a CPU: measured at 256³ with a tenth to spare.
_BYTES, _BYTES_MOVING, _BYTES_WARPED, _BYTES_BOTH = 25, 50, 95, 115
_NEGATIVE = 0.01  # of the sum of magnitudes: what interpolation leaves below zero is less
_WAYS = ("from left to right", "from back to front", "from bottom to top")


class Settings(NamedTuple):
    """The options of `jaxsr simulate` that concern the result; see `jaxsr simulate --help`."""

    acquisition: Acquisition
    seed: int = 0
    same_grid: bool = False
    interpolation: "Kind" = "cubic"
    volume: int | None = None
    nan: Literal["refuse", "zero"] = "refuse"


def read_truth(path: Path, settings: Settings, note: Callable[[str], None] = lambda text: None) -> Volume:
    """The volume, on right-angled axes, not below zero, with everything checked that can be before anything is computed.

    Raises:
      VolumeError: as `read_volume`; where much lies below zero, or it would not fit in memory.
    """
    volume = straighten(read_volume(path, volume=settings.volume, nan=settings.nan))
    below = volume.data < 0
    if below.any():
        share = -float(volume.data[below].sum(dtype=np.float64)) / float(np.abs(volume.data).sum(dtype=np.float64))
        if share > _NEGATIVE:
            raise VolumeError(
                f"{shown(path)}: {share:.0%} of the intensity lies below zero (to {volume.data.min():g}), as no scanner's signal does: "
                "give the volume as scanned, or shift it so that air is 0"
            )
        sentence = f"{int(below.sum())} voxels below zero set to 0"
        volume = replace(volume, data=np.maximum(volume.data, 0), notes=(*volume.notes, sentence))
    _check_memory(path, volume, settings.acquisition)
    typical = settings.acquisition.typical
    kept = [f"{mm:.3g} mm {way}" for mm, want, way in zip(volume.voxel_size, typical.spacing, _WAYS, strict=True) if mm > want]
    if kept:
        sentence = f"voxels are no finer than the acquisition's: {', '.join(kept)} stays"
        volume = replace(volume, notes=(*volume.notes, sentence))
    for sentence in volume.notes:
        note(f"{shown(path.name)}: {sentence}")
    return volume


def _check_memory(path: Path, volume: Volume, acquisition: Acquisition) -> None:
    warped = acquisition.warp[1] > 0
    each = (_BYTES_BOTH if warped else _BYTES_MOVING) if acquisition.motion else _BYTES_WARPED if warped else _BYTES
    needed, free = each * volume.data.size, free_memory()
    if free is not None and needed > free:
        way_out = "leave out warp or motion, or take a larger machine" if each > _BYTES else "take a larger machine"
        raise VolumeError(f"{shown(path)}: simulating it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: {way_out}")


def key_of(path: Path, seed: int) -> "jax.Array":
    """The key of the file's draws."""
    import jax

    number = int.from_bytes(hashlib.sha256(stem(path).encode("utf-8", "surrogateescape")).digest()[:4], "big") >> 1
    return jax.random.fold_in(jax.random.key(seed), number)


def plan(job: Job, volume: Volume, settings: Settings) -> dict[str, Any]:
    """What would be drawn, and the grid of the output; nothing is computed.

    Raises:
      VolumeError: where the acquired volume would be too thin to be one.
    """
    from jaxsr.physics.acquisition import acquired_shape, describe_draw, settle

    key = key_of(job.source, settings.seed)
    acquired = acquired_shape(volume.grid.shape, volume.voxel_size, settle(key, settings.acquisition))
    if min(acquired) < SMALLEST_SIDE:
        sides = " × ".join(map(str, acquired))
        raise VolumeError(
            f"{shown(job.source)}: {settings.acquisition.name} would have only {sides} voxels of it: choose a smaller voxel_size, "
            "or a larger field of view"
        )
    size = [v * n / m for v, n, m in zip(volume.voxel_size, volume.grid.shape, acquired, strict=True)]
    return {"Shape": list(acquired), "VoxelSize": [round(v, 4) for v in size], "Drawn": describe_draw(key, settings.acquisition)}


def simulate_file(
    job: Job, settings: Settings, *, volume: Volume | None = None, note: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Reads (unless `volume` is what `read_truth` made of the source), simulates, writes the volume and its sidecar; what it says.

    Raises:
      VolumeError: for what cannot be read, simulated or written.
    """
    import jax

    from jaxsr.data.acquired import simulate
    from jaxsr.volume.geometry import resample

    check_sidecar(job.output)
    truth = volume or read_truth(job.source, settings, note)
    planned = plan(job, truth, settings)
    low = simulate(truth, settings.acquisition, key_of(job.source, settings.seed))
    if settings.same_grid:
        # A magnitude stays one: interpolation undershoots beside bright edges.
        low = Volume(np.maximum(resample(low.data, low.grid, truth.grid, settings.interpolation), 0), truth.affine)
    low = replace(truth, data=low.data, affine=low.affine)
    if not np.isfinite(low.data).all():
        raise VolumeError(f"{shown(job.source)}: the simulated volume is not finite; scale the intensities to a scanner's, below a million")
    facts = {
        "Description": WARNING,
        "Sources": [os.path.relpath(job.source.resolve(), job.output.resolve().parent)],
        "Resolution": f"{' × '.join(f'{v:g}' for v in planned['VoxelSize'])} mm",
        "JaxSR": {
            "Version": jaxsr.__version__,
            "Simulated": True,
            "Acquisition": to_dict(settings.acquisition),
            "Drawn": planned["Drawn"],
            "Seed": settings.seed,
            "DrawnBy": stem(job.source),
            "AcquiredShape": planned["Shape"],
            "SameGrid": settings.interpolation if settings.same_grid else False,
            "Notes": list(truth.notes),
            "Made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "Jax": jax.__version__,
            "Device": jax.local_devices()[0].device_kind,
            "Platform": platform.platform(),
        },
    }
    write_volume(job.output, low, description="jaxsr: simulated", before={sidecar_path(job.output): json_writer(facts)})
    return facts
