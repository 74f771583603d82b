"""SPCDD from run to run: an extractor, a denoiser that it tells, a student of that one; two players are resumed with all that they have."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.experiment import Experiment, OptimizerConfig, OptimizerSettings
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.loop import train
from jaxsr.upscale import model
from jaxsr.upscale.export import export_model
from jaxsr.upscale.files import make_engine, upscale_file
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.model import ModelError, _frozen_of, load_model
from jaxsr.upscale.settings import Settings
from jaxsr.volume.io import Volume, write_volume
from jaxsr.weights.file import digest

ANATOMY = {"width": 4, "multipliers": [1, 2], "groups": 2}
NETWORKS = {"plain": {"width": 8}, "prior": {"network": ANATOMY}, "intensity": {"base": 4, "groups": 2}}
DATA = {"voxel_size": 6.0, "crop": 16, "subjects": 4, "draws": 8, "window": 2, "threads": 1}
TRAIN = {"batch_size": 4, "log_every": 1, "checkpoint_every": 100}
GAME = {"losses": {"adversarial": 0.1}, "discriminator": {"width": 4, "layers": 1}}
SAMPLED = {"schedule": {"kind": "linear", "steps": 20, "beta_start": 1e-3, "beta_end": 0.3, "reference_steps": 20}, "sampling_steps": 2}


def experiment(kind, steps=1, data=None, **method):
    networks = NETWORKS if kind == "spcdd" else {}
    tree = {"method": {"kind": kind, **networks, **method}, "data": DATA | (data or {}), "train": {**TRAIN, "steps": steps}}
    return from_dict(tree, Experiment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of an extractor and of a denoiser that it tells, and both as files."""
    folder = tmp_path_factory.mktemp("spcdd")
    train(experiment("anatomy", 2, {"maps": ["labels"]}, network=ANATOMY), folder / "anatomy")
    train(experiment("spcdd", 2, weights={"anatomy": str(folder / "anatomy")}), folder / "teacher")
    for name in ("anatomy", "teacher"):
        export_model(load_model(folder / name), folder / f"{name}.safetensors")
    return folder


def same(a, b):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def student(folder, steps=1, teacher="teacher", **settings):
    weights = {"teacher": str(folder / teacher)}
    alone = {"plain": {"width": 4}, "prior": None, "intensity": None, "losses": {"denoising": 0, "reconstruction": 0}}
    return experiment("spcdd", steps, **alone | {"distill": {"teacher": NETWORKS}, "weights": weights} | settings)


def test_the_extractor_is_frozen_and_not_saved_again(folder):
    teacher = load_model(folder / "teacher")
    assert teacher.variables["params"].keys() == {"network", "intensity"}
    same(teacher.variables["frozen"]["anatomy"], load_model(folder / "anatomy").variables["params"])


def test_a_trained_prior_starts_from_it(folder, tmp_path):
    config = experiment("spcdd", prior={"network": ANATOMY, "train": True}, weights={"anatomy": str(folder / "anatomy.safetensors")})
    slow = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-12})})
    state = train(slow, tmp_path / "run")
    before = load_model(folder / "anatomy").variables["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params["anatomy"], before)


def test_without_an_extractor_it_says_how_to_get_one(tmp_path):
    with pytest.raises(ModelError, match=r"method\.weights\.anatomy names nothing.*jaxsr train configs/anatomy\.yaml"):
        train(experiment("spcdd"), tmp_path / "run")


@pytest.mark.parametrize("teacher", ["teacher", "teacher.safetensors"])
def test_a_student_follows_all_of_its_teacher_and_upscales_without(folder, teacher, tmp_path):
    train(student(folder, teacher=teacher), tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"distilled_output", "distilled_features"} <= logged[-1].keys()
    data = np.random.default_rng(0).gamma(2.0, 100.0, (16, 17, 18)).astype(np.float32)
    write_volume(tmp_path / "scan.nii.gz", Volume(data, np.diag([6.0, 6.0, 6.0, 1.0])))
    trained = load_model(tmp_path / "run")
    assert not trained.variables["frozen"]
    settings = Settings(6.0, trained.method.default_request, axes=("axial",))
    result = upscale_file(make_engine(trained, batch_size=32), trained, Job(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz"), settings)
    assert result.output.data.shape == data.shape


@pytest.mark.parametrize("settings, message", [
    ({"distill": {"teacher": {**NETWORKS, "plain": {"width": 16}}}}, r"distill\.teacher says[\s\S]*width"),
    ({"distill": {"teacher": {**NETWORKS, "intensity": None}}}, r"distill\.teacher says[\s\S]*intensity"),
    ({"residual_std": 0.1}, r"another way[\s\S]*method\.residual_std: None → 0\.1"),
    (SAMPLED, r"another way[\s\S]*method\.schedule: None"),
    ({"weights": {"teacher": "anatomy"}}, r"holds a model of kind anatomy, expected spcdd"),
])  # fmt: skip
def test_another_teacher_than_the_config_says_is_refused_with_both_values(folder, settings, message, tmp_path):
    if path := settings.get("weights"):
        settings = {"weights": {"teacher": str(folder / path["teacher"])}}
    with pytest.raises(ConfigError, match=message):
        train(student(folder, **settings), tmp_path / "run")


def test_both_players_go_on_bit_for_bit(folder, tmp_path):
    """Parameters, both optimisers, spectral normalisation's vectors: a run that was stopped is the run that was not."""
    config = lambda steps: experiment("spcdd", steps, {"paired": 0.5}, **GAME, weights={"anatomy": str(folder / "anatomy")})  # noqa: E731
    straight = train(config(3), tmp_path / "straight")
    train(config(1), tmp_path / "resumed")
    resumed = train(config(3), tmp_path / "resumed")
    assert resumed.opt.keys() == {"main", "discriminator"}
    assert resumed.stats["spectral"].keys() == {"layer0", "layer1", "head"}
    same(resumed, straight)
    variables = load_model(tmp_path / "resumed").variables  # the other player is of no use to who upscales
    assert (variables["params"].keys(), variables["stats"]) == ({"network", "intensity"}, {})


def test_a_rate_that_falls_over_the_run_fixes_its_length_whoever_s_it_is(folder, tmp_path):
    config = lambda steps: experiment("spcdd", steps, **GAME, prior=None)  # noqa: E731
    falling = OptimizerConfig(discriminator=OptimizerSettings(decay="cosine"))
    train(config(1).model_copy(update={"optimizer": falling}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.steps: 1 → 2"):
        train(config(2).model_copy(update={"optimizer": falling}), tmp_path / "run")


def test_a_model_tells_what_it_was_trained_with(folder):
    """Whether that is still where it was or not, of a run and of a file."""
    expected = {"anatomy": digest(load_model(folder / "anatomy").variables["params"])}
    assert _frozen_of(folder / "teacher") == _frozen_of(folder / "teacher.safetensors") == expected


@pytest.mark.parametrize("same_latents", [True, False])
def test_latents_of_another_autoencoder_than_the_teacher_s_are_refused(same_latents, monkeypatch):
    network = {"width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 2, "groups": 2}
    unet = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "heads": 2, "context_width": 8, "groups": 4}
    latent = {"plain": None, "unet": unet, "prior": None, "intensity": None}
    weights = {"autoencoder": "ae", "teacher": "teacher"}
    config = experiment("spcdd", **latent, autoencoder={"network": network}, **SAMPLED, distill={"teacher": latent}, weights=weights)
    zeros = lambda experiment, name, shapes: {name: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes[name])}  # noqa: E731
    monkeypatch.setattr(model, "_read_part", zeros)
    method, batch = build_method(config), abstract_batch(config)
    autoencoder = digest(zeros(config, "autoencoder", nn.meta.unbox(method.frozen()))["autoencoder"])
    monkeypatch.setattr(model, "_frozen_of", lambda path: {"autoencoder": autoencoder if same_latents else "another"})
    if same_latents:
        assert model.load_frozen(config, method, batch=batch).sha256["autoencoder"] == autoencoder
    else:
        with pytest.raises(ModelError, match="trained with another autoencoder"):
            model.load_frozen(config, method, batch=batch)
