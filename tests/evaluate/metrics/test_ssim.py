"""Laws of SSIM and MS-SSIM: what a pencil gives. Parity with scikit-image and piq stands in tests/reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxsr.evaluate.metrics.ssim import SCALES, WINDOW, ms_ssim, ssim, ssim_map

SHAPES = [(3, 20, 24, 1), (14, 15, 16)]


def pair(shape, seed=0):
    """A reference in [0, 1] and a noisy copy of it."""
    y, noise = np.random.default_rng(seed).random((2, *shape), np.float32)
    return y + 0.2 * (noise - 0.5), y


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


def test_each_image_has_its_own_range():
    x, y = pair((3, 20, 24, 1))
    ranges = np.array([0.5, 1.0, 2.0])
    alone = [float(ssim(x[i : i + 1], y[i : i + 1], data_range=r)[0]) for i, r in enumerate(ranges)]
    np.testing.assert_allclose(ssim(x, y, data_range=ranges), alone, rtol=1e-5)


def test_a_large_offset_costs_ssim_no_precision():
    """Scanners' zero is arbitrary; against float64, with the images far from zero and the structure small."""
    x, y = (np.asarray(image, np.float64) * 0.02 + 1 for image in pair((14, 15, 16)))
    exact = ssim(2.0**10 * x, 2.0**10 * y, data_range=2.0**10)
    mx, my, mxx, myy, mxy = (gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5, 5:-5] for image in (x, y, x * x, y * y, x * y))
    v, c = mxx + myy - mx**2 - my**2, mxy - mx * my
    expected = ((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (v + 9e-4))).mean()
    np.testing.assert_allclose(exact, expected, rtol=1e-5)


def test_an_empty_mask_has_no_mean():
    x, y = pair((14, 15, 16))
    assert np.isnan(ssim(x, y, data_range=1, mask=np.zeros(x.shape, bool)))


def test_metrics_can_be_traced_and_differentiated():
    x, y = pair((1, 12, 12, 1))
    gradient = jax.jit(jax.grad(lambda x, r: ssim(x, y, data_range=r).sum()))(x, jnp.float32(1))
    assert np.isfinite(gradient).all()


def test_constant_images_differ_at_the_coarsest_scale_only():
    """Finer scales see structure, which is perfect: MS-SSIM = l^w₅."""
    a, b, c1 = 0.25, 0.75, 0.01**2
    images = (np.full((1, 161, 161, 1), value) for value in (a, b))
    expected = ((2 * a * b + c1) / (a**2 + b**2 + c1)) ** SCALES[-1]
    np.testing.assert_allclose(ms_ssim(*images, data_range=1), expected, rtol=1e-5)


def test_what_is_lost_at_the_finest_scale_alone_costs_little():
    """A checkerboard has no trace at the second scale: cs⁰·⁰⁴⁴⁸, cs of the finest scale."""
    _, y = pair((1, 176, 176, 1))
    y = gaussian_filter(y, (0, 2, 2, 0)) * 4
    x = y + 0.2 * (-1.0) ** np.indices(y.shape).sum(0)
    assert ssim(x, y, data_range=1) < 0.7
    assert ms_ssim(x, y, data_range=1) > ssim(x, y, data_range=1) ** 0.1


def test_a_mask_chooses_at_every_scale():
    _, y = pair((1, 352, 176, 1))
    x = y.copy()
    x[:, :176] = 0.5
    inside = np.zeros(y.shape, bool)
    inside[:, 176 + 80 :] = True  # as far from the damage as the windows of the coarsest scale reach
    np.testing.assert_allclose(ms_ssim(x, y, data_range=1, mask=inside), 1, rtol=1e-5)
    assert ms_ssim(x, y, data_range=1) < 0.95
