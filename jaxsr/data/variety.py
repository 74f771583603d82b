"""Variety of few people: each visit of a real head may find it of another size, contrast and smoothness, before anything is acquired of it.

    size        its voxels are taken for z times as large as they are; none of them is changed
    contrast    grey values go through a curve f: f(0) = 0, and from `KNEE` of the window on linear between knots, upwards throughout or,
                one time in three, downwards throughout, as from T1w to T2w; from 0 to `KNEE` f leads up to that
    air         is set to 0, in what is acquired and in the truth, as scanners clear it and tools strip skulls
    smoothness  it goes through a Gaussian of a standard deviation below that of many a head that was resampled, half a voxel or so

A network that has seen four people in seven contrasts knows those, and takes all heads for as sharp as theirs. Anatomy stays the scan's;
how tissues differ does not, nor how much noise there is: where f is steep, which it may be ten times below `KNEE`, it comes out stronger.
Air of exactly 0 stays so, but for what a Gaussian carries there.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume

ZOOMS = 5  # equidistant values: what an acquisition is compiled for is the shape of a volume and of its voxels
KNEE = 0.1  # of the intensity window
KNOTS = 5  # from there to the top of the window
LEAST_STEP = 0.25  # the least that a step between two knots can be, as a share of the greatest
INVERTED = 1 / 3  # share of the curves that fall
SMOOTHED = 1 / 2  # share of the visits that are smoothed at all: others stay as sharp as they are


class Variety(NamedTuple):
    """`zoom`: ends of the range of z; `contrasts`: the share of visits at which grey values go through a curve; `smooth`: at every second
    visit there is a Gaussian, of a standard deviation uniform up to this, in voxels; `cleared`: the share of visits at which air is 0."""

    zoom: tuple[float, float] = (1.0, 1.0)
    contrasts: float = 0.0
    smooth: float = 0.0
    cleared: float = 0.0


def vary(volume: Volume, variety: Variety, rng: np.random.Generator) -> Volume:
    """A draw of `variety` of a `volume` of magnitudes, in its units, but for air, which pairs are cleared of; its corner stays where it is.

    Raises:
      VolumeError: where it has no contrast.
    """
    low, high = variety.zoom
    zoom = low + (high - low) * int(rng.integers(ZOOMS)) / (ZOOMS - 1)
    data = apply_curve(volume.data, draw_curve(rng)) if rng.random() < variety.contrasts else volume.data
    data = smooth(data, draw_sigma(variety.smooth, rng))
    affine = volume.affine @ np.diag([zoom, zoom, zoom, 1.0])
    return Volume(data, affine)


def draw_sigma(most: float, rng: np.random.Generator) -> float:
    """Of the Gaussian of a visit, voxels: uniform up to `most` at every second, else 0."""
    return most * rng.random() if most and rng.random() < SMOOTHED else 0.0


def smooth(data: np.ndarray, sigma: float, mask: np.ndarray | None = None) -> np.ndarray:
    """`data` `[X, Y, Z]` through a Gaussian of `sigma` voxels, float32; what is 0 outside `mask` as if it had been smooth before that."""
    if not sigma:
        return data
    made = ndimage.gaussian_filter(data, sigma, output=np.float32)
    if mask is None or mask.all():
        return made
    share = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return np.where(mask, made / np.maximum(share, np.float32(1e-3)), np.float32(0))


def draw_curve(rng: np.random.Generator) -> np.ndarray:
    """Values at 0 and at `KNOTS` equidistant knots from `KNEE` to 1, in 0…1, float32 `[1 + KNOTS]`."""
    steps = rng.uniform(LEAST_STEP, 1.0, KNOTS)
    rising = np.cumsum(steps) / steps.sum()
    return np.array([0.0, *(rising[::-1] if rng.random() < INVERTED else rising)], np.float32)


def apply_curve(data: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """`data`, magnitudes of any shape, through a curve as `draw_curve` draws it, in the same units, float32; above the window a curve that
    rises goes on as its last piece does, one that falls stays where it is. Raises VolumeError where there is no contrast."""
    high = float(fit_window(data).high)
    knots = np.array([0.0, *np.linspace(KNEE, 1.0, len(curve) - 1)], np.float32)
    beyond = np.maximum(data / high - 1, 0) * max((curve[-1] - curve[-2]) / (knots[-1] - knots[-2]), 0)
    return (np.interp(data / high, knots, curve) + beyond).astype(np.float32) * np.float32(high)
