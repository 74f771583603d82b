"""Laws of magnitude noise [Gudbjartsson & Patz 1995; Rice 1945]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import gamma, hyp1f1, ive

from jaxsr.physics.noise import mean_magnitude, noncentral_chi, rician

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


# ------------------------------------------------------------------------------------------------ several coils


def chi_mean(signal, sigma, coils):
    """σ √(π/2) L_½^(L−1)(−x²/2σ²) = σ √2 Γ(L + ½)/Γ(L) ₁F₁(−½, L, −x²/2σ²) [Constantinides 1997]."""
    return sigma * np.sqrt(2) * gamma(coils + 0.5) / gamma(coils) * hyp1f1(-0.5, coils, -(signal**2) / (2 * sigma**2))


@pytest.mark.parametrize("coils", [1, 2, 8])
@pytest.mark.parametrize("signal", [0.0, 1.0, 6.0])
def test_mean_and_variance_over_coils_are_those_of_the_non_central_chi_distribution(coils, signal):
    noisy = np.asarray(noncentral_chi(jax.random.key(0), jnp.full(COUNT, signal), SIGMA, coils), np.float64)
    mean = chi_mean(signal, SIGMA, coils)
    variance = signal**2 + 2 * coils * SIGMA**2 - mean**2
    assert abs(noisy.mean() - mean) < 5 * np.sqrt(variance / COUNT)
    assert noisy.var() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("coils", [1, 4])
def test_the_square_over_sigma_has_the_distribution_of_scipy(coils):
    """y²/σ² is non-central χ² of 2L degrees and non-centrality x²/σ²; Kolmogorov and Smirnov do not tell them apart."""
    noisy = np.asarray(noncentral_chi(jax.random.key(7), jnp.full(20_000, 1.5), SIGMA, coils), np.float64)
    assert stats.kstest((noisy / SIGMA) ** 2, stats.ncx2(2 * coils, (1.5 / SIGMA) ** 2).cdf).pvalue > 0.01


def test_one_coil_is_rician_to_the_bit():
    x = jax.random.normal(jax.random.key(2), (100,))
    np.testing.assert_array_equal(noncentral_chi(jax.random.key(3), x, 0.1, 1), rician(jax.random.key(3), x, 0.1))


@pytest.mark.parametrize("coils", [2, 5])
def test_without_noise_coils_add_up_to_the_magnitude(coils):
    x = jax.random.normal(jax.random.key(2), (100,)) + 1j * jax.random.normal(jax.random.key(3), (100,))
    np.testing.assert_allclose(noncentral_chi(jax.random.key(3), x, 0.0, coils), jnp.abs(x), rtol=1e-6)


def test_a_batch_of_slices_is_a_vmap_over_keys():
    keys, x = jax.random.split(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (3, 8, 9))
    batch = jax.vmap(lambda k, v: noncentral_chi(k, v, 0.1, 2))(keys, x)
    np.testing.assert_allclose(batch[2], noncentral_chi(keys[2], x[2], 0.1, 2), atol=1e-6)


def test_no_coil_is_refused():
    with pytest.raises(ValueError, match="at least one coil, got 0"):
        noncentral_chi(jax.random.key(0), jnp.ones(3), 0.1, 0)


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("signal", [0.0, 3.0, 40.0, 300.0])
def test_the_mean_of_a_magnitude_is_that_of_its_draws(coils, signal):
    """E[y] of the module's equations; 40 and 300 lie where the series of large x is used."""
    sigma, image = 2.0, np.full((40, 100, 100), signal, np.float32)
    drawn = np.asarray(noncentral_chi(jax.random.key(0), jnp.asarray(image), sigma, coils), np.float64)
    expected = mean_magnitude(image, sigma, coils)
    assert np.ptp(expected) <= 1e-6 * expected.max()
    assert drawn.mean() == pytest.approx(float(expected[0, 0, 0]), abs=5 * drawn.std() / np.sqrt(drawn.size))


def test_the_mean_of_a_magnitude_has_no_step_where_its_formula_changes():
    image = np.linspace(31.9, 32.1, 201, dtype=np.float32).reshape(-1, 1, 1)
    for coils in (1, 8, 32):
        steps = np.diff(mean_magnitude(image, 1.0, coils).ravel().astype(np.float64))
        np.testing.assert_allclose(steps, steps.mean(), atol=1e-3)
