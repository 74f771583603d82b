"""PSNR and SSIM equal scikit-image's, in two and three dimensions, on noise and on heads."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxsr.evaluate.metrics.pixel import mae, psnr, rmse
from jaxsr.evaluate.metrics.ssim import ssim, ssim_map

pytestmark = pytest.mark.reference
skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is in the [reference] extra")

MRI = Path(os.environ.get("JAXSR_MRI", Path(__file__).resolve().parents[3] / "shared" / "mri"))
CONVENTION = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def noise(shape, scale):
    rng = np.random.default_rng(0)
    y = rng.random(shape)
    return scale * (y + 0.1 * rng.standard_normal(shape)), scale * y, scale


def smooth(shape, scale):
    """A head-like phantom: nested smooth ellipsoids on a dark background, and a blurred noisy copy."""
    rng = np.random.default_rng(1)
    radius = np.sqrt(sum(np.linspace(-1, 1, n).reshape([-1 if a == i else 1 for i in range(len(shape))]) ** 2 for a, n in enumerate(shape)))
    y = (radius < 0.9) * (0.3 + 0.5 * (radius < 0.6) + 0.2 * gaussian_filter(rng.standard_normal(shape), 2) * 8)
    return scale * np.abs(gaussian_filter(y, 1.0) + 0.02 * rng.standard_normal(shape)), scale * y, scale


def head(_shape, _scale):
    """A real T1w at 1 mm, cropped, and a blurred copy."""
    path = MRI / "open_ms_patient07" / "T1_brain_MNI1mm.nii.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    import nibabel

    y = np.asarray(nibabel.load(path).dataobj, np.float64)[40:140, 60:150, 50:120]
    return gaussian_filter(y, 0.8), y, np.ptp(y)


@pytest.mark.parametrize("image", [noise, smooth, head])
@pytest.mark.parametrize("scale", [1.0, 1500.0])
def test_volumes_score_as_in_scikit_image(image, scale):
    x, y, data_range = image((40, 48, 36), scale)
    np.testing.assert_allclose(psnr(x, y, data_range=data_range), skimage.peak_signal_noise_ratio(y, x, data_range=data_range), rtol=1e-5)
    np.testing.assert_allclose(rmse(x, y), np.sqrt(skimage.mean_squared_error(y, x)), rtol=1e-5)
    np.testing.assert_allclose(mae(x, y), np.abs(x - y).mean(), rtol=1e-5)
    expected, similarity = skimage.structural_similarity(y, x, data_range=data_range, full=True, **CONVENTION)
    np.testing.assert_allclose(ssim(x, y, data_range=data_range), expected, atol=1e-5)
    np.testing.assert_allclose(ssim_map(x, y, data_range=data_range), similarity[5:-5, 5:-5, 5:-5], atol=2e-4)  # a voxel in float32


@pytest.mark.parametrize("image", [noise, smooth, head])
@pytest.mark.parametrize("scale", [1.0, 1500.0])
def test_slices_score_as_in_scikit_image(image, scale):
    x, y, data_range = image((5, 64, 56), scale)
    x, y = x[:5], y[:5]
    ours = {metric.__name__: metric(x[..., None], y[..., None], data_range=data_range) for metric in (psnr, ssim)}
    for i, (a, b) in enumerate(zip(y, x, strict=True)):
        np.testing.assert_allclose(ours["psnr"][i], skimage.peak_signal_noise_ratio(a, b, data_range=data_range), rtol=1e-5)
        np.testing.assert_allclose(ours["ssim"][i], skimage.structural_similarity(a, b, data_range=data_range, **CONVENTION), atol=1e-5)


def test_masked_ssim_is_the_mean_of_scikit_images_map_over_the_mask():
    x, y, data_range = smooth((40, 48, 36), 1000.0)
    inside = y > 0
    _, similarity = skimage.structural_similarity(y, x, data_range=data_range, full=True, **CONVENTION)
    valid = (slice(5, -5),) * 3
    np.testing.assert_allclose(ssim(x, y, data_range=data_range, mask=inside), similarity[valid][inside[valid]].mean(), atol=1e-5)
