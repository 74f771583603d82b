"""Laws of magnitude noise [Gudbjartsson & Patz 1995; Rice 1945]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ive

from jaxsr.physics.noise import rician

SIGMA = 0.7
COUNT = 400_000


def rician_mean(signal, sigma):
    """σ √(π/2) L_½(−x²/2σ²), the Laguerre function by scaled Bessel functions, which do not overflow."""
    half = signal**2 / (4 * sigma**2)
    laguerre = (1 + 2 * half) * ive(0, half) + 2 * half * ive(1, half)
    return sigma * np.sqrt(np.pi / 2) * laguerre


@pytest.mark.parametrize("signal", [0.0, 0.5, 2.0, 20.0])
def test_mean_and_variance_are_rices(signal):
    noisy = np.asarray(rician(jax.random.key(0), jnp.full(COUNT, signal), SIGMA), np.float64)
    mean = rician_mean(signal, SIGMA)
    variance = signal**2 + 2 * SIGMA**2 - mean**2
    error = np.sqrt(variance / COUNT)
    assert abs(noisy.mean() - mean) < 5 * error
    assert noisy.var() == pytest.approx(variance, rel=0.02)


def test_air_has_mean_sigma_root_half_pi():
    noisy = rician(jax.random.key(1), jnp.zeros(COUNT), SIGMA)
    assert float(noisy.mean()) == pytest.approx(SIGMA * np.sqrt(np.pi / 2), rel=5e-3)
    assert (noisy >= 0).all()


def test_no_noise_leaves_the_magnitude():
    x = jax.random.normal(jax.random.key(2), (100,))
    np.testing.assert_array_equal(rician(jax.random.key(3), x, 0.0), jnp.abs(x))


def test_the_sign_of_the_signal_does_not_matter():
    """Only the phase of the complex signal changes, and the noise has none: Gibbs ringing below zero is no darker than above."""
    up, down = (rician(jax.random.key(4), jnp.full(COUNT, s), SIGMA) for s in (1.0, -1.0))
    assert float(up.mean()) == pytest.approx(float(down.mean()), abs=5e-3)
