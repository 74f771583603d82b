"""Laws of prepared sets on disk: what is written is what is read, and what is not as it was written is told."""

import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.records import decode, encode, file_sha256, read_manifest, shards_of, verify, write_manifest, write_shard
from jaxsr.volume.errors import VolumeError

MAPS = {
    "high": np.arange(12, dtype=np.float16).reshape(3, 4),
    "low": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "gradient": np.ones((3, 4, 3), np.float16),
    "labels": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "mask": np.eye(3, 4, dtype=bool),
}


@pytest.fixture
def made(tmp_path):
    synthetic_set(tmp_path / "set", 3, side=16, slices=5)
    return tmp_path / "set"


def test_a_record_holds_its_maps_as_they_were_and_the_same_maps_are_the_same_bytes():
    record = encode(MAPS)
    back = decode(record)
    assert back.keys() == MAPS.keys()
    for name, x in MAPS.items():
        assert back[name].dtype == x.dtype
        np.testing.assert_array_equal(back[name], x)
    turned = {name: np.asfortranarray(MAPS[name]) for name in reversed(MAPS)}
    assert encode(turned) == record


@pytest.mark.parametrize("damage", [lambda r: r[:-3], lambda r: r[:5], lambda r: b"\xff" * 8 + r[8:], lambda r: b""])
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(VolumeError, match="a record is damaged"):
        decode(damage(encode(MAPS)))


def test_a_shard_is_the_same_bytes_each_time_and_its_checksum_is_that_of_the_file(tmp_path):
    records = [encode({"high": np.full((8, 8), i, np.float16)}) for i in range(20)]
    sums = [write_shard(tmp_path / name, records) for name in ("a.array_record", "b.array_record")]
    assert sums[0] == sums[1] == file_sha256(tmp_path / "a.array_record")
    assert (tmp_path / "a.array_record").read_bytes() == (tmp_path / "b.array_record").read_bytes()


def test_a_shard_that_cannot_be_finished_leaves_nothing(tmp_path):
    def records():
        yield encode(MAPS)
        raise VolumeError("the volume is truncated")

    with pytest.raises(VolumeError, match="truncated"):
        write_shard(tmp_path / "train" / "a.array_record", records())
    assert not list((tmp_path / "train").iterdir())


def test_a_manifest_reads_back_equal_from_its_folder_and_by_its_name(made):
    manifest = read_manifest(made)
    assert read_manifest(made / "manifest.json") == manifest
    before = (made / "manifest.json").read_bytes()
    write_manifest(made, manifest)
    assert (made / "manifest.json").read_bytes() == before
    assert shards_of(manifest, "train") == list(manifest.shards)
    assert shards_of(manifest, "test") == []


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "No such file"),
        ("{", "Invalid JSON"),
        ('{"format": "something"}', "format"),
        ('{"format": "jaxsr-slices", "version": 2}', "version"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_reason_and_the_way_out(text, said, tmp_path):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(VolumeError, match=rf"manifest\.json is no manifest.*{said}.*jaxsr prepare"):
        read_manifest(tmp_path)


def test_a_set_as_it_was_written_passes_and_every_shard_that_is_not_is_named(made):
    assert verify(made) == verify(made / "manifest.json") == read_manifest(made)
    damaged = made / "shards" / "sub-0001.array_record"
    bytes_ = bytearray(damaged.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    damaged.write_bytes(bytes_)
    (made / "shards" / "sub-0002.array_record").unlink()
    with pytest.raises(VolumeError, match=r"(?s)2 of 3 shards.*jaxsr prepare.*sub-0001.*SHA-256 differs.*sub-0002.*is missing"):
        verify(made)


# ------------------------------------------------------------------------------------------------ a split of it


def test_records_are_numbered_through_the_shards_and_say_where_they_come_from(made):
    records = PreparedSet(made, "train")
    assert len(records) == 15
    assert [records.place(i) for i in (0, 4, 5, 14)] == [(0, 0), (0, 4), (1, 0), (2, 4)]
    assert [records.origin(i).tolist() for i in (5, 6, 7, 9)] == [[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 4]]
    assert records.ids[1] == "shards/sub-0001.array_record"


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "has 0 whole records, the manifest says 5"),
        (lambda file: file.write_bytes(b""), "has 0 whole records, the manifest says 5"),
        (lambda file: write_shard(file, [encode(MAPS)] * 4), "has 4 whole records, the manifest says 5"),
    ],
)
def test_a_missing_cut_or_other_shard_is_told_before_anything_is_read(damage, said, made):
    damage(made / "shards" / "sub-0001.array_record")
    with pytest.raises(VolumeError, match=rf"sub-0001\.array_record {said}: run the same `jaxsr prepare`"):
        PreparedSet(made, "train")


def test_a_split_without_slices_is_refused(made):
    with pytest.raises(VolumeError, match=r"manifest\.json has no slices in its test split"):
        PreparedSet(made, "test")


def test_a_set_of_more_shards_than_files_may_be_open_is_read_all_the_same(made, monkeypatch):
    monkeypatch.setattr("jaxsr.data.prepared._open_files", lambda: 4)
    few = PreparedSet(made, "train")
    read = [few.read(i)["high"] for i in (0, 5, 10, 0, 14)]
    assert len(few._readers) <= 2
    monkeypatch.undo()
    for i, x in zip((0, 5, 10, 0, 14), read, strict=True):
        np.testing.assert_array_equal(PreparedSet(made, "train").read(i)["high"], x)
