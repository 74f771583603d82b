"""Augmentation: one geometric draw for all maps of a slice.

A slice x is read at φ(p), p the pixels of the crop and c its centre:

    x'(p) = x(φ(p)),   φ(p) = c + A (p − c + u(p)),   A a rotation times a scale,
    u(p) = Σ_k d_k β³(p / δ − k),   a free-form deformation with control points δ apart                        [Rueckert 1999, eq. 1].

φ folds nowhere: A is invertible, and p + u(p) is injective where every component of d is below δ / 2.046       [Choi & Lee 2000].

Intensities are read by the cubic B-spline, smooth maps linearly, labels and the mask from the nearest pixel. A displacement g reads
x(p + g(p)); that this stays so after the warp, x'(p + g'(p)) ≈ (x(· + g))'(p), takes g' = (Dφ)⁻¹ g(φ): turned with the image, and the
sign changed by a flip.

The log-Jacobian j of g says how much signal is thinned, x(p + g(p)) e^j(p) = y(p) for y before the distortion. Augmentation moves
intensities and does not change them, so j is read at φ as they are: j' = j(φ) keeps x'(p + g'(p)) e^j'(p) = y'(p). Where φ is affine,
that is the log-Jacobian of the map φ⁻¹(φ + g(φ)) that g' stands for, in which Dφ cancels. Where φ bends, that one also has
log det Dφ(p) − log det Dφ(p + g'(p)), stretching that no scanner did and no intensity shows.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pydantic
from scipy import ndimage

from jaxsr.config import Strict

SPACING = 32  # δ, pixels
_LIMIT = 0.45 * SPACING
_EDGE = 1e-3  # pixels; positions are rounded
_DECAY = 12  # pixels; the cubic spline's pole to this power is 1e-7
# Background of the window; of all else 0.
_OUTSIDE = dict.fromkeys(("high", "low", "beside", "reference", "output", "mean_map"), -1.0)
_ORDER = {"high": 3, "low": 3, "beside": 3, "reference": 3, "bias": 1, "gradient": 1, "jacobian": 1, "labels": 0, "mask": 0}

Maps = dict[str, np.ndarray]


class AugmentConfig(Strict):
    """How slices are varied. Standard deviations; what is 0 is left out, and costs nothing.

    Attributes:
      flip: each axis with probability ½.
      transpose: rows are columns with probability ½; crops are square.
      rotation: degrees.
      scale: of the logarithm of the magnification.
      elastic: pixels that control points, 32 pixels apart, are moved by; cut off at 14, below which nothing folds.
      gamma: of the logarithm of the exponent, the same for high and low, another for the reference.
    """

    flip: bool = True
    transpose: bool = False
    rotation: float = pydantic.Field(0.0, ge=0, le=45)
    scale: float = pydantic.Field(0.0, ge=0, le=0.5)
    elastic: float = pydantic.Field(0.0, ge=0, le=14)
    gamma: float = pydantic.Field(0.0, ge=0, le=1)


class Draw(NamedTuple):
    """What is done to one slice.

    Attributes:
      flips: of rows, of columns.
      linear: A, `[2, 2]`.
      control: d in pixels, `[2, K, L]`.
      exponents: of high and low, of the reference.
      transposed: whether rows become columns, at last.
    """

    flips: tuple[bool, bool] = (False, False)
    linear: np.ndarray | None = None
    control: np.ndarray | None = None
    exponents: tuple[float, float] = (1.0, 1.0)
    transposed: bool = False


def draw(config: AugmentConfig, crop: tuple[int, int], rng: np.random.Generator) -> Draw:
    """A draw for a slice of `crop` pixels."""
    rows, columns = (bool(config.flip and rng.random() < 0.5) for _ in range(2))
    linear = control = None
    if config.rotation or config.scale:
        angle, size = np.deg2rad(config.rotation) * rng.standard_normal(), np.exp(config.scale * rng.standard_normal())
        linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / size
    if config.elastic:
        shape = (2, *((side - 1) // SPACING + 4 for side in crop))
        control = np.clip(config.elastic * rng.standard_normal(shape), -_LIMIT, _LIMIT)
    image, reference = np.exp(config.gamma * rng.standard_normal(2)) if config.gamma else (1.0, 1.0)
    transposed = bool(config.transpose and rng.random() < 0.5)
    return Draw((rows, columns), linear, control, (float(image), float(reference)), transposed)


def take(maps: Mapping[str, np.ndarray], corner: tuple[int, int], crop: tuple[int, int], drawn: Draw) -> Maps:
    """The `crop` of each map whose first pixel is `corner` (negative where it reaches beyond the slice), warped, flipped, its window bent.

    Args:
      maps: of one slice, `[H, W]` or `[H, W, C]`, by the names of `jaxsr.data.pairs`.

    Returns:
      float32, integers and booleans as they were; contiguous. Beyond the slice there is background: −1 in intensities, 0 in other maps.
    """
    if drawn.linear is None and drawn.control is None:
        taken = {name: _frame(x, corner, crop, _OUTSIDE.get(name, 0)) for name, x in maps.items()}
    else:
        taken = _read(maps, positions(crop, drawn) + np.array(corner, np.float32)[:, None, None])
        if "gradient" in taken:
            taken["gradient"] = _solve(jacobian(crop, drawn), taken["gradient"])
    turned = {name: _transpose(name, _flip(name, x, drawn.flips), drawn.transposed) for name, x in taken.items()}
    return {name: np.ascontiguousarray(_bend(name, x, drawn.exponents)) for name, x in turned.items()}


def positions(crop: tuple[int, int], drawn: Draw) -> np.ndarray:
    """φ of the crop's pixels, float32 `[2, H, W]`."""
    rows, columns = (np.arange(side, dtype=np.float32) for side in crop)
    p = np.stack(np.broadcast_arrays(rows[:, None], columns[None, :]))
    if drawn.control is not None:
        p = p + _deformation(drawn.control, crop)
    if drawn.linear is None:
        return p
    centre = (np.array(crop, np.float32)[:, None, None] - 1) / 2
    return _times(drawn.linear, p - centre) + centre


def jacobian(crop: tuple[int, int], drawn: Draw) -> np.ndarray:
    """Dφ = A (1 + Du), float32 `[2, 2, H, W]`, or `[2, 2, 1, 1]` where it is the same everywhere; `[i, j]` is ∂φ_i / ∂p_j."""
    inner = np.eye(2, dtype=np.float32)[:, :, None, None]
    if drawn.control is not None:
        inner = inner + np.stack([_deformation(drawn.control, crop, (1, 0)), _deformation(drawn.control, crop, (0, 1))], 1)
    return inner if drawn.linear is None else _times(drawn.linear, inner)


def bend(x: np.ndarray, exponent: float) -> np.ndarray:
    """x → 2 ((x + 1) / 2)^exponent − 1 in the window −1…1. Monotone: goes on along the tangent above it, unchanged below."""
    t = (x + 1) / 2
    inside = np.power(np.clip(t, 0, 1), np.float32(exponent))
    return 2 * (inside + np.minimum(t, 0) + np.float32(exponent) * np.maximum(t - 1, 0)) - 1  # type: ignore[no-any-return]


def _read(maps: Mapping[str, np.ndarray], position: np.ndarray) -> Maps:
    """Each map at `position` `[2, H, W]`; only what is near is looked at."""
    shape = next(iter(maps.values())).shape[:2]
    low, high = position.min((1, 2)), position.max((1, 2))
    start = [int(np.clip(np.floor(a) - _DECAY, 0, n - 1)) for a, n in zip(low, shape, strict=True)]
    stop = [int(np.clip(np.ceil(b) + _DECAY + 1, s + 1, n)) for b, s, n in zip(high, start, shape, strict=True)]
    near = (slice(start[0], stop[0]), slice(start[1], stop[1]))
    reader = _Reader((stop[0] - start[0], stop[1] - start[1]), position - np.array(start, np.float32)[:, None, None])
    return {name: reader.read(x[near], _ORDER[name], _OUTSIDE.get(name, 0)) for name, x in maps.items()}


class _Reader:
    """Reads slices of `shape` at `position` `[2, H, W]`: what depends on the positions alone is computed once for all of them.

    scipy.ndimage's map_coordinates gives the same, slice by slice, in twice the time.
    """

    def __init__(self, shape: tuple[int, int], position: np.ndarray):
        last = np.array(shape, np.float32)[:, None, None] - 1
        self._inside = ((position >= -_EDGE) & (position <= last + _EDGE)).all(0)
        position = np.clip(position, 0, last)
        self._nearest = np.rint(position).astype(np.intp)
        whole = np.floor(position)
        self._part = position - whole
        first = whole.astype(np.intp)
        self._width = shape[1] + 3  # slices are continued by one pixel before and two behind
        self._first = first[0] * self._width + first[1]
        self._cubic: np.ndarray | None = None

    def read(self, x: np.ndarray, order: int, outside: float) -> np.ndarray:
        """`x` `[*shape]` or `[*shape, C]` by the spline of `order` (0, 1, 3); `outside` beyond the outermost pixels."""
        if x.ndim == 3:
            return np.stack([self.read(x[..., i], order, outside) for i in range(x.shape[-1])], -1)
        if order == 0:
            return np.where(self._inside, x[tuple(self._nearest)], np.asarray(outside, x.dtype))
        x = np.asarray(x, np.float32)
        taps: tuple[int, ...] = (1, 2)
        if order == 1:
            weights = np.stack([1 - self._part, self._part])
        else:
            x = ndimage.spline_filter(x, order, output=np.float32, mode="mirror")
            taps, weights = (0, 1, 2, 3), self._cubic_weights()
        flat = np.pad(x, ((1, 2), (1, 2)), mode="reflect").ravel()
        total = np.zeros(self._first.shape, np.float32)
        for i, by_row in zip(taps, weights[:, 0], strict=True):
            row = np.zeros_like(total)
            for j, by_column in zip(taps, weights[:, 1], strict=True):
                value = flat[i * self._width + j :].take(self._first)
                value *= by_column
                row += value
            row *= by_row
            total += row
        return np.where(self._inside, total, np.float32(outside))

    def _cubic_weights(self) -> np.ndarray:
        """β³ of the distances to the four pixels around, `[4, 2, H, W]`."""
        if self._cubic is None:
            t, u = self._part, 1 - self._part
            self._cubic = np.stack([u * u * u, (3 * t - 6) * t * t + 4, (3 * u - 6) * u * u + 4, t * t * t]) / np.float32(6)
        return self._cubic


def _solve(jacobian: np.ndarray, g: np.ndarray) -> np.ndarray:
    """(Dφ)⁻¹ g in the plane; the component through it stays."""
    (a, b), (c, d) = jacobian
    det, r, s = a * d - b * c, g[..., 0], g[..., 1]
    return np.stack([(d * r - b * s) / det, (a * s - c * r) / det, g[..., 2]], -1)


def _frame(x: np.ndarray, corner: tuple[int, int], crop: tuple[int, int], outside: float) -> np.ndarray:
    inside = tuple(slice(max(at, 0), at + side) for at, side in zip(corner, crop, strict=True))
    x = x[inside]
    x = x.astype(np.float32, copy=False) if np.issubdtype(x.dtype, np.floating) else x
    before = [max(-at, 0) for at in corner]
    pad = [(b, side - b - have) for b, side, have in zip(before, crop, x.shape[:2], strict=True)]
    if not any(map(any, pad)):
        return x
    return np.pad(x, pad + [(0, 0)] * (x.ndim - 2), constant_values=outside)


def _flip(name: str, x: np.ndarray, flips: tuple[bool, bool]) -> np.ndarray:
    x = x[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    if name == "gradient" and any(flips):
        x = x * np.array([*(-1 if flip else 1 for flip in flips), 1], x.dtype)
    return x


def _transpose(name: str, x: np.ndarray, transposed: bool) -> np.ndarray:
    if not transposed:
        return x
    x = np.swapaxes(x, 0, 1)
    return x[..., [1, 0, 2]] if name == "gradient" else x


def _bend(name: str, x: np.ndarray, exponents: tuple[float, float]) -> np.ndarray:
    exponent = exponents[name == "reference"]
    return x if exponent == 1.0 or name not in _OUTSIDE else bend(x, exponent)


def _times(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`matrix` `[2, 2]` times `x` `[2, …]`, without BLAS, whose threads only wait for each other here."""
    (a, b), (c, d) = matrix.astype(np.float32)
    return np.stack([a * x[0] + b * x[1], c * x[0] + d * x[1]])


def _deformation(control: np.ndarray, crop: tuple[int, int], derivative: tuple[int, int] = (0, 0)) -> np.ndarray:
    """u of the crop's pixels, or a derivative of it, `[2, H, W]`."""
    u = control.astype(np.float32)
    for axis in (2, 1):
        first, weights = _basis(crop[axis - 1], derivative[axis - 1])
        along = (slice(None), *(None,) * (2 - axis))
        u = sum((weights[:, j][along] * np.take(u, first + j, axis) for j in range(1, 4)), weights[:, 0][along] * np.take(u, first, axis))
    return u


@lru_cache(maxsize=16)
def _basis(side: int, derivative: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `side` pixels the first of the four control points that it depends on, and their weights, float32 `[side, 4]`."""
    first, t = np.divmod(np.arange(side) / SPACING, 1)
    value = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    slope = [-3 * (1 - t) ** 2, 9 * t**2 - 12 * t, -9 * t**2 + 6 * t + 3, 3 * t**2]
    weights = np.stack(slope, 1) / (6 * SPACING) if derivative else np.stack(value, 1) / 6
    return first.astype(np.intp), weights.astype(np.float32)
