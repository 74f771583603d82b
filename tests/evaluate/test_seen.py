"""A model's run directory says which heads it was trained on, and where it cannot, that is said."""

import shutil

import pytest

from jaxsr.data.records import Manifest, Shard, Source, file_sha256, write_manifest
from jaxsr.evaluate import origin
from jaxsr.evaluate.seen import manifest_sha256, seen_heads, seen_note
from jaxsr.experiment import DataConfig


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def heads(tmp_path):
    (tmp_path / "heads").mkdir()
    paths = {name: tmp_path / "heads" / f"{name}.nii" for name in ("a", "b", "c")}
    for name, path in paths.items():
        path.write_text(f"voxels of {name}")
    return paths


def seen(run, data, heads):
    return seen_heads(run, data, heads, {name: file_sha256(path) for name, path in heads.items()})


def test_heads_of_a_folder_are_found_by_their_place_and_copies_by_their_bytes(tmp_path, run, heads):
    (tmp_path / "set" / "x").mkdir(parents=True)
    shutil.copy(heads["b"], tmp_path / "set" / "x" / "renamed.nii")
    (tmp_path / "set" / "c.nii").write_text("other voxels of the same name")
    (tmp_path / "set" / "a.nii").symlink_to(heads["a"])
    (run / "volumes.txt").write_text("a.nii\nc.nii\nx/renamed.nii\n")
    found = seen(run, DataConfig(volumes=tmp_path / "set"), heads)
    assert found == {"known": True, "train": ["a", "b"]}
    assert seen_note("m", found, 3) == "2 of 3 heads are in the training split of m: their scores say nothing of unseen heads"


def test_training_volumes_that_are_gone_leave_it_unknown(tmp_path, run, heads):
    (run / "volumes.txt").write_text("a.nii\ngone.nii\n")
    found = seen(run, DataConfig(volumes=tmp_path / "heads"), heads)
    assert (found["known"], found["train"]) == (False, ["a"])
    assert "1 of 2 training volumes" in found["why"]


def test_heads_of_a_prepared_set_are_found_by_their_sha256_in_its_splits(tmp_path, run, heads):
    def shard(name, split):
        source = Source(role="high", path=f"elsewhere/{name}.nii", sha256=file_sha256(heads[name]))
        same = {"sha256": "0", "records": 1, "slices": (1, 0, 0), "shape": (1, 1, 1), "window": (0.0, 1.0), "acquired": (2.0, 2.0, 2.0)}
        return Shard(file=f"shards/{name}{split}", subject=name, person=name, split=split, sources=(source,), **same)

    shards = (shard("a", "train"), shard("b", "train"), shard("b", "validation"), shard("c", "validation"))
    manifest = Manifest(made_by="test", voxel_size=1.0, dtype="float16", maps=(), settings="{}", shards=shards)
    (tmp_path / "set").mkdir()
    file = write_manifest(tmp_path / "set", manifest)
    (run / "manifest.sha256").write_text(f"{file_sha256(file)}  {file}\n")
    data = DataConfig(manifest=tmp_path / "set")
    assert seen(run, data, heads) == {"known": True, "train": ["a", "b"], "validation": ["c"]}
    assert manifest_sha256(run) == file_sha256(file)
    file.write_text(file.read_text() + "\n")
    assert "not the one" in seen(run, data, heads)["why"]
    file.unlink()
    assert "not there" in seen(run, data, heads)["why"]


def test_what_cannot_be_known_is_not_said_to_be_clean(tmp_path, run, heads):
    (tmp_path / "m.safetensors").write_text("")
    unknown = [(tmp_path / "m.safetensors", DataConfig()), (run, DataConfig(volumes=tmp_path)), (run, DataConfig(labels=tmp_path))]
    for source, data in unknown:
        found = seen(source, data, heads)
        assert found["known"] is False
        assert found["why"]
        assert seen_note("m", found, 3) is None
    assert seen(run, DataConfig(), heads) == {"known": True, "train": []}


def test_the_sources_digest_is_of_names_and_bytes_and_a_missing_commit_is_no_error(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(origin, "_PACKAGE", package)
    digest, commit = origin.source_sha256.__wrapped__, origin.git_commit.__wrapped__
    (package / "a.py").write_text("1")
    first = digest()
    (package / "a.pyc").write_text("compiled")
    assert digest() == first
    (package / "a.py").rename(package / "b.py")
    second = digest()
    (package / "b.py").write_text("2")
    assert len({first, second, digest()}) == 3
    assert commit() is None
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert commit() is None
