"""Label maps of heads: files of whole numbers, brought to one field of view and one table of structures.

Numbers follow FreeSurfer's colour table (aseg, aparc + aseg, wmparc, samseg), and from 501 to 530 the CHARM atlas of the whole head, as
SynthSeg's maps do [Billot 2023; Puonti 2020]. Left and right are one structure. A map that ends at the brain gets shells of fluid, skull
and scalp, as the template does.
"""

import dataclasses
from pathlib import Path

import numpy as np
from scipy import ndimage

from jaxsr.data.anatomy.contrasts import BRAIN, STRUCTURES
from jaxsr.files import shown
from jaxsr.volume.header import is_sheared
from jaxsr.volume.io import VolumeError, read_volume

FIELD_OF_VIEW = (192.0, 240.0, 208.0)  # mm: a head and the beginning of the neck
ABOVE_CENTRE = 4.0  # mm that the centre of the field of view lies above the brain's
SITES = 1024  # places in white matter where a lesion may be
COARSE = 2  # voxels: distances are smooth, and their transform is slow

_FAT = 5.0  # mm under the skin
_ORBIT = 14.0  # mm around the eyes filled by fat
_HOLE = 60  # voxels: air inside the head in smaller pieces is a flaw of the map

# FreeSurfer's number → structure. Ranges are of parcellations: cortex by gyri and sulci, white matter by the cortex above it.
_NUMBERS: dict[str, tuple[int | range, ...]] = {
    "background": (0, 130, 501),
    "csf": (4, 5, 14, 15, 24, 43, 44, 72, 75, 76, 122, 213, 221, 257, 520),
    "grey matter": (3, 42, 19, 20, 55, 56, 138, 139, 220, range(1000, 3000), range(11100, 11200), range(12100, 12200)),
    "white matter": (2, 41, 86, 155, 156, 157, 158, 219, 223, range(250, 256), range(3000, 5003), range(13100, 13200), range(14100, 14200)),
    "lesion": (25, 57, 77, 78, 79, 80, 81, 82, 99, 100, 109),
    "cerebellar cortex": (8, 47, range(601, 629)),
    "cerebellar white matter": (7, 46),
    "thalamus": (9, 10, 48, 49, range(8100, 8300)),
    "caudate": (11, 26, 50, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 18, 53, 54, 96, 97, 218),
    "brainstem": (16, 27, 28, 29, 59, 60, 61, 85, range(170, 180)),
    # 136, 137, 163, 164 by where SynthSeg's maps have them: along the floor of the lateral ventricles.
    "choroid plexus": (31, 63, 136, 137, 163, 164),
    "nerve": (126, 128, 512, 530),  # and the spinal cord
    "vessel": (30, 62, 502, 514),
    "skull": (121, 129, 135, 165, 515),
    "marrow": (142, 516),
    "scalp": (125, 131, 154),
    "muscle": (120, 123, 127, 132, 152, 258, 507, 508),  # fat and muscle in one are told apart by depth, see `_part_fat`
    "skin": (118, 119, 153, 511),
    "mucosa": (133, 509),
    "eye": (134, 140, 143, 144, 145, 259, 506),
}
_MIXED = (120, 127, 152, 258, 507)  # soft tissue of any kind
_MARK = np.uint8(128)  # on a structure's index: soft tissue of any kind
_BRAIN = [STRUCTURES.index(s) for s in BRAIN if s != "csf"]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMap:
    """One head on the common field of view.

    Attributes:
      structures: index of `STRUCTURES`, `[X, Y, Z]` uint8, RAS+, its centre `ABOVE_CENTRE` mm above the brain's.
      spacing: mm along each axis.
      distance: mm from the brain's surface, negative inside, of every `COARSE` voxels along each axis; float32.
      sites: places in white matter, `[SITES, 3]` mm from the centre.
    """

    structures: np.ndarray
    spacing: tuple[float, float, float]
    distance: np.ndarray
    sites: np.ndarray


def read_label_map(path: Path) -> LabelMap:
    """The label map in a NIfTI or MGH file of any orientation.

    Raises:
      VolumeError: for what is not a volume of whole numbers, numbers that no rule knows, or no brain among them.
    """
    volume = read_volume(path)
    labels = np.rint(np.clip(volume.data, -(2**15), 2**15)).astype(np.int32)  # known numbers end at 14199
    if is_sheared(volume.affine):
        raise VolumeError(f"{shown(path)}: the affine is sheared, and labels cannot be interpolated: resample the map to a straight grid")
    if np.abs(labels - volume.data).max() > 1e-3:
        raise VolumeError(f"{shown(path)}: values are not whole numbers, so this is no label map; data.labels names a folder of label maps")
    structures = structures_of(labels, path)
    return prepare(structures, volume.voxel_size, path, mixed=np.isin(labels, _MIXED))


def structures_of(labels: np.ndarray, path: Path) -> np.ndarray:
    """Indices of `STRUCTURES`, uint8, of FreeSurfer's numbers.

    Raises:
      VolumeError: with the numbers that no rule knows.
    """
    lowest = int(labels.min())
    counts = np.bincount(labels.ravel() - lowest)
    found = np.flatnonzero(counts) + lowest
    table = structure_names()
    unknown = [int(n) for n in found if int(n) not in table]
    if unknown:
        raise VolumeError(
            f"{shown(path)}: label{'s' * (len(unknown) > 1)} {', '.join(map(str, unknown[:12]))}{' …' * (len(unknown) > 12)} "
            "not among the known ones (FreeSurfer's aseg and aparc, and 501…530 of the CHARM atlas): "
            "renumber to those, or set to 0 what is no part of the head"
        )
    index = np.zeros(len(counts), np.uint8)
    index[found - lowest] = [STRUCTURES.index(table[int(n)]) for n in found]
    return index[labels - lowest]


def structure_names() -> dict[int, str]:
    """FreeSurfer's number → structure."""
    return {number: name for name, numbers in _NUMBERS.items() for n in numbers for number in (n if isinstance(n, range) else (n,))}


def prepare(structures: np.ndarray, spacing: tuple[float, float, float], path: Path, *, mixed: np.ndarray | None = None) -> LabelMap:
    """Structures `[X, Y, Z]` in RAS+ on the common field of view, completed; `mixed` marks soft tissue of any kind."""
    brain = np.isin(structures, _BRAIN)
    if not brain.any():
        raise VolumeError(f"{shown(path)}: no label is of the brain: a label map of a head or a brain was expected")
    extent = [np.flatnonzero(brain.any(tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    centre = np.array([e.mean() for e in extent]) + np.array([0, 0, ABOVE_CENTRE]) / np.array(spacing)
    marked = _cropped(structures if mixed is None else np.where(mixed, structures | _MARK, structures), centre, spacing)
    whole = (marked == STRUCTURES.index("skull")).any()
    if whole:
        marked = _with_neck(marked)
    structures, mixed = marked & ~_MARK, marked >= _MARK
    distance = _distance(np.isin(structures, _BRAIN), spacing)
    structures = _part_fat(_filled(structures), mixed, spacing) if whole else _with_shells(structures, distance)
    structures[(structures == 0) & (_fine(distance, structures.shape) < 0)] = STRUCTURES.index("csf")  # there is no air in a brain
    white = np.argwhere(structures == STRUCTURES.index("white matter"))
    if len(white) == 0:
        raise VolumeError(f"{shown(path)}: no label is white matter: a label map of a head or a brain was expected")
    sites = white[np.linspace(0, len(white) - 1, SITES).astype(int)]
    sites = (sites - (np.array(structures.shape) - 1) / 2) * np.array(spacing)
    return LabelMap(structures, spacing, distance, sites.astype(np.float32))


def _cropped(x: np.ndarray, centre: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The common field of view about `centre` (voxels), a whole number of `COARSE` voxels a side; background outside."""
    sides = [COARSE * round(f / s / COARSE) for f, s in zip(FIELD_OF_VIEW, spacing, strict=True)]
    first = [round(c - (n - 1) / 2) for c, n in zip(centre, sides, strict=True)]
    inside = tuple(slice(max(f, 0), max(min(f + n, m), 0)) for f, n, m in zip(first, sides, x.shape, strict=True))
    ends = [(max(-f, 0), max(f + n - m, 0)) for f, n, m in zip(first, sides, x.shape, strict=True)]
    return np.pad(x[inside], ends)


def _with_neck(structures: np.ndarray) -> np.ndarray:
    """A neck that ends above the field of view goes on as it ends."""
    lowest = int(np.flatnonzero(structures.any((0, 1)))[0])
    structures[:, :, :lowest] = structures[:, :, lowest, None]
    return structures


def _filled(structures: np.ndarray) -> np.ndarray:
    """Small pieces of air inside the head become what is nearest to them."""
    air = structures == 0
    pieces, count = ndimage.label(air)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    flaw = air & (sizes < _HOLE)[pieces]
    left, result = np.argwhere(flaw), structures.copy()
    neighbours = [step for step in np.ndindex(3, 3, 3) if sum(abs(s - 1) for s in step) == 1]
    while len(left):  # from their rims inwards
        found = np.zeros(len(left), np.uint8)
        for step in neighbours:
            x, y, z = (np.clip(left[:, a] + step[a] - 1, 0, structures.shape[a] - 1) for a in range(3))
            found = np.where(found > 0, found, result[x, y, z])
        result[tuple(left[found > 0].T)] = found[found > 0]
        left = left[found == 0]
    return result


def _part_fat(structures: np.ndarray, mixed: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Soft tissue of any kind: fat under the skin and around the eyes, muscle elsewhere."""
    outside = structures == 0
    pieces, _ = ndimage.label(outside[::COARSE, ::COARSE, ::COARSE])
    outside = _fine(pieces == pieces[0, 0, -1], structures.shape) & outside  # not the airways
    depth = _fine(_coarse_distance(outside, spacing), structures.shape)
    orbit = _fine(_coarse_distance(structures == STRUCTURES.index("eye"), spacing), structures.shape)
    fat = mixed & ((depth < _FAT) | (orbit < _ORBIT))
    return np.where(fat, np.uint8(STRUCTURES.index("scalp")), structures)


def _with_shells(structures: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Fluid in the sulci and 2.5 mm around the brain, 5 mm of skull, 5 mm of scalp, 2 mm of skin."""
    away = ndimage.zoom(distance, COARSE, order=1, grid_mode=True, mode="nearest")
    result = structures.copy()
    for name, inner, outer in (("csf", -np.inf, 2.5), ("skull", 2.5, 7.5), ("scalp", 7.5, 12.5), ("skin", 12.5, 14.5)):
        result[(structures == 0) & (away >= inner) & (away < outer)] = STRUCTURES.index(name)
    return result


def _distance(brain: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """mm from the brain's surface with its sulci closed, negative inside, on the coarse grid."""
    coarse = brain[::COARSE, ::COARSE, ::COARSE]
    step = [COARSE * s for s in spacing]
    grown = ndimage.distance_transform_edt(~coarse, sampling=step) < 6.0
    closed = ndimage.distance_transform_edt(grown, sampling=step) > 6.0
    closed = ndimage.binary_fill_holes(closed | coarse)
    outside, inside = (ndimage.distance_transform_edt(x, sampling=step) for x in (~closed, closed))
    return ndimage.gaussian_filter(np.where(closed, -inside, outside) + 0.0, 1.0).astype(np.float32)


def _coarse_distance(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    coarse = mask[::COARSE, ::COARSE, ::COARSE]
    if not coarse.any():
        return np.full(coarse.shape, np.inf, np.float32)
    return ndimage.distance_transform_edt(~coarse, sampling=[COARSE * s for s in spacing]).astype(np.float32)


def _fine(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, n in enumerate(shape):
        coarse = np.repeat(coarse, COARSE, axis)[tuple(slice(n) if a == axis else slice(None) for a in range(3))]
    return coarse
