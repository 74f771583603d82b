"""Laws of the trainer: what stops and goes on is what never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.experiment import Experiment
from jaxsr.train.loop import TrainingDiverged, train
from jaxsr.upscale.model import ModelError, load_model

TINY = {
    "method": {
        "kind": "sr3",
        "network": {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "attention_at": [], "dropout": 0.1},
        "prediction": "v",
        "residual_std": 0.2,
        "sampling_steps": 1,
        "eta": 0.0,
    },
    "data": {"voxel_size": 6.0, "crop": 16, "subjects": 3, "draws": 8, "window": 2, "threads": 1},
    "train": {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 3, "accumulate": 2},
}


def tiny(**changes):
    data = json.loads(json.dumps(TINY))
    for path, value in changes.items():
        node = data
        *parents, last = path.split("__")
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return from_dict(data, Experiment)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(tiny(), folder)


def assert_equal_states(a, b):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(s)[0] for s in (a, b)), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(uninterrupted, tmp_path):
    """Parameters, EMA, optimiser and data position: 3 + 3 steps are 6 steps."""
    train(tiny(train__steps=3), tmp_path)
    resumed = train(tiny(), tmp_path)
    assert_equal_states(resumed, uninterrupted[1])


def test_the_metrics_have_one_line_a_step_also_after_resuming(uninterrupted, tmp_path):
    train(tiny(train__steps=3), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')  # what a killed run may leave behind
    train(tiny(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    straight = [json.loads(line)["loss"] for line in (uninterrupted[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == straight


def test_a_finished_run_is_left_alone(uninterrupted):
    folder, state = uninterrupted
    notes = []
    again = train(tiny(), folder, note=notes.append)
    assert int(again.step) == 6
    assert any("nothing to do" in n for n in notes)
    assert_equal_states(again, state)


def test_a_run_directory_of_another_experiment_is_refused_with_the_difference(uninterrupted):
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: 0.0001 → 0.01"):
        train(tiny(optimizer__learning_rate=0.01), uninterrupted[0])


def test_more_steps_are_another_experiment_where_the_rate_depends_on_them(tmp_path):
    falling = {"optimizer__decay": "cosine", "optimizer__warmup_steps": 0}
    train(tiny(train__steps=1, train__checkpoint_every=1, **falling), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.steps: 1 → 6"):
        train(tiny(**falling), tmp_path)


def test_a_run_that_diverges_keeps_the_last_good_checkpoint(tmp_path):
    """NaN data after a checkpoint: the message tells the truth about what is left, and what is left can be read."""
    wild = {"optimizer__learning_rate": 1e30, "optimizer__clip_norm": None, "optimizer__warmup_steps": 0}
    with pytest.raises(TrainingDiverged, match="last checkpoint is of step 1"):
        train(tiny(train__checkpoint_every=1, **wild), tmp_path)
    assert load_model(tmp_path).step == 1


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_sigterm_saves_says_so_and_the_run_goes_on_bit_for_bit(uninterrupted, tmp_path):
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import os, signal
from pathlib import Path
from test_loop import tiny
from jaxsr.cli.status import run
from jaxsr.train.loop import train
terminate = lambda step, scalars: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
sys.exit(run(lambda: train(tiny(), Path(sys.argv[2]), report=terminate) and None))
"""
    words = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 143, done.stderr
    assert "stopped at step" in done.stderr
    assert_equal_states(train(tiny(), tmp_path), uninterrupted[1])


def test_a_loss_that_is_not_finite_stops_with_step_samples_and_last_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"(?s)diverged at step \d+: .*checkpoint.*anatomy-train-"):
        train(tiny(optimizer__learning_rate=1e30, optimizer__clip_norm=None, optimizer__warmup_steps=0), tmp_path)


def test_a_trained_model_loads_with_the_moving_average(uninterrupted):
    folder, state = uninterrupted
    model = load_model(folder)
    assert model.step == 6
    assert_equal_states(model.variables["params"], state.ema)
    assert len(model.sha256) == 64


def test_a_folder_without_a_run_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="jaxsr train"):
        load_model(tmp_path)


def test_a_folder_of_volumes_of_different_sizes_and_orientations_trains(tmp_path):
    rng = np.random.default_rng(0)
    heads = tmp_path / "heads"
    heads.mkdir()
    for i, (shape, codes) in enumerate([((40, 44, 36), "RAS"), ((37, 52, 41), "LPI"), ((60, 30, 33), "ASR")]):
        data = rng.normal(100, 30, shape).clip(0).astype(np.float32)
        image = nib.Nifti1Image(data, nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), shape))
        nib.save(image, heads / f"sub-{i:02d}_T1w.nii.gz")
    notes = []
    state = train(tiny(data__volumes=str(heads), data__voxel_size=1.0, train__steps=2), tmp_path / "run", note=notes.append)
    assert int(state.step) == 2
    assert any("3 of 3 volumes" in n for n in notes)
