"""Laws of pixel-domain VIF."""

import numpy as np
from scipy.ndimage import gaussian_filter

from jaxsr.evaluate.metrics.vif import vif


def image(seed=0):
    rng = np.random.default_rng(seed)
    return gaussian_filter(rng.random((1, 48, 50, 1)), (0, 1, 1, 0)).astype(np.float32) * 4


def test_contrast_gained_is_more_than_one_and_lost_is_less():
    y = image()
    assert vif(1.2 * y, y, data_range=1) > 1
    assert vif(0.8 * y, y, data_range=1) < 1


def test_an_image_of_something_else_tells_little():
    assert vif(image(1), image(), data_range=1) < 0.1
    np.testing.assert_allclose(vif(np.full((1, 48, 50, 1), 0.5), image(), data_range=1), 0, atol=1e-6)


def test_an_offset_does_not_matter():
    """The local means do not enter."""
    x, y = image() + 0.1 * image(1), image()
    np.testing.assert_allclose(vif(x + 3, y - 2, data_range=1), vif(x, y, data_range=1), rtol=1e-3)


def test_a_mask_chooses_what_is_told():
    """An image that is right in one half and flat in the other."""
    y = image()
    right = np.zeros(y.shape, bool)
    right[:, :, 25:] = True
    x = np.where(right, y, 0.5)
    there, whole, elsewhere = (vif(x, y, data_range=1, mask=mask) for mask in (right, None, ~right))
    assert there > 1.2 * whole > 1.4 * elsewhere
    assert np.isnan(vif(x, y, data_range=1, mask=np.zeros(y.shape, bool)))
