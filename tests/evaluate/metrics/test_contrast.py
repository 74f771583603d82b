"""Laws of histogram match, local contrast and CNR."""

import numpy as np
import pytest

from jaxsr.evaluate.metrics.contrast import cnr, histogram_match, local_contrast, local_contrast_error


def noise(shape=(20, 22, 24), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_shuffled_voxels_have_the_same_histogram():
    y = np.abs(noise())
    x = np.random.default_rng(1).permutation(y.ravel()).reshape(y.shape)
    np.testing.assert_allclose(histogram_match(x, y, data_range=2.0), 1, rtol=1e-6)


def test_the_match_is_the_overlap_of_two_boxes():
    """Uniform on [0, 1) and on [1/4, 5/4): three quarters overlap, and the last bin holds what lies beyond."""
    y = (np.arange(8000, dtype=np.float32) / 8000).reshape(20, 20, 20)
    np.testing.assert_allclose(histogram_match(y + 0.25, y, data_range=2.0, bins=64), 0.75, atol=1e-3)
    np.testing.assert_allclose(histogram_match(y + 5, y, data_range=2.0), 0, atol=1e-6)
    np.testing.assert_allclose(histogram_match(y + 5, y + 9, data_range=2.0), 1, atol=1e-6)
    np.testing.assert_allclose(histogram_match(y + 5, y, data_range=2.0, low=10.0), 1, atol=1e-6)


def test_the_match_is_that_of_numpys_histograms():
    x, y = np.abs(noise()), np.abs(noise(seed=1)) * 1.3
    p, q = (np.histogram(np.clip(image, 0, 3), 100, (0, 3))[0] / image.size for image in (x, y))
    np.testing.assert_allclose(histogram_match(x, y, data_range=3.0, bins=100), 1 - abs(p - q).sum() / 2, rtol=1e-4)


def test_local_contrast_of_noise_is_its_deviation_less_what_the_window_cannot_see():
    """E s² = σ² (1 − Σ w²): 1 − 0.094³ of the variance in three dimensions."""
    contrast = local_contrast(0.2 * noise((40, 40, 40)) + 100)
    np.testing.assert_allclose(contrast, 0.2, rtol=0.02)


def test_a_factor_is_the_error_of_the_local_contrast_and_an_offset_is_none():
    y = noise()
    np.testing.assert_allclose(local_contrast_error(0.75 * y + 3, y), 0.25, rtol=1e-4)
    np.testing.assert_allclose(local_contrast_error(1.25 * y, y), 0.25, rtol=1e-4)
    np.testing.assert_allclose(local_contrast(1.25 * y) / local_contrast(y), 1.25, rtol=1e-4)


def test_cnr_of_a_phantom_with_known_noise():
    """Two tissues 3 apart in noise of σ = 1/2: 6; noise may be measured elsewhere."""
    roi = np.zeros((40, 40, 40), bool)
    roi[:15] = True
    background = np.zeros_like(roi)
    background[15:30] = True
    air = ~roi & ~background
    x = 10 + 3 * roi + 0.5 * noise(roi.shape)
    np.testing.assert_allclose(cnr(x, roi=roi, background=background), 6, rtol=0.02)
    x = np.where(air, 4 * noise(roi.shape), x)
    np.testing.assert_allclose(cnr(x, roi=roi, background=background, noise=air), 0.75, rtol=0.02)


def test_cnr_depends_on_neither_unit_nor_offset_nor_batch():
    roi = np.zeros((1, 40, 40, 1), bool)
    roi[:, :20] = True
    x = np.stack([roi[0] + 0.3 * noise((40, 40, 1)), 2 * roi[0] + 0.1 * noise((40, 40, 1), 1)])
    found = cnr(x, roi=roi, background=~roi)
    np.testing.assert_allclose(cnr(1e3 * x - 1e3, roi=roi, background=~roi), found, rtol=1e-4)
    np.testing.assert_allclose(found, [cnr(image[None], roi=roi, background=~roi)[0] for image in x], rtol=1e-5)


@pytest.mark.parametrize("region", ["roi", "background"])
def test_cnr_of_an_empty_region_is_no_number(region):
    masks = {"roi": np.ones((8, 8, 8), bool), "background": np.ones((8, 8, 8), bool), region: np.zeros((8, 8, 8), bool)}
    assert np.isnan(cnr(noise((8, 8, 8)), **masks))
