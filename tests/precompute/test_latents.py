"""Laws of encoded sets: what networks make of crops that are drawn once, a function of the set, the networks and the settings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set, synthetic_variables
from jaxsr.cli.encoding import overrides
from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig, take
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.record_stream import draw_crop
from jaxsr.data.records import file_sha256, read_manifest, verify, write_manifest
from jaxsr.data.subjects import stable_hash
from jaxsr.experiment import Experiment
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.models.clip import VisionTransformer, clip_image
from jaxsr.precompute.encoders import Encoders, load_encoders, plan_encoding
from jaxsr.precompute.job import make_set
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import Model
from jaxsr.volume.errors import VolumeError
from jaxsr.weights.file import digest

NETWORK = {"channels": 1, "width": 4, "multipliers": (1, 1), "blocks": 1, "latent": 2, "groups": 2}
CLIP = {"patch": 8, "width": 8, "layers": 1, "heads": 2, "projection": 6}
SCANS, SLICES, SIDE, CROP, COPIES = 3, 5, 24, 16, 2
SETTINGS = {
    "crop": CROP,
    "copies": COPIES,
    "augment": AugmentConfig(),
    "keep": ("low",),
    "tokens": "patches",
    "dtype": "float32",
    "seed": 3,
}


@pytest.fixture(scope="module")
def encoders():
    method, image = AutoencoderConfig(network=NETWORK).build(), jax.ShapeDtypeStruct((1, CROP, CROP, 1), jnp.float32)
    params = synthetic_variables(method, Batch(high=image, low=image), 0)["params"]
    network, rng = VisionTransformer(**CLIP), np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"])
    of_clip = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)
    sums = {"autoencoder": digest(params), "image_encoder": digest(of_clip)}
    return Encoders(method, network, {"autoencoder": params["encoder"], "image_encoder": of_clip}, sums, 16, None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set of three people, one of them in each split."""
    folder = tmp_path_factory.mktemp("prepared")
    synthetic_set(folder, SCANS, side=SIDE, slices=SLICES, maps=("bias", "gradient", "jacobian", "labels"))
    manifest = read_manifest(folder)
    splits = zip(manifest.shards, ("train", "validation", "test"), strict=True)
    write_manifest(folder, manifest.model_copy(update={"shards": tuple(s.model_copy(update={"split": split}) for s, split in splits)}))
    return folder


@pytest.fixture(scope="module")
def made(prepared, encoders, tmp_path_factory):
    """Ten slices a scan, in batches of four: the last of each scan is filled up."""
    out = tmp_path_factory.mktemp("made") / "set"
    make_set(plan_encoding(prepared, out, encoders, **SETTINGS), batch_size=4)
    return out


def files(folder):
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_record_is_what_the_networks_make_of_a_crop_that_is_drawn_from_seed_scan_record_and_copy(prepared, encoders, made):
    """The image first varied, then encoded; the maps varied with it."""
    source, encoded = PreparedSet(prepared, None), PreparedSet(made, None)
    crops, stored = [], []
    for record in (0, 1, 2 * SLICES + 3, len(encoded) - 1):
        shard, within = encoded.place(record)
        number, copy = divmod(within, COPIES)
        maps = source.read(source.first(shard) + number)
        rng = np.random.default_rng((3, stable_hash(source.shards[shard].subject), number, copy))
        corner, drawn = draw_crop(maps["low"], (CROP, CROP), AugmentConfig(), rng)
        crops.append(take(maps, corner, (CROP, CROP), drawn))
        stored.append(encoded.read(record))
    images = {name: np.stack([crop[name] for crop in crops])[..., None] for name in ("high", "low")}

    @jax.jit
    def expected(high, low):
        variables = {"params": {"encoder": encoders.params["autoencoder"]}}
        posterior = encoders.autoencoder.posterior(variables, high)
        moments = jnp.concatenate([posterior.mean, posterior.log_variance], -1)
        seen = encoders.image_encoder.apply({"params": encoders.params["image_encoder"]}, clip_image(low, 16))
        return {"latents": moments, "low_latents": encoders.autoencoder.posterior(variables, low).mode, **seen._asdict()}

    for name, x in expected(**images).items():
        np.testing.assert_allclose([maps[name] for maps in stored], x, atol=1e-5 * np.abs(x).max(), err_msg=name)
    for name in ("low", "bias", "gradient", "jacobian", "labels"):
        np.testing.assert_array_equal([maps[name] for maps in stored], [crop[name] for crop in crops], err_msg=name)
    assert "high" not in stored[0]
    assert not np.array_equal(stored[0]["low"], stored[1]["low"])


def test_the_manifest_says_what_it_was_encoded_with_and_keeps_people_in_their_splits(prepared, encoders, made):
    manifest, source = verify(made), read_manifest(prepared)
    assert manifest.maps == ("latents", "low_latents", "pooled", "tokens", "low", "bias", "gradient", "jacobian", "labels")
    said = manifest.encoding
    assert (said.source, said.crop, said.copies) == (file_sha256(prepared / "manifest.json"), CROP, COPIES)
    assert {"autoencoder": said.autoencoder, "image_encoder": said.image_encoder} == encoders.sha256
    assert (said.latents, said.low_latents, said.pooled, said.tokens) == ((8, 8, 4), (8, 8, 2), (6,), (5, 8))
    assert (manifest.voxel_size, manifest.dtype) == (source.voxel_size, "float32")
    for one, other in zip(source.shards, manifest.shards, strict=True):
        assert other.records == sum(other.slices) == COPIES * one.records
        assert other.slices == tuple(COPIES * n for n in one.slices)
        assert other.model_dump(exclude={"sha256", "records", "slices"}) == one.model_dump(exclude={"sha256", "records", "slices"})
        assert len(PreparedSet(made, one.split)) == COPIES * one.records
    assert json.loads(manifest.settings)["synthetic"] == 0  # what the set was prepared with


def test_the_same_command_makes_the_same_bytes_and_only_what_is_missing_or_damaged(prepared, encoders, made, tmp_path):
    """As after it was stopped, or a disk failed: a scan's bytes do not depend on what else was to be done."""
    before, again = files(made), tmp_path / "set"
    shutil.copytree(made, again)
    shards = sorted((again / "shards").iterdir())
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    shards[2].write_bytes(b"half")
    (again / "manifest.json").unlink()
    (again / "shards" / ".half.tmp").write_bytes(b"killed")
    told = []
    todo = plan_encoding(prepared, again, encoders, **SETTINGS)
    assert todo.done == 2  # by name: what is damaged shows when it is read
    make_set(todo, batch_size=4, advance=lambda done, name: told.append((done, name)))
    assert files(again) == before
    assert shards[0].stat().st_mtime_ns == kept
    assert told[0] == (SLICES * COPIES, "done before")
    assert told[-1][0] == SCANS * SLICES * COPIES


def test_what_was_written_before_it_was_stopped_stays_and_there_is_no_manifest_yet(prepared, encoders, made, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, name):
        if done > SLICES * COPIES:
            raise Stop

    with pytest.raises(Stop):
        make_set(plan_encoding(prepared, tmp_path / "set", encoders, **SETTINGS), batch_size=4, advance=stop)
    assert [path.name for path in sorted((tmp_path / "set" / "shards").iterdir())] == ["sub-0000.array_record"]
    with pytest.raises(VolumeError, match="no manifest"):
        read_manifest(tmp_path / "set")
    todo = plan_encoding(prepared, tmp_path / "set", encoders, **SETTINGS)
    assert todo.done == 1
    make_set(todo, batch_size=4)
    assert files(tmp_path / "set") == files(made)


def test_batches_of_another_size_change_rounding_only(prepared, encoders, made, tmp_path):
    make_set(plan_encoding(prepared, tmp_path / "set", encoders, **SETTINGS), batch_size=3)
    one, other = PreparedSet(made, None), PreparedSet(tmp_path / "set", None)
    for record in (0, len(one) - 1):
        for name, x in one.read(record).items():
            np.testing.assert_allclose(other.read(record)[name], x, atol=1e-5 * max(np.abs(x).max(), 1), err_msg=name)


@pytest.mark.parametrize("change, message", [
    ({"copies": 3}, r"other settings.*\n  copies: 2 → 3"),
    ({"crop": 15}, r"--crop must be a multiple of 2 for these networks, got 15"),
])  # fmt: skip
def test_other_settings_in_the_same_folder_are_refused_by_name(prepared, encoders, made, change, message):
    with pytest.raises(ConfigError, match=message):
        plan_encoding(prepared, made, encoders, **{**SETTINGS, **change})


def test_another_autoencoder_in_the_same_folder_is_refused_with_both_sums(prepared, encoders, made):
    other = encoders._replace(sha256={**encoders.sha256, "autoencoder": "0" * 64})
    with pytest.raises(ConfigError, match=rf'autoencoder: "{encoders.sha256["autoencoder"]}" → "0000'):
        plan_encoding(prepared, made, other, **SETTINGS)


def test_what_is_no_set_to_encode_is_refused(prepared, encoders, made, tmp_path):
    with pytest.raises(ConfigError, match="is of the kind 'encoded' already"):
        plan_encoding(made, tmp_path / "set", encoders, **SETTINGS)
    with pytest.raises(ConfigError, match="lies in the set"):
        plan_encoding(prepared, prepared / "encoded", encoders, **SETTINGS)
    shutil.copytree(prepared, tmp_path / "plain")
    (tmp_path / "plain" / "settings.json").write_text("{}")
    with pytest.raises(ConfigError, match="set of another kind"):
        plan_encoding(prepared, tmp_path / "plain", encoders, **SETTINGS)
    with pytest.raises(VolumeError, match="no manifest of a prepared set"):
        plan_encoding(tmp_path, tmp_path / "set", encoders, **SETTINGS)


def test_somebody_who_changed_their_split_is_refused(prepared, encoders, made, tmp_path):
    """A model may have been trained on the set as it was."""
    shutil.copytree(prepared, tmp_path / "moved")
    manifest = read_manifest(prepared)
    moved = manifest.shards[2].model_copy(update={"split": "train"})
    write_manifest(tmp_path / "moved", manifest.model_copy(update={"shards": (*manifest.shards[:2], moved)}))
    with pytest.raises(ConfigError, match="sub-0002: test → train"):
        plan_encoding(tmp_path / "moved", made, encoders, **SETTINGS)


def test_latents_that_do_not_fit_half_precision_are_refused_with_their_size(prepared, encoders, tmp_path):
    params = jax.tree.map(np.copy, encoders.params)
    params["autoencoder"]["moments"]["kernel"] *= 1e6
    with pytest.raises(
        VolumeError,
        match=r"nothing could be made of the 3 .*: sub-0002: latents of a slice reach \d.*, more than float16 holds: take --dtype float32",
    ):
        make_set(
            plan_encoding(prepared, tmp_path / "set", encoders._replace(params=params), **{**SETTINGS, "dtype": "float16"}), batch_size=4
        )
    assert list((tmp_path / "set" / "shards").iterdir()) == []


def test_a_scan_that_cannot_be_read_is_told_and_left_out_until_it_can(prepared, encoders, made, tmp_path):
    source, told = tmp_path / "prepared", []
    shutil.copytree(prepared, source)
    shard = source / "shards" / "sub-0001.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:3000] + bytes(500) + whole[3500:])
    manifest = make_set(plan_encoding(source, tmp_path / "set", encoders, **SETTINGS), batch_size=4, note=told.append)
    assert [part.subject for part in verify(tmp_path / "set").shards] == ["sub-0000", "sub-0002"]
    assert [(one.what, one.why) for one in manifest.rejected] == [("sub-0001", told[0].removeprefix("rejected: "))]
    assert "shards/sub-0001.array_record: record 0 cannot be read" in told[0]
    assert str(tmp_path) not in told[0]
    shard.write_bytes(whole)
    make_set(plan_encoding(source, tmp_path / "set", encoders, **SETTINGS), batch_size=4)
    assert files(tmp_path / "set") == files(made)


def test_a_run_of_another_kind_encodes_nothing(tmp_path):
    experiment = Experiment(method=Sr3Config(network={"width": 4, "multipliers": (1,), "blocks": 1, "groups": 2, "attention_at": ()}))
    method, image = experiment.method.build(), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    variables = synthetic_variables(method, Batch(high=image, low=image), 0)
    export_model(Model("sr3", 1, experiment, method, variables, ""), tmp_path / "sr3.safetensors")
    with pytest.raises(ConfigError, match="holds a model of kind sr3, expected autoencoder"):
        load_encoders(tmp_path / "sr3.safetensors")


def test_what_a_teacher_is_to_be_trained_with_names_every_network_that_encoded():
    """Or `upscale` would not find them."""
    given = overrides(Path("set"), 16, Path("runs/a"), Path("clip.safetensors"))
    assert given[2:] == ["method.weights.autoencoder=runs/a", "method.weights.image_encoder=clip.safetensors"]
    assert overrides(Path("set"), 16, Path("runs/a"), None) == ["data.manifest=set", "data.crop=16", "method.weights.autoencoder=runs/a"]


def jaxsr(*words):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "jaxsr", *map(str, words)], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("words, message", [
    (["--encode", "run", "--layout", "folder"], "--layout: says how scans are prepared"),
    (["--layout", "folder", "--copies", "2"], "--copies: means something with --encode only"),
    (["--encode", "run", "--tokens", "patches"], "--tokens: all tokens of which image encoder?"),
    (["--encode", "run", "--keep", "mask"], "--keep: 'mask' is none of high, low"),
    (["--encode", "run", "--augment", "rotation=5,flop"], "--augment: 'flop' is neither flip nor off nor a setting"),
    ([], "--layout: how is the data set laid out?"),
])  # fmt: skip
def test_options_that_would_change_nothing_or_mean_nothing_are_refused(tmp_path, words, message):
    done = jaxsr("prepare", tmp_path, tmp_path / "out", *words)
    assert done.returncode == 2
    assert message in done.stderr
