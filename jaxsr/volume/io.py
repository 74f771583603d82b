"""Volumes from files and back: NIfTI-1/2, Analyze pairs and MGH/MGZ through nibabel.

Inside the package a volume is float32 in RAS+ of the nearest axes (`orientation`), with the affine that keeps every voxel where the
scanner saw it; no voxel is resampled by reading or writing. What cannot be used is refused with a VolumeError that says the way out;
what is odd but usable is read with a note. Reading takes the data into memory (never a memory map, so a file may be replaced while its
volume is in use), and gzip files are read to their last byte, so that a truncated or damaged one is noticed.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from isal import igzip

from jaxsr.files import Writer, shown, write_together
from jaxsr.volume.decode import load_data, open_image
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid, resample_oblique, straight_grid
from jaxsr.volume.header import check_affine, is_sheared, place
from jaxsr.volume.orientation import codes_of, from_ras, to_ras, turn_from, turn_of

__all__ = ["Volume", "VolumeError", "read_volume", "straighten", "volume_writer", "write_volume"]

SMALLEST_SIDE = 4  # voxels
LARGEST = 1e15  # intensity; its square is a float32 too
SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")

STRAIGHTENED = "the sheared volume was resampled to a straight grid"
_NIFTI1_SIDE = 32767


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in scanner space.

    data: float32 `[X, Y, Z]`, axis 0 → right, 1 → anterior, 2 → superior (nearest axes).
    affine: float64 `[4, 4]`, voxel index → scanner mm.
    orientation: where the axes of the file point, as in ('L', 'P', 'S'); `write_volume` returns to it.
    notes: what was odd about the file, one sentence each: to be shown and kept beside the result.
    codes: NIfTI's words for the space of `affine`, of sform and qform: 1 scanner, 2 aligned, 3 Talairach, 4 MNI, 5 another template.
    zeroed: voxels that were NaN or infinite in the file and are 0 here.
    """

    data: np.ndarray
    affine: np.ndarray
    orientation: tuple[str, str, str] = ("R", "A", "S")
    path: Path | None = None
    notes: tuple[str, ...] = ()
    codes: tuple[int, int] = (1, 1)
    zeroed: int = 0

    @property
    def grid(self) -> Grid:
        x, y, z = self.data.shape
        return Grid((x, y, z), self.affine)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Millimetres along each axis."""
        return self.grid.voxel_size


def read_volume(
    path: str | Path,
    *,
    volume: int | None = None,
    nan: Literal["refuse", "zero"] = "refuse",
    constant: Literal["refuse", "allow"] = "refuse",
) -> Volume:
    """Reads one volume, float32 in RAS+, with its exact affine.

    Args:
      volume: which one, from 0, of a file that holds several.
      constant: 'allow' takes a volume without contrast, as a mask or a field may be.
      nan: 'zero' sets NaN and infinite voxels to 0 and notes how many; 'refuse' raises.

    Raises:
      VolumeError: one sentence with the way out, for everything that is not one usable volume; see the module's tests for the list.
    """
    path = Path(path)
    try:
        image = open_image(path)
        _check_sides(image.shape)
        affine, notes, codes = place(image)
        data, behind = load_data(image, volume)
        data, affine, orientation = _turned(data, affine)
        data, zeroed, more = _check_values(data, nan, constant)
    except VolumeError as error:
        raise VolumeError(f"{shown(path)}: {error}") from None
    return Volume(data, affine, orientation, path, notes + behind + more, codes, zeroed)


def write_volume(path: str | Path, volume: Volume, *, description: str = "", before: Mapping[Path, Writer] | None = None) -> None:
    """Writes float32 in the volume's own orientation; the format goes by the suffix: .nii, .nii.gz, .mgh or .mgz.

    NIfTI gets sform and qform, equal, with the volume's codes, millimetres, slope 1 and intercept 0, and nothing else of any earlier header
    but `description` (79 characters). The file appears complete or not at all (FileError); missing folders are made.

    Args:
      before: files that belong to it, and how each is written: they appear just before it, or not at all.

    A sheared affine is refused: neither a qform nor an MGH header can hold it, and programs that read them would place the voxels
    elsewhere than programs that read the sform. `straighten` it first.
    """
    path = Path(path)
    write_together({**(before or {}), path: volume_writer(path, volume, description)})


def volume_writer(path: Path, volume: Volume, description: str = "", *, labels: bool = False) -> Writer:
    """What writes `volume` as `write_volume` does, to be written together with others. Raises as that does.

    Args:
      labels: it is a label map, of numbers below 256: written as uint8 and, in NIfTI, with the intent by which viewers know one.
    """
    suffix = _suffix(path)
    try:
        if volume.data.ndim != 3:
            raise VolumeError(f"expected data [X, Y, Z], got shape {volume.data.shape}")
        check_affine(volume.affine, volume.data.shape)
        if is_sheared(volume.affine):
            raise VolumeError("a sheared affine cannot be written as a valid qform: resample the volume to a straight grid first")
    except VolumeError as error:
        raise VolumeError(f"{shown(path)}: {error}") from None

    data, affine = from_ras(np.asarray(volume.data, np.uint8 if labels else np.float32), volume.affine, turn_from(volume.orientation))
    image = nib.MGHImage(data, affine) if suffix in (".mgh", ".mgz") else _nifti(data, affine, volume.codes, description)
    return functools.partial(save_image, image)


def save_image(image: nib.Nifti1Image | nib.MGHImage, path: Path) -> None:
    """As nibabel does, but for the time that compression takes: a fifteenth with the same size, by Intel's library."""
    with open(path, "wb") as file:
        if not path.name.lower().endswith((".gz", ".mgz")):
            image.to_stream(file)
            return
        with igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:  # no time and no name: the same bytes again
            image.to_stream(compressed)


def straighten(volume: Volume) -> Volume:
    """The volume itself, or a sheared one resampled (cubic) to the right-angled grid that covers it, which says so in its notes."""
    if not is_sheared(volume.affine):
        return volume
    grid = straight_grid(volume.grid)
    data = resample_oblique(volume.data, volume.grid, grid)
    return replace(volume, data=data, affine=grid.affine, notes=(*volume.notes, STRAIGHTENED))


def _turned(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str]]:
    turn = turn_of(affine)
    data, affine = to_ras(data, affine, turn)
    return np.ascontiguousarray(data), affine, codes_of(turn)


def _check_sides(shape: tuple[int, ...]) -> None:
    if len(shape) < 3 or min(shape[:3]) < SMALLEST_SIDE:
        sides = " × ".join(str(n) for n in shape[:3])
        raise VolumeError(
            f"a volume of {sides} voxels is too thin: every side must have at least {SMALLEST_SIDE}; give a whole volume, not a slice"
        )


def _check_values(data: np.ndarray, nan: str, constant: str) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """The data, all finite, how many voxels were not, and notes."""
    notes: tuple[str, ...] = ()
    finite = np.isfinite(data)
    if not finite.all():
        nans = int(np.isnan(data).sum())
        found = f"{nans} NaN and {data.size - int(finite.sum()) - nans} infinite voxels of {data.size}"
        if nan == "refuse":
            raise VolumeError(f"{found}: repair the volume, or have them set to 0 (upscale and inspect take --nan zero)")
        data[~finite] = 0
        notes = (f"{found} set to 0",)
    low, high = float(data.min()), float(data.max())
    if low == high and constant == "refuse":
        raise VolumeError(f"the volume has no contrast, every voxel is {low + 0:g}: check that it is the scan you mean")
    if max(-low, high) > LARGEST:
        raise VolumeError(f"intensities from {low:g} to {high:g} are no scanner's: the file is damaged; copy or convert it again")
    return data, data.size - int(finite.sum()), notes


def _nifti(data: np.ndarray, affine: np.ndarray, codes: tuple[int, int], description: str) -> nib.Nifti1Image:
    kind = nib.Nifti2Image if max(data.shape) > _NIFTI1_SIDE else nib.Nifti1Image
    image = kind(data, affine)
    image.header.set_data_dtype(data.dtype)
    if data.dtype == np.uint8:
        image.header.set_intent("label")
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    return image


def _suffix(path: Path) -> str:
    # The longest first: '.nii.gz' does not end in '.nii', but a name of nothing but a suffix is no name.
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[-len(suffix) :]
    raise VolumeError(f"{shown(path)}: the suffix does not name a format that is written: use one of {', '.join(SUFFIXES)}")
