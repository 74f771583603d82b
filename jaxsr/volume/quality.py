"""How sharp and how noisy a scan is, of all of it: what a network cannot tell from the few voxels that it sees at a time.

    sharpness   √((E d₂² − 6 σ²) / (E d₁² − σ²/2)),    d₁ = (x_{i+1} − x_{i−1}) / 2,   d₂ = x_{i+1} − 2 x_i + x_{i−1}    along an axis
    noise       σ (`jaxsr.volume.noise`), in units of the intensity window, which is 2 wide

Means are over the head, but for its outermost voxels, as an edge to air is that of whoever stripped a skull. White noise of σ adds 6 σ² and
σ²/2 to the two mean squares, so what is left is the head's, of which nothing is believed below `LEAST` of a mean square; no σ² is believed
above E d₂² / 6 of any axis. A wave of ω a voxel has sharpness 2 tan(ω / 2): smooth heads have less, sharp ones more.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import Window
from jaxsr.volume.noise import estimate_noise

LEAST = 0.1  # share of a mean square that is taken for the head's, however noisy it is
SHARPNESS = (0.3, 4.0)  # what is further out is no head's: it is told as if it were at the end
NOISE = (0.003, 0.3)
EDGE = 2  # voxels
MOST = 256  # voxels along an axis that are looked at, those in the middle


class Quality(NamedTuple):
    """`sharpness` along each axis of a volume, and `noise`, in units of its intensity window; both above 0."""

    sharpness: tuple[float, float, float]
    noise: float


def quality_of(data: np.ndarray, window: Window) -> Quality:
    """Of a scan `data` `[X, Y, Z]` on the grid that it was acquired on, in its own units, `window` its intensity window."""
    data = data[tuple(slice(max(n - MOST, 0) // 2, max(n - MOST, 0) // 2 + MOST) for n in data.shape)]
    head = foreground(data)
    try:
        sigma = estimate_noise(data, head=head).sigma
    except VolumeError:  # there is none
        sigma = 0.0
    inner = ndimage.binary_erosion(head, iterations=EDGE)
    squares = [_mean_squares(np.moveaxis(data, axis, 0), np.moveaxis(inner, axis, 0)) for axis in range(3)]
    sigma = min([sigma, *(float(np.sqrt(second / 6)) for first, second in squares if first > 0)])
    x, y, z = (_sharpness(first, second, sigma) for first, second in squares)
    return Quality((x, y, z), float(np.clip(2 * sigma / (window.high - window.low), *NOISE)))


def _mean_squares(x: np.ndarray, inner: np.ndarray) -> tuple[float, float]:
    """Of d₁ and d₂ along the first axis."""
    inside = inner[:-2] & inner[1:-1] & inner[2:]
    if not inside.any():
        return 0.0, 0.0
    before, at, after = (of[inside].astype(np.float64) for of in (x[:-2], x[1:-1], x[2:]))
    return float(np.mean((after - before) ** 2)) / 4, float(np.mean((after - 2 * at + before) ** 2))


def _sharpness(first: float, second: float, sigma: float) -> float:
    """From those, and the noise in them; 1 where there is nothing to go by."""
    if not first > 0:
        return 1.0
    ratio = max(second - 6 * sigma**2, LEAST * second) / max(first - sigma**2 / 2, LEAST * first)
    return float(np.clip(np.sqrt(ratio), *SHARPNESS))
