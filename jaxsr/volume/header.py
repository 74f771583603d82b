"""Where a file says its voxels are: the affine, chosen from what the header offers, and what was doubtful about it.

NIfTI holds up to three answers. We follow the table of niworkflows' ValidateImage: the sform where its code is above 0, else the qform
where its code is above 0, else the voxel size alone with an assumed orientation. Whatever else the header claims is compared with the
answer taken, and a difference becomes a note (or a refusal, where going on would be a guess). Millimetres everywhere.
"""

import sys
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, SpatialImage

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.orientation import nearest_rotation

PIXDIM_NOTE, PIXDIM_REFUSE = 1e-3, 0.05  # relative difference of pixdim and affine
VOXEL_RANGE = (0.01, 100.0)  # mm; outside it the units are wrong, not the scanner
FARTHEST = 1e5  # mm from the scanner's centre; float32 headers cannot place a voxel there
# A quaternion in float32 resolves 1.2e-3 rad where its first component is near zero; below this angle two forms are the same.
ANGLE_NOTE = 0.1  # degrees
SHEAR = 1e-3  # largest cosine between two voxel axes that still counts as a right angle

_FORMATS = {"Nifti1Image": "NIfTI-1", "Nifti1Pair": "NIfTI-1 pair", "Nifti2Image": "NIfTI-2", "Nifti2Pair": "NIfTI-2 pair"}
_SCANNER, _ALIGNED, _CODES = 1, 2, range(1, 6)  # an unknown code still says that the space is somebody's
_UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # unknown (taken as mm), metre, millimetre, micron


class Placement(NamedTuple):
    affine: np.ndarray  # float64 [4, 4], voxel index → scanner mm
    notes: tuple[str, ...]
    codes: tuple[int, int]  # of sform and qform, for files written with this affine in both


def place(image: SpatialImage) -> Placement:
    """The affine of an image in millimetres, with notes. Raises VolumeError, without the file's name, where there is none to trust."""
    codes = _SCANNER, _SCANNER
    if isinstance(image, nib.Nifti1Pair):
        affine, notes, codes = _place_nifti(image)
    elif isinstance(image, nib.MGHImage):
        affine, notes = _checked(image.affine, image.shape), []
    else:
        affine = _checked(image.affine, image.shape)
        notes = ["Analyze headers hold no orientation: left and right are assumed, check them against the scanner"]

    if is_sheared(affine):
        notes.append(
            f"the affine is sheared (axes {_shear_angle(affine):.1f} degrees off a right angle, as by gantry tilt): "
            "it has to be resampled to a straight grid"
        )
    return Placement(affine, tuple(notes), codes)


def describe(image: SpatialImage) -> dict[str, Any]:
    """What the header says of itself, as JSON holds it; numbers that are not finite are null."""
    kind = image.get_data_dtype()
    facts: dict[str, Any] = {
        "format": _FORMATS.get(type(image).__name__, type(image).__name__.removesuffix("Image")),
        "type": "RGB" if kind.fields else kind.name,
        "byte_order": "big" if (kind.byteorder if kind.byteorder != "=" else sys.byteorder) in (">", "big") else "little",
        "shape": [int(n) for n in image.shape],
    }
    if isinstance(image, nib.Nifti1Pair):
        raw = _raw_header(image)
        facts |= {name: int(raw[name]) for name in ("sform_code", "qform_code")}
        facts["units"] = {1: "m", 2: "mm", 3: "um"}.get(int(raw["xyzt_units"]) & 7, "unknown")
        facts |= {name: _finite(raw[field]) for name, field in (("slope", "scl_slope"), ("intercept", "scl_inter"))}
    return facts


def _finite(number: np.ndarray) -> float | None:
    return float(number) if np.isfinite(number) else None


def check_affine(affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises VolumeError for an affine that is not finite, is singular, or places voxels where no scanner does."""
    for row in range(3):
        if not np.isfinite(affine[row]).all():
            raise VolumeError(
                f"row {row + 1} of the affine is {_row(affine[row])}, not finite: the header is damaged; convert the scan again"
            )
    linear = affine[:3, :3]
    sizes = np.linalg.norm(linear, axis=0)
    if not (sizes > 0).all() or abs(np.linalg.det(linear / sizes)) < 1e-3:
        rows = np.linalg.norm(linear, axis=1)
        raise VolumeError(
            f"the affine is singular (row {int(np.argmin(rows)) + 1} is {_row(affine[int(np.argmin(rows))])}): "
            "no position can be computed from it; convert the scan again or repair the header"
        )
    if sizes.min() < VOXEL_RANGE[0] or sizes.max() > VOXEL_RANGE[1]:
        raise VolumeError(
            f"voxels of {_size(sizes)} mm are outside {VOXEL_RANGE[0]:g}–{VOXEL_RANGE[1]:g} mm: "
            "the header's units or its affine are wrong; correct them"
        )
    if np.abs(_corners(affine, shape)).max() > FARTHEST:
        raise VolumeError(
            f"the affine places voxels more than {FARTHEST:g} mm from the scanner's centre: the header is damaged; convert the scan again"
        )


def is_sheared(affine: np.ndarray) -> bool:
    """Whether two voxel axes differ from a right angle by more than a header's rounding (cosine above 1e-3)."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > SHEAR)


def _checked(affine: np.ndarray, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    affine = np.array(affine, np.float64)
    with np.errstate(all="ignore"):  # whatever overflows is refused
        affine[:3] *= scale
        check_affine(affine, shape)
    return affine


def _place_nifti(image: nib.Nifti1Pair) -> tuple[np.ndarray, list[str], tuple[int, int]]:
    raw = _raw_header(image)
    notes: list[str] = []
    unit = int(raw["xyzt_units"]) & 7
    scale = _UNITS.get(unit, 1.0)
    if unit not in _UNITS:
        notes.append(f"the unit of length has the unknown code {unit}: millimetres are assumed")
    elif scale != 1:
        notes.append(f"the header is in {('metres', '', 'microns')[unit - 1]}: converted to millimetres")

    pixdim = np.array(raw["pixdim"][1:4], np.float64) * scale
    sform, qform = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    if not sform and not (np.isfinite(pixdim) & (pixdim != 0)).all():
        raise VolumeError(f"the header gives no voxel size (pixdim is {_size(pixdim)}) and no sform: convert the scan again")
    if not sform and not qform:
        notes.append(
            "the header gives no orientation (sform and qform codes are both 0): x is taken to run to the left and the volume to be "
            "centred, so left and right may be exchanged"
        )

    affine = _checked(image.affine, image.shape, scale)
    if sform:
        notes += _compare_pixdim(affine, pixdim)
    apart = _compare_forms(affine, image, scale) if sform and qform else []
    notes += apart
    first = _known(raw["sform_code"]) if sform else _known(raw["qform_code"]) if qform else _SCANNER
    return affine, notes, (first, _known(raw["qform_code"]) if qform and not apart else first)


def _known(code: np.ndarray) -> int:
    return int(code) if int(code) in _CODES else _ALIGNED


def _compare_pixdim(affine: np.ndarray, pixdim: np.ndarray) -> list[str]:
    linear = affine[:3, :3]
    sizes = np.linalg.norm(linear, axis=0)
    given = np.isfinite(pixdim) & (pixdim != 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(np.abs(pixdim) / sizes - 1)
        # Across a gantry tilt some converters give the distance between slices, not the length of the sheared axis.
        apart = np.minimum(apart, np.abs(np.abs(pixdim) * np.linalg.norm(np.linalg.pinv(linear), axis=1) - 1))
    if given.any() and apart[given].max() > PIXDIM_REFUSE:
        raise VolumeError(
            f"pixdim gives voxels of {_size(np.abs(pixdim))} mm but the sform {_size(sizes)} mm, more than "
            f"{PIXDIM_REFUSE:.0%} apart: one is wrong; correct the header"
        )
    notes = []
    if not given.all() or (pixdim < 0).any():
        notes.append(f"pixdim is {_size(pixdim)}: the voxel size {_size(sizes)} mm is taken from the sform")
    elif apart.max() > PIXDIM_NOTE:
        notes.append(f"pixdim gives voxels of {_size(pixdim)} mm, the sform {_size(sizes)} mm: the sform is used")
    return notes


def _compare_forms(affine: np.ndarray, image: nib.Nifti1Pair, scale: float) -> list[str]:
    try:
        other = _checked(image.header.get_qform(), image.shape, scale)
    except (ValueError, HeaderDataError):
        return ["the qform places nothing (its rotation or voxel size is not valid): the sform is used"]

    turn = nearest_rotation(affine).T @ nearest_rotation(other)
    mirrored = np.linalg.det(turn) < 0
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    moved = np.linalg.norm(_corners(affine, image.shape) - _corners(other, image.shape), axis=0).max()
    smallest = np.linalg.norm(affine[:3, :3], axis=0).min()
    shifted = np.linalg.norm(affine[:3, 3] - other[:3, 3]) > 0.05 * smallest
    if not (mirrored or shifted or angle > ANGLE_NOTE):
        return []
    how = "mirrored" if mirrored else f"turned by {angle:.2f} degrees"
    return [f"sform and qform disagree (up to {moved:.2f} mm apart, {how}): the sform is used"]


def _raw_header(image: nib.Nifti1Pair) -> nib.Nifti1Header:
    """The header as the file holds it; nibabel's own has had zero and negative pixdim mended."""
    holder = image.file_map.get("header", image.file_map["image"])
    if holder.filename is None:
        return image.header
    with holder.get_prepare_fileobj("rb") as file:
        return type(image.header).from_fileobj(file, check=False)


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scanner positions of the eight corner voxels, `[3, 8]`."""
    index = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij")).reshape(3, 8)
    return affine[:3, :3] @ index + affine[:3, 3:]


def _shear_angle(affine: np.ndarray) -> float:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arcsin(np.clip(np.abs(directions.T @ directions - np.eye(3)).max(), 0, 1))))


def _row(row: np.ndarray) -> str:
    return "[" + ", ".join(f"{v:g}" for v in row) + "]"


def _size(sizes: np.ndarray) -> str:
    return " × ".join(f"{v:.4g}" for v in sizes)
