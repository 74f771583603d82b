"""Laws of the pointwise errors, by pencil."""

import numpy as np
import pytest

from jaxsr.evaluate.metrics.pixel import mae, mse, nrmse, psnr, rmse

SHAPES = [(3, 20, 24, 1), (14, 15, 16)]


def image(shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_offset_is_the_error_everywhere(shape):
    """x = y + 1/8: RMSE = MAE = 1/8 and PSNR = 20 log10(8 R)."""
    y = image(shape)
    for metric in (rmse, mae):
        np.testing.assert_allclose(metric(y + 0.125, y), 0.125, rtol=1e-6)
    np.testing.assert_allclose(psnr(y + 0.125, y, data_range=2), 20 * np.log10(16), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_factor_is_the_relative_error(shape):
    """x = a y: NRMSE = |a − 1|, whatever y is."""
    y = image(shape)
    np.testing.assert_allclose(nrmse(0.75 * y, y), 0.25, rtol=1e-6)
    np.testing.assert_allclose(nrmse(np.zeros(shape), y), 1, rtol=1e-6)


def test_psnr_takes_a_range_for_each_image():
    y = image((3, 20, 24, 1))
    ranges = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(psnr(y + 0.125, y, data_range=ranges), 20 * np.log10(8 * ranges), rtol=1e-5)


def test_a_mean_over_many_voxels_does_not_stagnate():
    """2^25 ones summed one after another in float32 would stop at 2^24."""
    ones = np.ones((1, 8192, 4096, 1), np.float32)
    np.testing.assert_allclose(mae(ones, np.zeros_like(ones)), 1, rtol=1e-6)
    np.testing.assert_allclose(mae(ones, np.zeros_like(ones), mask=np.ones((1, 1, 1, 1))), 1, rtol=1e-6)


def test_an_empty_mask_has_no_mean():
    y = image((14, 15, 16))
    assert np.isnan(mse(y, y, mask=np.zeros(y.shape, bool)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: mse(a, a[1:]), r"\(16, 16, 16\) and \(15, 16, 16\)"),
        (lambda a: mse(a[0], a[0]), r"got the shape \(16, 16\)"),
        (lambda a: psnr(a, a, data_range=0.0), "got 0.0"),
        (lambda a: mae(a, a, mask=a[:3] > 0), r"mask's shape \(3, 16, 16\)"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_values(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((16, 16, 16)))
