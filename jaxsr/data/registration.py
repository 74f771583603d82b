"""Rigid and affine registration by mutual information [Mattes, IEEE Trans. Med. Imaging 22:120, 2003], by SimpleITK.

    T* = argmax_T  I(fixed(x), moving(T x)),      I = Σ p(a, b) log (p(a, b) / p(a) p(b)),      x in the foreground of both

Both volumes are brought to coarse voxels without aliasing, and refined from 6 to 3 to 1.5 mm. The start is searched at 6 mm: the
scanner's own coordinates, and the foregrounds' centres on each other under rotations of up to 25° and the turns of a cube, so headers
that say little do no harm. Filling (the zeros of a defaced or padded volume) tells where somebody cut, not where the head is: it is left
out. Only where the air itself is filling is a margin of it kept, as then it is the head's outline.

Everything runs on one thread with fixed seeds: the result is repeatable bit for bit. A result that cannot be right is an error.
"""

from itertools import permutations, product
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jaxsr.data.itk import LPS, image_of, simpleitk
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid, Kind, apply_matrix, interpolation_matrix, resample, resample_oblique, target_grid
from jaxsr.volume.intensity import AIR, FILLING
from jaxsr.volume.io import Volume, straighten

LEVELS = (6.0, 3.0, 1.5)  # mm
SAMPLES = 60_000  # points of the fixed volume at a level
STEPS = (2.0, 0.5, 0.25)  # mm at first, by level
AFFINE_STEP = 0.1  # mm
STRAIGHT = 2  # starts without a rotation; the others
UNLIKELY = 0.9  # have to tell so much more, as scanners seldom turn heads
BINS = 40
MARGIN = 10.0  # mm of filling around a head whose air is filling
SMALLEST_OVERLAP = 0.3  # of the smaller foreground
SHARPEST = 12.0  # mm: moved this far, a registration that means something is worse
LEAST_GAIN = 1.05  # over the best of the moved ones
SCALES = (0.8, 1.25)  # of an affine registration, along any direction

_SEED = 1


class Registration(NamedTuple):
    """matrix: float64 `[4, 4]`, fixed scanner mm → moving scanner mm (RAS); metric: mutual information in nats; overlap: share of the
    smaller foreground that lies in the other."""

    matrix: np.ndarray
    metric: float
    overlap: float


def register(moving: Volume, fixed: Volume, *, kind: Literal["rigid", "affine"] = "rigid", mask: np.ndarray | None = None) -> Registration:
    """Where the anatomy of `fixed` lies in `moving`; affine only where that tells more than rigid does.

    Args:
      mask: `[X, Y, Z]` on the grid of `fixed`; only what is inside counts.

    Raises:
      VolumeError: where SimpleITK is not installed, a volume has no foreground, or no registration was found: too little overlap, no more
        mutual information than elsewhere, or a scaling that no head has.
    """
    if kind not in ("rigid", "affine"):
        raise ValueError(f"a registration is 'rigid' or 'affine', got {kind!r}")
    pyramids = list(zip(_pyramid(fixed, mask), _pyramid(moving, None), strict=True))  # (fixed, moving) a level
    names = f"{_name(moving)} to {_name(fixed)}"
    with simpleitk() as sitk:
        matrix = _climb(sitk, pyramids, kind)
    if matrix is None:
        raise VolumeError(f"{names}: no registration was found, the volumes share no anatomy: check that both show the same head")
    _check(matrix, *pyramids[1], names)
    return Registration(matrix, *_information(*pyramids[-1], matrix))


def registered(moving: Volume, matrix: np.ndarray, grid: Grid, kind: Kind = "cubic", fill: float | None = None) -> np.ndarray:
    """`moving` on a grid in the space of the fixed volume, float32, by the `matrix [4, 4]` of `register`.

    Where the grid is coarser than the volume, what it cannot hold is filtered out first. Voxels outside the volume get `fill`, by default
    its smallest value.
    """
    source = Grid(moving.grid.shape, np.linalg.solve(matrix, moving.affine))
    fill = float(moving.data.min()) if fill is None else fill
    data = moving.data
    steps = np.linalg.norm(np.linalg.solve(source.affine[:3, :3], grid.affine[:3, :3]), axis=1)  # of the grid, in voxels of each axis
    for axis, step in enumerate(steps):
        if step > 1 and kind != "nearest":
            n = data.shape[axis]
            data = apply_matrix(interpolation_matrix(n, np.arange(n), kind, float(step)), data, axis)
    return resample_oblique(data, source, grid, kind, fill)


# ---------------------------------------------------------------------------------------------------------- what is looked at


class _Level(NamedTuple):
    """A volume with coarse voxels: intensities 0…1 of its window, where they count, and the centre of mass of what is bright, mm."""

    data: np.ndarray
    counts: np.ndarray
    grid: Grid
    centre: np.ndarray


def _pyramid(volume: Volume, mask: np.ndarray | None) -> list[_Level]:
    volume = straighten(volume)
    data = volume.data
    if mask is not None and mask.shape != data.shape:
        raise VolumeError(f"the mask has shape {mask.shape}, the fixed volume {data.shape}: give a mask on the volume's own grid")
    counts = _counts(volume)
    if mask is not None:
        counts &= mask.astype(bool)
    if not counts.any():
        raise VolumeError(f"{_name(volume)}: nothing is left to register where filling and what the mask excludes are left out")
    low, high = np.percentile(data[counts], (0.5, 99.5))
    if not low < high:
        raise VolumeError(f"{_name(volume)}: the volume has no contrast where it counts; check that it is the scan you mean")
    data = np.clip((data - low) / (high - low), 0, 1).astype(np.float32)
    levels = []
    for mm in LEVELS:
        x, y, z = (max(v, mm) for v in volume.voxel_size)
        grid = target_grid(volume.grid, (x, y, z))
        coarse = resample(data, volume.grid, grid, "linear")
        whole = resample(counts.astype(np.float32), volume.grid, grid, "linear") > 0.9
        index = np.array(ndimage.center_of_mass(coarse * whole)) if (coarse * whole).any() else (np.array(grid.shape) - 1) / 2
        levels.append(_Level(coarse, whole, grid, grid.affine[:3, :3] @ index + grid.affine[:3, 3]))
    return levels


def _counts(volume: Volume) -> np.ndarray:
    """Everything but filling, and a margin of it where there is no other air."""
    data = volume.data
    values, numbers = np.unique(data[::2, ::2, ::2], return_counts=True)
    filling = data == values[numbers.argmax()]
    if filling.mean() <= FILLING:
        return np.ones(data.shape, bool)
    rest = data[~filling]
    low, high = np.percentile(rest, (0.1, 99.9)) if rest.size else (0.0, 0.0)
    if (rest < low + 5 * AIR * (high - low)).mean() > 0.1:  # there is air beside the filling
        return ~filling
    return ndimage.distance_transform_edt(filling, volume.voxel_size) <= MARGIN


# -------------------------------------------------------------------------------------------------------------------- starts


class _Information(NamedTuple):
    information: float  # nats
    overlap: float  # share of the smaller of the two


def _information(fixed: _Level, moving: _Level, matrix: np.ndarray) -> _Information:
    """Mutual information at the fixed volume's voxels, and the overlap, for a matrix in RAS mm."""
    points = np.argwhere(fixed.counts)
    step = max(1, len(points) // SAMPLES)
    points = points[::step]
    to_moving = np.linalg.solve(moving.grid.affine, matrix @ fixed.grid.affine)
    index = to_moving[:3, :3] @ points.T + to_moving[:3, 3:]
    nearest = np.rint(index).astype(int)
    inside: np.ndarray = np.all((nearest >= 0) & (nearest < np.reshape(moving.counts.shape, (3, 1))), axis=0)
    inside[inside] = moving.counts[tuple(nearest[:, inside])]
    volumes = [level.counts.sum() * np.prod(level.grid.voxel_size) for level in (fixed, moving)]
    overlap = min(1.0, float(inside.mean() * volumes[0] / min(volumes)))
    if inside.sum() < 100:
        return _Information(-np.inf, overlap)
    a = fixed.data[tuple(points[inside].T)]
    b = ndimage.map_coordinates(moving.data, index[:, inside], order=1, mode="nearest")
    joint = np.histogram2d(a, b, BINS, ((0, 1), (0, 1)))[0]
    joint /= joint.sum()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    full = joint > 0
    return _Information(float((joint[full] * np.log(joint[full] / alone[full])).sum()), overlap)


def _starts(fixed: _Level, moving: _Level) -> list[np.ndarray]:
    """Matrices, RAS mm, to refine: the scanner's coordinates, the two centres on each other, and the best of many rotations."""
    centred = [_about(Rotation.identity(), fixed.centre, moving.centre)]
    small = [Rotation.from_euler("xyz", angles, degrees=True) for angles in product((-25, 0, 25), repeat=3) if any(angles)]
    best = []
    for rotations, count in ((small, 2), (_cube(), 3)):
        turned = [_about(rotation, fixed.centre, moving.centre) for rotation in rotations]
        best += sorted(turned, key=lambda matrix: -_score(_information(fixed, moving, matrix)))[:count]
    return [np.eye(4), *centred, *best]


def _score(found: _Information) -> float:
    return found.information if found.overlap > SMALLEST_OVERLAP else -np.inf


def _cube() -> list[Rotation]:
    matrices = [
        np.eye(3)[list(order)] * np.reshape(signs, (3, 1)) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
    ]
    return [Rotation.from_matrix(m) for m in matrices if np.linalg.det(m) > 0 and np.trace(m) < 3]


def _about(rotation: Rotation, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix()
    matrix[:3, 3] = moving - matrix[:3, :3] @ fixed
    return matrix


# -------------------------------------------------------------------------------------------------------------------- SimpleITK


def _matrix_of(transform: Any) -> np.ndarray:
    """RAS mm → RAS mm of a SimpleITK transform, which knows LPS."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.array(transform.TransformPoint(axis.tolist())) - origin for axis in np.eye(3)], 1)
    matrix[:3, 3] = origin
    return LPS @ matrix @ LPS


def _climb(sitk: ModuleType, levels: list[tuple[_Level, _Level]], kind: str) -> np.ndarray | None:
    """The matrix, RAS mm, with the most information; None where nothing overlaps."""
    found = []
    for i, start in enumerate(_starts(*levels[0])):
        matrix = _refined(sitk, *levels[0], start, sitk.VersorRigid3DTransform(), STEPS[0])
        if matrix is not None:
            found.append(((1 if i < STRAIGHT else UNLIKELY) * _score(_information(*levels[0], matrix)), matrix))
    if not found:
        return None
    rigid = max(found, key=lambda one: one[0])[1]
    for level, step in zip(levels[1:], STEPS[1:], strict=True):
        matrix = _refined(sitk, *level, rigid, sitk.VersorRigid3DTransform(), step)
        if matrix is None:
            return None
        rigid = matrix
    if kind == "rigid":
        return rigid
    transform, candidates = sitk.AffineTransform(3), [rigid]
    for level in levels[1:]:
        matrix = _refined(sitk, *level, rigid, transform, AFFINE_STEP)
        if matrix is None:
            return rigid
        candidates.append(matrix)
    # Beside cut-out parts the optimum of six more parameters may tell less.
    return max((candidates[0], candidates[-1]), key=lambda one: _information(*levels[-1], one).information)


def _refined(sitk: ModuleType, fixed: _Level, moving: _Level, start: np.ndarray, transform: Any, step: float) -> np.ndarray | None:
    """Climbs from `start` (rigid, RAS mm) followed by `transform`, which goes on changing; None where nothing overlaps.

    The start goes into the place of the moving volume, as a versor's derivatives vanish at 180 degrees.
    """
    place = Grid(moving.grid.shape, np.linalg.solve(start, moving.grid.affine))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    points = int(fixed.counts.sum())
    if points > SAMPLES:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(SAMPLES / points, _SEED)
    method.SetMetricFixedMask(image_of(sitk, fixed.counts.astype(np.uint8), fixed.grid))
    method.SetMetricMovingMask(image_of(sitk, moving.counts.astype(np.uint8), place))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step, minStep=step * 1e-3, numberOfIterations=150, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    transform.SetCenter((LPS[:3, :3] @ fixed.centre).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(image_of(sitk, fixed.data, fixed.grid), image_of(sitk, moving.data, place))
    except RuntimeError:  # all samples outside, or a singular transform
        return None
    return start @ _matrix_of(transform) if np.isfinite(transform.GetParameters()).all() else None


def _check(matrix: np.ndarray, fixed: _Level, moving: _Level, names: str) -> None:
    """Raises VolumeError for a registration that cannot be right; looks at 3 mm, where noise says less."""
    scales = np.linalg.svd(matrix[:3, :3])[1]
    if scales.min() < SCALES[0] or scales.max() > SCALES[1]:
        raise VolumeError(
            f"{names}: the registration scales by {scales.min():.2f} to {scales.max():.2f}, expected {SCALES[0]:g} to {SCALES[1]:g}: "
            "check the voxel sizes, or register rigidly"
        )
    found = _information(fixed, moving, matrix)
    if found.overlap < SMALLEST_OVERLAP:
        raise VolumeError(
            f"{names}: registered, the volumes share {found.overlap:.0%} of the smaller one, expected at least {SMALLEST_OVERLAP:.0%}: "
            "check that both show the same part of the head"
        )
    away = []
    for direction in np.concatenate([np.eye(3), -np.eye(3)]):
        moved = matrix.copy()
        moved[:3, 3] += SHARPEST * direction
        away.append(_information(fixed, moving, moved).information)
    if not found.information > LEAST_GAIN * max(away):
        raise VolumeError(
            f"{names}: registered, the volumes share {found.information:.3f} nats of information, hardly more than where they are moved "
            f"by {SHARPEST:g} mm ({max(away):.3f}): they do not show the same anatomy, or noise hides it"
        )


def _name(volume: Volume) -> str:
    return str(volume.path) if volume.path else "the volume"
