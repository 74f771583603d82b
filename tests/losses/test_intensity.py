"""Laws of errors of intensities and of their local variation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from jaxsr.evaluate.metrics.contrast import local_contrast, local_contrast_error
from jaxsr.losses.intensity import (
    LEAST_VARIANCE,
    histogram_errors,
    local_contrast_errors,
    local_deviation,
    soft_histogram,
    wasserstein_errors,
)
from jaxsr.losses.pixels import absolute_errors

BINS = 16
CENTRES = (np.arange(BINS) + 0.5) / BINS * 2 - 1


def uniform(limit=1.0, shape=(3, 12, 13, 2), seed=0):
    """Two batches between ± `limit`, the second crowded near its lower end."""
    x, y = np.random.default_rng(seed).random((2, *shape))
    return (limit * (2 * x - 1)).astype(np.float32), (limit * (2 * y**2 - 1)).astype(np.float32)


def at_centres(seed=0):
    return np.random.default_rng(seed).choice(CENTRES, (2, 3, 12, 13, 2)).astype(np.float32)


def shuffled(x):
    flat = np.random.default_rng(9).permutation(x.reshape(len(x), -1), axis=1)
    return flat.reshape(x.shape)


# ------------------------------------------------------------------------------------------------------------- histograms


@pytest.mark.parametrize("low, high", [(-1, 1), (0, 0.5)])
def test_of_values_at_the_centres_the_histogram_is_numpys(low, high):
    """Beyond the range, where numpy's are dropped, values are put at its ends first."""
    x, _ = at_centres()
    x = (x + 1) / 2 * (high - low) + low
    x[0, :3], x[1, :5] = low - 7, high + 7
    expected = [np.histogram(np.clip(z, low, high), BINS, (low, high))[0] / z.size for z in x]
    np.testing.assert_allclose(soft_histogram(x, BINS, low, high), expected, atol=1e-5)


@pytest.mark.parametrize("bins", [1, 2, 64])
def test_shares_sum_to_one_for_any_values(bins, latents):
    np.testing.assert_allclose(soft_histogram(latents()[0], bins).sum(-1), 1, rtol=1e-6)


def test_a_value_is_shared_by_the_hats_of_the_two_nearest_centres():
    x, _ = uniform(1.2)
    hats = np.maximum(1 - np.abs(np.clip(x, CENTRES[0], CENTRES[-1])[..., None] - CENTRES) * BINS / 2, 0)
    np.testing.assert_allclose(soft_histogram(x, BINS), hats.mean((1, 2, 3)), atol=1e-6)


def test_the_mean_of_the_histogram_is_that_of_the_values_and_so_is_its_gradient():
    """Hats between centres reproduce straight lines; beyond the outermost centres nothing moves the mean."""
    x, _ = uniform()
    inside = np.abs(x) < CENTRES[-1]
    means, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda x: soft_histogram(x[None], BINS)[0] @ CENTRES)))(x)
    np.testing.assert_allclose(means, np.clip(x, CENTRES[0], CENTRES[-1]).mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(slope, inside / x[0].size, atol=1e-8)


def test_a_whole_background_of_one_value_loses_no_digits():
    """Added pixel by pixel in float32, 0.3 of a pixel is 0.3008 from a sum of 16 384 on."""
    shares = soft_histogram(jnp.full((1, 256, 256, 1), CENTRES[3] + 0.3 * 2 / BINS), BINS)
    np.testing.assert_allclose(shares[0, 3:5], [0.7, 0.3], atol=2e-6)


def test_a_mask_leaves_the_histogram_of_what_is_inside_and_of_nothing_leaves_nothing():
    x, y = uniform(shape=(2, 12, 13, 2))
    mask = np.random.default_rng(1).random((2, 12, 13, 1)) < 0.4
    alone = [soft_histogram(z[m[..., 0]][None, None], BINS)[0] for z, m in zip(x, mask, strict=True)]
    np.testing.assert_allclose(soft_histogram(x, BINS, weights=mask), alone, atol=1e-6)
    value, slope = jax.value_and_grad(lambda x: histogram_errors(x, y, weights=0 * mask).sum())(x)
    assert value == 0
    assert (slope == 0).all()


def test_divergence_stays_visible():
    assert np.isnan(histogram_errors(jnp.full((1, 4, 4, 1), jnp.nan), jnp.zeros((1, 4, 4, 1)))).all()


@pytest.mark.parametrize("wrong, message", [
    (lambda x: soft_histogram(x, 0), "0 bins from -1.0 to 1.0"),
    (lambda x: histogram_errors(x, x, low=1.0), "64 bins from 1.0 to 1.0"),
    (lambda x: local_contrast_errors(x, x, 13), "a window of 13 pixels does not fit slices of 12 × 13: take a smaller one"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_way_out(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(uniform()[0])


# ------------------------------------------------------------------------------------------------------------- distances


def scipys(x, y):
    return np.array([wasserstein_distance(a.ravel(), b.ravel()) for a, b in zip(x, y, strict=True)])


def test_wasserstein_errors_are_scipys(latents):
    x, y = latents()
    np.testing.assert_allclose(wasserstein_errors(x, y), scipys(x, y), rtol=1e-5)


def test_histogram_errors_of_values_at_the_centres_are_scipys():
    x, y = at_centres()
    np.testing.assert_allclose(histogram_errors(x, y, BINS), scipys(x, y), rtol=1e-5)


@pytest.mark.parametrize("bins", [4, 16, 64, 512])
def test_histogram_errors_are_below_the_exact_distance_by_at_most_the_width_of_a_bin(bins):
    width = 2 / bins
    for x, y in (uniform(1 - width / 2), uniform(1 - width / 2, (3, 2, 2, 1)), uniform(1 - width / 2, (3, 1, 1, 1))):
        exact, binned = scipys(x, y), histogram_errors(x, y, bins)
        assert (binned <= exact + 1e-6).all()
        assert (binned >= exact - width).all()


@pytest.mark.parametrize("loss", [histogram_errors, wasserstein_errors])
def test_places_do_not_matter_and_a_shift_costs_its_size(loss):
    x, y = uniform(0.5)
    np.testing.assert_allclose(loss(shuffled(x), y), loss(x, y), rtol=1e-5)
    np.testing.assert_allclose(loss(shuffled(x) + 0.3, x), 0.3, rtol=1e-5)
    slope = jax.grad(lambda x: loss(x, y).sum())
    np.testing.assert_allclose(slope(x + 2 / 5).sum((1, 2, 3)), 1, rtol=1e-5)  # all above: whatever goes to whom


@pytest.mark.parametrize("loss", [histogram_errors, wasserstein_errors])
def test_no_pairing_of_values_is_cheaper(loss):
    x, y = uniform()
    assert (loss(x, y) <= absolute_errors(x, y) + 1e-6).all()


def test_the_gradient_of_the_exact_distance_pulls_a_value_to_that_of_its_rank(latents):
    x, y = latents()
    expected = np.empty((3, x[0].size))
    for b in range(3):
        order = x[b].ravel().argsort()
        expected[b, order] = np.sign(x[b].ravel()[order] - np.sort(y[b].ravel())) / x[b].size
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: wasserstein_errors(x, y).sum()))(x).reshape(3, -1), expected, rtol=1e-6)


def test_descending_the_histogram_errors_brings_the_histogram():
    x, y = uniform()

    @jax.jit
    def descended(x):
        return jax.lax.fori_loop(0, 200, lambda _, x: x - 2 * jax.grad(lambda x: histogram_errors(x, y).sum())(x), x)

    assert (wasserstein_errors(descended(x), y) < 0.1 * wasserstein_errors(x, y)).all()


# -------------------------------------------------------------------------------------------------------- local contrast


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_local_contrast_error_is_the_metrics_before_its_division(scale):
    x, y = uniform(scale, (3, 30, 27, 1))
    ours, theirs = local_contrast_errors(x, y), local_contrast_error(x, y) * local_contrast(y)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5 + 2 * LEAST_VARIANCE / scale**2)


@pytest.mark.parametrize("window, sigma", [(11, 1.5), (8, 3.0)])
def test_the_local_deviation_is_numpys_under_the_window(window, sigma):
    x, _ = uniform(shape=(1, 14, 13, 2))
    offsets = np.arange(window) - (window - 1) / 2
    weight = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    patch = x[0, 2 : 2 + window, 1 : 1 + window, 1].astype(np.float64)
    mean = np.average(patch, weights=weight)
    expected = np.sqrt(np.average((patch - mean) ** 2, weights=weight) + LEAST_VARIANCE)
    np.testing.assert_allclose(local_deviation(x, window, sigma)[0, 2, 1, 1], expected, rtol=1e-5)


def test_local_contrast_does_not_see_a_level_or_a_sign_and_half_of_it_costs_half():
    x, _ = uniform(0.5)
    np.testing.assert_allclose(local_contrast_errors(0.4 - x, x), 0, atol=1e-6)
    np.testing.assert_allclose(local_contrast_errors(x / 2, x), local_contrast(x) / 2, rtol=1e-4)


@pytest.mark.parametrize("level", [0, -1, 0.7])
def test_a_flat_image_costs_the_contrast_of_the_other_and_has_no_steep_gradient(level):
    """The slope of a deviation to a pixel is at most √ of its weight, and so at most that of the largest: 0.27."""
    x, _ = uniform()
    flat = np.full_like(x, level)
    value, slope = jax.jit(jax.value_and_grad(lambda z: local_deviation(z, 11, 1.5).mean()))(flat)
    assert value == pytest.approx(LEAST_VARIANCE**0.5, rel=0.05)
    assert np.abs(slope).max() < 1e-4
    np.testing.assert_allclose(local_contrast_errors(flat, x), local_contrast(x), atol=1.1 * LEAST_VARIANCE**0.5)
