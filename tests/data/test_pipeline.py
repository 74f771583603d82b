"""Laws of the input stream: batch k is a function of k."""

import threading

import numpy as np
import pytest

from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pipeline import SliceStream, batches, sample_ids
from jaxsr.data.subjects import Pair
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid
from jaxsr.volume.slices import take_slices

SHAPE = (10, 12, 14)


class Numbered:
    """Subjects whose voxels say who and when: high = subject, low = high + 0.001 visit; counts its loads and what is held."""

    def __init__(self, count=5, shape=SHAPE):
        self.ids = [f"person-{i}" for i in range(count)]
        self.shape, self.loads, self.lock = shape, [], threading.Lock()

    def load(self, index, visit=0):
        with self.lock:
            self.loads.append(visit)
        high = np.random.default_rng(index).uniform(0, 1, self.shape).astype(np.float32)
        return Pair(high, high + np.float32(0.001 * visit), Grid(self.shape, np.eye(4)))


def stream(subjects=None, crop=(8, 8), **settings):
    return SliceStream(subjects or Numbered(), crop, **{"draws": 8, "window": 2, "seed": 3, **settings})


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in ("high", "low", "origin"))


def test_any_position_is_what_it_is_without_those_before_it():
    sequential = stream()
    samples = [sequential[i] for i in range(40)]
    at_random = stream()
    for i in (33, 2, 39, 17, 0):
        assert same(at_random[i], samples[i])


def test_two_fresh_streams_are_equal_and_another_seed_is_another_stream():
    first, again, other = stream(), stream(), stream(seed=4)
    assert all(same(first[i], again[i]) for i in range(20))
    assert not any(same(first[i], other[i]) for i in range(20))


@pytest.mark.parametrize("shares", [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2]), ([0, 1, 2, 3], [0, 1, 2, 3])], ids=str)
def test_what_two_processes_read_of_a_batch_is_what_a_single_one_has_at_those_places(shares):
    """In the same order too: noise goes by the place in the batch, so a run can go on with other hosts."""
    alone = batches(stream(), 4)
    both = [batches(stream(), 4, rows=np.array(rows)) for rows in shares]
    for _ in range(6):
        whole = next(alone)
        for rows, share in zip(shares, both, strict=True):
            assert same(next(share), {name: x[rows] for name, x in whole.items()})


@pytest.mark.parametrize("rows", [None, np.array([1, 3])], ids=str)
def test_batches_from_a_step_on_are_those_that_would_have_come(rows):
    through = batches(stream(), 4, rows=rows)
    for _ in range(5):
        next(through)
    resumed = batches(stream(), 4, start=5, rows=rows, threads=1)
    assert all(same(next(resumed), next(through)) for _ in range(4))


def test_a_block_draws_equal_shares_from_the_subjects_in_its_window():
    running = stream(draws=12, window=3)
    for block in range(3, 6):
        visits = [running[12 * block + i]["origin"][0] for i in range(12)]
        assert sorted(visits) == sorted([block, block - 1, block - 2] * 4)


def test_every_subject_has_its_turn_before_any_comes_again():
    running = stream(Numbered(5))
    for epoch in range(3):
        assert sorted(running.subject(5 * epoch + place) for place in range(5)) == list(range(5))
    assert [running.subject(i) for i in range(5)] != [running.subject(5 + i) for i in range(5)]


def test_memory_holds_two_subjects_more_than_the_window_and_each_is_made_once():
    subjects = Numbered(50)
    running = stream(subjects, draws=4, window=2)
    for i in range(80):
        running[i]
        assert len(running._cache._held) <= 4
    assert sorted(subjects.loads) == sorted(set(subjects.loads))
    assert len(subjects.loads) <= 80 // 4 + 1


def test_a_slice_comes_from_where_its_origin_says():
    subjects = Numbered()
    running = stream(subjects, crop=(16, 16), augment=False)
    for i in range(12):
        sample = running[i]
        visit, subject, axis, index = sample["origin"]
        assert subject == running.subject(visit)
        slice_ = take_slices(subjects.load(subject, visit).high, axis)[index]
        top, left = ((16 - n) // 2 for n in slice_.shape)
        np.testing.assert_array_equal(sample["high"][top : top + slice_.shape[0], left : left + slice_.shape[1], 0], slice_)


def test_slices_smaller_than_the_crop_are_padded_evenly_with_background():
    sample = stream(Numbered(shape=(8, 8, 8)), crop=(12, 10), augment=False)[0]
    assert sample["high"].shape == sample["low"].shape == (12, 10, 1)
    for name in ("high", "low"):
        inside = np.zeros((12, 10), bool)
        inside[2:10, 1:9] = True
        assert (sample[name][~inside] == -1).all()
        assert (sample[name][inside] != -1).all()


def test_both_sides_of_a_pair_are_cropped_and_flipped_together():
    running = stream()
    for i in range(20):
        sample = running[i]
        np.testing.assert_allclose(sample["low"] - sample["high"], 0.001 * sample["origin"][0], atol=1e-5)


def test_augmentation_flips_each_axis_about_half_the_time():
    flipped, straight = stream(crop=(16, 16)), stream(crop=(16, 16), augment=False)
    pairs = [(flipped[i]["high"][..., 0], straight[i]["high"][..., 0]) for i in range(64)]
    flips = [(slice(None, None, up), slice(None, None, left)) for up in (1, -1) for left in (1, -1)]
    counts = [sum(np.array_equal(a, b[flip]) for a, b in pairs) for flip in flips]
    assert sum(counts) == 64
    assert min(counts) >= 6


def test_crops_hold_tissue_where_there_is_some():
    class Corner(Numbered):
        """Background but for one corner."""

        def load(self, index, visit=0):
            data = np.full((32, 32, 32), -1, np.float32)
            data[:16, :16, :16] = 1
            return Pair(data, data, Grid((32, 32, 32), np.eye(4)))

    running = stream(Corner())
    assert np.mean([(running[i]["low"] > -0.85).mean() > 0.1 for i in range(32)]) > 0.9  # it gives up after twenty tries


class Mapped(Numbered):
    """With maps that are functions of the image: labels its sign, gradient its own in all components."""

    def load(self, index, visit=0):
        pair = super().load(index, visit)
        return pair._replace(labels=(pair.high > 0.5).astype(np.uint8), gradient=np.stack([pair.high] * 3, -1), mask=pair.high > 0.5)


def test_maps_come_with_their_slices_cut_and_flipped_as_they_are():
    running = stream(Mapped(), crop=(16, 16), maps=("labels", "gradient", "mask"))
    for i in range(20):
        sample = running[i]
        inside = sample["high"][..., 0] != -1
        assert inside.sum() in (10 * 12, 10 * 14, 12 * 14)
        np.testing.assert_array_equal(sample["labels"], sample["high"][..., 0] > 0.5)
        np.testing.assert_array_equal(sample["mask"], sample["high"] > 0.5)
        np.testing.assert_array_equal(np.abs(sample["gradient"]), np.where(inside[..., None], sample["high"], 0).repeat(3, -1))
    assert stream(Mapped())[0].keys() == {"high", "low", "origin"}


def test_a_map_that_the_subjects_lack_is_refused_with_what_they_have():
    with pytest.raises(ConfigError, match=r"data\.maps wants bias, which person-\d has not: it has gradient, labels, mask; leave out"):
        stream(Mapped(), maps=("bias",))[0]


def test_augmented_slices_are_functions_of_their_position_and_flip_as_before():
    config = AugmentConfig(rotation=5.0, scale=0.1, elastic=1.0, gamma=0.1)
    running, again, flipped = (stream(crop=(16, 16), augment=augment) for augment in (config, config, True))
    samples = [running[i] for i in range(12)]
    for i in (11, 3, 7):
        assert same(again[i], samples[i])
    for i, sample in enumerate(samples):
        assert not same(sample, flipped[i])
        np.testing.assert_array_equal(sample["origin"], flipped[i]["origin"])


class Damaged(Numbered):
    """Some cannot be loaded."""

    def __init__(self, bad, **how):
        super().__init__(**how)
        self.bad = bad

    def load(self, index, visit=0):
        if index in self.bad:
            raise VolumeError(f"volume {index} is truncated")
        return super().load(index, visit)


def test_a_subject_that_cannot_be_loaded_gives_its_turn_to_the_next_and_is_told_once():
    """The others come when they would have come; the stream is still random access, and origins name who really came."""
    notes = []
    whole, damaged, again = stream(), stream(Damaged({1, 2}), note=notes.append), stream(Damaged({1, 2}))
    samples = [damaged[i] for i in range(80)]
    for i in (77, 3, 41, 60):
        assert same(again[i], samples[i])
    for i, sample in enumerate(samples):
        planned = int(whole[i]["origin"][1])
        assert sample["origin"][1] == {1: 3, 2: 3}.get(planned, planned)
        if planned not in (1, 2):
            assert same(sample, whole[i])
    assert "the first of" in notes[0]
    assert sorted(notes[1:]) == ["left out: volume 1 is truncated", "left out: volume 2 is truncated"]


def test_where_none_can_be_loaded_the_stream_ends_with_the_reason():
    with pytest.raises(VolumeError, match="none of the 5 subjects can be loaded; the last: volume"):
        stream(Damaged(range(5)))[0]


def test_mistakes_in_our_own_code_are_no_bad_subjects():
    class Broken(Numbered):
        def load(self, index, visit=0):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream(Broken())[0]


def test_leaving_the_stream_waits_for_no_more_subjects():
    release, slow = threading.Event(), Numbered(50)
    load = slow.load
    slow.load = lambda index, visit=0: (release.wait(60), load(index, visit))[1]
    with stream(slow) as left:
        waiting = [left._cache._future(visit) for visit in range(4)]
    assert all(future.cancelled() for future in waiting[1:])
    release.set()
    assert waiting[0].result(60)


def test_names_of_slices_can_be_read():
    subjects = Numbered()
    assert list(sample_ids(np.array([[7, 2, 1, 30]]), subjects)) == ["person-2 (visit 7) coronal slice 30"]


def test_draws_that_do_not_divide_over_the_window_are_refused():
    with pytest.raises(ValueError, match="got 9 and 2"):
        stream(draws=9)
