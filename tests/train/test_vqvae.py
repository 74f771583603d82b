"""The codebook is a part of the training state, and of the network: it is resumed, exported, started from and frozen with the rest."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsr.config import ConfigError, differences, from_dict, to_dict
from jaxsr.experiment import FREE_ON_RESUME, Experiment
from jaxsr.methods.condition import Batch
from jaxsr.methods.vqvae import QuantisedConfig, VqvaeWeights, as_frozen
from jaxsr.train.loop import train
from jaxsr.train.state import abstract_variables
from jaxsr.upscale.export import export_model
from jaxsr.upscale.files import make_engine, upscale_file
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.model import ModelError, load_frozen, load_model
from jaxsr.upscale.settings import Settings
from jaxsr.volume.io import Volume, write_volume
from jaxsr.weights.file import digest, write_arrays

NETWORK = {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "embedding": 3, "codes": 5, "groups": 2}
MAPS = ["bias", "jacobian"]
DATA = {"voxel_size": 6.0, "crop": 8, "subjects": 3, "draws": 8, "window": 2, "threads": 1, "maps": MAPS, "carries": ["bias", "gradient"]}
TRAIN = {"steps": 3, "batch_size": 2, "log_every": 1, "checkpoint_every": 100}


def vqvae(steps=3, rate=1e-3, **settings):
    method = {"kind": "vqvae", "network": NETWORK, **settings}
    return from_dict({"method": method, "data": DATA, "train": {**TRAIN, "steps": steps}, "optimizer": {"learning_rate": rate}}, Experiment)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder of a run and, beside it, what was exported of it."""
    folder = tmp_path_factory.mktemp("vqvae")
    train(vqvae(), folder / "run")
    export_model(load_model(folder / "run"), folder / "file.safetensors")
    return folder


def same(a, b):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def test_a_run_that_was_stopped_goes_on_with_its_codebook_bit_for_bit(first, tmp_path):
    for steps in (1, 3):
        train(vqvae(steps), tmp_path / "run")
    straight, resumed = (load_model(folder / "run").variables for folder in (first, tmp_path))
    same(resumed, straight)
    assert straight["stats"].keys() == {"usage", "sums"}
    np.testing.assert_allclose(straight["stats"]["usage"].sum(), 1, rtol=1e-5)


def test_what_training_logs_says_how_the_codebook_does(first):
    logged = [json.loads(line) for line in (first / "run/metrics.jsonl").read_text().splitlines()]
    told = {"reconstruction", "psnr", "commitment", "perplexity", "perplexity_share", "restarted", "latent_std", "latent_std_scaled"}
    assert told <= logged[-1].keys()
    assert [line["restarted"] for line in logged] == [NETWORK["codes"], 0, 0]


def test_it_upscales_by_reconstructing_and_the_sidecar_says_by_what(first, tmp_path):
    data = np.random.default_rng(0).gamma(2.0, 100.0, (16, 17, 18)).astype(np.float32)
    write_volume(tmp_path / "scan.nii.gz", Volume(data, np.diag([6.0, 6.0, 6.0, 1.0])))
    model = load_model(first / "run")
    settings = Settings(6.0, model.method.default_request, axes=("axial",))
    result = upscale_file(make_engine(model, batch_size=32), model, Job(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz"), settings)
    assert result.output.data.shape == data.shape
    assert json.loads((tmp_path / "out.json").read_text())["JaxSR"]["Method"] == "vqvae"


@pytest.mark.parametrize("source", ["run", "file.safetensors"])
def test_one_starts_from_another_codebook_and_all(first, source, tmp_path):
    """At a rate that moves nothing, and with a codebook that stays as it is, it is the other still."""
    weights = {"vqvae": str(first / source)}
    named = vqvae(1, rate=1e-12, weights=weights, decay=0.999999, restart=0.0)
    state = train(named, tmp_path / "run")
    other = load_model(first / "run").variables
    for ours, theirs in ((state.params, other["params"]), (state.stats, other["stats"])):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    # A run goes on without it: it was only its start.
    assert all(change.startswith(FREE_ON_RESUME) for change in differences(named, vqvae(1, rate=1e-12, decay=0.999999, restart=0.0)))


@pytest.mark.parametrize("settings, message", [
    ({"network": {**NETWORK, "groups": 1}}, r"method\.network says.*\n.*groups: 2 → 1"),
    ({"network": {**NETWORK, "codes": 6}}, r"method\.network says.*\n.*codes: 5 → 6"),
    ({"maps": MAPS[::-1]}, r"other maps beside the slice than method\.maps says.*\['bias', 'jacobian'\] → \['jacobian', 'bias'\]"),
])  # fmt: skip
def test_another_network_is_refused_as_a_start_with_both_values(first, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(vqvae(1, weights={"vqvae": str(first / "run")}, **settings), tmp_path / "run")


class Mixture:
    """As much of a method that works in the latents of a frozen VQ-VAE as loading one needs."""

    def __init__(self, source, maps=MAPS):
        config = to_dict(vqvae().method) | {"maps": maps}
        del config["weights"]
        self.vqvae, self.weights = from_dict(config, QuantisedConfig), VqvaeWeights(vqvae=source)

    def frozen(self, batch=None):
        image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
        return {"vqvae": as_frozen(abstract_variables(self.vqvae.build(), Batch(image, image)))}


def frozen_of(mixture):
    return load_frozen(SimpleNamespace(method=mixture), mixture)


@pytest.mark.parametrize("source", ["run", "file.safetensors"])
def test_frozen_elsewhere_it_is_its_moving_average_with_its_codebook(first, source):
    found = frozen_of(Mixture(first / source))
    expected = as_frozen(load_model(first / "run").variables)
    same(found.variables, {"vqvae": expected})
    assert found.sha256 == {"vqvae": digest(expected)}


def test_where_it_cannot_be_frozen_is_said_with_the_way_out(first, tmp_path):
    with pytest.raises(ModelError, match=r"vqvae names nothing.*a run directory or an exported file; `jaxsr train configs/vqvae\.yaml`"):
        frozen_of(Mixture(None))
    with pytest.raises(ConfigError, match=r"other maps beside the slice than method\.vqvae\.maps says"):
        frozen_of(Mixture(first / "run", ["jacobian", "bias"]))
    write_arrays(tmp_path / "other.safetensors", {"a": np.zeros(1, np.float32)}, {"format": "jaxsr weights 1", "kind": "unet"})
    with pytest.raises(ConfigError, match="holds imported weights, expected a trained vqvae: name its run directory"):
        frozen_of(Mixture(tmp_path / "other.safetensors"))
