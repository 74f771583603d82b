"""An exported model is the run's model, in one file that says nothing of where its volumes lay."""

import json

import jax
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.files import FileError
from jaxsr.train.build import build_method
from jaxsr.train.state import init_state, make_optimizer
from jaxsr.upscale.model import Model, export_model, load_model, read_experiment, read_recipe
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
    assert status("export", tmp_path, "-o", tmp_path / "m.safetensors") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert status("export", tmp_path, "-o", tmp_path / "n.safetensors") == 4
    assert "not a run directory" in capsys.readouterr().err
