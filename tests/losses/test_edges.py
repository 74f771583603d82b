"""Laws of errors of edges."""

import numpy as np
import pytest
from scipy import ndimage

from jaxsr.losses.edges import gradient_errors, sobel, sobel_errors


@pytest.mark.parametrize("axis", [1, 2])
def test_gradient_errors_do_not_see_a_constant_and_see_half_of_a_ramp_along_either_axis(axis):
    """SPCDD, §5.3: whatever the shape, a slope is in one of the two components."""
    ramp = np.broadcast_to(np.expand_dims(0.25 * np.arange(6, dtype=np.float32), (0, 3, 3 - axis)), (1, 6, 6, 2))[:, :, :5]
    np.testing.assert_allclose(gradient_errors(ramp + 3, ramp), 0, atol=1e-7)
    np.testing.assert_allclose(gradient_errors(-ramp, 0 * ramp), 0.25 / 2, rtol=1e-6)


def test_gradient_errors_are_of_numpys_differences(latents):
    """SPCDD, §5.3: of the difference, as ∇ is linear."""
    x, y = latents()
    expected = [np.abs(np.diff(x, axis=axis) - np.diff(y, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
    np.testing.assert_allclose(gradient_errors(x, y), np.mean(expected, axis=0), rtol=1e-5)


def test_sobel_is_scipys(latents):
    """MoEDiff-SR, Eq. 11: also at the border, by scipy's default."""
    x, _ = latents()
    ours = sobel(x)
    assert ours.shape == (*x.shape, 2)
    for component, axis in enumerate((1, 2)):
        # scipy's is of all axes that it is given; a slice and channel at a time, its axes are the two of the plane.
        theirs = np.stack([[ndimage.sobel(x[b, :, :, c], axis - 1) for c in range(5)] for b in range(3)])
        np.testing.assert_allclose(ours[..., component], theirs.transpose(0, 2, 3, 1), atol=1e-5)


def test_sobel_errors_do_not_see_a_constant_and_see_a_ramp_eight_times():
    """MoEDiff-SR, Eq. 11: a slope of 1 down the rows is 8 in one component, 0 in the other; the border, repeated, has half of it."""
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (1, 6, 7, 2))
    np.testing.assert_allclose(sobel_errors(ramp + 3, ramp), 0, atol=1e-10)
    np.testing.assert_allclose(sobel_errors(ramp, 0 * ramp), (4 * 8**2 + 2 * 4**2) / 6 / 2, rtol=1e-6)
