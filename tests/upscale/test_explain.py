"""What `upscale --explain` writes of a mixture, by the command line, from a model of random weights."""

import json

import jax
import nibabel as nib
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.experiment import load_experiment
from jaxsr.methods.condition import Batch
from jaxsr.methods.moediff_networks import NAMES
from jaxsr.train.build import build_method
from jaxsr.upscale.explain import other_units
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import Model
from jaxsr.upscale.sidecar import EXPERTS, EXPLAINING, map_names
from jaxsr.volume.io import read_volume
from jaxsr.weights.file import digest

VQVAE = "method: {kind: vqvae, network: {width: 8, multipliers: [1, 2], blocks: 1, embedding: 8, codes: 16, groups: 4}}\n"
EXPERT = "{width: 8, groups: 4, schedule: {steps: 20, beta_start: 1.0e-4, beta_end: 2.0e-2, rescale: false}}"
MIXTURE = f"""method:
  kind: moediff
  vqvae: {{network: {{width: 8, multipliers: [1, 2], blocks: 1, embedding: 8, codes: 16, groups: 4}}}}
  encoder: {{patches: [16, 8, 4], width: 16, depth: 1, heads: 2, condition: 8}}
  experts: {{smooth: {EXPERT}, cortex: {EXPERT}, junction: {EXPERT}}}
  prediction: v
  perceptual: none
  stft_windows: [4, 8]
  sampling_steps: 1
"""
DATA = """data: {voxel_size: 6.0, crop: 16, subjects: 2, draws: 8, maps: [bias, jacobian], carries: [bias, gradient]}
train: {steps: 2, batch_size: 2}
"""


def cli(*words):
    return run(lambda: app([str(word) for word in words], standalone_mode=False))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two models of random weights, and a head of two halves."""
    folder = tmp_path_factory.mktemp("explain")
    image = jax.ShapeDtypeStruct((1, 16, 16, 1), np.float32)
    for name, text in (("vqvae", VQVAE), ("mixture", MIXTURE)):
        (folder / f"{name}.yaml").write_text(text + DATA)
        experiment = load_experiment(folder / f"{name}.yaml")
        method = build_method(experiment)
        variables = synthetic_variables(method, Batch(image, image), 0)
        variables = jax.tree_util.tree_map_with_path(lambda path, x: np.abs(x) if "usage" in jax.tree_util.keystr(path) else x, variables)
        export_model(Model(name, 0, experiment, method, variables, digest(variables["params"])), folder / f"{name}.safetensors")
    data = np.random.default_rng(0).normal(100, 20, (24, 28, 20)).astype(np.float32)
    data[:4] = data[-4:] = 0
    nib.save(nib.Nifti1Image(data, np.diag([6.0, 6, 6, 1])), folder / "scan.nii")
    nib.save(nib.Nifti1Image(data[::-1].copy(), np.diag([6.0, 6, 6, 1])), folder / "truth.nii")
    moved = np.diag([6.0, 6, 6, 1])
    moved[0, 3] = 500
    nib.save(nib.Nifti1Image(data, moved), folder / "elsewhere.nii")
    return folder


def upscale(work, out, *words, scan="scan.nii", model="mixture"):
    return cli("upscale", "-i", work / scan, "-o", out, "-m", work / f"{model}.safetensors", "--axes", "axial", *words)


@pytest.fixture(scope="module")
def explained(work, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    assert upscale(work, folder / "sr.nii", "--explain", "--reference", work / "truth.nii") == 0
    return folder


def test_names_that_are_known_before_jax_is_are_those_of_the_experts():
    assert EXPERTS == NAMES


def test_gates_of_every_slice_and_maps_of_every_expert_lie_beside_the_output(explained):
    facts = json.loads((explained / "sr.json").read_text())["JaxSR"]
    gates = np.array(facts["Gates"]["axial"])
    assert gates.shape == (20, len(EXPERTS))
    np.testing.assert_allclose(gates.sum(1), 1, atol=2e-4)
    np.testing.assert_allclose(gates.mean(0), [facts[f"Gate{name.capitalize()}"] for name in facts["Experts"]], atol=1e-4)
    for name in map_names(1, explain=True, errors=True):
        volume = nib.load(explained / f"sr_{name}.nii")
        assert volume.shape == (24, 28, 20)
        assert json.loads((explained / f"sr_{name}.json").read_text())["JaxSR"]["Expert"] in facts["Experts"]
    for name in EXPLAINING:
        assert (explained / f"sr_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_an_expert_s_error_is_that_of_its_own_volume_alone(work, explained, tmp_path):
    """Errors are of what `--experts cortex` gives, seed and all; and the sidecar says who made it."""
    assert upscale(work, tmp_path / "sr.nii", "--experts", "cortex") == 0
    assert json.loads((tmp_path / "sr.json").read_text())["JaxSR"]["Routing"] == "cortex"
    assert json.loads((explained / "sr.json").read_text())["JaxSR"]["Routing"] == "all"
    expected = np.abs(read_volume(tmp_path / "sr.nii").data - read_volume(work / "truth.nii").data)
    np.testing.assert_allclose(read_volume(explained / "sr_error-2.nii").data, expected, rtol=1e-3, atol=1e-2)


def test_without_being_asked_maps_of_an_earlier_run_go(work, explained):
    """Pictures too, so that none shows another output, and explaining once more is not refused."""
    again = ("--explain", "--overwrite")
    assert upscale(work, explained / "sr.nii", "--overwrite") == 0
    assert not list(explained.glob("sr_*"))
    assert upscale(work, explained / "sr.nii", *again) == 0
    assert upscale(work, explained / "sr.nii", *again, "--no-montage") == 0
    assert not list(explained.glob("sr_*.png"))
    assert list(explained.glob("sr_weight-3.nii"))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--explain", "--reference", "elsewhere.nii"], "lies elsewhere"),
        (["--explain", "--reference", "none.nii"], "no such file"),
        (["--reference", "truth.nii"], "is for --explain"),
        (["--experts", "parallel"], "3 experts run apart"),
        (["--experts", "best"], "none of all, top1, parallel"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(work, words, said, tmp_path, capsys):
    given = [work / word if word.endswith(".nii") else word for word in words]
    assert upscale(work, tmp_path / "sr.nii", *given) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_truth_in_other_units_is_told():
    data = np.random.default_rng(0).normal(100, 20, (8, 8, 8))
    assert other_units(data, 1.5 * data) is None
    assert "bring both to one scale first" in other_units(data, 5 * data)
    assert other_units(data, np.zeros_like(data))


def test_a_picture_of_somebody_else_s_is_not_replaced(work, tmp_path, capsys):
    (tmp_path / "sr_experts.png").write_bytes(b"mine")
    assert upscale(work, tmp_path / "sr.nii", "--explain") == 2
    assert "sr_experts.png exists" in capsys.readouterr().err
    assert (tmp_path / "sr_experts.png").read_bytes() == b"mine"


def test_a_model_without_experts_has_nothing_to_explain(work, tmp_path, capsys):
    assert upscale(work, tmp_path / "sr.nii", "--explain", model="vqvae") == 2
    assert "is for a mixture" in capsys.readouterr().err


def test_a_forecast_counts_the_experts_that_run_those_that_are_filled_up_and_what_explaining_takes(work, tmp_path):
    """20 slices, two at a time: at most 10 + 2 batches of the dearest expert, and 10 that say which."""
    found = {}
    for name, words in {"all": [], "top1": ["--experts", "top1"], "smooth": ["--experts", "smooth"], "explain": ["--explain"]}.items():
        record = tmp_path / f"{name}.json"
        assert upscale(work, tmp_path / "sr.nii", "--dry-run", "--batch-size", 2, "--steps", 8, *words, "--run-json", record) == 0
        found[name] = json.loads(record.read_text())["Volumes"][0]
    works, programs = ({name: of[key] for name, of in found.items()} for key in ("MultiplyAdds", "Compilations"))
    assert works["smooth"] < works["top1"] < works["all"]
    assert works["explain"] > works["all"] + 3 * works["smooth"] / 2
    assert programs == {"all": 1, "top1": 1 + len(EXPERTS), "smooth": 1, "explain": 2 + len(EXPERTS)}
