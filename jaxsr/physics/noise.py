"""Noise of magnitude images.

Thermal noise is complex and Gaussian in each channel of each coil; the magnitude of signal plus noise of one coil is Rician [survey §II-B],
the root of the sum of squares over L coils follows a non-central χ distribution of 2L degrees of freedom [Constantinides 1997]:

    Rice    y = |x + σ (n₁ + i n₂)|,                           E[y²] = x² + 2σ²,      in air (x = 0) E[y] = σ √(π/2)
    χ       y = √(Σ_l |x / √L + σ (n₁ₗ + i n₂ₗ)|²),            E[y²] = x² + 2Lσ²,     in air E[y] = σ √2 Γ(L + ½) / Γ(L)

with E[y] = σ √(π/2) L_½^(L−1)(−x²/2σ²), a generalised Laguerre function. Coils are alike; χ depends on Σ|x_l|² = |x|² alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

_HIGH = 32  # SNR above which the mean has a simple form


def rician(key: Array, image: Array, sigma: Array | float) -> Array:
    """Magnitude of `image` with complex Gaussian noise of standard deviation `sigma` a channel; same shape and units."""
    return noncentral_chi(key, image, sigma, 1)


def noncentral_chi(key: Array, image: Array, sigma: Array | float, coils: int, process: Callable[[Array], Array] | None = None) -> Array:
    """Root of the sum of squares over `coils`, each of which sees `image` / √coils and noise of its own; real, same shape and units.

    Args:
      image: real or complex.
      sigma: standard deviation of the noise in the real and in the imaginary part of each coil.
      process: what becomes of each coil's complex image before magnitudes are taken; linear over the reals.

    Raises:
      ValueError: for less than one coil.
    """
    if coils < 1:
        raise ValueError(f"an image needs at least one coil, got {coils}")

    def coil(key: Array) -> tuple[Array, Array]:
        real, imaginary = jax.random.normal(key, (2, *image.shape), image.real.dtype)
        seen = image / coils**0.5
        if process is None:
            return seen.real + sigma * real, seen.imag + sigma * imaginary
        measured = process(seen + sigma * (real + 1j * imaginary))
        return measured.real, measured.imag

    if coils == 1:
        return jnp.hypot(*coil(key))

    def add(index: Array, total: Array) -> Array:
        real, imaginary = coil(jax.random.fold_in(key, index))
        return total + real**2 + imaginary**2

    return jnp.sqrt(jax.lax.fori_loop(0, coils, add, jnp.zeros(image.shape, image.real.dtype)))


def mean_magnitude(image: np.ndarray, sigma: float, coils: int = 1) -> np.ndarray:
    """E[y] of the equations above for x = `image` ≥ 0, float32 of the same shape: what a noisy magnitude is on average."""
    known = np.linspace(0, _HIGH, 64 * _HIGH + 1)
    air = np.sqrt(2) * np.exp(special.gammaln(coils + 0.5) - special.gammaln(coils))
    means = air * special.hyp1f1(-0.5, coils, -(known**2) / 2)
    odd = 2 * coils - 1
    mean = np.empty(image.shape, np.float32)
    for into, part in zip(mean, image, strict=True):  # a plane at a time: the float64 of a volume is a lot
        x = part / sigma
        high = np.maximum(x, _HIGH)
        series = high + odd / (2 * high) - odd * (odd - 2) / (8 * high**3)  # of large x
        into[...] = sigma * np.where(x < _HIGH, np.interp(x, known, means), series)
    return mean
