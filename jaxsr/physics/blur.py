"""Blurring: the point-spread function in the plane, and slice profiles, how much each depth contributes to a slice.

    y_i = ∫ p(z_i − z) x(z) dz,      ∫ p = 1,      full width at half maximum of p = slice thickness  [survey, Eq. 2 and §XIII-H]

    rectangular   the ideal excitation
    gaussian      the usual model of a real one
    sinc          the excitation of a Hamming-windowed sinc pulse of duration 1, whose bandwidth B is its time–bandwidth product:
                  at small tip angles the profile is the pulse's Fourier transform [Pauly 1989],

                      p(f) = ∫ sinc(Bt) (0.54 + 0.46 cos 2πt) cos 2πft dt over |t| < ½ = 0.54 S(f) + 0.23 (S(f − 1) + S(f + 1)),
                      S(f) = (Si(π(f + B/2)) − Si(π(f − B/2))) / πB,

                  f scaled so that its FWHM is the thickness: transition bands of 1.8/B of it (90 to 10 %) and ripples of 0.3 %.

x is constant over each voxel, so every weight is the profile's integral over one voxel: exact for thicknesses and slice positions that are
not whole voxels. Here ∫ Si(u) du = u Si(u) + cos u.

In the plane the point-spread function is Gaussian, by its transfer function exp(−2π²σ²f²): two in a row are one of σ² = σ₁² + σ₂², the mean
is kept, and σ may be drawn; periodic at the edges, as k-space is. Where the edges are mirrored instead, as in images, weights are those of
the discrete Gaussian [Lindeberg 1990, Eq. 19],

    T(n, σ²) = exp(−σ²) I_n(σ²),        I_n: modified Bessel function,

whose variance is σ² for any σ, and of which two in a row are again one: of a Gaussian that is sampled at the pixels both are true only for
σ above about ¾ pixel.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import brentq
from scipy.special import erf, ive, sici

Profile = Literal["rectangular", "gaussian", "sinc"]

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))

_SIDE_LOBES = 6  # in units of 1/duration beyond the nominal band; what lies further out is less than 1e-3 of the slice


@functools.partial(jax.jit, static_argnums=2)
def gaussian_blur(image: Array, fwhm: Sequence[Array | float], axes: tuple[int, ...]) -> Array:
    """`image` (real, any rank) convolved with a Gaussian of `fwhm` voxels along each of `axes`; its own adjoint."""
    for axis, width in zip(axes, fwhm, strict=True):
        n = image.shape[axis]
        frequency = np.fft.rfftfreq(n).astype(np.float32)
        transfer = jnp.exp(-2 * (np.pi * frequency * width / FWHM_PER_SIGMA) ** 2)
        spectrum = jnp.moveaxis(jnp.fft.rfft(image, axis=axis), axis, -1) * transfer
        image = jnp.moveaxis(jnp.fft.irfft(spectrum, n=n), -1, axis).astype(image.dtype)
    return image


def discrete_gaussian(sigma: np.ndarray, radius: int) -> np.ndarray:
    """T of offsets −radius…radius for each of `sigma` `[n]`, pixels: float32 `[n, 2 radius + 1]`, each row summing to one."""
    offset = np.arange(-radius, radius + 1)
    weights = ive(np.abs(offset), np.asarray(sigma, np.float64)[:, None] ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def blur_slices(images: Array, kernels: Array) -> Array:
    """Each of `images` `[B, H, W, C]` convolved with its own kernel `[B, 2 r + 1]` along rows and along columns; edges are mirrored about
    the outermost pixels, so that a constant stays what it is. The kernel (0, …, 1, …, 0) keeps every bit."""
    radius = kernels.shape[1] // 2
    for axis in (1, 2):
        n = images.shape[axis]
        padded = jnp.pad(images, [(radius, radius) if a == axis else (0, 0) for a in range(4)], mode="reflect")
        taps = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(2 * radius + 1))
        images = sum((kernels[:, i, None, None, None] * tap for i, tap in enumerate(taps)), jnp.zeros(()))
    return images


def excite(volume: Array, kind: Profile, thickness: float, count: int, axis: int, time_bandwidth: float = 4.0) -> Array:
    """`count` slices along `axis`, `thickness` voxels thick (FWHM), equidistant over the field of view; linear in `volume`.

    The edge is continued by its mirror image. With `count` the length of the axis this is the convolution with the profile. A gap or an
    overlap is what `thickness` and the distance of the slices, the axis' length / `count`, leave between them.
    """
    n = volume.shape[axis]
    centres = (np.arange(count) + 0.5) * n / count - 0.5
    matrix = np.zeros((count, n), np.float32)
    for row, centre in zip(matrix, centres, strict=True):
        nearest = int(np.floor(centre + 0.5))
        weights = slice_profile(kind, thickness, centre - nearest, time_bandwidth)
        index = (nearest + np.arange(len(weights)) - len(weights) // 2) % (2 * n)
        np.add.at(row, np.minimum(index, 2 * n - 1 - index), weights)
    return jnp.moveaxis(jnp.tensordot(volume, jnp.asarray(matrix), ((axis,), (1,)), precision="highest"), -1, axis)


def slice_profile(kind: Profile, thickness: float, offset: float = 0.0, time_bandwidth: float = 4.0) -> np.ndarray:
    """Weights of a slice `thickness` voxels thick (FWHM), float32, odd length, summing to one.

    Args:
      offset: of the slice's centre from that of the middle voxel, in voxels, at most half a voxel.
      time_bandwidth: of the pulse of a `sinc` profile: its lobes, 2 for a fast scan, 4 as usual, 8 for sharp slices.

    Raises:
      ValueError: for an unknown kind, a thickness that is not positive, or a time–bandwidth product below 1.
    """
    if thickness <= 0:
        raise ValueError(f"a slice needs a positive thickness, got {thickness} voxels")
    match kind:
        case "rectangular":
            reach = thickness / 2
        case "gaussian":
            sigma = thickness / FWHM_PER_SIGMA
            reach = 4 * sigma
        case "sinc":
            scale = _sinc_fwhm(time_bandwidth) / thickness  # 1/duration a voxel
            reach = (time_bandwidth / 2 + _SIDE_LOBES) / scale
        case _:
            raise ValueError(f"unknown slice profile {kind!r}; known: rectangular, gaussian, sinc")
    radius = int(np.ceil(reach + abs(offset)))
    edges = np.arange(-radius, radius + 2) - 0.5 - offset
    match kind:
        case "rectangular":
            cumulative = np.clip(edges / thickness + 0.5, 0, 1)
        case "gaussian":
            cumulative = (1 + erf(edges / (sigma * np.sqrt(2)))) / 2
        case "sinc":
            cumulative = _sinc_integral(edges * scale, time_bandwidth)
    weights = np.diff(cumulative)
    return (weights / weights.sum()).astype(np.float32)


def sinc_profile(frequency: np.ndarray, time_bandwidth: float) -> np.ndarray:
    """p(f) of the equations above, at frequencies in units of 1/duration."""
    return _windowed(lambda f: (_si(f + time_bandwidth / 2) - _si(f - time_bandwidth / 2)) / (np.pi * time_bandwidth), frequency)


def _sinc_integral(frequency: np.ndarray, time_bandwidth: float) -> np.ndarray:
    """An antiderivative of `sinc_profile`."""

    def integral(f: np.ndarray) -> np.ndarray:
        u = np.pi * f
        return (u * _si(f) + np.cos(u)) / np.pi

    return _windowed(lambda f: integral(f + time_bandwidth / 2) - integral(f - time_bandwidth / 2), frequency) / (np.pi * time_bandwidth)


@functools.cache
def _sinc_fwhm(time_bandwidth: float) -> float:
    """Full width at half maximum of `sinc_profile`, in units of 1/duration: near the bandwidth."""
    if time_bandwidth < 1:
        raise ValueError(f"a sinc pulse needs a time–bandwidth product of at least 1, got {time_bandwidth}")
    half = sinc_profile(np.zeros(1), time_bandwidth)[0] / 2
    return 2 * float(brentq(lambda f: sinc_profile(np.array([f]), time_bandwidth)[0] - half, 0, time_bandwidth / 2 + 1.5))


def _windowed(of, f):  # type: ignore[no-untyped-def]
    """The Hamming window in time is this convolution in frequency."""
    return 0.54 * of(f) + 0.23 * (of(f - 1) + of(f + 1))


def _si(f: np.ndarray) -> np.ndarray:
    return sici(np.pi * f)[0]  # type: ignore[no-any-return]
