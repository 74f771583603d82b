"""Laws of the metrics: what holds for every image, and what a pencil gives. Parity with scikit-image stands in tests/reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxsr.evaluate.metrics.pixel import mae, mse, psnr, rmse
from jaxsr.evaluate.metrics.ssim import WINDOW, ssim, ssim_map

SHAPES = [(3, 20, 24, 1), (14, 15, 16)]


def pair(shape, seed=0):
    """A reference in [0, 1] and a noisy copy of it."""
    y, noise = np.random.default_rng(seed).random((2, *shape), np.float32)
    return y + 0.2 * (noise - 0.5), y


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_equals_itself(shape):
    x, _ = pair(shape)
    np.testing.assert_array_equal(mse(x, x), 0)
    np.testing.assert_array_equal(mae(x, x), 0)
    np.testing.assert_array_equal(psnr(x, x, data_range=1), np.inf)
    np.testing.assert_allclose(ssim(x, x, data_range=1), 1, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_offset_is_the_error_everywhere(shape):
    """x = y + 1/8: RMSE = MAE = 1/8 and PSNR = 20 log10(8 R)."""
    _, y = pair(shape)
    for metric in (rmse, mae):
        np.testing.assert_allclose(metric(y + 0.125, y), 0.125, rtol=1e-6)
    np.testing.assert_allclose(psnr(y + 0.125, y, data_range=2), 20 * np.log10(16), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_constant_images_have_the_ssim_of_their_means(shape):
    """No variance leaves the luminance term, (2ab + C1) / (a² + b² + C1)."""
    a, b, c1 = 0.25, 0.75, 0.01**2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    np.testing.assert_allclose(ssim(np.full(shape, a), np.full(shape, b), data_range=1), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_is_symmetric(shape):
    x, y = pair(shape)
    np.testing.assert_allclose(ssim(x, y, data_range=1), ssim(y, x, data_range=1), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 4096.0])
def test_psnr_and_ssim_do_not_depend_on_the_unit_of_intensity(shape, scale):
    x, y = pair(shape)
    for metric in (psnr, ssim):
        np.testing.assert_allclose(metric(scale * x, scale * y, data_range=scale), metric(x, y, data_range=1), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_of_everything_is_no_mask(shape):
    x, y = pair(shape)
    for metric in (mse, mae, lambda *a, **k: psnr(*a, data_range=1, **k), lambda *a, **k: ssim(*a, data_range=1, **k)):
        np.testing.assert_allclose(metric(x, y, mask=np.ones(shape, bool)), metric(x, y), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_outside_the_mask_do_not_count(shape):
    x, y = pair(shape)
    inside = np.random.default_rng(1).random(shape) < 0.4
    elsewhere = np.where(inside, x, 1e3)
    for metric in (rmse, mae):
        np.testing.assert_array_equal(metric(elsewhere, y, mask=inside), metric(x, y, mask=inside))


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_ssim_is_the_mean_of_the_map_over_the_mask(shape):
    x, y = pair(shape)
    inside = np.random.default_rng(1).random(shape) < 0.4
    similarity = np.asarray(ssim_map(x, y, data_range=1))
    valid = slice(WINDOW // 2, -(WINDOW // 2))
    if len(shape) == 3:
        expected = similarity[inside[valid, valid, valid]].mean()
    else:
        crop = inside[(slice(None), *(valid,) * (len(shape) - 2))]
        expected = [s[m].mean() for s, m in zip(similarity, crop, strict=True)]
    np.testing.assert_allclose(ssim(x, y, data_range=1, mask=inside), expected, rtol=1e-5)


def test_the_map_has_the_shape_of_the_valid_region_and_the_mean_of_the_metric():
    x, y = pair((14, 15, 16))
    similarity = ssim_map(x, y, data_range=1)
    assert similarity.shape == (4, 5, 6)
    np.testing.assert_allclose(similarity.mean(), ssim(x, y, data_range=1), rtol=1e-5)


def test_a_batch_is_its_images_one_by_one_each_with_its_own_range():
    x, y = pair((3, 20, 24, 1))
    ranges = np.array([0.5, 1.0, 2.0])
    for metric in (psnr, ssim):
        alone = [float(metric(x[i : i + 1], y[i : i + 1], data_range=r)[0]) for i, r in enumerate(ranges)]
        np.testing.assert_allclose(metric(x, y, data_range=ranges), alone, rtol=1e-5)


def test_a_large_offset_costs_ssim_no_precision():
    """Scanners' zero is arbitrary; against float64, with the images far from zero and the structure small."""
    x, y = (np.asarray(image, np.float64) * 0.02 + 1 for image in pair((14, 15, 16)))
    exact = ssim(2.0**10 * x, 2.0**10 * y, data_range=2.0**10)
    mx, my, mxx, myy, mxy = (gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5, 5:-5] for image in (x, y, x * x, y * y, x * y))
    v, c = mxx + myy - mx**2 - my**2, mxy - mx * my
    expected = ((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (v + 9e-4))).mean()
    np.testing.assert_allclose(exact, expected, rtol=1e-5)


def test_a_mean_over_many_voxels_does_not_stagnate():
    """2^25 ones summed one after another in float32 would stop at 2^24."""
    ones = np.ones((1, 8192, 4096, 1), np.float32)
    np.testing.assert_allclose(mae(ones, np.zeros_like(ones)), 1, rtol=1e-6)
    np.testing.assert_allclose(mae(ones, np.zeros_like(ones), mask=np.ones((1, 1, 1, 1))), 1, rtol=1e-6)


def test_a_batch_of_volumes_is_its_volumes():
    x, y = pair((2, 14, 15, 16, 1))
    np.testing.assert_allclose(
        ssim(x, y, data_range=1), [ssim(a, b, data_range=1) for a, b in zip(x[..., 0], y[..., 0], strict=True)], rtol=1e-5
    )


def test_an_empty_mask_has_no_mean():
    x, y = pair((14, 15, 16))
    assert np.isnan(ssim(x, y, data_range=1, mask=np.zeros(x.shape, bool)))


def test_metrics_can_be_traced_and_differentiated():
    x, y = pair((1, 12, 12, 1))
    gradient = jax.jit(jax.grad(lambda x, r: ssim(x, y, data_range=r).sum()))(x, jnp.float32(1))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: mse(a, a[1:]), r"\(16, 16, 16\) and \(15, 16, 16\)"),
        (lambda a: mse(a[0], a[0]), r"got the shape \(16, 16\)"),
        (lambda a: ssim(a[:10], a[:10], data_range=1), r"11 voxels on every side, got \(10, 16, 16\)"),
        (lambda a: psnr(a, a, data_range=0.0), "got 0.0"),
        (lambda a: mae(a, a, mask=a[:3] > 0), r"mask's shape \(3, 16, 16\)"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_values(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((16, 16, 16)))
