"""Physics beside public implementations: SimpleITK, scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from jaxsr.physics.blur import FWHM_PER_SIGMA, gaussian_blur
from jaxsr.physics.fields import bias_field
from jaxsr.physics.kspace import fourier_resample
from jaxsr.physics.motion import rigid

pytestmark = pytest.mark.reference
sitk = pytest.importorskip("SimpleITK")

SHAPE, SIZE = (40, 44, 36), (1.0, 1.2, 0.9)


def head(shape=SHAPE, size=SIZE):
    """Two tissues in air with soft edges: a spline reads it as well as Fourier phases do."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * v for n, v in zip(shape, size, strict=True)], indexing="ij")
    skull = 1 / (1 + np.exp(2 * (np.sqrt((x / 1.1) ** 2 + y**2 + (z + 1) ** 2) - 11)))
    return (skull * (0.6 + 0.4 / (1 + np.exp(2 * (np.sqrt((x - 2) ** 2 + (y + 3) ** 2 + z**2) - 4))))).astype(np.float32)


def image_of(array, size=SIZE):
    """With the centre of the field of view at the origin; SimpleITK's first axis is numpy's last."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(size)
    image.SetOrigin([-(n - 1) / 2 * v for n, v in zip(array.shape, size, strict=True)])
    return image


def array_of(image):
    return sitk.GetArrayFromImage(image).T


def test_rigid_motion_is_that_of_simpleitk():
    """Ours turns about the first axis, then the second, then the third, and shifts: R = R₂ R₁ R₀. SimpleITK maps output to input."""
    angles, shifts = (0.10, -0.15, 0.2), (1.5, -2.0, 1.0)
    turns = []
    for axis, angle in enumerate(angles):
        a, b, turn = (axis + 1) % 3, (axis + 2) % 3, np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        turns.append(turn)
    forward = sitk.AffineTransform(3)
    forward.SetMatrix((turns[2] @ turns[1] @ turns[0]).ravel())
    forward.SetTranslation(shifts)
    image = image_of(head())
    theirs = array_of(sitk.Resample(image, image, forward.GetInverse(), sitk.sitkBSpline5, 0.0))
    ours = rigid(jnp.asarray(head()), angles, shifts, SIZE)
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_the_point_spread_is_the_gaussian_of_simpleitk():
    """Within a head that is dark at the edges, where SimpleITK's repeats and ours is periodic."""
    fwhm = 4.0
    theirs = array_of(sitk.DiscreteGaussian(image_of(head()), (fwhm / FWHM_PER_SIGMA) ** 2, maximumKernelWidth=64, maximumError=1e-4))
    ours = gaussian_blur(jnp.asarray(head()), [fwhm / v for v in SIZE], (0, 1, 2))
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


@pytest.mark.parametrize("n, m", [(40, 21), (41, 15)])
def test_truncation_is_scipys_resampling_but_for_where_the_first_voxel_lies(n, m):
    """scipy.signal.resample keeps the first sample's place; ours the field of view, half the difference of the voxels further on."""
    x = np.random.default_rng(0).normal(size=n)
    spectrum = np.fft.fft(x)
    theirs = signal.resample(np.fft.ifft(ndimage.fourier_shift(spectrum, -(n / m - 1) / 2)).real, m)
    np.testing.assert_allclose(fourier_resample(jnp.asarray(x, jnp.float32), (m,)), theirs, atol=1e-5)


def test_n4_removes_a_simulated_field_to_within_one_percent():
    """Of two tissues that alternate in a ball under a field of 15 %, up to the scale, which N4 does not know [Tustison 2010]."""
    x, y, z = np.meshgrid(*[np.arange(48) - 23.5] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    tissues = np.where(np.sin(x / 4) * np.sin(y / 4) * np.sin(z / 4) > 0, 1.0, 0.6) * (radius < 21)
    truth = np.asarray(gaussian_blur(jnp.asarray(tissues, jnp.float32), (1.2, 1.2, 1.2), (0, 1, 2)))
    field, mask = np.asarray(bias_field(jax.random.key(0), truth.shape, 0.15, order=2)), radius < 20
    image, inside = image_of(truth * field, (1.0,) * 3), image_of(mask.astype(np.uint8), (1.0,) * 3)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([30, 30, 30])
    n4.SetConvergenceThreshold(1e-4)
    n4.Execute(image, inside)
    left = np.log(field) - array_of(n4.GetLogBiasFieldAsImage(image))
    assert np.log(field)[mask].std() > 0.1
    assert left[mask].std() < 0.01
