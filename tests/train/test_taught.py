"""A one-step student is trained with the student that it is distilled from, starts as it, and upscales without it."""

import json
import shutil

import jax
import numpy as np
import pytest
import typer

from jaxsr.bench.synthetic import synthetic_head, synthetic_set
from jaxsr.bench.train import bench_train
from jaxsr.cli import app
from jaxsr.config import ConfigError, from_dict
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.records import SUFFIX, Distillation, encode, read_manifest, write_manifest, write_shard
from jaxsr.experiment import Experiment
from jaxsr.train.loop import train
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import ModelError, load_model, read_recipe
from jaxsr.volume.io import write_volume
from jaxsr.weights.file import read_about

NETWORK = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 4, "middle_attention": False}
METHOD = {"network": NETWORK, "stages": {"count": 3, "low_mm": 2.0, "high_mm": 1.0}, "prediction": "v", "residual_std": 0.1}
SIDE = 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Records as a teacher leaves them."""
    folder = tmp_path_factory.mktemp("cache")
    synthetic_set(folder, 2, side=SIDE, slices=3)
    from jaxsr.data.record_stream import RecordStream  # noqa: F401

    records, manifest = PreparedSet(folder, None), read_manifest(folder)
    shards = []
    for number, shard in enumerate(manifest.shards):
        first = records.first(number)
        read = [records.read(first + i) for i in range(shard.records)]
        made = [encode({"low": of["low"], "output": of["high"], "mean_map": of["high"], "spread": np.float32(0.1)}) for of in read]
        file = f"shards/made-{number}{SUFFIX}"
        shards.append(shard.model_copy(update={"file": file, "sha256": write_shard(folder / file, made)}))
    about = Distillation(source="0" * 64, teacher="1" * 64, steps=4, eta=0.0, every=1, crop=SIDE, copies=1)
    update = {"shards": tuple(shards), "distillation": about, "maps": ("low", "output", "mean_map", "spread")}
    write_manifest(folder, manifest.model_copy(update=update))
    return folder


def experiment(cache, kind, steps=2, **method):
    data = {"manifest": str(cache), "crop": 8, "threads": 0}
    own = {"steps": steps, "batch_size": 2, "log_every": 1, "checkpoint_every": 1}
    return from_dict({"method": {"kind": kind, **METHOD, **method}, "data": data, "train": own}, Experiment)


def one_step(cache, student, **settings):
    return experiment(cache, "consistency", weights={"student": str(student)}, grid=4, **settings)


@pytest.fixture(scope="module")
def student(cache, tmp_path_factory):
    run = tmp_path_factory.mktemp("student") / "run"
    train(experiment(cache, "student"), run)
    return run


def test_it_starts_as_the_student(cache, student, tmp_path):
    """And a rate of zero leaves it that."""
    plan = one_step(cache, student)
    still = plan.model_copy(update={"optimizer": plan.optimizer.model_copy(update={"learning_rate": 1e-30})})
    state = train(still, tmp_path / "run")
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_allclose, tree, load_model(student).variables["params"])


def test_stopped_and_resumed_it_is_what_it_would_have_been(cache, student, tmp_path):
    whole = train(one_step(cache, student, steps=3), tmp_path / "whole")
    train(one_step(cache, student, steps=3), tmp_path / "parts")
    shutil.rmtree(sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1])
    again = train(one_step(cache, student, steps=3), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_it_upscales_and_is_exported_without_the_student_and_is_not_trained_on_with_another(cache, student, tmp_path):
    moved = shutil.copytree(student, tmp_path / "student")
    train(one_step(cache, moved), tmp_path / "run")
    said = json.loads((tmp_path / "run/checkpoints/2/about/metadata").read_text())
    train(experiment(cache, "student", steps=3, curriculum="uniform"), tmp_path / "other")
    with pytest.raises(ModelError, match=r"trained with another student than .* holds now"):
        train(one_step(cache, tmp_path / "other", steps=2), tmp_path / "run")
    shutil.rmtree(moved)
    model = load_model(tmp_path / "run")
    assert (model.frozen, said["frozen"].keys(), read_recipe(tmp_path / "run").step) == ({}, {"student"}, 2)
    export_model(model, tmp_path / "one.safetensors")
    assert json.loads(read_about(tmp_path / "one.safetensors")["experiment"])["method"]["weights"] == {"student": None}
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "one.safetensors").variables, model.variables)


@pytest.mark.parametrize("settings, said", [
    ({"stages": {"count": 4, "low_mm": 2.0, "high_mm": 1.0}}, r"method.stages: .*'count': 3.* → .*'count': 4"),
    ({"residual_std": None}, r"method.residual_std: 0.1 → None"),
    ({"network": {**NETWORK, "groups": 2}}, r"another network than method.network says"),
])  # fmt: skip
def test_another_process_or_network_than_the_student_s_is_refused(cache, student, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        train(one_step(cache, student, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_student_it_says_what_to_name(cache, tmp_path):
    with pytest.raises(ModelError, match=r"method.weights.student names nothing"):
        train(experiment(cache, "consistency", grid=4), tmp_path / "run")


def test_what_is_no_student_is_refused(cache, student, tmp_path):
    train(one_step(cache, student), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a model of kind consistency, expected student"):
        train(one_step(cache, tmp_path / "run"), tmp_path / "again")


def test_its_training_can_be_measured(cache):
    assert bench_train(experiment(cache, "consistency", grid=4), steps=1, warmup=0)["multiply_adds"] > 0


def test_the_command_line_trains_and_upscales_it(cache, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text(json.dumps(one_step(cache, student).model_dump(mode="json")))
    app(["train", "one.json", "--run-dir", "run"], standalone_mode=False)
    write_volume(tmp_path / "scan.nii.gz", synthetic_head((32, 32, 32), one_step(cache, student)))
    app(["upscale", "-i", "scan.nii.gz", "-o", "out.nii.gz", "--model", "run", "--axes", "axial", "--no-montage"], standalone_mode=False)
    facts = json.loads((tmp_path / "out.json").read_text())["JaxSR"]
    assert (facts["Method"], facts["SamplingSteps"], facts["FromToVoxelSize"]) == ("consistency", 1, {"axial": [2.0, 1.0]})


def test_in_how_many_steps_a_run_samples_may_be_said_again(cache, student, tmp_path):
    """Training does not depend on it; with another loss it is another run."""
    shutil.copytree(student, tmp_path / "run")
    train(experiment(cache, "student", sampling_steps=3), tmp_path / "run")
    assert load_model(tmp_path / "run").method.default_request.steps == 3
    with pytest.raises(ConfigError, match=r"lambda_distill: 1.0 → 0.5"):
        train(experiment(cache, "student", lambda_distill=0.5), tmp_path / "run")


def test_it_is_not_asked_for_what_it_cannot_do_and_one_step_is_a_sample(cache, student, tmp_path, capsys):
    train(one_step(cache, student), tmp_path / "run")
    write_volume(tmp_path / "scan.nii.gz", synthetic_head((32, 32, 32), one_step(cache, student)))
    words = ["upscale", "-i", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out.nii.gz"), "--model", str(tmp_path / "run")]
    for more, said in ((["--eta", "0.5"], "all noise anew"), (["--steps", "5"], r"5 is not in 1…4, the steps that the model can take")):
        with pytest.raises(typer.BadParameter, match=said):
            app([*words, *more], standalone_mode=False)
    app([*words, "--samples", "2", "--axes", "axial", "--no-montage"], standalone_mode=False)
    assert "samples differ too little" not in capsys.readouterr().out
