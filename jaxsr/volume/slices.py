"""Volumes as stacks of slices along three axes, and slices as a model's planes [teacher, Algorithm 2].

A slice map brings a slice's H × W to sides that a method accepts, and back:

    pad      symmetric, to the next multiple: voxels keep their size and the inverse is exact (the default);
    resize   to a fixed square, by the spline matrices of `geometry`, anti-aliased where it shrinks: the paper's way, not quite invertible.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from jaxsr.volume.geometry import interpolation_matrix

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}

Shape = tuple[int, int]
SliceMapKind = Literal["pad", "resize"]


def take_slices(data: np.ndarray, axis: str | int) -> np.ndarray:
    """All slices across `axis` ('sagittal', 'coronal', 'axial' or 0, 1, 2) of `data [X, Y, Z]`: a view `[n, H, W]`."""
    return np.moveaxis(data, _axis(axis), 0)


class SliceMap(Protocol):
    """A reversible map between the planes of a volume, `source` (H, W), and of a model, `shape` (H', W')."""

    @property
    def source(self) -> Shape: ...
    @property
    def shape(self) -> Shape: ...
    def forward(self, x: np.ndarray, fill: float = -1.0) -> np.ndarray: ...
    def inverse(self, y: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class PadMap:
    """Symmetric padding from `source` to `shape`; where the difference is odd, the far side gets one more."""

    source: Shape
    shape: Shape

    def forward(self, x: np.ndarray, fill: float = -1.0) -> np.ndarray:
        """`[..., H, W]` → `[..., H', W']`; `fill` is −1, the low end of the window, for intensities; give 0 for masks and other maps."""
        _expect(x, self.source)
        widths = [(start, big - small - start) for start, big, small in zip(self._start, self.shape, self.source, strict=True)]
        return np.pad(x, [(0, 0)] * (x.ndim - 2) + widths, constant_values=fill)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """`[..., H', W']` → a view `[..., H, W]`, exactly what `forward` was given."""
        _expect(y, self.shape)
        (top, left), (height, width) = self._start, self.source
        return y[..., top : top + height, left : left + width]

    @property
    def _start(self) -> Shape:
        return ((self.shape[0] - self.source[0]) // 2, (self.shape[1] - self.source[1]) // 2)


@dataclass(frozen=True)
class ResizeMap:
    """Cubic resizing of the same field of view from `source` to `shape`, each side by its own factor."""

    source: Shape
    shape: Shape

    def forward(self, x: np.ndarray, fill: float = -1.0) -> np.ndarray:
        """`[..., H, W]` → `[..., H', W']`, float32. Nothing is filled: `fill` is there so that all maps are called alike."""
        _expect(x, self.source)
        return _resize(x, self.shape)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """`[..., H', W']` → `[..., H, W]`, float32: exact for constants, close for what both grids can hold."""
        _expect(y, self.shape)
        return _resize(y, self.source)


def make_map(kind: SliceMapKind, shape: Shape, multiple: int, size: int = 256) -> SliceMap:
    """The map for slices of `shape` (H, W) and a method whose sides must be multiples of `multiple`; `size` is for 'resize'."""
    if multiple < 1 or min(shape) < 1:
        raise ValueError(f"expected sides and multiple of at least 1, got {shape} and {multiple}")
    match kind:
        case "pad":
            return PadMap(shape, (-(-shape[0] // multiple) * multiple, -(-shape[1] // multiple) * multiple))
        case "resize":
            if size < 1 or size % multiple:
                raise ValueError(f"slices are resized to {size}, which is not a multiple of {multiple}: choose a size that is")
            return ResizeMap(shape, (size, size))
        case _:
            raise ValueError(f"unknown slice map {kind!r}, expected 'pad' or 'resize'")


def _axis(axis: str | int) -> int:
    if axis in AXES:
        return AXES[axis]  # type: ignore[index]
    if axis in (0, 1, 2):
        return int(axis)
    raise ValueError(f"unknown axis {axis!r}, expected {', '.join(AXES)} or 0, 1, 2")


def _expect(x: np.ndarray, shape: Shape) -> None:
    if tuple(x.shape[-2:]) != shape:
        raise ValueError(f"expected slices [..., {shape[0]}, {shape[1]}], got shape {tuple(x.shape)}")


def _resize(x: np.ndarray, shape: Shape) -> np.ndarray:
    rows, columns = (_resize_matrix(n_in, n_out) for n_in, n_out in zip(x.shape[-2:], shape, strict=True))
    return np.matmul(np.matmul(rows, np.asarray(x, np.float32)), columns.T)


@lru_cache(maxsize=64)
def _resize_matrix(n_in: int, n_out: int) -> np.ndarray:
    """`[n_out, n_in]`: the same field of view, so pixel edges coincide, not pixel centres."""
    step = n_in / n_out
    matrix = interpolation_matrix(n_in, (np.arange(n_out) + 0.5) * step - 0.5, "cubic", spacing=step)
    matrix.setflags(write=False)
    return matrix
