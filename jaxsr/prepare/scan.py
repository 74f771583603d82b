"""One scan: from the files of a person to maps on one grid.

    truth       read, resampled to the target's voxel size, its bias field divided out
    low         the real acquisition, corrected and registered to the truth, or a simulated one of it
    reference   likewise registered
    bias        log of the truth's bias field, of the data set or by N4
    gradient    displacement by the gradients' nonlinearity, from the data set's own volume or the coil's coefficients
    jacobian    log-determinant of its Jacobian, of the whole volume
    labels, mask   of the data set, in the truth's space

Where the low side is real, its units are not the truth's: each has its intensity window. Where it is simulated they share one, that of the
acquired volume, as when upscaling.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsr.data.acquired import simulate
from jaxsr.data.bias import n4
from jaxsr.data.gradients import gradient_map, jacobian_map
from jaxsr.data.layouts import read_bias, read_scan
from jaxsr.data.layouts.base import Scan
from jaxsr.data.pairs import Pair, made_of
from jaxsr.data.registration import register, registered
from jaxsr.data.subjects import COARSER, stable_hash
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid, resample, resample_oblique, source_step, target_grid
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume, straighten
from jaxsr.volume.slices import AXES

TISSUE = -0.85  # of the truth's window: brighter is tissue
LARGEST_NEGATIVE = 0.02  # share of the voxels that may lie clearly below zero in what is a magnitude image


class Prepared(NamedTuple):
    """A scan's maps, and what there is to say about them.

    Attributes:
      covered: voxels that all of its volumes saw, `[X, Y, Z]` bool.
      window: intensities of the low side that are -1 and 1.
      acquired: voxel size of the low side as acquired, mm.
    """

    pair: Pair
    covered: np.ndarray
    window: Window
    acquired: tuple[float, float, float]
    notes: tuple[str, ...]


def prepare_scan(scan: Scan, settings: PrepareSettings, visit: int = 0, gradient: Path | None = None) -> Prepared:
    """All maps of `scan` that `settings` ask for.

    Args:
      visit: which simulated acquisition; its key comes from the seed, the scan's id and this number.
      gradient: the file of `settings.gradient`.

    Raises:
      VolumeError: where a file cannot be used, is missing, or cannot be registered.
    """
    there = {*scan.files, "gradient"} if settings.gradient else {*scan.files}
    if missing := [name for name in settings.maps if name in settings.extra and made_of(name) not in there]:
        files = " and no ".join(dict.fromkeys(map(made_of, missing)))
        raise VolumeError(f"there is no {files} beside it: add the file, or leave out --with {','.join(missing)}")
    if settings.wanted.reference is not None and "reference" not in scan.files:
        raise VolumeError(f"there is no {settings.wanted.reference} beside it for --reference")

    native = _read(scan.files["high"], settings)
    grid = target_grid(native.grid, _target_size(native, settings))
    truth = Volume(resample(native.data, native.grid, grid), grid.affine)
    notes = list(native.notes)
    field = None
    if settings.bias != "off":
        field = _same_space(read_bias(scan.files["bias"]), grid, "linear") if "bias" in scan.files else n4(replace(truth, path=native.path))
        if settings.bias == "correct":
            truth = Volume(truth.data / np.exp(field), grid.affine)
            native = replace(native, data=native.data / np.exp(resample(field, grid, native.grid, "linear")))
    covered = np.ones(grid.shape, bool)

    if "low" in scan.files:
        if settings.interpolation == "kspace":
            raise VolumeError("zero filling takes a low-resolution scan to a grid along its own axes only: --interpolation cubic or linear")
        low, seen, acquired, said = _beside(scan.files["low"], native, grid, settings)
        covered &= seen
        notes += [f"low: {sentence}" for sentence in said]
        window = fit_window(acquired.data)
        pair = Pair(fit_window(truth.data).forward(truth.data), window.forward(low), grid)
    else:
        if all(mm <= v for mm, v in zip(settings.acquisition.typical.spacing, grid.voxel_size, strict=True)):
            notes.append("the acquisition is no coarser than the truth along any axis: pairs differ by noise and artefacts only")
        acquired = _simulated(truth, scan, settings, visit)
        window = fit_window(acquired.data)
        low = resample(acquired.data, acquired.grid, grid, settings.interpolation)
        pair = Pair(window.forward(np.maximum(truth.data, 0)), window.forward(low), grid)

    maps: dict[str, Any] = {}
    if "reference" in settings.maps:
        reference, seen, acquired_reference, said = _beside(scan.files["reference"], native, grid, settings)
        covered &= seen
        notes += [f"reference: {sentence}" for sentence in said]
        maps["reference"] = fit_window(acquired_reference.data).forward(reference)
    if field is not None:
        maps["bias"] = field
    if {"gradient", "jacobian"} & {*settings.maps}:
        source = gradient if settings.gradient else scan.files["gradient"]
        assert source is not None
        displacement = gradient_map(grid, source, isocentre=settings.isocentre, convention=settings.convention)
        if "gradient" in settings.maps:
            maps["gradient"] = displacement
        if "jacobian" in settings.maps:
            maps["jacobian"] = jacobian_map(grid, displacement)
    if "labels" in settings.maps:
        maps["labels"] = _labels(scan.files["labels"], grid)
        if (most := int(maps["labels"].max())) > 255:
            notes.append(f"labels go up to {most}, and training takes 0 to 255: it cannot use the map labels of this set")
    if "mask" in settings.maps:
        maps["mask"] = (_same_space(read_scan(scan.files["mask"], constant="allow"), grid, "nearest") > 0) & covered
    pair = pair._replace(**maps)
    box = shared_box(pair.high > TISSUE, covered)
    if (shape := tuple(s.stop - s.start for s in box)) != grid.shape:
        notes.append(f"cropped from {' × '.join(map(str, grid.shape))} voxels to {' × '.join(map(str, shape))}, which all its volumes saw")
        pair, covered = _cropped(pair, box), covered[box]
    return Prepared(pair, covered, window, acquired.voxel_size, tuple(notes))


def shared_box(tissue: np.ndarray, covered: np.ndarray) -> tuple[slice, slice, slice]:
    """The planes along each axis most of whose tissue is covered, from the first to the last, and the air around them: a neck that one of
    the volumes lacks is cut off."""
    box = []
    for axis in range(3):
        across = tuple(a for a in range(3) if a != axis)
        missing, seen = (tissue & ~covered).sum(across), (tissue & covered).sum(across)
        lacking, whole = np.flatnonzero(missing > seen), np.flatnonzero((missing <= seen) & (seen > 0))
        first, last = (whole[0], whole[-1]) if len(whole) else (0, len(seen) - 1)
        start = max((int(i) + 1 for i in lacking if i < first), default=0)
        box.append(slice(start, min((int(i) for i in lacking if i > last), default=len(seen))))
    return box[0], box[1], box[2]


def _cropped(pair: Pair, box: tuple[slice, slice, slice]) -> Pair:
    affine = pair.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    maps: dict[str, Any] = {name: np.ascontiguousarray(x[box]) for name, x in pair.maps().items()}
    return pair._replace(grid=Grid(maps["high"].shape, affine), **maps)


def _read(path: Path, settings: PrepareSettings) -> Volume:
    return straighten(read_scan(path, nan=settings.nan))


def _target_size(volume: Volume, settings: PrepareSettings) -> tuple[float, float, float]:
    """Voxel size of the target; VolumeError where the volume is too coarse to be a truth at it."""
    coarsest = max(volume.voxel_size[axis] for axis in settings.in_plane)
    if coarsest > COARSER * settings.voxel_size:
        size = " × ".join(f"{v:g}" for v in volume.voxel_size)
        enough = np.ceil(coarsest * 10 - 1e-3) / 10
        thin = [name for name, axis in AXES.items() if max(np.delete(volume.voxel_size, axis)) <= COARSER * settings.voxel_size]
        across = f", or --axes {thin[0]}, within whose slices it is fine enough" if thin and len(settings.axes) > 1 else ""
        raise VolumeError(
            f"{volume.path}: voxels of {size} mm are no truth at {settings.voxel_size:g} mm: choose finer scans, or --voxel-size "
            f"{enough:g}{across}"
        )
    x, y, z = (settings.voxel_size if axis in settings.in_plane else volume.voxel_size[axis] for axis in range(3))
    return x, y, z


def _simulated(truth: Volume, scan: Scan, settings: PrepareSettings, visit: int) -> Volume:
    """What an acquisition would have made of `truth`, on its own grid."""
    negative = float(np.mean(truth.data < -0.02 * np.percentile(truth.data, 99)))
    if negative > LARGEST_NEGATIVE:
        raise VolumeError(
            f"{scan.files['high']}: {negative:.0%} of the voxels are negative, so this is no magnitude image, and no acquisition of it can "
            "be simulated: give the volume before it was normalised"
        )
    magnitude = Volume(np.maximum(truth.data, 0), truth.affine)  # interpolation may leave a little below zero
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), stable_hash(scan.id)), visit)
    return simulate(magnitude, settings.acquisition, key)


def _beside(path: Path, truth: Volume, grid: Grid, settings: PrepareSettings) -> tuple[np.ndarray, np.ndarray, Volume, tuple[str, ...]]:
    """Another volume of the same person: on `grid`, where it saw anything, as it was acquired (corrected), and what is to be said."""
    volume = _read(path, settings)
    notes = volume.notes
    if settings.bias == "correct":
        volume = replace(volume, data=volume.data / np.exp(n4(volume)))
    matrix = np.eye(4)
    if settings.registration != "off":
        found = register(volume, truth, kind=settings.registration)
        matrix = found.matrix
        notes += (f"registered by {_motion(matrix, grid)}",)
    moved = registered(volume, matrix, grid, "linear" if settings.interpolation == "linear" else "cubic")
    seen = registered(Volume(np.ones_like(volume.data), volume.affine), matrix, grid, "nearest", fill=0.0) > 0.5
    if not seen.any():
        raise VolumeError(f"{path} lies beside the truth and shares no voxel with it: are they of one person and session?")
    return moved, seen, volume, notes


def _motion(matrix: np.ndarray, grid: Grid) -> str:
    """How far the centre of the field of view moves, and by what angle."""
    centre = np.append(grid.centre, 1.0)
    shift = np.linalg.norm((matrix @ centre - centre)[:3])
    rotation = np.linalg.svd(matrix[:3, :3])
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation[0] @ rotation[2]) - 1) / 2, -1, 1)))
    return f"{shift:.2f} mm and {angle:.2f}°"


def _labels(path: Path, grid: Grid) -> np.ndarray:
    """Structures on `grid`, int16."""
    volume = read_scan(path, constant="allow")
    if volume.data.min() < 0 or volume.data.max() > np.iinfo(np.int16).max or (volume.data != np.rint(volume.data)).any():
        raise VolumeError(f"{path}: labels are whole numbers from 0 to 32767, these are not: leave out --with labels")
    return _same_space(volume, grid, "nearest").astype(np.int16)


def _same_space(volume: Volume, grid: Grid, kind: str) -> np.ndarray:
    """A map that lies in the truth's space, on `grid`; where it ends, 0."""
    try:
        source_step(volume.grid, grid)
    except ValueError:  # axes not parallel
        return resample_oblique(volume.data, volume.grid, grid, kind, fill=0.0)  # type: ignore[arg-type]
    return resample(volume.data, volume.grid, grid, kind)  # type: ignore[arg-type]
