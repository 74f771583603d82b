"""Laws of pairs: slices are cut from the volumes as they lie, and vectors turn with the axes."""

import numpy as np
import pytest

from jaxsr.data.pairs import OPTIONAL, Pair, cut, slice_frame
from jaxsr.volume.geometry import Grid

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
HIGH, LOW = RNG.normal(size=(2, *SHAPE)).astype(np.float32)


def pair(**maps):
    return Pair(HIGH, LOW, Grid(SHAPE, np.eye(4)), **maps)


def test_a_pair_gives_the_maps_that_it_has_and_that_are_wanted():
    assert set(pair().maps()) == {"high", "low"}
    full = pair(**dict.fromkeys(OPTIONAL, HIGH))
    assert set(full.maps()) == {"high", "low", *OPTIONAL}
    assert set(full.maps(("bias",))) == set(pair(bias=HIGH).maps(("bias", "mask"))) == {"high", "low", "bias"}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_the_plane_across_its_axis(axis):
    slices = cut(pair(labels=HIGH, jacobian=LOW).maps(), axis, 2)
    for name, volume in (("high", HIGH), ("low", LOW), ("jacobian", LOW), ("labels", HIGH)):
        np.testing.assert_array_equal(slices[name], np.take(volume, 2, axis))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_displacements_in_a_slice_point_along_its_rows_its_columns_and_through_it(axis):
    """The gradient of a scalar volume, cut, is the gradient of the cut volume, and the third component is what the cut does not show."""
    gradient = np.stack(np.gradient(HIGH), -1)
    slices = cut({"high": HIGH, "gradient": gradient}, axis, 1)
    for component, expected in enumerate(np.gradient(slices["high"])):
        np.testing.assert_allclose(slices["gradient"][..., component], expected, rtol=1e-6)
    np.testing.assert_array_equal(slices["gradient"][..., 2], np.take(gradient[..., axis], 1, axis))
    assert sorted(slice_frame(axis)) == [0, 1, 2]
