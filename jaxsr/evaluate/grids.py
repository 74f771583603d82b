"""Whether volumes can be compared: their grids in scanner space, masks that are masks, a region that is not empty."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxsr.files import shown
from jaxsr.volume.foreground import foreground
from jaxsr.volume.geometry import Grid, resample, resample_oblique
from jaxsr.volume.io import Volume, read_volume

Resampling = Literal["linear", "cubic"]

TOLERANCE = 1e-3  # mm


class EvaluationError(ValueError):
    """Volumes that cannot be compared: one sentence that says what differs and the way out."""


def check_same_grid(reference: Grid, candidate: Grid, name: str, way_out: str = "") -> None:
    """Raises EvaluationError, ending in `way_out`, unless shapes are equal and every corner lies within TOLERANCE mm of the reference's."""
    if candidate.shape != reference.shape:
        to_one = (
            "bring both to one grid first, for instance by upscaling with --to-mm set to the reference's voxel size, or ask for --resample"
        )
        raise EvaluationError(f"{name}: {described(candidate)} is compared with a reference of {described(reference)}: {way_out or to_one}")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(reference.shape) - 1)
    index = np.concatenate([corners, np.ones((8, 1))], axis=1)
    apart = np.linalg.norm((index @ (candidate.affine - reference.affine).T)[:, :3], axis=1).max()
    if not apart <= TOLERANCE:
        raise EvaluationError(
            f"{name}: its voxels lie up to {apart:.3g} mm from the reference's ({described(candidate)}; "
            f"reference {described(reference)}): shifted, turned or scaled against each other; "
            + (way_out or "register one to the other first, or ask for --resample where only the grids differ")
        )


def read_mask(path: Path, of: Path, reference: Volume, resampling: Resampling | None, notes: list[str]) -> np.ndarray:
    """Where `path` is above 0.5; refused where it is an image: a head above 0.5 is nearly everything, and nobody would notice."""
    check_mask(path, of)
    return on_grid(reference, path, "the mask", resampling, notes, constant="allow").data > 0.5


def check_mask(path: Path, of: Path) -> None:
    """Raises EvaluationError where a mask is an image, or the volume `of` itself; VolumeError where it cannot be read."""
    if path.samefile(of):
        raise EvaluationError(f"the mask {shown(path)} is the reference itself: name masks with --mask, or leave it out")
    data = read_volume(path, constant="allow").data
    if np.any((data != data.min()) & (data != data.max())):
        raise EvaluationError(
            f"the mask {shown(path)} has more than two values, so it is an image, labels or probabilities: "
            "name a file of zeros and ones with --mask (in a folder, one called …_mask), or leave it out"
        )


def on_grid(reference: Volume, path: Path, name: str, resampling: Resampling | None, notes: list[str], **how: Any) -> Volume:
    """The volume in `path` on the reference's grid: as it is, or resampled, of which `notes` then tells."""
    volume = read_volume(path, **how)
    try:
        check_same_grid(reference.grid, volume.grid, f"{name} {shown(path)}")
        return volume
    except EvaluationError:
        if resampling is None:
            raise
    data = resampled(volume, reference.grid, resampling)
    notes.append(f"{name} was resampled ({resampling}) onto the reference's grid, from {described(volume.grid)}")
    return replace(volume, data=data, affine=reference.grid.affine)


def resampled(volume: Volume, grid: Grid, resampling: Resampling) -> np.ndarray:
    """`volume` on `grid`, whose axes may have another direction; float32 `[X, Y, Z]`."""
    try:
        return resample(volume.data, volume.grid, grid, resampling)
    except ValueError:  # axes that are not parallel
        return resample_oblique(volume.data, volume.grid, grid, resampling)


def region_of(reference: Volume, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return foreground(reference.data)
    if mask.shape != reference.data.shape:
        raise EvaluationError(f"the mask has shape {mask.shape}, the reference {reference.data.shape}: give a mask on the reference's grid")
    if not mask.any():
        raise EvaluationError("the mask is empty: give one that covers the head (voxels above 0.5 count), or none")
    return np.asarray(mask, bool)


def described(grid: Grid) -> str:
    return f"{' × '.join(map(str, grid.shape))} voxels of {' × '.join(f'{mm:.4g}' for mm in grid.voxel_size)} mm"
