"""Intensities: a robust window of the foreground, mapped linearly to [-1, 1].

    y = 2 (x − low) / (high − low) − 1,        low, high = the 0.1 and 99.9 % percentiles of the foreground.

The map never clips: what lies outside the window goes outside [-1, 1], and the inverse brings it back.

The foreground is what is neither filling nor air. Filling is one exact value that more than 5 % of the voxels share (the zeros of a
skull-stripped, defaced or padded volume; it may be any value, since z-scored volumes have it in the middle of the tissue). Air is the
lowest 2 % of the range that is left, between its 0.1 and 99.9 % percentiles, so that neither spikes nor negative values move it.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from jaxsr.volume.errors import VolumeError

FILLING = 0.05  # share of the voxels with one exact value
AIR = 0.02  # share of the range
_SAMPLE = 200_000  # voxels looked at for the most common value

Array = TypeVar("Array")  # numpy or JAX: only arithmetic is used


class Window(NamedTuple):
    """Intensities `low` → −1 and `high` → 1, both float32 values, so that x − low keeps the digits of data with a large offset."""

    low: float
    high: float

    def forward(self, x: Array) -> Array:
        """Input units → [-1, 1], without clipping."""
        return (x - self.low) * (2 / (self.high - self.low)) - 1  # type: ignore[operator, return-value]

    def inverse(self, y: Array) -> Array:
        """[-1, 1] → input units; undoes `forward` to 1e-6 of the window, or to float32's resolution of x where that is coarser."""
        return (y + 1) * ((self.high - self.low) / 2) + self.low  # type: ignore[operator, return-value]


def fit_window(data: np.ndarray, *, percentiles: tuple[float, float] = (0.1, 99.9), mask: np.ndarray | None = None) -> Window:
    """The window of `data` (any shape): percentiles of the foreground, or of the voxels where `mask` is true.

    Raises:
      VolumeError: where there is no contrast: all voxels, or all in the mask, have one value.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"percentiles must rise inside 0…100, got {percentiles}")
    if mask is not None and mask.shape != data.shape:
        raise VolumeError(f"the mask has shape {mask.shape}, the volume {data.shape}: give a mask on the volume's own grid")
    values = data.ravel() if mask is None else data[np.asarray(mask, bool)]
    if values.size == 0:
        raise VolumeError("the mask is empty: give one that covers the head, or none")

    tissue = values if mask is not None else _foreground(values)
    for candidates in (tissue, values):  # a label or a binary map has its contrast against the filling only
        low, high = (float(np.float32(p)) for p in np.percentile(candidates, percentiles))
        if low < high:
            return Window(low, high)
    low, high = float(values.min()), float(values.max())
    if low < high:
        return Window(low, high)
    raise VolumeError(f"the volume has no contrast: every voxel is {low:g}; check that it is the scan you mean")


def background_share(data: np.ndarray) -> float:
    """The share of the voxels that is filling or air."""
    return 1 - _foreground(data.ravel()).size / data.size


def filling(data: np.ndarray) -> float | None:
    """The one value that more than 5 % of the voxels share, or None."""
    common = _most_common(data.ravel())
    return common if (data == common).mean() > FILLING else None


def _foreground(values: np.ndarray) -> np.ndarray:
    filled = filling(values)
    rest = values if filled is None else values[values != filled]
    if rest.size == 0:
        return values
    low, high = np.percentile(rest, (0.1, 99.9))
    tissue = rest[rest > low + AIR * (high - low)]
    return tissue if tissue.size else rest


def _most_common(values: np.ndarray) -> float:
    """The most common value of an even sample: a value that 5 % share cannot be missed."""
    found, counts = np.unique(values[:: max(1, values.size // _SAMPLE)], return_counts=True)
    return float(found[np.argmax(counts)])
