"""An exported model is the run's model, in one file that says nothing of where its volumes lay."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.files import FileError
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.precision import held_to_upscale
from jaxsr.train.build import build_method
from jaxsr.train.state import init_state, make_optimizer
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import Model, load_model, read_experiment, read_recipe
from jaxsr.weights.file import WeightsError, read_about, write_arrays

NETWORK = {"width": 8, "multipliers": [1], "blocks": 1, "groups": 4, "attention_at": [], "middle_attention": False}
DATA = {"volumes": "/somewhere/sub-01", "voxel_size": 2.0, "crop": 8}
EXPERIMENT = from_dict({"method": {"kind": "sr3", "network": NETWORK}, "data": DATA}, Experiment)


@pytest.fixture(scope="module")
def model():
    from jaxsr.runtime.mesh import make_mesh
    from jaxsr.train.build import abstract_batch

    method = build_method(EXPERIMENT)
    state, _ = init_state(method, make_optimizer(EXPERIMENT.optimizer, 1), abstract_batch(EXPERIMENT), jax.random.key(0), make_mesh())
    return Model("run", 5, EXPERIMENT, method, {"params": state.ema, "stats": state.stats, "frozen": {}}, "digest")


@pytest.fixture
def file(model, tmp_path):
    export_model(model, tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def test_what_was_exported_is_loaded(model, file):
    loaded = load_model(file)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, model.variables)
    assert (loaded.name, loaded.step) == ("one", 5)
    assert loaded.experiment.method == EXPERIMENT.method
    assert read_recipe(file).step == 5
    assert read_experiment(file).data.voxel_size == 2.0


def test_a_flipped_bit_is_noticed(file):
    """safetensors has no checksum: without ours a damaged weight would be a weight."""
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_model(file)


def test_where_the_training_volumes_lay_is_left_out(file):
    assert "somewhere" not in json.dumps(read_about(file))


def test_a_file_of_another_program_and_another_suffix_are_refused(model, tmp_path):
    write_arrays(tmp_path / "other.safetensors", {"a": np.zeros(1, np.float32)}, {})
    with pytest.raises(WeightsError, match="not written by `jaxsr export`"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(FileError, match=r"name it .*m\.safetensors"):
        export_model(model, tmp_path / "m.npz")


def test_the_command_line_refuses_what_is_no_model_with_status_4_and_replaces_nothing(tmp_path, capsys):
    (tmp_path / "m.safetensors").write_bytes(b"not weights")
    (tmp_path / "scan.nii").write_bytes(b"")

    def status(*words):
        return run(lambda: app([str(word) for word in words], standalone_mode=False))

    assert status("inspect", tmp_path / "scan.nii", "--model", tmp_path / "m.safetensors") == 4
    assert "copy or export it again" in capsys.readouterr().err
    assert status("export", tmp_path, tmp_path / "m.safetensors") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert status("export", tmp_path, tmp_path / "n.safetensors") == 4
    assert "not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_what_multiplies_has_half_the_bytes_and_is_loaded_as_it_was_rounded(model, file, tmp_path, dtype):
    path = tmp_path / "half.safetensors"
    export_model(model, path, dtype)
    loaded = load_model(path)

    def check(got, stored):
        stored = np.asarray(stored)
        assert got.dtype == stored.dtype == np.float32
        np.testing.assert_array_equal(got, stored.astype(jnp.dtype(dtype)).astype(np.float32) if stored.ndim > 1 else stored)

    jax.tree.map(check, loaded.variables, model.variables)
    weights = [leaf for leaf in jax.tree.leaves(model.variables) if leaf.ndim > 1]
    saved = file.stat().st_size - path.stat().st_size
    assert abs(saved - 2 * sum(leaf.size for leaf in weights)) < 200  # of the headers
    assert loaded.sha256 != load_model(file).sha256  # other weights: a set that one made is not the other's


def test_in_bfloat16_what_a_file_in_bfloat16_gives_is_what_the_run_gives(tmp_path):
    """Weights that layers round are rounded once, here or there; those of a weight in a hundred more are another image."""
    experiment = from_dict({"method": {"kind": "sr3", "network": NETWORK, "prediction": "v", "bound": None}, "data": DATA}, Experiment)
    method, image = build_method(experiment), jnp.zeros((1, 8, 8, 1))
    drawn = {**synthetic_variables(method, Batch(image, image), 0), "frozen": {}}
    low, keys = jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1), jax.random.split(jax.random.key(0), 1)

    def image_of(scale, dtype):
        variables = {**drawn, "params": jax.tree.map(lambda leaf: leaf * scale, drawn["params"])}
        path = tmp_path / f"{scale}-{dtype}.safetensors"
        export_model(Model("run", 5, experiment, method, variables, ""), path, dtype)
        loaded = load_model(path, precision="bf16")
        held = held_to_upscale(loaded.method, loaded.variables, "bf16")
        return np.asarray(loaded.method.upscale(held, Condition(low), keys, Request(2)).image, np.float32)

    same = np.abs(image_of(1.0, "float32") - image_of(1.0, "bfloat16")).max()
    assert same < 0.1 * np.abs(image_of(1.0, "float32") - image_of(1.05, "float32")).max()


def test_a_weight_beyond_half_precision_is_refused_with_the_dtype_that_holds_it(model, tmp_path):
    large = model._replace(variables=jax.tree.map(lambda leaf: leaf + 1e5, model.variables))
    with pytest.raises(FileError, match=r"more than float16 holds: choose --dtype bfloat16, or float32"):
        export_model(large, tmp_path / "m.safetensors", "float16")
    huge, lost = (model._replace(variables=jax.tree.map(lambda leaf: leaf + x, model.variables)) for x in (3.4e38, np.nan))  # noqa: B023
    with pytest.raises(FileError, match=r"more than bfloat16 holds: choose --dtype float32"):
        export_model(huge, tmp_path / "m.safetensors", "bfloat16")
    with pytest.raises(FileError, match=r"NaN or infinite: export an earlier checkpoint"):
        export_model(lost, tmp_path / "m.safetensors", "bfloat16")
    assert not (tmp_path / "m.safetensors").exists()
    export_model(large, tmp_path / "m.safetensors", "bfloat16")


def card(path, capsys):
    capsys.readouterr()
    app(["weights", "verify", str(path)], standalone_mode=False)
    said = capsys.readouterr().out
    return said[said.index("# ") :]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_card_in_the_file_says_what_it_is_and_where_nothing_lay(model, tmp_path, capsys, dtype):
    """And the command that prints it finds the file whole."""
    export_model(model, tmp_path / "m.safetensors", dtype)
    said = " ".join(card(tmp_path / "m.safetensors", capsys).split())
    count = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    loaded = load_model(tmp_path / "m.safetensors").sha256
    for words in (
        "Research use only",
        "synthetic",
        f"trained {count:,}; stored as {dtype}",
        "trained for 5 steps",
        "a folder of volumes",
        loaded,
    ):
        assert words in said
    assert "somewhere" not in said


def test_a_file_written_again_says_the_same_but_for_how_it_is_stored(file, tmp_path, capsys):
    half, whole = tmp_path / "half.safetensors", tmp_path / "whole.safetensors"
    app(["export", str(file), str(half), "--dtype", "bfloat16"], standalone_mode=False)
    app(["export", str(half), str(whole)], standalone_mode=False)
    assert [read_about(path)["dtype"] for path in (file, half, whole)] == ["float32", "bfloat16", "float32"]
    assert load_model(half).sha256 == load_model(whole).sha256 != load_model(file).sha256
    cards = [card(path, capsys).splitlines() for path in (file, half, whole)]
    changed = {a.split(":")[0] for a, b in zip(cards[0], cards[1], strict=True) if a != b}
    assert changed == {"- parameters", "- SHA-256 of the trained weights, which outputs' sidecars give"}
    assert "stored as float32, rounded to bfloat16 before" in "\n".join(cards[2])


def test_a_name_of_another_kind_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(FileError, match=r"name it .*m\.safetensors"):
        app(["export", str(tmp_path / "nowhere"), str(tmp_path / "m.npz")], standalone_mode=False)
