"""Streams of which half the slices have no pair [SPCDD §3.5; 30-spcdd, unpaired adaptation]."""

import numpy as np
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.data.pipeline import batches, sample_ids
from jaxsr.data.unpaired import HalfPaired, split_paired
from jaxsr.experiment import Experiment
from jaxsr.methods.spcdd_config import SpcddLosses
from jaxsr.train.build import abstract_batch, build_stream, build_subjects
from jaxsr.train.loop import train
from jaxsr.volume.io import Volume, write_volume

METHOD = {"kind": "spcdd", "plain": {"width": 8}, "prior": None, "intensity": None}
GAME = {"losses": {"adversarial": 1.0}, "discriminator": {"width": 4, "layers": 1}}


class Numbers:
    """A stream whose samples say their position and the stream's name."""

    def __init__(self, name):
        self.name, self.open = name, 0

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *_):
        self.open -= 1

    def __getitem__(self, position):
        return {"name": self.name, "position": position, "high": (self.name, position), "origin": np.array([0, position, 0, 0])}


def test_slices_with_and_without_a_pair_take_turns_and_what_has_none_is_of_two():
    streams = Numbers("paired"), Numbers("others")
    with HalfPaired(*streams, streams[1], apart=100) as half:
        found = [half[i] for i in range(6)]
        assert [s.open for s in streams] == [1, 1]
    assert [s.open for s in streams] == [0, 0]
    assert [(f["name"], f["position"], float(f["paired"]), f["high"]) for f in found[:4]] == [
        ("paired", 0, 2.0, ("paired", 0)), ("others", 0, 0.0, ("others", 100)),
        ("paired", 1, 2.0, ("paired", 1)), ("others", 1, 0.0, ("others", 101)),
    ]  # fmt: skip
    assert np.mean([f["paired"] for f in found]) == 1


@pytest.mark.parametrize("share, count", [(0.25, 5), (0.05, 1), (0.001, 1), (0.95, 19)])
def test_a_share_of_the_people_has_pairs_and_nobody_is_in_both(share, count):
    people = [f"p{i // 2}" for i in range(40)]  # two scans each
    paired, others = split_paired(people, share, seed=3)
    assert sorted(paired + others) == list(range(40))
    assert len(paired) == 2 * count
    assert not {people[i] for i in paired} & {people[i] for i in others}
    assert (paired, others) == split_paired(people, share, seed=3)
    assert share > 0.9 or split_paired(people, share, seed=4)[0] != paired


def test_somebody_must_be_left_without():
    with pytest.raises(ConfigError, match=r"data\.paired: 0\.9 of 2 people"):
        split_paired(["a", "b"], 0.9, 0)


def experiment(**data):
    data = {"voxel_size": 6.0, "crop": 16, "subjects": 4, "draws": 8, "window": 2, "threads": 1} | data
    return from_dict({"method": METHOD | GAME, "data": data, "train": {"batch_size": 4}}, Experiment)


def test_an_experiment_has_batches_of_both_kinds():
    """Half of each batch, from subjects of which none is in both halves; the flag is in the batch's shapes."""
    wanted = experiment(paired=0.5)
    assert abstract_batch(wanted).paired.shape == (4,)
    assert abstract_batch(experiment()).paired is None
    told = []
    with build_stream(wanted, build_subjects(wanted.data, "train", 0), told.append) as stream:
        iterator = batches(stream, 4)
        seen = [next(iterator) for _ in range(6)]
    assert all(batch["paired"].tolist() == [2, 0, 2, 0] for batch in seen)
    subjects = [{int(s) for batch in seen for s in batch["origin"][first::2, 1]} for first in (0, 1)]
    assert not subjects[0] & subjects[1] and all(subjects)  # noqa: PT018
    assert any("pairs of 2 of 4 scans" in sentence for sentence in told)


@pytest.fixture
def scans(tmp_path):
    """A folder of two scans that are coarser than the target, of their own units and orientation."""
    rng = np.random.default_rng(0)
    for i in range(2):
        data = rng.gamma(2.0, 100.0 * (1 + i), (20, 24, 22)).astype(np.float32)
        write_volume(tmp_path / "scans" / f"sub-{i}.nii.gz", Volume(data, np.diag([-9.0, 9.0, 9.0, 1.0])))
    return tmp_path / "scans"


def test_scans_without_a_truth_are_shown_with_the_targets_of_others(scans):
    """What adaptation is for: acquired scans from a folder, and high-resolution images of the subjects that have pairs."""
    wanted, told = experiment(unpaired=str(scans)), []
    subjects = build_subjects(wanted.data, "train", 0)
    assert abstract_batch(wanted).paired.shape == (4,)
    with build_stream(wanted, subjects, told.append) as stream, build_stream(experiment(), subjects) as pairs:
        found = [stream[i] for i in range(8)]
        for turn, sample in enumerate(found[1::2]):
            assert sample["paired"] == 0
            np.testing.assert_array_equal(sample["high"], pairs[turn + wanted.data.draws]["high"])
        for turn, sample in enumerate(found[0::2]):
            assert sample["paired"] == 2
            np.testing.assert_array_equal(sample["low"], pairs[turn]["low"])
    names = [name.split(" ")[0:4] for name in sample_ids(np.stack([s["origin"] for s in found]), subjects)]
    assert all(name[0] == "volume" and name[2:] == ["of", "data.unpaired"] for name in names[1::2])
    assert all(name[0].startswith("anatomy-train-") for name in names[0::2])
    assert any("2 scans without a pair" in sentence for sentence in told)


@pytest.mark.parametrize("method, data, message", [
    ({}, {}, "teach this method nothing"), (GAME, {"paired": 0.5}, "two ways"), (GAME, {"maps": ["mask"]}, "no maps either"),
])  # fmt: skip
def test_scans_that_would_teach_nothing_are_refused(method, data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"method": METHOD | method, "data": {"unpaired": "scans", **data}, "train": {"batch_size": 4}}, Experiment)


def test_a_run_goes_on_with_the_scans_that_it_began_with(scans, tmp_path):
    wanted = experiment(unpaired=str(scans))
    steps = lambda n: wanted.model_copy(update={"train": wanted.train.model_copy(update={"steps": n})})  # noqa: E731
    train(steps(1), tmp_path / "run")
    assert (tmp_path / "run/unpaired.txt").read_text().split() == ["sub-0.nii.gz", "sub-1.nii.gz"]
    (scans / "sub-1.nii.gz").rename(scans / "sub-2.nii.gz")
    with pytest.raises(ConfigError, match=r"put data\.unpaired back"):
        train(steps(2), tmp_path / "run")


def test_who_learns_nothing_without_pairs_has_those_with_pairs_alone():
    """So the same share of the people is a fair comparison: with a discriminator and without."""
    game = experiment(paired=0.5)
    alone = game.model_copy(update={"method": game.method.model_copy(update={"losses": SpcddLosses(), "discriminator": None})})
    assert abstract_batch(alone).paired is None
    subjects = build_subjects(alone.data, "train", 0)
    with build_stream(alone, subjects) as stream, build_stream(experiment(paired=0.5), subjects) as half:
        assert {int(stream[i]["origin"][1]) for i in range(24)} == {int(half[2 * i]["origin"][1]) for i in range(24)}


def test_a_discriminator_that_is_not_there_has_no_optimiser():
    with pytest.raises(ConfigError, match=r"optimizer\.discriminator"):
        from_dict({"method": METHOD, "optimizer": {"discriminator": {"learning_rate": 1e-3}}}, Experiment)
