"""Laws of Dice and volume errors, by counting."""

import numpy as np
import pytest

from jaxsr.evaluate.metrics.tissue import dice, relative_volume_error, volume_error


def boxes(shift=0):
    """Labels 1 and 2, boxes of 10 × 8 × 6 and 10 × 8 × 4 voxels, moved along the first axis."""
    labels = np.zeros((24, 16, 16), np.int32)
    labels[4 + shift : 14 + shift, 4:12, 2:8] = 1
    labels[4 + shift : 14 + shift, 4:12, 8:12] = 2
    return labels


@pytest.mark.parametrize("shift", [0, 3, 10])
def test_dice_of_boxes_shifted_by_k_of_10_voxels_is_the_share_that_stays(shift):
    np.testing.assert_allclose(dice(boxes(shift), boxes(), labels=(1, 2)), 1 - shift / 10, rtol=1e-6)


def test_dice_is_symmetric_and_a_label_that_neither_has_is_no_number():
    found = dice(boxes(2), boxes(), labels=(1, 7, 2))
    np.testing.assert_array_equal(found, dice(boxes(), boxes(2), labels=(1, 7, 2)))
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])


def test_volumes_are_in_ml_and_signed():
    a = boxes()
    a[a == 2] = 1
    found = volume_error(a, boxes(), labels=(1, 2, 9), voxel_size=(0.5, 1.0, 2.0))
    np.testing.assert_allclose(found, [0.32, -0.32, 0], rtol=1e-6)
    np.testing.assert_allclose(relative_volume_error(a, boxes(), labels=(1, 2)), [2 / 3, -1], rtol=1e-6)
    np.testing.assert_allclose(volume_error(boxes(3), boxes(), labels=(1, 2), voxel_size=1.0), 0)


def test_a_batch_is_its_maps_one_by_one():
    a, b = np.stack([boxes(1), boxes(4)])[..., None], np.stack([boxes(), boxes()])[..., None]
    assert dice(a, b, labels=(1, 2)).shape == (2, 2)
    np.testing.assert_allclose(dice(a, b, labels=(1, 2)), [dice(boxes(k), boxes(), labels=(1, 2)) for k in (1, 4)], rtol=1e-6)


def test_counting_is_exact_beyond_what_float32_counts():
    """2^24 + 2^12 voxels, less one: the difference is one voxel of 1 ml."""
    a = np.ones((4097, 4096, 1), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 0
    np.testing.assert_array_equal(volume_error(a, b, labels=[1], voxel_size=10.0), [1.0])
