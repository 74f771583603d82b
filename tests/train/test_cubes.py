"""Training on cubes and stacks from files to an upscaled file: a network that goes over a volume twice and is told how many axes serve."""

import json

import nibabel as nib
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.train.loop import train
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import read_volume
from jaxsr.volume.quality import quality_of

SIDE = 16
METHOD = {
    "kind": "sr3",
    "network": {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": None, "dropout": 0.0, "middle_attention": False},
    "prediction": "x0",
    "loss": "l2",
    "relative": True,
    "relative_to": "head",
    "residual_std": 0.1,
    "context": 1,
    "terminal": 0.8,
    "scale_conditioning": True,
    "fused": True,
    "passes": 2,
    "axes_conditioning": True,
    "quality_conditioning": True,
    "single_axis": 0.3,
    "pixels": [0.8, 1.2],
    "sampling_steps": 1,
    "sharp_steps": 3,
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """One of cubes and one of slices of 3 mm."""
    folder = tmp_path_factory.mktemp("heads")
    for name, sizes in (("cubes", (1.0, 1.0, 1.0)), ("slices", (1.0, 1.0, 3.0))):
        shape = [20, 24, 18]
        data = np.random.default_rng(0).normal(100, 30, shape).clip(1).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.diag([*sizes, 1.0])), folder / f"sub-{name}_T1w.nii")
    return folder


@pytest.fixture(scope="module")
def trained(heads, tmp_path_factory):
    """The run directory, and the losses of its steps."""
    run_dir, losses = tmp_path_factory.mktemp("run") / "run", []
    data = {"mixture": [{"share": 1.0, "volumes": str(heads), "native": True, "voxel_size": 1.0}], "crop": SIDE, "draws": 3 * SIDE * 2}
    data |= {"acquisition": "1.5T", "interpolation": "kspace", "window": 1, "acquisitions": [{"name": "1.5T"}]}
    experiment = from_dict({"method": METHOD, "data": data, "train": {"steps": 6, "batch_size": 3 * SIDE, "log_every": 1}}, Experiment)
    train(experiment, run_dir, report=lambda step, scalars: losses.append(scalars["loss"]))
    return run_dir, losses


def test_of_cubes_and_stacks_it_learns_and_nothing_is_nan(trained):
    _, losses = trained
    assert len(losses) == 6
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    "words, steps", [([], "steps of each: 1;"), (["--mode", "sharp"], "steps of each: 1, then 3;")], ids=["faithful", "sharp"]
)
def test_upscaling_goes_over_it_twice_and_says_so(trained, heads, tmp_path, capsys, words, steps):
    scan, out = tmp_path / "scan.nii", tmp_path / "out.nii"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(heads / "sub-cubes_T1w.nii").dataobj), np.diag([2.0, 2.0, 2.0, 1.0])), scan)
    command = ["upscale", "-i", str(scan), "-o", str(out), "-m", str(trained[0]), "--no-montage", "--to-mm", "1", *words]
    assert run(lambda: app([*command, "--dry-run"], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    assert "gone over 2 times" in said
    assert steps in said
    assert run(lambda: app(command, standalone_mode=False)) == 0
    facts, volume = json.loads(out.with_suffix(".json").read_text())["JaxSR"], read_volume(scan)
    assert facts["Passes"] == 2
    sharpness, noise, _ = quality_of(volume.data, fit_window(volume.data))
    np.testing.assert_allclose([*facts["ToldQuality"]["Sharpness"], facts["ToldQuality"]["Noise"]], [*sharpness, noise], atol=1e-3)
    assert np.isfinite(np.asarray(nib.load(out).dataobj)).all()
