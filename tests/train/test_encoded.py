"""Laws of training a teacher on an encoded set: it is training on the slices, without the encoders; what does not fit is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set
from jaxsr.config import ConfigError, from_dict
from jaxsr.data.records import read_manifest
from jaxsr.experiment import Experiment
from jaxsr.precompute.encoders import load_encoders, plan_encoding
from jaxsr.precompute.job import make_set
from jaxsr.train.build import fitted, prepared_set
from jaxsr.train.loop import train
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import ModelError, load_model

NETWORK = {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}
SIDE = 16
TRAIN = {"steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 2}
PLAIN = {"augment": {"flip": False}}  # with crops of the whole slice: then the stream of images has what was encoded
ENCODER = {"patch": 8, "width": 8, "layers": 1, "heads": 2, "projection": 6, "side": 16}


NAMES = ("autoencoder", "another.safetensors")


def autoencoder(manifest):
    data = {"manifest": str(manifest), "crop": SIDE, "threads": 1}
    method = {"kind": "autoencoder", "network": NETWORK}
    return from_dict({"method": method, "data": data, "train": {**TRAIN, "steps": 1, "checkpoint_every": 1}}, Experiment)


def teacher(manifest, weights=None, steps=2, data=PLAIN, **settings):
    method = {
        "kind": "teacher",
        "autoencoder": {"network": NETWORK},
        "unet": {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [1], "heads": 1, "context_width": 6, "groups": 2},
        "image_encoder": None,
        "guidance": {"width": 2, "groups": 2, "bias": False, "gradient": "log_jacobian"},
        "sampling_steps": 2,
        "weights": {"autoencoder": weights and str(weights)},
        **settings,
    }
    data = {"manifest": str(manifest), "crop": SIDE, "threads": 1, "maps": ["jacobian"], **data}
    return from_dict({"method": method, "data": data, "train": {**TRAIN, "steps": steps}}, Experiment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of whole slices, two autoencoders, and the set encoded by the first of them."""
    folder = tmp_path_factory.mktemp("encoded")
    synthetic_set(folder / "plain", 2, side=SIDE, slices=4, maps=("bias", "gradient", "jacobian"))
    train(autoencoder(folder / "plain"), folder / "autoencoder")
    model = load_model(folder / "autoencoder")
    params = {half: jax.tree.map(lambda x: x + 1e-3, tree) for half, tree in model.variables["params"].items()}
    export_model(model._replace(variables={**model.variables, "params": params}), folder / "another.safetensors")
    encoders = load_encoders(folder / "autoencoder")
    how = {"crop": None, "augment": fitted(teacher(folder / "plain"), prepared_set(teacher(folder / "plain").data)).data.augment}
    make_set(plan_encoding(folder / "plain", folder / "set", encoders, **how, dtype="float32"), batch_size=4)
    train(teacher(folder / "set"), folder / "run")
    return folder


def logged(run):
    return [{name: line[name] for name in ("loss", "gradient_norm")} for line in map(json.loads, (run / "metrics.jsonl").open())]


def assert_close(one, other, rtol):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose([*a.values()], [*b.values()], rtol=rtol)


def test_training_on_encodings_is_training_on_the_slices_that_were_encoded(folder, tmp_path):
    """Step by step, in loss and gradient."""
    train(teacher(folder / "plain", folder / "autoencoder"), tmp_path / "run")
    assert_close(logged(folder / "run"), logged(tmp_path / "run"), 1e-4)


@pytest.mark.slow
def test_with_lambda_the_decoder_and_kept_images_make_the_same_loss(folder, tmp_path):
    encoders, augment = load_encoders(folder / "autoencoder"), read_manifest(folder / "set").encoding.augment
    how = {"crop": None, "augment": augment, "keep": ("high",), "dtype": "float32"}
    make_set(plan_encoding(folder / "plain", tmp_path / "set", encoders, **how), batch_size=4)
    for name, source in (("slices", folder / "plain"), ("encodings", tmp_path / "set")):
        train(teacher(source, folder / "autoencoder", lambda_rec=0.5), tmp_path / name)
    assert_close(logged(tmp_path / "encodings"), logged(tmp_path / "slices"), 1e-4)
    assert load_model(tmp_path / "encodings").frozen == load_model(tmp_path / "slices").frozen


def test_without_lambda_no_autoencoder_need_be_named_and_the_checkpoint_knows_which_it_was(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    sums = {name: load_model(folder / name).sha256 for name in NAMES}
    said = json.loads((run / "checkpoints/2/about/metadata").read_text())
    assert said["frozen"] == {"autoencoder": sums["autoencoder"]}
    said = rf"does not say where that is: set method\.weights\.autoencoder in {run}/config\.yaml to .* of SHA-256 {sums[NAMES[0]]}"
    with pytest.raises(ModelError, match=said):
        load_model(run)
    config = (run / "config.yaml").read_text()
    for name in sums:
        (run / "config.yaml").write_text(config.replace("autoencoder: null", f"autoencoder: {folder / name}"))
        if name == NAMES[0]:
            assert load_model(run).frozen == {"autoencoder": sums[name]}
        else:
            with pytest.raises(ModelError, match=rf"another autoencoder .*{sums[NAMES[0]]} then, {sums[NAMES[1]]} now"):
                load_model(run)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(folder, tmp_path):
    train(teacher(folder / "set", steps=1), tmp_path / "run")
    train(teacher(folder / "set", steps=2, weights=folder / "autoencoder"), tmp_path / "run")  # naming it changes nothing
    assert logged(tmp_path / "run")[-1] == logged(folder / "run")[-1]


def test_what_was_encoded_with_another_autoencoder_is_refused_with_both_sums(folder, tmp_path):
    sums = [load_model(folder / name).sha256 for name in NAMES]
    with pytest.raises(ConfigError, match=rf"encoded with another autoencoder than .*SHA-256 {sums[0]} there, {sums[1]} here"):
        train(teacher(folder / "set", folder / NAMES[1]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings, message", [
    ({"lambda_rec": 1.0}, "no images of the target, .* --keep high, or set method.lambda_rec=0"),
    ({"image_encoder": {**ENCODER, "train": True}}, "no low-resolution images, .* --keep low, or"),
    ({"image_encoder": ENCODER}, "no pooled tokens of an image encoder: .* --image-encoder FILE, or"),
    ({"image_encoder": {**ENCODER, "context": "patches"}}, "no tokens of all patches, .* --tokens patches, or"),
    ({"autoencoder": {"network": {**NETWORK, "latent": 4}}}, r"has latents of 8 × 8 × 4, and the method takes 8 × 8 × 8: set the sizes of"),
    ({"data": {"crop": 8, **PLAIN}}, r"data\.crop is 8, .* encoded in squares of 16: set data\.crop=16, or encode again with --crop 8"),
    ({"data": {"augment": True}}, r"data\.augment says otherwise .*flip=false transpose=false rotation=0\.0.* leave it out"),
])  # fmt: skip
def test_a_set_that_does_not_suit_the_method_is_refused_with_the_way_out(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        train(teacher(folder / "set", **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_that_learns_from_images_refuses_it(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"holds latents, and method\.kind=autoencoder learns from images"):
        train(autoencoder(folder / "set"), tmp_path / "run")


def test_where_nothing_is_said_of_augmentation_it_is_that_of_the_set(folder):
    experiment = teacher(folder / "set", data={})
    assert experiment.data.augment is True
    assert fitted(experiment, prepared_set(experiment.data)).data.augment.flip is False
