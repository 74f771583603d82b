"""A model's run directory says which heads it was trained on, and where it cannot, that is said."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxsr.config import dump
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.records import Distillation, Encoding, Manifest, Shard, Source, file_sha256, write_manifest
from jaxsr.evaluate import origin
from jaxsr.evaluate.seen import manifest_sha256, seen_heads, seen_note
from jaxsr.experiment import DataConfig, Experiment
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.student import StudentConfig
from jaxsr.methods.teacher import TeacherConfig
from jaxsr.weights.file import write_arrays

SUMMARY = {"latents": (1, 1, 2), "low_latents": (1, 1, 1), "crop": 8, "copies": 1, "augment": AugmentConfig()}
ENCODING = Encoding(source="0", autoencoder="1", image_encoder="2", **SUMMARY)
DISTILLATION = Distillation(source="0", teacher="1", steps=2, eta=0.0, every=1, crop=8, copies=1)


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


def seen(run, data, heads, method=AutoencoderConfig()):
    return seen_heads(run, Experiment(method=method, data=data), heads, {name: file_sha256(path) for name, path in heads.items()})


def teacher(**weights):
    return TeacherConfig(guidance=None, weights=weights)


def write_set(folder, run, heads, splits, **made_by_networks):
    """A prepared set of heads (head, split), and that the run was trained on it."""

    def shard(name, split):
        source = Source(role="high", path=f"elsewhere/{name}.nii", sha256=file_sha256(heads[name]))
        same = {"sha256": "0", "records": 1, "slices": (1, 0, 0), "shape": (1, 1, 1), "window": (0.0, 1.0), "acquired": (2.0, 2.0, 2.0)}
        return Shard(file=f"shards/{name}{split}", subject=name, person=name, split=split, sources=(source,), **same)

    about = {"made_by": "test", "voxel_size": 1.0, "dtype": "float16", "maps": (), "settings": "{}"}
    folder.mkdir(exist_ok=True)
    file = write_manifest(folder, Manifest(**about, shards=tuple(shard(*each) for each in splits), **made_by_networks))
    (run / "manifest.sha256").write_text(f"{file_sha256(file)}  {file}\n")
    return file


def write_autoencoder(run, folder, names, start=None):
    """A run directory of an autoencoder that was trained on volumes of a folder, from another one on."""
    run.mkdir()
    method = AutoencoderConfig(weights={"autoencoder": start})
    (run / "config.yaml").write_text(dump(Experiment(method=method, data=DataConfig(volumes=folder))))
    (run / "volumes.txt").write_text("".join(f"{name}\n" for name in names))
    return run


def test_heads_of_a_folder_are_found_by_their_place_and_copies_by_their_bytes(tmp_path, run, heads):
    (tmp_path / "set" / "x").mkdir(parents=True)
    shutil.copy(heads["b"], tmp_path / "set" / "x" / "renamed.nii")
    (tmp_path / "set" / "c.nii").write_text("other voxels of the same name")
    (tmp_path / "set" / "a.nii").symlink_to(heads["a"])
    (run / "volumes.txt").write_text("a.nii\nc.nii\nx/renamed.nii\n")
    found = seen(run, DataConfig(volumes=tmp_path / "set"), heads)
    assert found == {"known": True, "train": ["a", "b"], "trained_on": {"model": ["a", "b"]}}
    assert seen_note("m", found, 3) == "2 of 3 heads are in the training split of m: their scores say nothing of unseen heads"


def test_training_volumes_that_are_gone_leave_it_unknown(tmp_path, run, heads):
    (run / "volumes.txt").write_text("a.nii\ngone.nii\n")
    found = seen(run, DataConfig(volumes=tmp_path / "heads"), heads)
    assert (found["known"], found["train"]) == (False, ["a"])
    assert "1 of 2 training volumes" in found["why"]


def test_heads_of_a_prepared_set_are_found_by_their_sha256_in_its_splits(tmp_path, run, heads):
    file = write_set(tmp_path / "set", run, heads, [("a", "train"), ("b", "train"), ("b", "validation"), ("c", "validation")])
    data = DataConfig(manifest=tmp_path / "set")
    wanted = {"known": True, "train": ["a", "b"], "validation": ["c"], "trained_on": {"model": ["a", "b"]}}
    assert seen(run, data, heads) == wanted
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
    assert seen(run, DataConfig(), heads) == {"known": True, "train": [], "trained_on": {}}


def test_what_a_network_in_the_model_was_trained_on_has_been_seen_by_the_model(tmp_path, run, heads):
    """A head that one of them was trained on is a training head, whatever the other says; and all is known only if all of both is."""
    write_set(tmp_path / "set", run, heads, [("a", "train"), ("b", "validation"), ("c", "test")])
    method = teacher(autoencoder=write_autoencoder(tmp_path / "autoencoder", tmp_path / "heads", ["b.nii"]))
    found = seen(run, DataConfig(manifest=tmp_path / "set"), heads, method)
    assert found == {"known": True, "train": ["a", "b"], "test": ["c"], "trained_on": {"model": ["a"], "autoencoder": ["b"]}}
    assert seen_note("m", found, 3).startswith("2 of 3 heads are in the training split of m or of the autoencoder of m: ")
    (tmp_path / "autoencoder/volumes.txt").write_text("b.nii\ngone.nii\n")
    found = seen(run, DataConfig(), heads, method)
    assert (found["known"], found["train"]) == (False, ["b"])
    assert found["why"].startswith("its autoencoder: 1 of 2 training volumes")
    assert seen_note("m", found, 3).startswith("1 of 3 heads is in the training split of the autoencoder of m: ")


def test_what_a_network_started_from_has_been_seen_too(tmp_path, run, heads):
    start = write_autoencoder(tmp_path / "start", tmp_path / "heads", ["c.nii"])
    method = teacher(autoencoder=write_autoencoder(tmp_path / "autoencoder", tmp_path / "heads", ["b.nii"], start))
    found = seen(run, DataConfig(), heads, method)
    assert (found["known"], found["trained_on"]) == (True, {"autoencoder": ["b"], "autoencoder of the autoencoder": ["c"]})
    assert "training split of the autoencoder of m or of the autoencoder of the autoencoder of m: " in seen_note("m", found, 3)


@pytest.mark.parametrize("format, why", [
    ("jaxsr weights 1", None),  # imported: published, of photographs
    ("jaxsr", "its autoencoder: an exported model does not say"), (None, "its autoencoder: it cannot be read where"),
], ids=["imported", "exported", "not there"])  # fmt: skip
def test_a_network_in_a_file_has_seen_nothing_if_it_was_imported_and_else_nobody_knows(tmp_path, run, heads, format, why):
    file = tmp_path / "autoencoder.safetensors"
    if format:
        write_arrays(file, {"params": {"kernel": np.zeros(1)}}, {"format": format, "kind": "autoencoder"})
    found = seen(run, DataConfig(), heads, teacher(autoencoder=file))
    assert (found["known"], found["train"]) == (why is None, [])
    assert found.get("why", "").startswith(why or "")


@pytest.mark.parametrize("made_by, method, why", [
    ({"encoding": ENCODING}, teacher(), "does not name the autoencoder that encoded the set"),
    ({"encoding": ENCODING}, teacher(autoencoder=Path("autoencoder")), None),
    ({"distillation": DISTILLATION}, StudentConfig(), "of a teacher that the distilled set does not name"),
], ids=["encoded", "encoded by a network that is named", "distilled"])  # fmt: skip
def test_of_a_set_that_networks_made_its_own_people_are_known_and_of_networks_those_that_are_named(
    tmp_path, run, heads, monkeypatch, made_by, method, why
):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", run, heads, [("a", "train")], **made_by)
    write_autoencoder(tmp_path / "autoencoder", tmp_path / "heads", ["b.nii"])
    found = seen(run, DataConfig(manifest=tmp_path / "set"), heads, method)
    assert (found["known"], found["train"]) == (why is None, ["a"] if why else ["a", "b"])
    assert (why or "") in found.get("why", "")


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
