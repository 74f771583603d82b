"""`--dry-run`: what is planned is what is done, from the same inputs, without weights and without running anything."""

import json
import shutil

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import typer

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.cli import app
from jaxsr.cli.options import check_sampling
from jaxsr.cli.status import run
from jaxsr.config import dump, from_dict
from jaxsr.experiment import Experiment
from jaxsr.runtime.checkpoint import Checkpoints
from jaxsr.runtime.memory import program_memory
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.upscale.batches import Batches, ProgramKey, Work
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.forecast import batch_sizes, forecast, live_bytes, trace_batches
from jaxsr.upscale.inputs import Job, check_target, memory_needed
from jaxsr.upscale.model import Recipe
from jaxsr.upscale.plan import make_plan
from jaxsr.upscale.settings import Settings
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
    assert plan["Batches"] == 9 + 6 + 9  # of 27 slices by 3, 30 by 5, 36 by 4: each axis has sides of its own


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
def test_the_plans_memory_is_that_which_is_checked_before_a_run(work, picture):
    recipe = Recipe("run", 1, EXPERIMENT, build_method(EXPERIMENT))
    volume = read_volume(work / "scan.nii")
    settings = Settings(2.0, recipe.method.default_request, picture=picture)
    facts = forecast(recipe, Job(work / "scan.nii", work / "o.nii"), volume, settings, batch_size=8, slice_map="pad")
    assert facts["HostBytes"] == memory_needed(volume, check_target(volume, 2.0), picture=picture)


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
    [trace] = trace_batches(method, variables, batch_sizes(method, plan, 8, 1)).values()
    estimate = live_bytes(trace) + sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    key = ProgramKey(plan.shapes[0], Work("upscale", method.default_request), ("low",))
    needed = program_memory(Batches(method, variables, make_mesh(), 8)._compile(key, 8))
    assert 0.7 < estimate / needed < 2


def test_what_voxel_sizes_give_cause_to_say_is_told_planned_and_kept(work, tmp_path, capsys):
    """The scan has 3 mm, the model learnt from 2 mm; 4 mm is coarser than both."""
    words = ["upscale", "-i", work / "scan.nii", "-o", tmp_path / "o.nii", "-m", work / "run", "--to-mm", "4", "--no-montage"]
    expected = ["4 mm is coarser than the scan", "the model was trained on scans of 2 mm, this one has 3 mm"]
    assert cli(*words, "--dry-run", "--run-json", tmp_path / "plan.json") == cli(*words) == 0
    said = " ".join(capsys.readouterr().out.split())
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["Volumes"]
    kept = json.loads((tmp_path / "o.json").read_text())["JaxSR"]["Notes"]
    assert plan["Notes"] == kept
    for sentence in expected:
        assert said.count(sentence) == 2
        assert sum(note.startswith(sentence) for note in kept) == 1


@pytest.mark.parametrize("steps", ["2001", "100000"])
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_more_steps_than_the_schedule_has_are_refused(work, tmp_path, steps, extra, capsys):
    assert cli("upscale", "-i", work / "scan.nii", "-o", tmp_path / "o.nii", "-m", work / "run", "--steps", steps, *extra) == 2
    said = capsys.readouterr().err
    assert "--steps" in said
    assert f"{steps} is not in 1…2000" in said


def test_steps_and_eta_mean_nothing_to_a_method_that_does_not_sample():
    class Direct:
        most_steps = 1

    check_sampling(Direct(), "autoencoder", None, None)
    for given in ({"steps": 1}, {"steps": None, "eta": 0.5}):
        with pytest.raises(typer.BadParameter, match=r"autoencoder does not sample, so --(steps|eta) would change nothing"):
            check_sampling(Direct(), "autoencoder", **given)
    assert build_method(from_dict({"method": {"kind": "autoencoder"}}, Experiment)).most_steps == 1


def test_a_record_that_would_replace_a_sidecar_is_refused_before_anything_is_done(work, tmp_path, capsys):
    words = ["upscale", "-i", work / "scan.nii", "-o", tmp_path / "o.nii", "-m", work / "run"]
    assert cli(*words, "--run-json", tmp_path / "o.json") == 2
    assert "is the place of a sidecar" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extra", [[], ["--dry-run"], ["--overwrite"]])
def test_a_picture_of_somebody_else_stays(work, tmp_path, extra, capsys):
    (tmp_path / "o.png").write_bytes(b"figure 1")
    words = ["upscale", "-i", work / "scan.nii", "-o", tmp_path / "o.nii", "-m", work / "run", *extra]
    assert cli(*words) == 2
    assert "--no-montage" in capsys.readouterr().err
    assert (tmp_path / "o.png").read_bytes() == b"figure 1"


@pytest.mark.parametrize("error", [RuntimeError("of our own"), ValueError("of our own")])
def test_a_mistake_of_ours_stops_no_batch_and_shows_its_traceback_before_the_list(work, tmp_path, error, monkeypatch, capsys):
    """One of two volumes fails in the engine; what the user did wrong (a third is no volume) has no traceback."""
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "c.nii"):
        shutil.copy(work / "scan.nii", tmp_path / "in" / name)
    shutil.copy(work / "bad.nii", tmp_path / "in" / "b.nii")
    real = Engine.upscale

    def broken(self, volume, *arguments, **options):
        if volume.path.name == "a.nii":
            raise error
        return real(self, volume, *arguments, **options)

    monkeypatch.setattr(Engine, "upscale", broken)
    words = ["upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", work / "run", "--no-montage"]
    assert cli(*words, "--run-json", tmp_path / "run.json") == 1
    said = capsys.readouterr().err
    assert said.count("Traceback (most recent call last)") == 1
    lines = said.splitlines()
    assert lines[-3] == "jaxsr: 2 of 3 failed:"
    assert lines[-2].endswith(f"a.nii: {type(error).__name__}: of our own")
    assert "b.nii" in lines[-1]
    assert (tmp_path / "out" / "c.nii").exists()
    records = json.loads((tmp_path / "run.json").read_text())["Volumes"]
    assert [record.get("Status") for record in records] == [1, 2, None]
