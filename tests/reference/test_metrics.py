"""Metrics equal scikit-image's, piq's and scipy's, in slices and volumes, on noise, on a phantom and on heads."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import gaussian_filter, zoom

from jaxsr.evaluate.metrics.contrast import histogram_match, local_contrast, local_contrast_error
from jaxsr.evaluate.metrics.edges import gmsd, gradient_error, hfen
from jaxsr.evaluate.metrics.pixel import mae, nrmse, psnr, rmse
from jaxsr.evaluate.metrics.ssim import ms_ssim, ssim, ssim_map
from jaxsr.evaluate.metrics.tissue import dice, volume_error
from jaxsr.evaluate.metrics.vif import vif

pytestmark = pytest.mark.reference
skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is in the [reference] extra")
torch = pytest.importorskip("torch", reason="torch is in the [reference] extra")
piq = pytest.importorskip("piq", reason="piq is installed by .ci/run, without its dependencies")

CONVENTION = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
SCALES = [1.0, 1500.0]


def noise(_mri, shape, scale):
    rng = np.random.default_rng(0)
    y = rng.random(shape)
    return scale * (y + 0.1 * rng.standard_normal(shape)), scale * y, scale


def smooth(_mri, shape, scale):
    """A head-like phantom: nested smooth ellipsoids on a dark background, and a blurred noisy copy."""
    rng = np.random.default_rng(1)
    radius = np.sqrt(sum(np.linspace(-1, 1, n).reshape([-1 if a == i else 1 for i in range(len(shape))]) ** 2 for a, n in enumerate(shape)))
    y = (radius < 0.9) * (0.3 + 0.5 * (radius < 0.6) + 0.2 * gaussian_filter(rng.standard_normal(shape), 2) * 8)
    return scale * np.abs(gaussian_filter(y, 1.0) + 0.02 * rng.standard_normal(shape)), scale * y, scale


def head(mri, shape, _scale):
    """A real T1w at 1 mm, its middle, and a copy from voxels twice as large."""
    y = _middle(np.asarray(nibabel.load(mri / "open_ms_patient07" / "T1_brain_MNI1mm.nii.gz").dataobj, np.float64), shape)
    return _coarse(y), y, np.ptp(y)


def whole_head(mri, shape, _scale):
    """A real T1w with skin, skull and noisy air, its middle, and a noisier copy of less contrast."""
    y = _middle(np.asarray(nibabel.load(mri / "fnndsc_adult" / "T1w_MEMPRAGE_defaced.nii.gz").dataobj, np.float64), shape)
    spread = np.ptp(y)
    return np.abs(0.8 * gaussian_filter(y, 0.6) + 0.03 * spread * np.random.default_rng(2).standard_normal(y.shape)), y, spread


def _middle(volume, shape):
    """At most `shape` voxels around the middle; the last sides of `shape`, slices standing first, for a stack of slices."""
    starts = [max(0, (n - side) // 2) for n, side in zip(volume.shape, shape, strict=True)]
    return volume[tuple(slice(start, start + side) for start, side in zip(starts, shape, strict=True))]


def _coarse(y):
    small = zoom(gaussian_filter(y, 0.8), 0.5, order=1)
    return zoom(small, np.array(y.shape) / small.shape, order=1)


IMAGES = [noise, smooth, head, whole_head]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("scale", SCALES)
def test_volumes_score_as_in_scikit_image(mri, image, scale):
    x, y, data_range = image(mri, (40, 48, 36), scale)
    np.testing.assert_allclose(psnr(x, y, data_range=data_range), skimage.peak_signal_noise_ratio(y, x, data_range=data_range), rtol=1e-5)
    np.testing.assert_allclose(rmse(x, y), np.sqrt(skimage.mean_squared_error(y, x)), rtol=1e-5)
    np.testing.assert_allclose(nrmse(x, y), skimage.normalized_root_mse(y, x), rtol=1e-5)
    np.testing.assert_allclose(mae(x, y), np.abs(x - y).mean(), rtol=1e-5)
    expected, similarity = skimage.structural_similarity(y, x, data_range=data_range, full=True, **CONVENTION)
    np.testing.assert_allclose(ssim(x, y, data_range=data_range), expected, atol=1e-5)
    np.testing.assert_allclose(ssim_map(x, y, data_range=data_range), similarity[5:-5, 5:-5, 5:-5], atol=2e-4)  # a voxel in float32


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("scale", SCALES)
def test_slices_score_as_in_scikit_image(mri, image, scale):
    x, y, data_range = image(mri, (5, 64, 56), scale)
    ours = {metric.__name__: metric(x[..., None], y[..., None], data_range=data_range) for metric in (psnr, ssim)}
    for i, (a, b) in enumerate(zip(y, x, strict=True)):
        np.testing.assert_allclose(ours["psnr"][i], skimage.peak_signal_noise_ratio(a, b, data_range=data_range), rtol=1e-5)
        np.testing.assert_allclose(ours["ssim"][i], skimage.structural_similarity(a, b, data_range=data_range, **CONVENTION), atol=1e-5)


def test_masked_ssim_is_the_mean_of_scikit_images_map_over_the_mask(mri):
    x, y, data_range = smooth(mri, (40, 48, 36), 1000.0)
    inside = y > 0
    _, similarity = skimage.structural_similarity(y, x, data_range=data_range, full=True, **CONVENTION)
    valid = (slice(5, -5),) * 3
    np.testing.assert_allclose(ssim(x, y, data_range=data_range, mask=inside), similarity[valid][inside[valid]].mean(), atol=1e-5)


def in_torch(image, scale):
    """`[B, H, W]` → `[B, 1, H, W]` in 0 to 1, where piq wants its images, double precision."""
    return torch.from_numpy(np.clip(image / scale, 0, 1)[:, None].astype(np.float64))


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("sides", [(176, 176), (161, 161)])  # even at every scale; odd at every scale
def test_slices_score_as_in_piq(mri, image, sides):
    x, y, data_range = image(mri, (3, *sides), 1500.0)
    if sides[0] > min(x.shape[1:]):
        pad = [(0, 0), *((0, max(0, side - n)) for side, n in zip(sides, x.shape[1:], strict=True))]
        x, y = np.pad(x, pad), np.pad(y, pad)
    a, b = in_torch(x, data_range), in_torch(y, data_range)
    x, y = (image[:, 0, :, :, None].numpy() * data_range for image in (a, b))
    pairs = [(ssim, piq.ssim), (ms_ssim, piq.multi_scale_ssim), (vif, piq.vif_p)]
    if sides[0] % 2 == 0:  # an odd side gets a border of zeros in piq
        pairs.append((gmsd, piq.gmsd))
    for ours, theirs in pairs:
        more = {"downsample": False} if ours is ssim else {}
        expected = theirs(a, b, data_range=1.0, reduction="none", **more)
        np.testing.assert_allclose(ours(x, y, data_range=data_range), expected, rtol=1e-4, atol=2e-6, err_msg=ours.__name__)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("scale", SCALES)
def test_filters_are_those_of_scipy(mri, image, scale):
    x, y, data_range = image(mri, (40, 48, 36), scale)

    def log(a):
        return ndimage.gaussian_laplace(a, 1.5, truncate=14 / 3)[7:-7, 7:-7, 7:-7]

    np.testing.assert_allclose(hfen(x, y), np.linalg.norm(log(x) - log(y)) / np.linalg.norm(log(y)), rtol=1e-4)

    size = (1.0, 0.8, 2.5)

    def gradient(a):
        return np.stack(np.gradient(a, *size))[:, 1:-1, 1:-1, 1:-1]

    expected = np.linalg.norm(gradient(x) - gradient(y)) / np.linalg.norm(gradient(y))
    np.testing.assert_allclose(gradient_error(x, y, voxel_size=size), expected, rtol=1e-4)

    def deviation(a):
        mean, square = (gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5, 5:-5] for image in (a, a**2))
        return np.sqrt(np.maximum(square - mean**2, 0))

    s_x, s_y = deviation(x - y.mean()), deviation(y - y.mean())
    np.testing.assert_allclose(local_contrast(x), s_x.mean(), rtol=1e-4)
    np.testing.assert_allclose(local_contrast_error(x, y), np.abs(s_x - s_y).mean() / s_y.mean(), rtol=1e-4)

    x, y = (np.float32(np.clip(a, 0, data_range)) for a in (x, y))  # a value at a bin's edge falls as it does in float32
    p, q = (np.histogram(a, 256, (0, data_range))[0] / a.size for a in (x, y))
    np.testing.assert_allclose(histogram_match(x, y, data_range=data_range), np.minimum(p, q).sum(), rtol=1e-3)


def test_dice_of_real_segmentations_is_that_of_their_counts(mri):
    a, b = (np.asarray(nibabel.load(mri / "synthseg_labels" / f"training_seg_0{i}.nii.gz").dataobj) for i in (1, 2))
    a, b = a[60:140, 60:140, 60:140], b[60:140, 60:140, 60:140]
    labels = np.union1d(a, b).astype(int)
    size_a, size_b, common = (
        np.bincount(image.astype(int).ravel(), minlength=labels[-1] + 1)[labels] for image in (a, b, np.where(a == b, a, 0))
    )
    common[labels == 0] -= (a != b).sum()
    np.testing.assert_allclose(dice(a, b, labels=labels), 2 * common / (size_a + size_b), rtol=1e-6)
    np.testing.assert_allclose(volume_error(a, b, labels=labels, voxel_size=(1.0, 1.0, 1.5)), (size_a - size_b) * 1.5e-3, rtol=1e-5)
