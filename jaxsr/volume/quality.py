"""How sharp and how noisy a scan is, all of it: what a network cannot tell from the few voxels that it sees at a time.

    sharpness   √((E d₂² − 6 σ²) / (E d₁² − σ²/2)),    d₁ = (x_{i+1} − x_{i−1}) / 2,   d₂ = x_{i+1} − 2 x_i + x_{i−1}    along an axis
    noise       σ (`jaxsr.volume.noise`), where the intensity window is 2 wide

Means are over the head without its outermost voxels: next to air that somebody set to 0 they say how a skull was stripped. White noise of σ
adds 6 σ² and σ²/2 to the two mean squares, so what is left is the head's, of which nothing is believed below `LEAST` of a mean square; no
σ² is believed above E d₂² / 6 of any axis. A wave of ω a voxel has sharpness 2 tan(ω / 2): smooth heads have less, sharp ones more.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import Window
from jaxsr.volume.noise import estimate_noise

LEAST = 0.1  # share of a mean square that is taken for the head's, however noisy it is
EDGE = 2  # voxels
# What networks were told in training; what is further out is told as if it were at the end.
SHARPNESS = (0.45, 3.0)
NOISE = (0.01, 0.12)
TYPICAL = (1.6, 0.035)  # is told where there is nothing to go by
_PLANES = 16  # that differences are taken of at a time


class Quality(NamedTuple):
    """`sharpness` along each axis of a volume, and `noise`, where its window is 2 wide, both above 0; `air`: whether that was found in air,
    where no structure counts as noise."""

    sharpness: tuple[float, float, float]
    noise: float
    air: bool


def quality_of(data: np.ndarray, window: Window) -> Quality:
    """Of a scan `data` `[X, Y, Z]` on the grid that it was acquired on, in its own units, `window` its intensity window."""
    head = foreground(data)
    inner = ndimage.binary_erosion(head, iterations=EDGE, border_value=1)
    squares = [_mean_squares(np.moveaxis(data, axis, 0), np.moveaxis(inner, axis, 0)) for axis in range(3)]
    try:
        sigma, source = estimate_noise(data, head=head)
    except VolumeError:  # none is to be found
        sigma, source = TYPICAL[1] * (window.high - window.low) / 2, "tissue"
    sigma = min([sigma, *(float(np.sqrt(second / 6)) for first, second in squares if first > 0)])
    x, y, z = (_sharpness(first, second, sigma) for first, second in squares)
    return Quality((x, y, z), float(np.clip(2 * sigma / (window.high - window.low), *NOISE)), source == "air")


def once_asked(data: np.ndarray, window: Window) -> Callable[[], Quality]:
    """`quality_of`, measured when somebody asks, and kept: it takes a tenth of a second or two, and most methods are not told."""
    return functools.cache(functools.partial(quality_of, data, window))


def _mean_squares(x: np.ndarray, inner: np.ndarray) -> tuple[float, float]:
    """Of d₁ and d₂ along the first axis, where all that they are made of is `inner`; zeros where nothing is."""
    first, second, count = 0.0, 0.0, 0
    for start in range(0, len(x) - 2, _PLANES):
        at = slice(start, start + _PLANES + 2)
        part, mask = x[at], inner[at]
        inside = mask[:-2] & mask[1:-1] & mask[2:]
        before, here, after = (of[inside].astype(np.float64) for of in (part[:-2], part[1:-1], part[2:]))
        first += float(np.sum((after - before) ** 2)) / 4
        second += float(np.sum((after - 2 * here + before) ** 2))
        count += len(here)
    return first / max(count, 1), second / max(count, 1)


def _sharpness(first: float, second: float, sigma: float) -> float:
    """From those mean squares, and the noise in them."""
    if not first > 0:
        return TYPICAL[0]
    ratio = max(second - 6 * sigma**2, LEAST * second) / max(first - sigma**2 / 2, LEAST * first)
    return float(np.clip(np.sqrt(ratio), *SHARPNESS))
