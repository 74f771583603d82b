"""Grids in scanner space, and resampling between two of them as three separable matrix products.

A grid is a shape and an affine; voxel centres lie at integer indices, the field of view reaches half a voxel beyond the outermost
centres. Resampling from n to m voxels along an axis is y = W x with W `[m, n]`, row i reading position p_i (in input voxels):

    nearest   W_ij = 1 for j nearest to p_i.
    linear    W_ij = Λ((p_i − j) / s), Λ the triangle; beyond the outermost centres the edge value goes on.
    cubic     W_ij = η((p_i − j) / s), η the cardinal cubic spline Σ_k c_k β³(x − k), c_k = √3 (√3 − 2)^|k|  [Unser 1999, Box 2],
              mirrored at the outermost centres: at s = 1 the interpolating B-spline of scipy.ndimage (order 3, mode 'mirror').
    kspace    W_ij = (1/n) Σ_|k| ≤ n/2s cos(2π k (p_i − j) / n), the edge frequency halved where it lies on the limit: zero filling
              (s ≤ 1) and truncation (s > 1) of the discrete Fourier transform, periodic over the field of view.

s = max(1, spacing), the output's voxel size in input voxels: kernels widen where the output is coarser, so that what it cannot hold does
not alias into it. Every row sums to one, so constants are kept; the widened triangle is also tilted to keep its first moment
(moving least squares of order one), so affine functions are kept too and nothing shifts.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from jaxsr.volume.orientation import nearest_rotation

Kind = Literal["nearest", "linear", "cubic", "kspace"]

_SAME = 1e-4  # voxels; a grid placed by float32 headers is not known better
_ROUND = 1e-3  # voxels; a field of view of 127.4997 voxels is 127.5, so float32 voxel sizes do not change a shape
_POLE = np.sqrt(3) - 2
_TAPS = 20  # |_POLE|**20 is 4e-12


@dataclass(frozen=True, eq=False)
class Grid:
    """`shape` (X, Y, Z) and `affine` float64 `[4, 4]`, voxel index → scanner mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Millimetres along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (x, y, z)

    @property
    def centre(self) -> np.ndarray:
        """Scanner position of the centre of the field of view, `[3]`."""
        return self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3]


def target_grid(grid: Grid, voxel_size: float | tuple[float, float, float]) -> Grid:
    """The grid of the same orientation and centre with exactly this voxel size in mm.

    A side has max(1, ⌊n v / v' + ½⌋) voxels, a half rounded up, with a thousandth of a voxel of grace for voxel sizes stored as float32.
    """
    wanted = np.broadcast_to(np.asarray(voxel_size, np.float64), (3,))
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise ValueError(f"voxel sizes must be positive millimetres, got {voxel_size}")
    sides = np.floor(np.array(grid.shape) * grid.voxel_size / wanted + 0.5 + _ROUND)
    shape = tuple(max(1, int(n)) for n in sides)
    return _centred(grid.affine[:3, :3] / grid.voxel_size * wanted, shape, grid.centre)


def straight_grid(grid: Grid) -> Grid:
    """The grid without shear that covers a sheared one: the nearest right-angled axes, the same voxel size and centre."""
    linear = nearest_rotation(grid.affine) * grid.voxel_size
    across = np.abs(np.linalg.solve(linear, grid.affine[:3, :3]))  # extent of one sheared voxel along each straight axis
    shape = tuple(int(n) for n in np.floor(across @ np.array(grid.shape) + 0.5 + _ROUND))
    return _centred(linear, shape, grid.centre)


def resample(data: np.ndarray, source: Grid, target: Grid, kind: Kind = "cubic") -> np.ndarray:
    """`data [X, Y, Z]` on `source` read at the voxels of `target`, float32. Values are linear in the data; cubic and kspace can overshoot.

    Raises:
      ValueError: where the grids' axes are not parallel (see `resample_oblique`), or the shape is not the source's.
    """
    if data.shape != source.shape:
        raise ValueError(f"data of shape {data.shape} does not lie on a grid of shape {source.shape}")
    positions = _positions(source, target)
    data = np.asarray(data, np.float32)
    # What shrinks most goes first: the later products then have less to do and to hold.
    for axis in sorted(range(3), key=lambda a: target.shape[a] / source.shape[a]):
        if _is_identity(positions[axis], source.shape[axis]):
            continue
        if kind == "nearest":
            data = np.take(data, _nearest(source.shape[axis], positions[axis]), axis)
        else:
            spacing = abs(source_step(source, target)[axis])
            data = apply_matrix(interpolation_matrix(source.shape[axis], positions[axis], kind, spacing), data, axis)
    return data


def resample_oblique(data: np.ndarray, source: Grid, target: Grid, kind: Kind = "cubic", fill: float | None = None) -> np.ndarray:
    """`resample` between grids whose axes are not parallel, by scipy.ndimage; 'nearest', 'linear' or 'cubic', without anti-aliasing.

    Voxels of the target outside the source get `fill`, by default the smallest value of the data.
    """
    orders = {"nearest": 0, "linear": 1, "cubic": 3}
    if kind not in orders:
        raise ValueError(f"oblique resampling knows {', '.join(orders)}, got {kind!r}")
    index = np.linalg.solve(source.affine, target.affine)
    fill = float(data.min()) if fill is None else fill
    return ndimage.affine_transform(
        data, index, output_shape=target.shape, output=np.float32, order=orders[kind], mode="constant", cval=fill
    )


def interpolation_matrix(n_in: int, positions: np.ndarray, kind: Kind, spacing: float = 1.0) -> np.ndarray:
    """The matrix W, float32 `[len(positions), n_in]`, of the equations above.

    Args:
      positions: where each output voxel reads, in input voxels; voxel centres are integers.
      spacing: the output's voxel size in input voxels; above 1 linear, cubic and kspace keep only what the output can hold.
    """
    positions = np.asarray(positions, np.float64)
    if n_in < 1 or positions.ndim != 1 or not np.isfinite(positions).all() or not spacing > 0:
        raise ValueError(f"expected n_in ≥ 1, finite positions [m] and spacing > 0, got {n_in}, shape {positions.shape}, {spacing}")
    width = max(1.0, spacing)
    match kind:
        case "nearest":
            matrix = np.eye(n_in)[_nearest(n_in, positions)]
        case "linear":
            matrix = _linear(n_in, positions, width)
        case "cubic":
            matrix = _cubic(n_in, positions, width)
        case "kspace":
            matrix = _kspace(n_in, positions, width)
        case _:
            raise ValueError(f"unknown kind of interpolation {kind!r}, expected one of {', '.join(get_args(Kind))}")
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def apply_matrix(matrix: np.ndarray, data: np.ndarray, axis: int) -> np.ndarray:
    """`matrix [m, n]` along one axis (0, 1 or 2) of `data [X, Y, Z]`, without transposing a contiguous array."""
    match axis:
        case 0:
            return (matrix @ data.reshape(data.shape[0], -1)).reshape(-1, *data.shape[1:])
        case 1:
            return np.matmul(matrix, data)
        case _:
            return np.matmul(data, matrix.T)


def source_step(source: Grid, target: Grid) -> np.ndarray:
    """One voxel of `target` in voxels of `source`, along each axis, `[3]`. Raises ValueError where the axes are not parallel."""
    step = np.linalg.solve(source.affine[:3, :3], target.affine[:3, :3])
    off = np.abs(step - np.diag(np.diag(step))) * np.array(target.shape)
    if off.max() > 0.01:  # voxels at the far end
        raise ValueError(
            f"the grids' axes are not parallel ({off.max():.3g} voxels apart at the far end): "
            "bring both to one orientation, or use resample_oblique"
        )
    return np.diag(step)


def _centred(linear: np.ndarray, shape: tuple[int, ...], centre: np.ndarray) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = centre - linear @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def _positions(source: Grid, target: Grid) -> list[np.ndarray]:
    """Where the target's voxels lie along each axis of the source, in its voxels; measured from the centres, which keeps symmetry exact."""
    step = source_step(source, target)
    middle = np.linalg.solve(source.affine[:3, :3], target.centre - source.centre) + (np.array(source.shape) - 1) / 2
    return [middle[a] + step[a] * (np.arange(n) - (n - 1) / 2) for a, n in enumerate(target.shape)]


def _is_identity(positions: np.ndarray, n_in: int) -> bool:
    return len(positions) == n_in and bool(np.abs(positions - np.arange(n_in)).max() < _SAME)


def _nearest(n_in: int, positions: np.ndarray) -> np.ndarray:
    # A half goes up, also where rounding has put it a little below.
    return np.clip(np.floor(np.asarray(positions) + 0.5 + _SAME), 0, n_in - 1).astype(np.intp)


def _linear(n_in: int, positions: np.ndarray, width: float) -> np.ndarray:
    reach = int(np.ceil(width)) + 1
    index = np.floor(positions).astype(int)[:, None] + np.arange(-reach, reach + 2)  # [m, taps]
    offset = index - positions[:, None]
    weights = np.maximum(0, 1 - np.abs(offset) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    first, second = ((weights * offset**k).sum(axis=1, keepdims=True) for k in (1, 2))
    spread = np.maximum(second - first**2, 1e-12)  # zero where a single voxel is read, and first is zero too
    weights = weights * (1 + first * (first - offset) / spread)
    return _fold(weights, np.clip(index, 0, n_in - 1), n_in)


def _cubic(n_in: int, positions: np.ndarray, width: float) -> np.ndarray:
    reach = int(np.ceil(width * _TAPS))
    index = np.floor(positions).astype(int)[:, None] + np.arange(-reach, reach + 2)
    period = max(1, 2 * n_in - 2)
    mirrored = np.abs((index + n_in - 1) % period - (n_in - 1))
    return _fold(_cardinal_spline((index - positions[:, None]) / width), mirrored, n_in)


def _kspace(n_in: int, positions: np.ndarray, width: float) -> np.ndarray:
    limit = n_in / (2 * width)
    frequency = np.arange(int(limit + 1e-6) + 1)
    weight = np.where(frequency == 0, 1.0, 2.0)
    if abs(frequency[-1] - limit) < 1e-6:
        weight[-1] /= 2  # the edge frequency stands for both its signs
    out, into = (2 * np.pi / n_in * np.multiply.outer(x, frequency) for x in (positions, np.arange(n_in)))
    return (np.cos(out) * weight @ np.cos(into).T + np.sin(out) * weight @ np.sin(into).T) / n_in


def _fold(weights: np.ndarray, index: np.ndarray, n_in: int) -> np.ndarray:
    """Σ over taps of `weights [m, taps]` into columns `index [m, taps]`."""
    matrix = np.zeros((len(weights), n_in))
    np.add.at(matrix, (np.arange(len(weights))[:, None], index), weights)
    return matrix


def _cardinal_spline(x: np.ndarray) -> np.ndarray:
    """η(x) = Σ_k c_k β³(x − k): 1 at 0, 0 at every other integer."""
    first = np.floor(x).astype(int) - 1
    total = np.zeros_like(x)
    for k in range(4):  # β³ is nonzero over four integers
        total += _SQRT3 * _POLE ** np.abs(first + k) * _b_spline(x - (first + k))
    return total


_SQRT3 = np.sqrt(3)


def _b_spline(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.maximum(0, 2 - x) ** 3 / 6)
