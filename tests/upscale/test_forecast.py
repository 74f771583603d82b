"""`--dry-run`: what is planned is what is done, from the same inputs, without weights and without running anything."""

import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import dump, from_dict
from jaxsr.experiment import Experiment
from jaxsr.methods.base import UpscaleOutput
from jaxsr.runtime.checkpoint import Checkpoints
from jaxsr.runtime.memory import program_memory
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.loop import abstract_batch, build_method
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.files import Settings, make_engine, montage, upscale_file
from jaxsr.upscale.forecast import forecast, live_bytes, trace_batches
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.model import Model, Recipe
from jaxsr.upscale.plan import make_plan
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import read_volume

NETWORK = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "attention_at": [], "dropout": 0.0, "middle_attention": False}
EXPERIMENT = from_dict(
    {
        "method": {"kind": "sr3", "network": NETWORK, "prediction": "v", "residual_std": 0.2, "sampling_steps": 2, "eta": 0.0},
        "data": {"voxel_size": 2.0, "crop": 16},
    },
    Experiment,
)


def cli(*words):
    return run(lambda: app([str(word) for word in words], standalone_mode=False))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run, a scan on its side (LIA), and a file that is none."""
    folder = tmp_path_factory.mktemp("work")
    method = build_method(EXPERIMENT)
    variables = synthetic_variables(method, abstract_batch(EXPERIMENT), 0)
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(dump(EXPERIMENT))
    with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
        checkpoints.save(3, {"ema": variables["params"], "stats": {}}, {})
    data = np.random.default_rng(0).normal(100, 30, (18, 20, 24)).astype(np.float32)
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(("L", "S", "P")), data.shape) @ np.diag([3.0, 3.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(data, affine), folder / "scan.nii")
    (folder / "bad.nii").write_bytes(b"this is no volume")
    return folder


def test_what_is_planned_is_what_is_done(work, tmp_path, capsys):
    words = ["upscale", "-i", work / "scan.nii", "-o", tmp_path / "out.nii", "-m", work / "run", "--no-montage", "--batch-size", "5"]
    assert cli(*words, "--dry-run", "--run-json", tmp_path / "plan.json") == 0
    assert not (tmp_path / "out.nii").exists()
    assert "sampling steps of each: 2" in capsys.readouterr().out
    assert cli(*words, "--run-json", tmp_path / "done.json") == 0
    (plan,), (done,) = (json.loads((tmp_path / name).read_text())["Volumes"] for name in ("plan.json", "done.json"))
    image = nib.load(tmp_path / "out.nii")
    assert tuple(plan["Shape"]) == image.shape == (27, 30, 36)
    assert plan["Orientation"] == "".join(nib.aff2axcodes(image.affine)) == "LIA"
    np.testing.assert_allclose(plan["Affine"], image.affine, atol=1e-5)
    np.testing.assert_allclose(plan["VoxelSize"], image.header.get_zooms(), rtol=1e-6)
    for name in ("SamplingSteps", "BatchSize", "Compilations"):
        assert plan[name] == done["JaxSR"][name], name
    assert list(plan["Axes"]) == done["JaxSR"]["Axes"]
    assert plan["Slices"] == sum(image.shape)
    assert plan["Batches"] == sum(-(-n // 5) for n in image.shape)


def test_a_plan_needs_no_weights(work, tmp_path):
    emptied = tmp_path / "run"
    Checkpoints(emptied / "checkpoints").__exit__(None, None, None)
    (emptied / "config.yaml").write_text((work / "run" / "config.yaml").read_text())
    words = ["upscale", "-i", work / "scan.nii", "-o", tmp_path / "out.nii", "-m", emptied, "--dry-run"]
    assert cli(*words) == 4  # no checkpoint: nothing could be run
    with Checkpoints(emptied / "checkpoints") as checkpoints:
        checkpoints.save(1, {"nothing": jnp.zeros(1)}, {})
    assert cli(*words) == 0


def test_a_plan_takes_the_checkpoint_that_the_run_would_take_and_refuses_where_it_would(work, tmp_path, capsys):
    """Damaged ones are skipped and told."""
    model = shutil.copytree(work / "run", tmp_path / "run")
    shutil.copytree(model / "checkpoints" / "3", model / "checkpoints" / "4")
    words = ["upscale", "-i", work / "scan.nii", "-o", tmp_path / "out.nii", "-m", model, "--no-montage", "-v", "--dry-run"]
    for damaged, status, step in (("4", 0, 3), ("3", 4, None)):
        (model / "checkpoints" / damaged / "state" / "manifest.ocdbt").write_bytes(b"")
        assert cli(*words) == status
        said = capsys.readouterr().out
        assert f"checkpoints/{damaged} is damaged" in said.replace("\n", "").replace(str(model), "")
        assert (f"run, step {step}" in said) == (step is not None)


@pytest.mark.parametrize(
    "source, status, sentence", [("bad.nii", 2, "bad.nii"), (".", 1, "1 of 2 failed"), ("missing.nii", 2, "missing.nii")]
)
def test_a_bad_input_fails_in_the_plan_as_it_would_in_the_run(work, tmp_path, source, status, sentence, capsys):
    for extra in ([], ["--dry-run"]):
        words = ["upscale", "-i", work / source, "-o", tmp_path / f"out{len(extra)}", "-m", work / "run", "--no-montage"]
        assert cli(*words, "--run-json", tmp_path / "run.json", *extra) == status
        assert sentence in capsys.readouterr().err
        if status == 1:
            records = json.loads((tmp_path / "run.json").read_text())["Volumes"]
            assert [r["Status"] for r in records if "Error" in r] == [2]


def test_another_voxel_size_than_that_of_the_training_is_told_and_both_are_in_the_sidecar(work, tmp_path, capsys):
    assert cli("upscale", "-i", work / "scan.nii", "-o", tmp_path / "out.nii", "-m", work / "run", "--to-mm", "3", "--no-montage") == 0
    assert "note: the model was trained for 2 mm, not 3 mm" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out.json").read_text())
    assert (facts["JaxSR"]["TrainedVoxelSize"], facts["JaxSR"]["TrainedAcquisition"]) == (2.0, "1.5T")
    assert facts["Resolution"] == "3 × 3 × 3 mm"


@pytest.mark.parametrize("picture", [False, True])
def test_the_hosts_memory_is_enough_and_not_half_too_much(picture, tmp_path):
    """Against what numpy takes, at a size where volumes count for more than all else."""

    class Identity:
        multiple = 8
        default_request = build_method(EXPERIMENT).default_request

        def upscale(self, variables, condition, keys, request):
            return UpscaleOutput(condition.low, {})

    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(100, 30, (80, 90, 100)).astype(np.float32), np.diag([2.0] * 3 + [1])),
        tmp_path / "s.nii",
    )
    job, settings = Job(tmp_path / "s.nii", tmp_path / "o.nii"), Settings(2.0, Identity.default_request)
    recipe = Recipe("run", 1, EXPERIMENT, build_method(EXPERIMENT))
    volume = read_volume(job.source)
    expected = forecast(recipe, job, volume, settings, batch_size=8, slice_map="pad", picture=picture)["HostBytes"]
    model = Model("run", 1, EXPERIMENT, Identity(), {}, "")
    engine = make_engine(model, batch_size=8)
    if picture:
        montage(tmp_path / "warm.png", volume, volume, "what is imported and cached at first is not counted")
    del volume
    tracemalloc.start()
    written = upscale_file(engine, model, job, settings)
    if picture:
        montage(Path(tmp_path / "o.png"), written.low, written.output, "")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.95 * peak <= expected <= 1.5 * peak


def test_live_arrays_are_those_between_their_making_and_their_last_use():
    """A chain holds two at a time, an array used at the end is held all along, and a scan's body is there once."""
    x = jax.ShapeDtypeStruct((100,), np.float32)
    chain = jax.make_jaxpr(lambda x: jnp.sin(jnp.sin(jnp.sin(x))))(x)
    assert live_bytes(chain) == 2 * 400
    kept = jax.make_jaxpr(lambda x: (lambda y: y + jnp.sin(jnp.sin(jnp.sin(y))))(jnp.sin(x)))(x)
    assert live_bytes(kept) == 3 * 400
    scanned = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(jnp.sin(c)), None), x, None, length=1000)[0])(x)
    assert live_bytes(scanned) == 2 * 400


def test_the_estimate_of_a_devices_memory_is_near_the_compilers():
    """Which fuses some operations and so needs less, and pads others; 8 slices of 64², 2 steps."""
    method = build_method(EXPERIMENT)
    plan = make_plan(method, Grid((64, 64, 16), np.eye(4)), None, ("axial",))
    variables = synthetic_variables(method, abstract_batch(EXPERIMENT), 0)
    [trace] = trace_batches(method, variables, plan, method.default_request, 8).values()
    estimate = live_bytes(trace) + sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    needed = program_memory(Engine(method, variables, make_mesh(), batch_size=8)._compile(plan.shapes[0], method.default_request))
    assert 0.7 < estimate / needed < 2
