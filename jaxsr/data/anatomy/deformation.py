"""How heads differ from one another: a random affine map, a smooth displacement, and the places where a grid's voxels then read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much heads differ from the template; all are standard deviations of normal draws unless said otherwise.

    Attributes:
      rotation: degrees about each axis.
      scaling: of each axis, relative.
      shear: of each pair of axes.
      warp: mm of smooth displacement, at control points `warp_spacing` mm apart.
      folding: of the noise added to the log-odds at each of three scales, in nats: how much surfaces fold and roughen.
      texture: of the multiplicative signal variation within tissues at each of two scales.
      lesions: the largest number of white-matter lesions (drawn uniformly from 0).
      wrinkling: mm of displacement at control points 10 mm apart, of heads from label maps, whose labels have folds already.
      stripped: share of the heads whose skull and what is beyond are taken off: exact zeros.
      defaced: share of the heads whose face is taken off: exact zeros.
      bias: the standard deviation of log b is drawn from this range.
      nonlinearity: the longest displacement by the gradients, in mm, is drawn from this range.
    """

    rotation: float = 8.0
    scaling: float = 0.06
    shear: float = 0.04
    warp: float = 3.0
    warp_spacing: float = 30.0
    folding: float = 1.0
    texture: float = 0.02
    lesions: int = 6
    wrinkling: float = 0.6
    stripped: float = 0.0
    defaced: float = 0.0
    bias: tuple[float, float] = (0.1, 0.3)
    nonlinearity: tuple[float, float] = (0.5, 4.0)


def random_affine(key: Array, variation: Variation) -> Array:
    """Rotation · scaling · shear, `[3, 3]`."""
    angle, scale, shear = jax.random.normal(key, (3, 3)) * jnp.array(
        [[np.deg2rad(variation.rotation)], [variation.scaling], [variation.shear]]
    )
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(angle), jnp.sin(angle)
    about_x = jnp.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = jnp.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = jnp.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    upper = jnp.array([[1, shear[0], shear[1]], [0, 1, shear[2]], [0, 0, 1]])
    return about_x @ about_y @ about_z @ jnp.diag(jnp.exp(scale)) @ upper


def smooth_noise(key: Array, shape: tuple[int, ...], extent: np.ndarray, scale: float) -> Array:
    """Normal noise on the last three axes of `shape`, smooth at `scale` mm and of unit variance."""
    noise, matrices = smooth_noise_factors(key, shape, extent, scale)
    for axis, matrix in enumerate(matrices, start=len(shape) - 3):
        noise = jnp.moveaxis(jnp.tensordot(noise, matrix, ((axis,), (1,))), -1, axis)
    return noise


def smooth_noise_factors(key: Array, shape: tuple[int, ...], extent: np.ndarray, scale: float) -> tuple[Array, list[Array]]:
    """`smooth_noise` before it is multiplied out: noise at control points `[…, n, n', n'']`, and a matrix `[m, n]` for each axis."""
    control = tuple(int(np.ceil(e / scale)) + 1 for e in extent)
    noise = jax.random.normal(key, (*shape[:-3], *control))
    matrices = [bspline_matrix(n, m) for n, m in zip(control, shape[-3:], strict=True)]
    return noise, [jnp.asarray(m / np.sqrt((m**2).sum(1, keepdims=True))) for m in matrices]


def bspline_matrix(n: int, m: int) -> np.ndarray:
    """Cubic B-splines of `n` control points at `m` equidistant positions, float32 `[m, n]`, rows sum to one: smooth, not interpolating."""
    distance = np.abs(((np.arange(m) + 0.5) * n / m - 0.5)[:, None] - np.arange(n))
    matrix = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def centred_points(shape: tuple[int, int, int], spacing: np.ndarray) -> Array:
    """Positions of voxel centres from the centre of the grid, mm, `[3, X, Y, Z]`."""
    axes = [jnp.asarray((np.arange(n) - (n - 1) / 2) * d, jnp.float32) for n, d in zip(shape, spacing, strict=True)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"))


def trilinear(maps: Array, index: Array) -> Array:
    """`maps` `[K, X, Y, Z]` at voxel positions `index` `[3, x, y, z]`; beyond the edge, the edge."""
    last = jnp.array(maps.shape[1:]).reshape(3, 1, 1, 1) - 1
    below = jnp.clip(jnp.floor(index), 0, last - 1)
    weight = jnp.clip(index - below, 0, 1)
    base = below.astype(jnp.int32)
    voxels = maps.reshape(len(maps), -1).T  # [voxels, K]: one gather brings every tissue
    stride = (maps.shape[2] * maps.shape[3], maps.shape[3], 1)
    result = jnp.zeros((*index.shape[1:], len(maps)), maps.dtype)
    for corner in np.ndindex(2, 2, 2):
        share = jnp.prod(jnp.stack([weight[a] if c else 1 - weight[a] for a, c in enumerate(corner)]), 0)
        result += share[..., None] * voxels[sum((base[a] + c) * stride[a] for a, c in enumerate(corner))]
    return jnp.moveaxis(result, -1, 0)
