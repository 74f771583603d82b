"""Laws of the embedded anatomy. Few shapes and variations: each compiles for seconds."""

import functools

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxsr.data.anatomy import CONTRASTS, TISSUES, Variation, render, tissue_maps

WHOLE, COARSE = (48, 58, 47), 4.0  # the whole head
BLOCK, FINE = (28, 28, 28), 1.0  # a piece of its middle at a training voxel size
LESION = TISSUES.index("lesion")
PLAIN = Variation(texture=0.0)


@functools.cache
def head(seed=0, shape=WHOLE, voxel_size=COARSE, contrast="T1w", variation=PLAIN):
    return jax.device_get(render(jax.random.key(seed), shape, voxel_size, contrast, variation))


def test_the_maps_are_log_probabilities_of_every_tissue_but_the_lesion():
    maps = tissue_maps()
    assert maps.logits.shape[0] == len(TISSUES) - 1
    assert maps.logits.max() <= 1e-6
    total = np.exp(maps.logits).sum(0)
    assert total.min() > 0.99
    assert (total > 1.02).mean() < 0.02  # tendencies: at the brain's edge its averages reach into the shells


def test_the_same_key_is_the_same_head_bit_for_bit_and_another_key_another_head():
    again = render(jax.random.key(0), WHOLE, COARSE, "T1w", PLAIN)
    np.testing.assert_array_equal(again.image, head(0).image)
    np.testing.assert_array_equal(again.labels, head(0).labels)
    assert (head(1).labels != head(0).labels).mean() > 0.1


def test_a_key_is_the_head_that_it_has_always_been():
    """What figures and trained models refer to by a seed: single voxels, moments and tissue counts of version 0.1."""
    image, labels = head(0, (24, 29, 24), 8.0, "random", Variation())[:2]
    voxels = image[[6, 12, 12, 18], [14, 5, 20, 14], [12, 12, 12, 16]]
    np.testing.assert_allclose(voxels, [0.85451508, 0.90334046, 0.61517048, 0.56619281], atol=1e-4)
    np.testing.assert_allclose([image.mean(), (image**2).mean()], [0.25198525, 0.15857865], rtol=1e-4)
    np.testing.assert_allclose(np.bincount(labels.ravel(), minlength=7), [10051, 873, 2320, 1319, 970, 1171, 0], atol=3)


def test_what_a_head_comes_with_changes_neither_image_nor_labels_and_is_of_the_same_head():
    variation = Variation(texture=0.0, stripped=1.0)
    alone, whole = head(0, variation=variation), head(0)
    both = jax.device_get(render(jax.random.key(0), WHOLE, COARSE, "T1w", variation, ("reference", "bias", "gradient", "mask")))
    np.testing.assert_allclose(both.image, alone.image, atol=1e-5)
    np.testing.assert_array_equal(both.labels, alone.labels)
    assert alone[2:] == (None,) * 4
    # Stripped: exact zeros outside the brain, the head as it was inside.
    np.testing.assert_array_equal(both.labels, np.where(both.mask, whole.labels, 0))
    assert (both.image[~both.mask] == 0).all()
    assert not np.isin(both.labels, (TISSUES.index("skull"), TISSUES.index("scalp"))).mean() > 0.01
    # Registered: the reference is flat where the image is.
    inside = ndimage.binary_erosion(both.labels == TISSUES.index("white matter"), iterations=2)
    assert both.reference[inside].std() < 0.02
    assert abs(both.reference[inside].mean() - both.image[inside].mean()) > 0.05
    assert both.gradient.shape == (*WHOLE, 3)
    assert abs(both.bias[both.labels > 0].mean()) < 1e-3


def test_every_tissue_occurs_in_about_its_volume():
    """Litres in an adult head: rough bounds, which a tissue that is missing or swapped would break."""
    litres = np.bincount(head().labels.ravel(), minlength=len(TISSUES)) * COARSE**3 / 1e6
    csf, grey, white, skull, scalp = litres[1:6]
    assert 0.15 < csf < 0.9
    assert 0.5 < grey < 1.5
    assert 0.3 < white < 1.0
    assert 0.2 < skull < 0.9
    assert 0.3 < scalp < 1.2


def test_white_matter_lies_within_grey_within_skull_within_scalp():
    """Mean distance from the centre of mass, tissue by tissue."""
    labels = head().labels
    places = np.argwhere(labels > 0).mean(0)
    radius = [np.linalg.norm(np.argwhere(labels == k) - places, axis=1).mean() for k in (3, 2, 4, 5)]
    assert (np.diff(radius) > 0).all()


@pytest.mark.parametrize("contrast", ["T1w", "T2w", "PDw"])
def test_within_a_tissue_the_signal_is_one_value_of_its_contrasts_range(contrast):
    """Labels and image agree, away from where tissues meet."""
    image, labels = head(contrast=contrast)[:2]
    for tissue in (0, 3):  # the others have no interior at this voxel size
        inside = ndimage.binary_erosion(labels == tissue, iterations=2)
        low, high = CONTRASTS[contrast][tissue]
        assert inside.sum() > 20
        assert low - 1e-3 <= np.median(image[inside]) <= high + 1e-3
        assert image[inside].std() < 0.02


def test_the_contrast_changes_no_label():
    np.testing.assert_array_equal(head(contrast="T1w").labels, head(contrast="T2w").labels)
    assert np.corrcoef(head(contrast="T1w").image.ravel(), head(contrast="T2w").image.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_the_signal_is_a_magnitude_of_about_one(seed):
    image = head(seed).image
    assert image.min() >= 0
    assert 0.5 < np.percentile(image, 99.5) < 1.2


def test_lesions_occur_lie_in_white_matter_and_change_nothing_else():
    """Their key is theirs alone: without them the head is the same, but for the voxels they took."""
    before = []
    for seed in (4, 6, 7):
        with_, without = (head(seed, variation=Variation(texture=0.0, lesions=n)).labels for n in (6, 0))
        assert not (without == LESION).any()
        lesion = with_ == LESION
        np.testing.assert_array_equal(with_[~lesion], without[~lesion])
        before += without[lesion].tolist()
    assert len(before) >= 3
    assert np.mean(np.array(before) == TISSUES.index("white matter")) > 0.7


def band_power(image, low, high):
    """Power between two radii, in units of the Nyquist frequency, of the windowed volume."""
    window = functools.reduce(np.multiply.outer, [np.hanning(n) for n in image.shape])
    spectrum = np.abs(np.fft.fftn((image - image.mean()) * window)) ** 2
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*[2 * np.fft.fftfreq(n) for n in image.shape], indexing="ij")))
    return spectrum[(radius >= low) & (radius < high)].mean() / spectrum[(radius > 0.05) & (radius < 0.25)].mean()


def test_the_truth_has_content_up_to_its_own_nyquist_frequency():
    """Spec: in the top quarter of the band it has far more power than a head rendered at twice the voxel size and interpolated."""
    fine = head(0, BLOCK, FINE).image
    coarse = head(0, tuple(n // 2 for n in BLOCK), 2 * FINE).image
    interpolated = ndimage.zoom(coarse, 2, order=3, grid_mode=True, mode="nearest")
    top = (0.75, 1.0)
    assert band_power(fine, *top) > 10 * band_power(interpolated, *top)
    assert band_power(fine, *top) > 0.1 * band_power(fine, 0.5, 0.75)  # it falls off as edges do, not as a blur


def test_the_same_key_at_twice_the_voxel_size_is_the_same_head():
    """Resolution is the grid's, anatomy the key's: averaged over 2 × 2 × 2 voxels, the fine head is the coarse one."""
    fine, coarse = head(0, BLOCK, FINE).image, head(0, tuple(n // 2 for n in BLOCK), 2 * FINE).image
    averaged = fine.reshape(14, 2, 14, 2, 14, 2).mean((1, 3, 5))
    assert np.corrcoef(averaged.ravel(), coarse.ravel())[0, 1] > 0.98


def test_an_unknown_contrast_is_refused_with_those_known():
    with pytest.raises(ValueError, match="'FLAIR'; known: random, T1w, T2w, PDw"):
        render(jax.random.key(0), BLOCK, FINE, "FLAIR")
