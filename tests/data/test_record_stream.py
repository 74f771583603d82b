"""Laws of the stream of a prepared set: each record once an epoch, and every slice a function of its position."""

import threading

import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set
from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pairs import OPTIONAL
from jaxsr.data.pipeline import batches, sample_ids
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.record_stream import EncodedStream, RecordStream
from jaxsr.data.records import Manifest, encode, write_shard
from jaxsr.volume.errors import VolumeError

SCANS, SLICES, SIDE = 4, 6, 24
COUNT = SCANS * SLICES
ALL = AugmentConfig(rotation=5.0, scale=0.1, elastic=2.0, gamma=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    synthetic_set(folder, SCANS, side=SIDE, slices=SLICES, maps=OPTIONAL)
    return folder


def stream(folder, crop=(16, 16), maps=(), **settings):
    return RecordStream(PreparedSet(folder, "train"), crop, ("high", "low", *maps), **{"seed": 3, "augment": ALL, **settings})


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def records_of(samples):
    return [(int(s["origin"][1]), int(s["origin"][3])) for s in samples]


def test_any_position_is_what_it_is_without_those_before_it(made):
    sequential = stream(made)
    samples = [sequential[i] for i in range(2 * COUNT)]
    at_random = stream(made)
    for i in (33, 2, 47, 17, 0):
        assert same(at_random[i], samples[i])


def test_every_record_comes_once_an_epoch_and_each_epoch_in_an_order_of_its_own(made):
    running = stream(made, augment=False)
    epochs = [records_of(running[COUNT * epoch + i] for i in range(COUNT)) for epoch in range(3)]
    everyone = [(shard, number) for shard in range(SCANS) for number in range(SLICES)]
    assert all(sorted(epoch) == everyone for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert everyone not in epochs


@pytest.mark.parametrize("encoded", [False, True])
def test_of_some_records_those_alone_come_once_an_epoch(made, encoded):
    """What a share of the people is trained on, whole slices or as they were encoded."""
    records = PreparedSet(made, "train")
    chosen = records.records_of([1, 3])
    if encoded:
        running = EncodedStream(records, ("high", "low"), chosen=chosen, seed=3)
    else:
        running = stream(made, augment=False, chosen=chosen)
    expected = [(shard, number) for shard in (1, 3) for number in range(SLICES)]
    assert sorted(records_of(running[i] for i in range(2 * SLICES))) == expected


def test_the_order_is_the_same_in_every_version():
    """A run that goes on with a newer grain must not see some records twice and others never."""

    class Ten:
        manifest = Manifest(made_by="a test", voxel_size=1.0, dtype="float16", maps=(), settings="{}", shards=())
        folder = "nowhere"

        def __len__(self):
            return 10

    running = RecordStream(Ten(), (8, 8), seed=0)
    assert [running.record(i) for i in range(20)] == [5, 8, 9, 7, 4, 2, 1, 0, 3, 6, 6, 9, 4, 8, 0, 7, 3, 2, 1, 5]


def test_another_seed_is_another_stream(made):
    first, other = stream(made), stream(made, seed=4)
    assert records_of(first[i] for i in range(COUNT)) != records_of(other[i] for i in range(COUNT))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_all_processes_one_after_the_other_are_the_batch_of_one_whatever_the_threads(made, processes):
    alone = batches(stream(made), 4, start=3, threads=0)
    rows = np.split(np.arange(4), processes)
    shares = [batches(stream(made), 4, start=3, rows=rows[p], threads=p % 3) for p in range(processes)]
    for _ in range(8):
        whole, parts = next(alone), [next(share) for share in shares]
        assert same(whole, {name: np.concatenate([p[name] for p in parts]) for name in whole})


def test_batches_from_the_middle_of_an_epoch_on_are_those_that_would_have_come(made):
    through = batches(stream(made), 4)
    for _ in range(5):
        next(through)
    resumed = batches(stream(made), 4, start=5, threads=1)
    assert all(same(next(resumed), next(through)) for _ in range(4))


def test_a_sample_has_the_maps_that_are_wanted_as_a_batch_has_them(made):
    assert stream(made)[0].keys() == {"high", "low", "origin"}
    for augment in (False, ALL):
        sample = stream(made, maps=OPTIONAL, augment=augment)[0]
        shapes = {name: (x.shape, x.dtype.name) for name, x in sample.items() if name != "origin"}
        image = ((16, 16, 1), "float32")
        assert shapes == {
            **dict.fromkeys(("high", "low", "reference", "bias", "jacobian"), image),
            "gradient": ((16, 16, 3), "float32"),
            "labels": ((16, 16), "uint8"),
            "mask": ((16, 16, 1), "bool"),
        }


def test_a_map_that_the_set_lacks_is_refused_with_what_it_has(tmp_path):
    synthetic_set(tmp_path, 1, side=16, slices=3, maps=("bias",))
    with pytest.raises(ConfigError, match=r"data\.maps wants labels, which .* has not: it has bias; leave out"):
        stream(tmp_path, maps=("bias", "labels"))


def test_slices_of_a_displacement_are_not_taken_for_its_jacobian(tmp_path):
    synthetic_set(tmp_path, 1, side=16, slices=3, maps=("gradient",))
    with pytest.raises(ConfigError, match=r"data\.maps wants jacobian, which .* has not: it has gradient; .*\(prepare --with jacobian: "):
        stream(tmp_path, maps=("jacobian",))


def test_a_slice_is_the_record_that_its_origin_names(made):
    running, records = stream(made, crop=(32, 32), augment=False), PreparedSet(made, "train")
    for i in range(6):
        sample = running[i]
        _, shard, axis, number = sample["origin"]
        stored = records.read(SLICES * shard + number)["high"]
        assert axis == number // 2
        np.testing.assert_array_equal(sample["high"][4:-4, 4:-4, 0], stored.astype(np.float32))
        assert (sample["high"][:4] == -1).all()


def test_names_of_records_can_be_read(made):
    assert list(sample_ids(np.array([[0, 2, 1, 3]]), PreparedSet(made, "train"))) == [
        "shards/sub-0002.array_record (visit 0) coronal record 3"
    ]


def test_labels_that_do_not_fit_a_byte_are_refused(tmp_path):
    synthetic_set(tmp_path, 1, side=16, slices=3, maps=("labels",))
    image = np.zeros((16, 16), np.float16)
    sums = {}
    for name, top in (("small", 255), ("large", 2035)):
        file = tmp_path / "shards" / "sub-0000.array_record"
        sums[name] = write_shard(file, [encode({"high": image, "low": image, "labels": np.full((16, 16), top, np.int16)})] * 3)
        running = stream(tmp_path, maps=("labels",), augment=False)
        if name == "small":
            assert running[0]["labels"].dtype == np.uint8
            assert (running[0]["labels"] == 255).all()
        else:
            with pytest.raises(ConfigError, match="labels from 2035 to 2035"):
                running[0]


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture
def damaged(tmp_path):
    """Of the second scan some bytes in the middle are not what was written."""
    synthetic_set(tmp_path, 3, side=64, slices=SLICES)
    file = tmp_path / "shards" / "sub-0001.array_record"
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 8):
        data[at] ^= 0xFF
    file.write_bytes(data)
    return tmp_path


def readable(records, i):
    try:
        return bool(records.read(i))
    except VolumeError:
        return False


def test_a_record_that_cannot_be_read_gives_its_place_to_the_next_and_its_file_is_told_once(damaged):
    records = PreparedSet(damaged, "train")
    bad = [i for i in range(len(records)) if not readable(records, i)]
    assert 1 <= len(bad) < SLICES
    notes = []
    running, again = stream(damaged, crop=(64, 64), note=notes.append), stream(damaged, crop=(64, 64))
    instead = {i: max(bad) + 1 for i in bad}
    for position in range(3 * len(records)):
        planned = running.record(position)
        _, shard, _, number = running[position]["origin"]
        assert SLICES * shard + number == instead.get(planned, planned)
    assert same(again[40], running[40])
    assert len(notes) == 1
    assert notes[0].startswith("left out: ")
    assert "sub-0001.array_record: record" in notes[0]


def test_where_nothing_can_be_read_the_stream_ends_with_the_reason(made):
    running = stream(made)
    running._records._reader = lambda shard: (_ for _ in ()).throw(RuntimeError("the disk is gone"))
    with pytest.raises(VolumeError, match=r"none of the 24 records can be read; the last: .*the disk is gone"):
        running[0]


def test_a_shard_that_goes_away_while_it_is_not_open_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsr.data.prepared._open_files", lambda: 2)
    synthetic_set(tmp_path, 3, side=16, slices=SLICES)
    notes = []
    running = stream(tmp_path, augment=False, note=notes.append)
    (tmp_path / "shards" / "sub-0001.array_record").unlink()
    assert {shard for shard, _ in records_of(running[i] for i in range(18))} == {0, 2}
    assert len(notes) == 1


# ------------------------------------------------------------------------------------------------ threads and memory


def test_threads_that_read_at_the_same_time_read_the_same(made):
    running = stream(made)
    expected = [running[i] for i in range(COUNT)]
    wrong = []

    def read(first):
        wrong.extend(i for i in range(first, COUNT) if not same(running[i], expected[i]))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
