"""Laws of LPIPS as a metric: ranges, batches, volumes, masks. Its networks are tested in tests/models; parity stands in tests/reference."""

import jax
import numpy as np
import pytest

from jaxsr.evaluate.metrics.perceptual import lpips, lpips_map
from jaxsr.models.perceptual import perceptual_shapes
from jaxsr.weights.perceptual import Perceptual

VOLUME = (17, 18, 5)  # the smallest network needs 17 pixels on an axial slice
UNIT = (0.0, 1.0)


@pytest.fixture(scope="module")
def weights():
    """Of the smallest network: drawn, so that what they give is no LPIPS, but obeys its laws."""
    rng = np.random.default_rng(0)

    def drawn(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.1
        values = scale * rng.normal(size=leaf.shape)
        return np.asarray(np.abs(values) if leaf.shape[-1] == 1 else values, np.float32)  # heads have one output

    return Perceptual("squeeze", jax.tree.map(drawn, perceptual_shapes("squeeze")))


@pytest.fixture(scope="module")
def pair():
    """A volume in [0, 1] and a noisy copy."""
    y, noise = np.random.default_rng(1).random((2, *VOLUME), np.float32)
    return y + 0.2 * (noise - 0.5), y


@pytest.fixture(scope="module")
def slices(pair):
    """The volume's axial slices `[B, H, W, 1]`."""
    return tuple(np.moveaxis(image, 2, 0)[..., None] for image in pair)


@pytest.fixture(scope="module")
def by_slice(slices, weights):
    return np.asarray(lpips(*slices, weights, data_range=UNIT))


def test_equal_images_are_at_zero_and_others_above(slices, by_slice, weights):
    np.testing.assert_allclose(lpips(slices[1], slices[1], weights, data_range=UNIT), 0, atol=1e-9)
    assert (by_slice > 1e-4).all()


def test_it_does_not_depend_on_the_unit_of_intensity_nor_on_its_zero(slices, by_slice, weights):
    x, y = (300 * image - 40 for image in slices)
    np.testing.assert_allclose(lpips(x, y, weights, data_range=(-40.0, 260.0)), by_slice, rtol=1e-4)


def test_each_image_may_have_its_own_range(slices, by_slice, weights):
    scale = np.linspace(1, 5, len(by_slice), dtype=np.float32)
    x, y = (scale[:, None, None, None] * image for image in slices)
    np.testing.assert_allclose(lpips(x, y, weights, data_range=(0.0, scale)), by_slice, rtol=1e-4)


def test_results_do_not_depend_on_how_many_slices_are_seen_at_a_time(slices, by_slice, weights):
    np.testing.assert_allclose(lpips(*slices, weights, data_range=UNIT, batch=3), by_slice, rtol=1e-5)


def test_a_volume_is_the_mean_of_its_slices_across_the_axis(pair, by_slice, weights):
    np.testing.assert_allclose(lpips(*pair, weights, data_range=UNIT), by_slice.mean(), rtol=1e-5)
    x, y = (np.moveaxis(image, 2, 0) for image in pair)
    np.testing.assert_allclose(lpips(x, y, weights, data_range=UNIT, axis="sagittal"), by_slice.mean(), rtol=1e-5)


def test_a_batch_of_volumes_is_its_volumes(pair, by_slice, weights):
    x, y = (np.stack([image, image[::-1]])[..., None] for image in pair)
    found = lpips(x, y, weights, data_range=UNIT)
    assert found.shape == (2,)
    np.testing.assert_allclose(found[0], by_slice.mean(), rtol=1e-5)


def test_slices_of_a_masked_volume_count_by_their_share_of_the_mask(pair, slices, weights):
    """Also those that have none."""
    mask = np.random.default_rng(2).random(VOLUME) < np.linspace(0.1, 0.9, VOLUME[2])
    mask[..., :2] = False
    each = np.asarray(lpips(*slices, weights, data_range=UNIT, mask=np.moveaxis(mask, 2, 0)[..., None]))
    pixels = mask.sum((0, 1))
    assert np.isnan(each[:2]).all()
    expected = (each * pixels)[2:].sum() / pixels.sum()
    np.testing.assert_allclose(lpips(*pair, weights, data_range=UNIT, mask=mask), expected, rtol=1e-5)


def test_the_map_is_of_the_images_shape_and_its_mean_nearly_the_metric(pair, slices, by_slice, weights):
    found = lpips_map(*slices, weights, data_range=UNIT)
    assert found.shape == slices[0].shape
    np.testing.assert_allclose(np.mean(found, axis=(1, 2, 3)), by_slice, rtol=0.2)
    np.testing.assert_allclose(lpips_map(*pair, weights, data_range=UNIT), np.moveaxis(found[..., 0], 0, 2), rtol=1e-4, atol=1e-7)


def test_it_can_be_traced_and_differentiated_also_where_a_mask_is_empty(pair, weights):
    x, y = pair
    mask = np.zeros(VOLUME, bool)
    mask[..., 3] = True
    slope = jax.jit(jax.grad(lambda x, high: lpips(x, y, weights, data_range=(0.0, high), mask=mask)))(x, np.float32(1))
    assert np.isfinite(slope).all()
    assert np.abs(slope[..., 3]).max() > 0
    np.testing.assert_array_equal(np.delete(slope, 3, axis=2), 0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a, w: lpips(a, a[1:], w, data_range=UNIT), r"\(20, 20, 20\) and \(19, 20, 20\)"),
        (lambda a, w: lpips(a[:16], a[:16], w, data_range=UNIT), r"LPIPS \(squeeze\) needs at least 17 pixels on every side, got 16 × 20"),
        (lambda a, w: lpips(a[..., None], a[..., None], w, data_range=1.0), r"as \(low, high\), got 1.0"),
        (lambda a, w: lpips(a, a, w, data_range=(1.0, 1.0)), r"low below high, got \(1.0, 1.0\)"),
        (lambda a, w: lpips(a, a, w, data_range=UNIT, axis="z"), "sagittal, coronal, axial, got 'z'"),
        (lambda a, w: lpips(a[None], a[None], w, data_range=UNIT), r"one channel or three, got the shape \(1, 20, 20, 20\)"),
        (lambda a, w: lpips(*[a[None, ..., :3]] * 2, w, data_range=UNIT, mask=a[None, ..., :3] > 0), "mask for LPIPS has one channel"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_values(call, message, weights):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((20, 20, 20), np.float32), weights)
