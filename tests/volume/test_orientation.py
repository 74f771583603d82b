"""Laws of turning arrays to RAS+ and back."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.volume.orientation import codes_of, from_ras, to_ras, turn_from, turn_of

ALL_48 = [
    tuple(pair[s] for pair, s in zip(order, signs, strict=True))
    for order in permutations(["LR", "PA", "IS"])
    for signs in product((0, 1), repeat=3)
]


def test_there_are_48_orientations_and_each_code_is_its_own_turn():
    assert len({turn_from(codes) for codes in ALL_48}) == 48
    assert all(codes_of(turn_from(codes)) == codes for codes in ALL_48)


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_turning_there_and_back_changes_neither_data_nor_affine(codes):
    ras = np.diag([0.7, 1.1, 2.3, 1.0])
    ras[:3, :3] = Rotation.from_euler("xyz", (8, -5, 11), degrees=True).as_matrix() @ ras[:3, :3]
    ras[:3, 3] = np.float32([-83.3, -110.7, 21.9])
    data = np.random.default_rng(0).random((4, 5, 6), np.float32)
    turned, affine = from_ras(data, ras, turn_from(codes))
    assert codes_of(turn_of(affine)) == codes
    again, back = to_ras(turned, affine, turn_of(affine))
    assert (again == data).all()
    np.testing.assert_allclose(back, ras, rtol=0, atol=1e-13)


@pytest.mark.parametrize("angle", [44.9999, 45.0, 45.0001, 135.0, -45.0])
@pytest.mark.parametrize("axis", "xyz")
def test_turning_twice_is_turning_once_even_where_two_axes_are_equally_near(angle, axis):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axis, angle, degrees=True).as_matrix() * (0.5, 1.0, 3.0)
    data = np.zeros((4, 5, 6), np.float32)
    turned, ras = to_ras(data, affine.astype(np.float32).astype(np.float64), turn_of(affine))
    assert turn_of(ras) == ((0, 1, 2), (False, False, False))
    assert turn_of(ras.astype(np.float32).astype(np.float64)) == ((0, 1, 2), (False, False, False))
    assert turned.size == data.size


@pytest.mark.parametrize("codes", [("R", "A", "A"), ("R", "A", ""), ("R", "A", "X"), ("RL", "A", "S")])
def test_codes_that_do_not_name_three_axes_are_refused(codes):
    with pytest.raises(ValueError, match="once each"):
        turn_from(codes)
