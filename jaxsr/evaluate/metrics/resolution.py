"""Which spatial frequencies an image shares with its reference, and down to which size: Fourier shell (in slices: ring) correlation.

    FSC(i) = Σ_{|f| ≈ i Δf} Re X(f) Y*(f) / √(Σ |X|² Σ |Y|²)   [Harauz & van Heel, Optik 73:146, 1986]

X, Y are the Fourier transforms of the images less their means. A shell holds the frequencies whose length rounds to i Δf; f
counts cycles per mm along each axis, k / (n d) for voxels of d mm, so shells are spheres whatever the voxel's shape, and Δf = 1 / (the
shortest side of the field of view): every shell has samples along every axis. The curve goes from Δf to the highest frequency of the
finest axis, 1 / 2d; beyond that of a coarser axis a shell is the part of it that the grid holds. A shell in which either image has
nothing scores 0.

The effective resolution is 1 / f in mm, f being where the curve, linear between shells, first falls under the threshold:

    "1/2"        fixed, against a reference without noise, which a target is taken for [Rosenthal & Henderson, J Mol Biol 333:721, 2003]
    "1/7"        fixed, the same criterion between two equally noisy images of one object [ibid.: 0.143]
    "half-bit"   (0.2071 + 1.9102/√n) / (1.2071 + 0.9102/√n): half a bit of information a sample, n being the shell's
                 samples, both of each conjugate pair [van Heel & Schatz, J Struct Biol 151:250, 2005, Eq. 17]

Where it never falls, the resolution is the grid's own, two voxels of the finest axis; where it lies under it from the first shell, it is
1 / Δf, the shortest side of the field of view: images that agree nowhere agree at no smaller size, and a finite value stays in a mean.

A shell is the mean of all directions: what is lost along one axis only (thick slices) hardly shows in it. `axis_resolutions` takes of every
shell what lies within 25° of an axis, up to that axis' own highest frequency, and `coarsest_resolution` is the worst of the axes.

Without a mask the field of view is taken as periodic, as k-space is. With one, means are taken inside, and both images fade out over nine
voxels around the mask's edge (a Hann window, convolved with the mask): a sharp edge common to both images would correlate at all
frequencies.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import check_sides, checked, expanded, sides, spacing
from jaxsr.evaluate.metrics.windows import correlate

Threshold = Literal["1/2", "1/7", "half-bit"]

FADE = 9  # voxels
LEAST = 4  # voxels a side: two shells
CONE = 25.0  # degrees


class ShellCorrelation(NamedTuple):
    """A curve over S shells, and where it ends."""

    frequency: Array  # [S] cycles per mm
    correlation: Array  # [B, S], or [S] for a volume
    samples: Array  # [S] of the transform in each shell
    threshold: Array  # [S]
    resolution: Array  # [B], or a scalar for a volume; mm


def fourier_shell_correlation(
    x: ArrayLike, y: ArrayLike, *, voxel_size: ArrayLike, threshold: Threshold = "1/2", mask: ArrayLike | None = None
) -> ShellCorrelation:
    """The correlation of `x` and `y` at each spatial frequency; conventions above. Symmetric; neither scale nor offset matters.

    Args:
      voxel_size: mm along each spatial axis, or one number.

    Raises:
      ValueError: for a threshold of another name, or shapes or voxel sizes that make no sense; says which.
    """
    if threshold not in get_args(Threshold):
        raise ValueError(f"the threshold is one of {', '.join(get_args(Threshold))}, got {threshold!r}")
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, LEAST, "the Fourier shell correlation")
    sizes = spacing(voxel_size, len(sides(x)))
    shells = int((np.asarray(sides(x)) * sizes).min() / (2 * sizes.min()) + 1e-3)
    found = _correlate(x, y, jnp.asarray(sizes, jnp.float32), mask, shells, threshold)
    return found._replace(correlation=like_input(found.correlation), resolution=like_input(found.resolution))


def effective_resolution(
    x: ArrayLike, y: ArrayLike, *, voxel_size: ArrayLike, threshold: Threshold = "1/2", mask: ArrayLike | None = None
) -> Array:
    """The size in mm down to which `x` and `y` agree: `fourier_shell_correlation` under its threshold."""
    return fourier_shell_correlation(x, y, voxel_size=voxel_size, threshold=threshold, mask=mask).resolution


def axis_resolutions(
    x: ArrayLike, y: ArrayLike, *, voxel_size: ArrayLike, threshold: Threshold = "1/2", mask: ArrayLike | None = None
) -> Array:
    """Effective resolution along each spatial axis, `[B, axes]`, or `[axes]` for a volume; mm. Arguments: `fourier_shell_correlation`."""
    if threshold not in get_args(Threshold):
        raise ValueError(f"the threshold is one of {', '.join(get_args(Threshold))}, got {threshold!r}")
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, LEAST, "the Fourier shell correlation")
    sizes = spacing(voxel_size, len(sides(x)))
    field = (np.asarray(sides(x)) * sizes).min()
    shells = tuple(int(field / (2 * size) + 1e-3) for size in sizes)
    return like_input(_along_axes(x, y, jnp.asarray(sizes, jnp.float32), mask, shells, threshold))


def coarsest_resolution(
    x: ArrayLike, y: ArrayLike, *, voxel_size: ArrayLike, threshold: Threshold = "1/2", mask: ArrayLike | None = None
) -> Array:
    """The effective resolution in mm along the axis where it is worst: `axis_resolutions`."""
    return axis_resolutions(x, y, voxel_size=voxel_size, threshold=threshold, mask=mask).max(-1)


@partial(jax.jit, static_argnums=(4, 5))
def _along_axes(x: Array, y: Array, sizes: Array, mask: Array | None, shells: tuple[int, ...], threshold: Threshold) -> Array:
    x, y, mask = expanded(x, y, mask)
    found = []
    for axis, count in enumerate(shells):  # the transforms are the same, and computed once
        frequency, correlation, samples = _shells(x, y, sizes, mask, count, axis)
        found.append(_resolution(frequency, correlation, _level(threshold, samples)))
    return jnp.stack(found, -1)


@partial(jax.jit, static_argnums=(4, 5))
def _correlate(x: Array, y: Array, sizes: Array, mask: Array | None, shells: int, threshold: Threshold) -> ShellCorrelation:
    x, y, mask = expanded(x, y, mask)
    frequency, correlation, samples = _shells(x, y, sizes, mask, shells)
    level = _level(threshold, samples)
    return ShellCorrelation(frequency, correlation, samples, level, _resolution(frequency, correlation, level))


def _shells(x: Array, y: Array, sizes: Array, mask: Array | None, shells: int, axis: int | None = None) -> tuple[Array, Array, Array]:
    """Frequencies `[S]`, correlations `[B, S]` and samples `[S]`, of all directions or near one axis."""
    rank = x.ndim - 2
    axes = tuple(range(1, rank + 1))
    weights = None if mask is None else _faded(mask, x.shape)
    spectra = [jnp.fft.rfftn(_weighted(image, weights), axes=axes) for image in (x, y)]
    (a, b), lengths = spectra, x.shape[1:-1]
    terms = jnp.stack([a.real * b.real + a.imag * b.imag, jnp.abs(a) ** 2, jnp.abs(b) ** 2])  # [3, B, …, C]
    terms = terms.sum(-1)
    # rfftn leaves out one of each conjugate pair along the last axis; the others are folded: f and −f are in one shell.
    pairs = np.full(lengths[-1] // 2 + 1, 2, np.float32)
    pairs[0] = 1
    if lengths[-1] % 2 == 0:
        pairs[-1] = 1
    counts = jnp.broadcast_to(pairs, (1, 1, *lengths[:-1], len(pairs)))
    terms = terms * pairs
    for folded in range(2, rank + 1):
        terms, counts = _folded(terms, folded), _folded(counts, folded)

    field = sizes * np.asarray(lengths, np.float32)  # mm
    step = 1 / field.min()
    squares, along = jnp.zeros(()), jnp.zeros(())
    for other, n in enumerate(lengths):
        cycles = np.arange(n // 2 + 1, dtype=np.float32) / (field[other] * step)  # in units of Δf
        own = (cycles**2).reshape([-1 if a == other else 1 for a in range(rank)])
        squares, along = squares + own, jnp.asarray(own) if other == axis else along
    if axis is not None:
        near = along >= np.cos(np.deg2rad(CONE)) ** 2 * squares
        terms, counts = jnp.where(near, terms, 0), jnp.where(near, counts, 0)
    shell = jnp.minimum(jnp.round(jnp.sqrt(squares)), shells + 1).astype(jnp.int32)
    # Plane by plane first: float32 sums of few terms are exact enough.
    planes = terms.shape[2]
    shell = shell + (shells + 2) * jnp.arange(planes).reshape(-1, *(1,) * (rank - 1))
    rows = jnp.concatenate([terms.reshape(-1, shell.size), counts.reshape(1, -1)]).T
    sums = jax.ops.segment_sum(rows, shell.ravel(), planes * (shells + 2)).reshape(planes, shells + 2, -1).sum(0)[1:-1]
    cross, power_x, power_y = sums[:, :-1].T.reshape(3, -1, shells)
    scale = jnp.sqrt(power_x) * jnp.sqrt(power_y)
    return step * jnp.arange(1, shells + 1), jnp.where(scale > 0, cross / jnp.where(scale > 0, scale, 1), 0), sums[:, -1]


def _weighted(x: Array, weights: Array | None) -> Array:
    """`x` less its mean, in units of its own largest deviation, so that no square overflows; faded out where there is a mask."""
    axes = tuple(range(1, x.ndim))
    if weights is None:
        x = x - x.mean(axes, keepdims=True)
    else:
        weights = jnp.broadcast_to(weights, x.shape)
        x = (x - (x * weights).sum(axes, keepdims=True) / weights.sum(axes, keepdims=True)) * weights
    largest = jnp.abs(x).max(axes, keepdims=True)
    return x / jnp.where(largest > 0, largest, 1)


def _faded(mask: Array, shape: tuple[int, ...]) -> Array:
    full = jnp.broadcast_to(mask, (*mask.shape[:1], *shape[1:-1], *mask.shape[-1:])).astype(jnp.float32)
    hann = np.sin(np.pi * np.arange(1, FADE + 1) / (FADE + 1)) ** 2
    return correlate(jnp.pad(full, ((0, 0), *((FADE // 2, FADE // 2),) * (len(shape) - 2), (0, 0))), hann / hann.sum())


def _folded(a: Array, axis: int) -> Array:
    """Entries k and n − k of a periodic axis added: n → n // 2 + 1 entries."""
    n = a.shape[axis]
    mirrored = jnp.flip(jax.lax.slice_in_dim(a, n // 2 + 1, n, axis=axis), axis)
    widths = [(1, n // 2 - (n - 1) // 2) if i == axis else (0, 0) for i in range(a.ndim)]
    return jax.lax.slice_in_dim(a, 0, n // 2 + 1, axis=axis) + jnp.pad(mirrored, widths)


def _level(threshold: Threshold, samples: Array) -> Array:
    if threshold == "half-bit":
        return (0.2071 + 1.9102 / jnp.sqrt(samples)) / (1.2071 + 0.9102 / jnp.sqrt(samples))
    return jnp.full_like(samples, {"1/7": 1 / 7, "1/2": 1 / 2}[threshold])


def _resolution(frequency: Array, correlation: Array, level: Array) -> Array:
    """`[B]` mm: the first crossing of each curve `[B, S]`."""
    excess = correlation - level
    under = ~(excess >= 0)
    first = jnp.argmax(under, axis=-1)
    before = jnp.maximum(first - 1, 0)
    high, low = (jnp.take_along_axis(excess, at[:, None], -1)[:, 0] for at in (before, first))
    crossing = frequency[before] + (frequency[first] - frequency[before]) * high / jnp.where(high > low, high - low, 1)
    crossing = jnp.where(first == 0, frequency[0], crossing)
    return 1 / jnp.where(under.any(-1), crossing, frequency[-1])
