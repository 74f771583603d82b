"""Laws of HFEN, gradient error and GMSD."""

import numpy as np
import pytest

from jaxsr.evaluate.metrics.edges import gmsd, gradient_error, hfen


def image(shape=(20, 22, 24), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize("metric", [hfen, lambda x, y: gradient_error(x, y, voxel_size=1.0)])
def test_a_factor_is_the_relative_error_and_an_offset_is_none(metric):
    y = image()
    np.testing.assert_allclose(metric(0.75 * y, y), 0.25, rtol=1e-4)
    np.testing.assert_allclose(metric(0.75 * y + 5, y), 0.25, rtol=1e-4)


def test_hfen_sees_no_ramp():
    """The Laplacian of what is linear is zero."""
    y = image()
    ramp = np.linspace(0, 3, 20, dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(hfen(y + ramp, y), 0, atol=1e-4)


def test_the_gradient_is_per_mm():
    """A ramp of slope a along axis 0 beside one of slope b along axis 1, in mm: the error is a / b however large voxels are."""
    size, (a, b) = np.array([0.5, 1.0, 3.0]), (2.0, 8.0)
    i, j, _ = (index * mm for index, mm in zip(np.indices((6, 7, 8)), size, strict=True))
    np.testing.assert_allclose(gradient_error(b * j + a * i, b * j, voxel_size=size), a / b, rtol=1e-5)


def test_gmsd_of_a_loss_that_is_even_is_zero():
    """GMS is a constant where both gradients are ramps: away from the border, which a mask leaves out."""
    y = np.broadcast_to(np.arange(24.0)[:, None, None], (24, 24, 24)) / 24
    inside = np.zeros(y.shape, bool)
    inside[4:-4, 4:-4, 4:-4] = True
    np.testing.assert_allclose(gmsd(0.5 * y, y, data_range=1, mask=inside), 0, atol=1e-5)
    assert gmsd(0.5 * y, y, data_range=1) > 0.005


def test_a_prewitt_gradient_of_a_volume_is_that_of_its_equal_slices():
    """Inside, where no zeros beyond the border are seen."""
    x, y = image((1, 24, 24, 1)), image((1, 24, 24, 1), seed=1)
    inside = np.zeros((24, 24, 12), bool)
    inside[4:-4, 4:-4, 4:-4] = True
    stack = [np.repeat(a[0], 12, axis=2) for a in (x, y)]
    flat = gmsd(x, y, data_range=1, mask=inside[None, :, :, 6:7])
    np.testing.assert_allclose(gmsd(*stack, data_range=1, mask=inside), flat[0], rtol=1e-4)
