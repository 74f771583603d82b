"""Slice profiles: how much each depth contributes to a slice of a two-dimensional acquisition.

    y_i = ∫ p(z_i − z) x(z) dz,      ∫ p = 1,      full width at half maximum of p = slice thickness  [survey, Eq. 2 and §XIII-H]

`rectangular` is the ideal excitation, `gaussian` the usual model of a real one. x is constant over each voxel, so every weight is the
profile's integral over one voxel: exact for thicknesses and slice positions that are not whole voxels.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import erf

Profile = Literal["rectangular", "gaussian"]

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


def excite(volume: Array, kind: Profile, thickness: float, count: int, axis: int) -> Array:
    """`count` slices along `axis`, `thickness` voxels thick (FWHM), equidistant over the field of view; linear in `volume`.

    The edge is continued by its mirror image. With `count` the length of the axis this is the convolution with the profile.
    """
    n = volume.shape[axis]
    centres = (np.arange(count) + 0.5) * n / count - 0.5
    matrix = np.zeros((count, n), np.float32)
    for row, centre in zip(matrix, centres, strict=True):
        nearest = int(np.floor(centre + 0.5))
        weights = slice_profile(kind, thickness, centre - nearest)
        index = (nearest + np.arange(len(weights)) - len(weights) // 2) % (2 * n)
        np.add.at(row, np.minimum(index, 2 * n - 1 - index), weights)
    return jnp.moveaxis(jnp.tensordot(volume, jnp.asarray(matrix), ((axis,), (1,))), -1, axis)


def slice_profile(kind: Profile, thickness: float, offset: float = 0.0) -> np.ndarray:
    """Weights of a slice `thickness` voxels thick (FWHM), float32, odd length, summing to one.

    Args:
      offset: of the slice's centre from that of the middle voxel, in voxels, at most half a voxel.

    Raises:
      ValueError: for an unknown kind, or a thickness that is not positive.
    """
    if thickness <= 0:
        raise ValueError(f"a slice needs a positive thickness, got {thickness} voxels")
    if kind not in ("rectangular", "gaussian"):
        raise ValueError(f"unknown slice profile {kind!r}; known: rectangular, gaussian")
    sigma = thickness / FWHM_PER_SIGMA
    radius = int(np.ceil((thickness / 2 if kind == "rectangular" else 4 * sigma) + abs(offset)))
    edges = np.arange(-radius, radius + 2) - 0.5 - offset
    if kind == "rectangular":
        cumulative = np.clip(edges / thickness + 0.5, 0, 1)
    else:
        cumulative = (1 + erf(edges / (sigma * np.sqrt(2)))) / 2
    weights = np.diff(cumulative)
    return (weights / weights.sum()).astype(np.float32)
