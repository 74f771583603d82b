"""Laws of slices and of the maps between their planes and a model's."""

import numpy as np
import pytest

from jaxsr.volume.slices import AXES, make_map, take_slices

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("axis", [*AXES, 0, 1, 2])
def test_slices_are_views(axis):
    data = RNG.random((5, 6, 7), np.float32)
    slices = take_slices(data, axis)
    assert slices.shape[0] == data.shape[AXES.get(axis, axis)]
    assert np.shares_memory(slices, data)


def test_a_slice_is_the_plane_across_its_axis():
    data = RNG.random((5, 6, 7), np.float32)
    assert (take_slices(data, "coronal")[2] == data[:, 2]).all()


@pytest.mark.parametrize("shape", [(64, 64), (61, 70), (1, 129), (260, 311)])
@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_unpadding_undoes_padding_exactly(shape, multiple):
    x = RNG.random((2, *shape), np.float32)
    pad = make_map("pad", shape, multiple)
    padded = pad.forward(x)
    assert padded.shape == (2, *pad.shape)
    assert all(side % multiple == 0 and side - n < multiple for side, n in zip(pad.shape, shape, strict=True))
    assert (pad.inverse(padded) == x).all()


def test_padding_is_symmetric_and_filled_with_the_low_end_unless_told_otherwise():
    pad = make_map("pad", (3, 4), 8)
    padded = pad.forward(np.zeros((3, 4), np.float32))
    assert (padded[:2] == -1).all() and (padded[5:] == -1).all() and (padded[:, :2] == -1).all() and (padded[:, 6:] == -1).all()  # noqa: PT018
    assert (pad.forward(np.ones((3, 4), bool), fill=0).sum()) == 12


@pytest.mark.parametrize("shape", [(20, 31), (64, 64), (90, 77)])
def test_resizing_there_and_back_keeps_constants_and_what_both_grids_can_hold(shape):
    resize = make_map("resize", shape, 16, size=64)
    assert resize.shape == (64, 64)
    ones = np.ones((1, *shape), np.float32)
    np.testing.assert_allclose(resize.inverse(resize.forward(ones)), ones, rtol=1e-6)
    wave = np.cos(np.pi * 3 * (np.arange(shape[0]) + 0.5) / shape[0])[:, None] * np.cos(np.pi * 2 * (np.arange(shape[1]) + 0.5) / shape[1])
    np.testing.assert_allclose(resize.inverse(resize.forward(wave)), wave, atol=0.02)


def test_resizing_to_the_same_size_changes_nothing():
    x = RNG.random((3, 32, 32), np.float32)
    np.testing.assert_allclose(make_map("resize", (32, 32), 16, size=32).forward(x), x, atol=1e-6)


@pytest.mark.parametrize("kind", ["pad", "resize"])
def test_slices_of_another_shape_are_refused(kind):
    plane = make_map(kind, (20, 20), 16, size=32)
    with pytest.raises(ValueError, match=r"20, 20.*\(5, 21, 20\)"):
        plane.forward(np.zeros((5, 21, 20), np.float32))
    with pytest.raises(ValueError, match="32, 32"):
        plane.inverse(np.zeros((20, 20), np.float32))


@pytest.mark.parametrize(
    "wrong, message",
    [({"kind": "crop"}, "crop"), ({"multiple": 0}, "0"), ({"kind": "resize", "size": 250}, "250.*multiple of 16")],
)
def test_maps_that_cannot_be_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_map(**{"kind": "pad", "shape": (20, 20), "multiple": 16, **wrong})
