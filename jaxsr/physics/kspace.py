"""k-space: what a scanner samples, and what it leaves out.

A scanner that images the same field of view with M instead of N voxels measures the lowest M of the N spatial frequencies
[survey, Eq. 1 with H a low-pass and ↓ a decimation]. Per axis, with X_k the discrete Fourier transform of x,

    y_m = 1/N Σ_{|k| ≤ K} X_k exp(2πi k p_m / N),      p_m = (m + ½) N/M − ½,      K = ⌊(min(N, M) − 1) / 2⌋,

p_m being the position of voxel m when both grids share the edges of the field of view. The unpaired Nyquist frequency of an
even grid has no sign and is left out, so that the operator is real, keeps the mean, and repeating it changes nothing. M > N is
zero filling, the scanner's own interpolation.

A window W weighs what was sampled, with u = k / (M/2) in −1…1 along each axis:

    box       W = 1: every sample as it is. Rings beside edges [Gibbs]: 8.95 % of a step.
    ellipse   W = 1 where Σ u² ≤ 1 over the axes, else 0: the corners of k-space are not sampled.
    hamming   W = Π (0.54 + 0.46 cos πu): hardly rings; its point spread is half as wide again.
    tukey     W = Π (1 where |u| ≤ ½, else ½ (1 + cos 2π(|u| − ½))): the outer half of each axis is rolled off:
              rings beside edges too, but not far.

box and ellipse are projections; all keep the mean. Partial Fourier samples the `fraction` of an axis' lines with the largest k:

    zero        y = P x, P the projection onto those lines: complex, its magnitude blurred along that axis
    conjugate   y = P x + (I − P) x̄: a missing line is the conjugate of its mirror image, right where x has no phase
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Window = Literal["box", "ellipse", "hamming", "tukey"]
Fill = Literal["zero", "conjugate"]


def fourier_resample(volume: Array, shape: Sequence[int], window: Window = "box") -> Array:
    """`volume` `[X, Y, Z]` (or any real array) on a grid of `shape` over the same field of view: truncated or zero-filled per axis.

    Linear; exact for signals below both grids' Nyquist frequencies; periodic at the edges, as k-space is. Sharp truncation
    rings (Gibbs), as it does in a scanner; `window` weighs the samples of the axes that are truncated.
    """
    if len(shape) != volume.ndim:
        raise ValueError(f"the new shape needs {volume.ndim} sides like the volume's {volume.shape}, got {tuple(shape)}")
    return _fourier_resample(volume, tuple(shape), window)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _fourier_resample(volume: Array, shape: tuple[int, ...], window: Window) -> Array:
    truncated = tuple(axis for axis in range(volume.ndim) if shape[axis] < volume.shape[axis])
    # Shrinking axes first: every later transform then has less to do.
    for axis in sorted(range(volume.ndim), key=lambda axis: shape[axis] / volume.shape[axis]):
        if shape[axis] >= volume.shape[axis] and truncated:
            volume, truncated = apply_window(volume, window, truncated), ()
        if shape[axis] != volume.shape[axis]:
            volume = _resample_axis(volume, shape[axis], axis)
    return apply_window(volume, window, truncated)


def truncate(volume: Array, shape: Sequence[int], window: Window = "box") -> Array:
    """`volume` with only the frequencies that a grid of `shape` holds, on its own grid: sampled coarsely, then zero-filled."""
    return fourier_resample(fourier_resample(volume, shape, window), volume.shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def apply_window(image: Array, kind: Window, axes: tuple[int, ...]) -> Array:
    """`image` (real or complex, any rank) with the k-space of its own grid weighed along `axes`."""
    if kind == "box" or not axes:
        return image
    return _filter(image, window_weights(kind, [image.shape[axis] for axis in axes]), axes)


def window_weights(kind: Window, shape: Sequence[int]) -> np.ndarray:
    """W on a k-space of `shape`, float32, frequencies as `fftfreq` orders them."""
    u = np.meshgrid(*(2 * np.fft.fftfreq(n) for n in shape), indexing="ij", sparse=True)
    match kind:
        case "box":
            weights = np.ones(tuple(shape))
        case "ellipse":
            weights = sum(v**2 for v in u) <= 1 + 1e-9
        case "hamming":
            weights = _product(0.54 + 0.46 * np.cos(np.pi * v) for v in u)
        case "tukey":
            weights = _product(np.where(abs(v) <= 0.5, 1, 0.5 + 0.5 * np.cos(2 * np.pi * (abs(v) - 0.5))) for v in u)
        case _:
            raise ValueError(f"unknown window {kind!r}; known: box, ellipse, hamming, tukey")
    return np.broadcast_to(np.asarray(weights, np.float32), tuple(shape))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def partial_fourier(image: Array, fraction: float, axis: int, fill: Fill = "zero") -> Array:
    """`image` (real or complex) from the `fraction` of its lines along `axis` with the largest k; complex, same shape.

    Raises:
      ValueError: for a fraction that is not above ½ and at most 1, or an unknown way of filling.
    """
    if fill not in ("zero", "conjugate"):
        raise ValueError(f"unknown filling {fill!r}; known: zero, conjugate")
    sampled = sampled_lines(image.shape[axis], fraction)
    kept = _filter(as_complex(image), sampled, (axis,))
    if fill == "zero":
        return kept
    return kept + _filter(jnp.conj(as_complex(image)), ~sampled & np.roll(sampled[::-1], 1), (axis,))


def sampled_lines(lines: int, fraction: float) -> np.ndarray:
    """Which of `lines` partial Fourier samples, bool, frequencies as `fftfreq` orders them: more than half, k = 0 among them."""
    if not 0.5 < fraction <= 1:
        raise ValueError(f"partial Fourier samples more than half of the lines and at most all, got a fraction of {fraction}")
    k = np.rint(np.fft.fftfreq(lines) * lines)
    return np.asarray(k >= k.max() + 1 - max(round(fraction * lines), lines // 2 + 1))


@functools.partial(jax.jit, static_argnums=2)
def modulate_lines(image: Array, weights: Array | np.ndarray, axis: int) -> Array:
    """`image` with each of its k-space lines along `axis` times its weight `[n]`, frequencies as `fftfreq` orders them; complex."""
    return _filter(as_complex(image), weights, (axis,))


def as_complex(image: Array) -> Array:
    """`image` as complex numbers of its own precision."""
    return image.astype(jnp.result_type(image.dtype, jnp.complex64))


def _filter(image: Array, weights: Array | np.ndarray, axes: Sequence[int]) -> Array:
    """F⁻¹ W F along `axes`; real for a real image, whose W must then be symmetric."""
    axes = [axis % image.ndim for axis in axes]
    shape = [image.shape[axis] if axis in axes else 1 for axis in range(image.ndim)]
    weights = jnp.asarray(weights).transpose(np.argsort(axes)).reshape(shape)
    filtered = jnp.fft.ifftn(jnp.fft.fftn(image, axes=axes) * weights, axes=axes)
    return (filtered if jnp.iscomplexobj(image) else filtered.real).astype(image.dtype)


def _product(factors):  # type: ignore[no-untyped-def]
    total = 1.0
    for factor in factors:
        total = total * factor
    return total


def _resample_axis(x: Array, m: int, axis: int) -> Array:
    n = x.shape[axis]
    kept = (min(n, m) - 1) // 2 + 1
    spectrum = jnp.moveaxis(jnp.fft.rfft(x, axis=axis), axis, -1)[..., :kept]
    shift = np.exp(1j * np.pi * np.arange(kept) * (1 / m - 1 / n)).astype(np.complex64)
    return jnp.moveaxis(jnp.fft.irfft(spectrum * shift, n=m) * (m / n), -1, axis).astype(x.dtype)
