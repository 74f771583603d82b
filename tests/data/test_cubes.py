"""Laws of the stream of cubes: three views of the same voxels, cut as `upscale` cuts them."""

import numpy as np
import pytest

from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.cubes import CubeStream
from jaxsr.data.pairs import Pair, beside, cut, scale_of, told_quality
from jaxsr.data.pipeline import batches
from jaxsr.losses.cubes import over_axes
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid
from jaxsr.volume.quality import Quality

SIDE, SHAPE, CONTEXT = 4, (9, 7, 8), 2
PLAIN = AugmentConfig(flip=False)
TURNED = AugmentConfig(flip=True, transpose=True)


class Heads:
    """Every voxel has a value of its own, the truth another than the scan; voxels are acquired thick along another axis at each visit."""

    def __init__(self, shape=SHAPE, affine=np.eye(4), odd=()):
        self.ids = [f"person-{i}" for i in range(3)]
        self.shape, self.affine, self.odd = shape, affine, odd

    def load(self, index, visit=0):
        low = np.random.default_rng(index).uniform(0, 1, self.shape).astype(np.float32)
        scanned = tuple(np.roll([1.0, 2.0, 5.0], visit))
        shape = (SIDE - 1, *self.shape[1:]) if index in self.odd else self.shape
        quality = Quality(tuple(1 + np.array(scanned) / 10), 0.03, False)
        return Pair((low + 2)[: shape[0]], low[: shape[0]], Grid(shape, self.affine), scanned=scanned, quality=lambda: quality)


def stream(subjects=None, side=SIDE, **settings):
    how = {"draws": 4 * 3 * side, "window": 2, "seed": 3, "context": CONTEXT, "scale": True, "quality": True, "augment": TURNED}
    return CubeStream(subjects or Heads(), side, **{**how, **settings})


def cube(of, number):
    samples = [of[number * 3 * SIDE + i] for i in range(3 * SIDE)]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


@pytest.mark.parametrize("augment", [PLAIN, TURNED, AugmentConfig(transpose=True, gamma=0.3)], ids=["plain", "turned", "bent"])
def test_slices_across_three_axes_are_of_the_same_voxels(augment):
    running = stream(augment=augment)
    for number in range(12):
        found = cube(running, number)
        for name in ("high", "low"):
            assert np.allclose(over_axes(found[name]), found[name], atol=1e-6)
            assert found[name].shape == (3 * SIDE, SIDE, SIDE, 1)
            assert found[name].dtype == np.float32


def test_a_cube_is_cut_as_its_volume_is():
    running, heads = stream(augment=PLAIN), Heads()
    for number in range(8):
        found = cube(running, number)
        corner = [found["origin"][axis * SIDE, 3] for axis in range(3)]
        for i, (visit, subject, axis, index) in enumerate(found["origin"]):
            pair = heads.load(subject, visit)
            rows, columns = (slice(corner[a], corner[a] + SIDE) for a in range(3) if a != axis)
            of_volume = cut(pair.maps(), axis, index)
            assert np.array_equal(found["high"][i, ..., 0], of_volume["high"][rows, columns])
            assert np.array_equal(found["low"][i, ..., 0], of_volume["low"][rows, columns])
            assert np.array_equal(found["beside"][i], beside(pair.low, axis, index, CONTEXT)[rows, columns])
            assert np.array_equal(found["scale"][i], scale_of(pair.scanned, pair.grid, axis))
            assert np.array_equal(found["quality"][i], told_quality(pair.quality(), axis))


def test_slices_that_are_turned_are_told_how_coarse_the_scan_is_along_their_own_rows():
    """Whatever the axes are called: where the scan has 5 mm, low is given a value that says so."""

    class Told(Heads):
        def load(self, index, visit=0):
            pair = super().load(index, visit)
            ramp = np.arange(max(SHAPE), dtype=np.float32)
            weights = np.array(pair.scanned, np.float32)
            low = sum(
                w * ramp[:n].reshape([-1 if a == axis else 1 for a in range(3)])
                for axis, (w, n) in enumerate(zip(weights, SHAPE, strict=True))
            )
            return pair._replace(low=np.asarray(low, np.float32))

    running, orders = stream(Told()), set()
    for number in range(20):
        found = cube(running, number)
        rows, columns = np.abs(np.diff(found["low"], axis=1)[:, 0, 0, 0]), np.abs(np.diff(found["low"], axis=2)[:, 0, 0, 0])
        through = np.abs(found["beside"][..., 2] - found["low"][..., 0])[:, 0, 0]
        inside = (found["origin"][:, 3] > 0) & (found["origin"][:, 3] < np.array(SHAPE)[found["origin"][:, 2]] - 1)
        assert np.allclose(found["scale"][:, 0], rows)
        assert np.allclose(found["scale"][:, 1], columns)
        assert np.allclose(found["scale"][inside, 2], through[inside])
        assert np.allclose(found["quality"], np.c_[1 + found["scale"] / 10, np.full((3 * SIDE, 2), (0.03, 2))])  # turned alike
        orders.add(tuple(found["scale"][0]))
    assert len(orders) == 6


def test_what_is_at_a_position_does_not_depend_on_what_was_read_before():
    sequential, at_random = stream(), stream()
    samples = [sequential[i] for i in range(60)]
    for i in (59, 3, 31, 12, 0):
        assert all(np.array_equal(at_random[i][name], samples[i][name]) for name in samples[i])


def test_batches_are_whole_cubes_and_a_visit_has_as_many_as_its_draws_say():
    with stream() as running:
        batch = next(batches(running, 2 * 3 * SIDE))
    assert np.allclose(over_axes(batch["high"]), batch["high"], atol=1e-6)
    running = stream()
    visits = [int(cube(running, number)["origin"][0, 0]) for number in range(4, 8)]
    assert sorted(visits) == [0, 0, 1, 1]


@pytest.mark.parametrize("threads", [1, 8])
def test_whoever_reads_in_their_order_makes_no_cube_twice(threads):
    """As grain does, a thread a batch, with more of them at work than cubes are held."""
    made = []

    class Counted(CubeStream):
        def _make(self, cube):
            made.append(cube)
            return super()._make(cube)

    with Counted(Heads(), SIDE, draws=4 * 3 * SIDE, window=2, context=CONTEXT, augment=PLAIN) as running:
        reading = batches(running, 2 * 3 * SIDE, threads=threads)
        for _ in range(12):
            next(reading)
    assert len(made) == len(set(made)) >= 24


def test_a_subject_without_a_cube_is_left_out_and_named():
    notes = []
    running = stream(Heads(odd=[1]), note=notes.append)
    assert {int(cube(running, number)["origin"][0, 1]) for number in range(12)} == {0, 2}
    assert any("person-1" in note and "3 × 7 × 8 voxels of 1 × 1 × 1 mm hold no cube of 4 voxels" in note for note in notes)


@pytest.mark.parametrize("augment", [PLAIN, TURNED], ids=["plain", "turned"])
@pytest.mark.parametrize("thick", range(3))
def test_thick_slices_serve_as_three_stacks_and_say_so(thick, augment):
    """Each of neighbouring slices across the thick axis, cut as the volume is; where it is turned, with the same values."""
    heads = Heads(affine=np.diag([*(3.0 if axis == thick else 1.0 for axis in range(3)), 1.0]))
    running, corners = stream(heads, stacks=True, augment=augment), set()
    for number in range(6):
        found = cube(running, number)
        assert (found["axes"] == 1).all()
        assert found["axes"].dtype == np.float32
        for rows in (slice(of * SIDE, (of + 1) * SIDE) for of in range(3)):
            indices = found["origin"][rows, 3]
            assert (found["origin"][rows, 2] == thick).all()
            assert abs(np.diff(indices)).tolist() == [1] * (SIDE - 1)
            visit, subject = found["origin"][rows][0, :2]
            pair = heads.load(subject, visit)
            corners.add(tuple(indices))
            for place, index in zip(range(rows.start, rows.stop), indices, strict=True):
                assert np.isin(found["low"][place], np.moveaxis(pair.low, thick, 0)[index]).all()
                assert np.isin(found["high"][place], np.moveaxis(pair.high, thick, 0)[index]).all()
                told = scale_of(pair.scanned, pair.grid, thick)
                assert np.array_equal(np.sort(found["scale"][place][:2]), np.sort(told[:2]))
                assert found["scale"][place][2] == told[2]
            assert np.array_equal(found["beside"][rows][:-1, ..., CONTEXT], found["low"][rows][1:, ..., 0])
    assert len(corners) > 3


def test_cubes_say_that_all_three_axes_serve_where_stacks_might_be_among_them():
    assert (cube(stream(stacks=True), 0)["axes"] == 3).all()
    assert "axes" not in cube(stream(), 0)


@pytest.mark.parametrize("sizes", [(1, 1, 3), (1, 2, 4)], ids=str)
def test_voxels_that_are_far_from_cubes_hold_none(sizes):
    with pytest.raises(VolumeError, match="none of the 3 subjects can be loaded"):
        stream(Heads(affine=np.diag([*sizes, 1.0])))[0]


def test_voxels_that_have_square_pixels_nowhere_are_no_stacks_either():
    with pytest.raises(VolumeError, match="none of the 3 subjects can be loaded"):
        stream(Heads(affine=np.diag([1.0, 2.0, 4.0, 1.0])), stacks=True)[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"draws": 25}, "multiple of 3 side window"),
        ({"augment": AugmentConfig(rotation=5.0)}, "cannot be turned"),
        ({"augment": AugmentConfig(elastic=1.0)}, "deformed"),
    ],
)
def test_what_would_tear_a_cube_apart_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        stream(**settings)


def test_the_mean_over_axes_is_that_of_three_volumes():
    volumes = np.random.default_rng(0).normal(size=(2, 3, SIDE, SIDE, SIDE, 2)).astype(np.float32)  # of each cube, of each axis' slices
    slices = np.concatenate([np.moveaxis(volumes[k, axis], axis, 0) for k in range(2) for axis in range(3)])
    mean = over_axes(slices)
    for k in range(2):
        for axis in range(3):
            of = mean[(3 * k + axis) * SIDE :][:SIDE]
            assert np.allclose(np.moveaxis(np.asarray(of), 0, axis), volumes[k].mean(0), atol=1e-6)


@pytest.mark.parametrize("shape", [(10, 4, 4, 1), (12, 4, 3, 1)])
def test_slices_that_are_no_cubes_have_no_mean(shape):
    with pytest.raises(ValueError, match="no whole cubes"):
        over_axes(np.zeros(shape, np.float32))
