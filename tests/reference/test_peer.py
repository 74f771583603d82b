"""The peer of the teacher's upscaling is the teacher's network by another hand, given as much to do."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsr.bench.count import count
from jaxsr.bench.upscale import describe
from jaxsr.experiment import load_experiment

pytestmark = pytest.mark.reference

pytest.importorskip("torch")
pytest.importorskip("diffusers")

ROOT = Path(__file__).parents[2]
TINY = [
    "method.autoencoder.network={channels: 1, width: 4, multipliers: [1, 1], blocks: 1, latent: 2, groups: 2}",
    "method.unet={width: 8, multipliers: [1, 2], blocks: 1, attention_at: [2], heads: 2, context_width: 6, groups: 4}",
    "method.guidance=null",
    "method.image_encoder=null",
]


@pytest.fixture(scope="module")
def peer():
    spec = importlib.util.spec_from_file_location("peer_diffusers", ROOT / "launch" / "peer_diffusers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_our_parameters_and_samples_as_many_slices_and_our_table_can_be_made_of_what_it_tells(peer, capsys):
    config = ROOT / "configs" / "teacher-tiny.yaml"
    peer.main(["upscale", str(config), *TINY, "--shape", "32,40,32", "--sampling-steps", "2", "--batch-size", "12", "--repeats", "1"])
    told = json.loads(capsys.readouterr().out)
    ours = count(load_experiment(config, TINY), 32)["parts"]["denoiser"]
    assert told["parameters"] == ours["parameters"]
    assert told["slices"] == 32 + 40 + 32
    # 2 steps of 2 × 3 batches of 11 slices of 48 × 32, and of 4 of 10 of 32 × 32; what a slice's time takes does not grow with it
    assert told["multiply_adds"] == pytest.approx(2 * (6 * 11 * 48 / 32 + 4 * 10) * ours["multiply_adds"], rel=0.05)
    assert told["slices_per_second"] == pytest.approx(told["slices"] / told["seconds_per_volume"])
    assert dict(describe(told))["volume"] == "32 × 40 × 32, 104 slices, pad"


SMALL_SR3 = ["method.network={width: 8, multipliers: [1, 2], blocks: 1, attention_at: [2], groups: 4, patch: 2}", "data.crop=16"]


@pytest.mark.parametrize("name, settings, part", [("teacher-tiny", TINY, "denoiser"), ("sr3-small", SMALL_SR3, None)])
def test_a_training_step_is_of_a_network_as_large_as_ours(name, settings, part, peer, capsys):
    """SR3's tells blocks the noise level by its width, the peer by four times that: a tenth more parameters, hardly more work."""
    config = ROOT / "configs" / f"{name}.yaml"
    peer.main(["train", str(config), *settings, "train.batch_size=2", "--steps", "2", "--warmup", "0"])
    told = json.loads(capsys.readouterr().out)
    experiment = load_experiment(config, settings)
    ours = count(experiment)
    ours = ours["parts"][part] if part else ours
    assert told["parameters"] == pytest.approx(ours["parameters"], rel=0.15 if part is None else 0)
    assert told["multiply_adds"] == pytest.approx(3 * 2 * ours["multiply_adds"], rel=0.08)
    assert told["slices_per_second"] == pytest.approx(2 * told["steps_per_second"])


def test_both_in_one_command_are_told_with_their_ratios(peer):
    words = [str(ROOT / "configs" / "sr3-small.yaml"), *SMALL_SR3, "train.batch_size=2", "--steps", "2", "--warmup", "0", "--peer"]
    done = subprocess.run([sys.executable, "-m", "jaxsr", "bench", "train", *words, "--json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ratios"]["slices_per_second"] == pytest.approx(told["slices_per_second"] / told["peer"]["slices_per_second"])
    assert told["peer"]["peer"] == "diffusers UNet2DModel"


def test_a_student_s_peer_goes_through_as_many_stages(peer, capsys):
    config = ROOT / "configs" / "student-tiny.yaml"
    network = "method.network={width: 8, multipliers: [1, 2], blocks: 1, attention_at: [2], groups: 4}"
    given = [network, "method.stages={count: 3, low_mm: 2.0, high_mm: 1.0}", "data.voxel_size=1.0"]
    peer.main(["upscale", str(config), *given, "--shape", "32,32,32", "--sampling-steps", "2", "--batch-size", "16", "--repeats", "1"])
    told = json.loads(capsys.readouterr().out)
    ours = count(load_experiment(config, given), 32)["parts"]["denoiser"]
    assert told["parameters"] == pytest.approx(ours["parameters"], rel=0.15)
    assert told["multiply_adds"] == pytest.approx(3 * 2 * 3 * 32 * ours["multiply_adds"], rel=0.08)  # stages, steps, slices of three axes
    peer.main(["train", str(config), network, "data.crop=16", "train.batch_size=2", "precision=bf16", "--steps", "2", "--warmup", "0"])
    told = json.loads(capsys.readouterr().out)
    assert (told["precision"], told["left_out"]) == ("bf16", "stages and what is distilled")


@pytest.mark.parametrize("name, said", [
    ("moediff-tiny", "is of kind moediff: there are peers of teachers, students and SR3"),
    ("standard", "is shown slices on either side, as none of diffusers is"),
])  # fmt: skip
def test_it_is_none_of_a_model_that_is_like_none_of_diffusers(name, said, peer, capsys):
    with pytest.raises(SystemExit):
        peer.main(["train", str(ROOT / "configs" / f"{name}.yaml")])
    assert said in capsys.readouterr().err


def test_layers_are_those_of_the_peer_in_work_and_shape():
    """Ours and PyTorch's of one kind have as many parameters and give as large a result, else the ratio would be of two things."""
    import flax.linen as nn
    import jax
    import torch

    from jaxsr.bench.layers import _module, cases_of

    spec = importlib.util.spec_from_file_location("peer_layers", ROOT / "launch" / "peer_layers.py")
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    for case in cases_of(2, 16, 64, 2):
        theirs, ours = layers.module_of(case), _module(case, None)
        x = jax.ShapeDtypeStruct((case.batch, case.side, case.side, case.channels), "float32")
        y, variables = jax.eval_shape(ours.init_with_output, jax.random.key(0), x)
        count = sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(variables)))
        assert count == sum(parameter.numel() for parameter in theirs.parameters()), case
        batch, channels, height, width = theirs(torch.zeros(case.batch, case.channels, case.side, case.side)).shape
        assert y.shape == (batch, height, width, channels), case


def test_layers_of_both_are_told_with_their_ratios_in_one_command():
    words = ["--batch-size", "1", "--side", "8", "--channels", "4", "--levels", "1", "--peer", "--json"]
    done = subprocess.run([sys.executable, "-m", "jaxsr", "bench", "layers", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert all(layer["ratios"]["gradients"] > 0 for layer in told["layers"])
    assert len(told["layers"]) == 6
