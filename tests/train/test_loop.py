"""Laws of the trainer: what stops and goes on is what never stopped, and what goes wrong is told where it began."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set
from jaxsr.cli.status import run as run_command
from jaxsr.config import ConfigError, dump, from_dict
from jaxsr.data.pipeline import SliceStream, sample_ids
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.records import file_sha256
from jaxsr.data.subjects import AnatomySubjects
from jaxsr.experiment import Experiment
from jaxsr.losses.cubes import over_axes
from jaxsr.runtime.checkpoint import CheckpointError, find_damage
from jaxsr.train.build import build_stream, build_subjects, fitted
from jaxsr.train.loop import TrainingDiverged, train
from jaxsr.train.metrics import HELD, NotFinite, Recent
from jaxsr.train.stop import Stopped
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import ModelError, load_model
from jaxsr.upscale.settings import training_scans

TINY = {
    "method": {
        "kind": "sr3",
        "network": {
            "width": 8,
            "multipliers": [1],
            "blocks": 1,
            "groups": 4,
            "attention_at": [],
            "dropout": 0.1,
            "middle_attention": False,
        },
        "prediction": "v",
        "residual_std": 0.2,
        "sampling_steps": 1,
        "eta": 0.0,
    },
    "data": {"voxel_size": 6.0, "crop": 8, "subjects": 3, "draws": 8, "window": 2, "threads": 1},
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


def losses(run_dir):
    return {(line := json.loads(text))["step"]: line["loss"] for text in (run_dir / "metrics.jsonl").read_text().splitlines()}


def until(step, action=lambda: os.kill(os.getpid(), signal.SIGTERM)):
    """A report that acts at `step`."""
    return lambda done, scalars: action() if done == step else None


def copied(uninterrupted, tmp_path):
    return shutil.copytree(uninterrupted[0], tmp_path / "run")


# ------------------------------------------------------------------------------------------------ going on


def test_a_run_that_was_stopped_goes_on_bit_for_bit_with_one_line_a_step(uninterrupted, tmp_path):
    """Parameters, EMA, optimiser and data position: 3 + 3 steps are 6 steps."""
    train(tiny(train__steps=3), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')  # what a killed run may leave behind
    resumed = train(tiny(), tmp_path)
    assert_equal_states(resumed, uninterrupted[1])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    assert losses(tmp_path) == losses(uninterrupted[0])


def test_a_run_on_cubes_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    """`method.fused`: what is drawn is a cube, all of whose slices are in one batch, whichever step comes first."""
    whole = {
        "data__draws": 96,
        "data__voxel_size": 8.0,
        "method__fused": True,
        "method__terminal": 0.7,
        "train__batch_size": 24,
        "train__accumulate": 1,
    }
    alone = train(tiny(**whole, train__steps=4), tmp_path / "alone")
    train(tiny(**whole, train__steps=3), tmp_path / "stopped")
    assert_equal_states(train(tiny(**whole, train__steps=4), tmp_path / "stopped"), alone)
    experiment = tiny(**whole)
    with build_stream(experiment, build_subjects(experiment.data, "train", experiment.seed)) as stream:
        cube = np.stack([stream[24 + i]["low"] for i in range(24)])
    np.testing.assert_allclose(over_axes(cube), cube, atol=1e-6)


def test_a_finished_run_is_left_alone(uninterrupted):
    folder, state = uninterrupted
    notes = []
    again = train(tiny(), folder, note=notes.append)
    assert int(again.step) == 6
    assert any("nothing to do" in n for n in notes)
    assert_equal_states(again, state)


def test_a_damaged_newest_checkpoint_is_skipped_told_and_written_anew(uninterrupted, tmp_path):
    run = copied(uninterrupted, tmp_path)
    largest = max((run / "checkpoints" / "6").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    (run / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()  # what a save that was killed leaves
    notes, upscaling = [], []
    assert load_model(run, note=upscaling.append).step == 3
    assert "checkpoints/6 is damaged and is skipped" in upscaling[0]
    state = train(tiny(), run, note=notes.append)
    assert_equal_states(state, uninterrupted[1])
    assert any("checkpoints/6 is damaged" in n and "6.corrupt" in n for n in notes)
    assert any("resumed" in n and "at step 3" in n for n in notes)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"3", "6", "6.corrupt"}
    assert find_damage(run / "checkpoints" / "6") == ""
    assert losses(run) == losses(uninterrupted[0])


def test_where_every_checkpoint_is_damaged_the_run_is_refused_until_they_are_deleted(uninterrupted, tmp_path):
    """Hours of training are not begun again unasked; and not the second time either."""
    run = copied(uninterrupted, tmp_path)
    for step in ("3", "6"):
        (run / "checkpoints" / step / "SHA256SUMS").write_bytes(b"")
    notes, before = [], (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint in .*run/checkpoints is damaged.*delete that folder"):
            train(tiny(), run, note=notes.append)
    assert sum("is damaged" in n for n in notes) == 2
    assert (run / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="holds another experiment"):
        train(tiny(optimizer__learning_rate=0.01), run)
    shutil.rmtree(run / "checkpoints")
    assert_equal_states(train(tiny(), run), uninterrupted[1])


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_run_directory_of_another_experiment_is_refused_with_the_difference(uninterrupted, tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: 0.0001 → 0.01"):
        train(tiny(optimizer__learning_rate=0.01), uninterrupted[0])
    run = copied(uninterrupted, tmp_path)
    (run / "config.yaml").unlink()  # the checkpoint says it too
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: 0.0001 → 0.01"):
        train(tiny(optimizer__learning_rate=0.01), run)


def test_a_command_that_was_refused_leaves_no_claim_on_its_folder(uninterrupted, tmp_path):
    """Nor does a config without any checkpoint, of a run that was stopped before its first."""
    run = tmp_path / "run"
    for wrong in ({"data__volumes": str(tmp_path / "nothere")}, {"mesh": {"data": 3}}):
        with pytest.raises(ValueError, match=r"nothere|mesh|devices"):
            train(tiny(**wrong), run)
        assert not run.exists()
    run.mkdir()
    (run / "config.yaml").write_text(dump(tiny(optimizer__learning_rate=0.01)))
    (run / "volumes.txt").write_text("sub-01/anat/T1w.nii.gz\n")
    assert_equal_states(train(tiny(), run), uninterrupted[1])
    assert (run / "config.yaml").read_bytes() == (uninterrupted[0] / "config.yaml").read_bytes()
    assert not (run / "volumes.txt").exists()

    other = copied(uninterrupted, tmp_path / "other")
    (other / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="another experiment"):
        train(tiny(optimizer__learning_rate=0.01), other)
    assert not (other / "config.yaml").exists()
    assert int(train(tiny(), other).step) == 6


def test_a_checkpoint_that_does_not_fit_the_config_beside_it_is_no_model(uninterrupted, tmp_path):
    run = copied(uninterrupted, tmp_path)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("width: 8", "width: 16"))
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint 6 does not fit.*float32\[.*8\] saved, float32\[.*16\] expected"):
        load_model(run)


def test_more_steps_are_another_experiment_where_the_rate_depends_on_them(uninterrupted, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(dump(tiny(train__steps=1, optimizer__decay="cosine")))
    with pytest.raises(ConfigError, match=r"train\.steps: 1 → 6"):
        train(tiny(optimizer__decay="cosine"), tmp_path)


# ------------------------------------------------------------------------------------------------ NaN and Inf


@pytest.fixture
def poisoned(monkeypatch):
    """From batch 4 on (counted from 0, so at step 5) one voxel is NaN."""

    def draw(self, position):
        sample = as_it_is(self, position)
        if position >= 4 * TINY["train"]["batch_size"]:
            sample["high"][3, 3] = np.nan
        return sample

    as_it_is = SliceStream.__getitem__
    monkeypatch.setattr(SliceStream, "__getitem__", draw)


@pytest.mark.parametrize("log_every, checkpoint_every, last", [(1, 1, 4), (6, 3, 3), (100, 100, None)])
def test_a_loss_that_is_not_finite_is_told_with_its_own_step_samples_and_the_last_good_checkpoint(
    log_every, checkpoint_every, last, poisoned, uninterrupted, tmp_path
):
    """Also between log steps: the step is that at which it began, the samples are those of its batch, and nothing poisoned is saved."""
    with pytest.raises(TrainingDiverged) as caught:
        train(tiny(train__log_every=log_every, train__checkpoint_every=checkpoint_every), tmp_path)
    said = str(caught.value)
    assert re.search(r"diverged at step 5: .*loss nan", said)
    assert (f"last good checkpoint is of step {last}" if last else "no checkpoint yet") in said
    experiment = tiny()
    subjects = build_subjects(experiment.data, "train", experiment.seed)
    with build_stream(experiment, subjects) as stream:
        ids = list(sample_ids(np.stack([stream[4 * 4 + i]["origin"] for i in range(4)]), subjects))
    assert said.splitlines()[1:] == [f"  {name}" for name in ids]
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert max(saved, default=None) == last
    assert all(step < 5 for step in losses(tmp_path))


def test_what_diverged_diverges_again_and_says_the_way_out(poisoned, tmp_path, capsys):
    for _ in range(2):
        assert run_command(lambda: train(tiny(), tmp_path) and None) == 6
        said = capsys.readouterr().err
        assert re.search(r"step 5.*checkpoint is of step 3.*lower optimizer.learning_rate in another folder", said)
    assert load_model(tmp_path).step == 3


def test_parameters_that_are_not_finite_are_no_good_checkpoint_though_the_loss_was(tmp_path):
    wild = {"optimizer__learning_rate": 1e30, "optimizer__clip_norm": None, "optimizer__warmup_steps": 0}
    with pytest.raises(TrainingDiverged, match=r"at step 1: parameter_norm inf \(there is no checkpoint yet"):
        train(tiny(train__checkpoint_every=1, **wild), tmp_path)


def test_metrics_that_nobody_asks_for_are_looked_at_all_the_same():
    """Few are held, however rare the log steps."""
    recent = Recent()
    recent.add(1, {"loss": jnp.float32(np.inf)}, np.zeros((1, 4)))
    for step in range(2, 1 + HELD):
        recent.add(step, {"loss": jnp.float32(1)}, np.ones((1, 4)))
    with pytest.raises(NotFinite) as caught:
        recent.add(1 + HELD, {"loss": jnp.float32(1)}, np.ones((1, 4)))
    assert caught.value.step == 1
    np.testing.assert_array_equal(caught.value.origin, np.zeros((1, 4)))


# ------------------------------------------------------------------------------------------------ signals

posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@posix
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_says_so_and_the_run_goes_on_bit_for_bit(number, status, uninterrupted, tmp_path, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop = until(2, lambda: os.kill(os.getpid(), number))
    assert run_command(lambda: train(tiny(), tmp_path, report=stop) and None) == status
    assert "stopped at step 2, which is saved; run the same command again" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert_equal_states(train(tiny(), tmp_path), uninterrupted[1])
    assert losses(tmp_path) == losses(uninterrupted[0])


@posix
def test_a_signal_while_waiting_for_data_saves_without_waiting(uninterrupted, tmp_path, monkeypatch):
    """A volume that takes longer to load than a scheduler's grace: it comes only once the state is saved. Step 5 needs the third visit."""
    fourth_done, loaded, seen = threading.Event(), threading.Event(), []

    def load(self, index, visit=0):
        if visit == 2:
            assert fourth_done.wait(120)
            time.sleep(0.5)  # until the main thread waits
            os.kill(os.getpid(), signal.SIGTERM)
            end = time.monotonic() + 120
            while not (tmp_path / "checkpoints" / "4").exists() and time.monotonic() < end:
                time.sleep(0.01)
            seen.extend(p.name for p in (tmp_path / "checkpoints").iterdir())
            loaded.set()
        return as_it_is(self, index, visit)

    as_it_is = AnatomySubjects.load
    monkeypatch.setattr(AnatomySubjects, "load", load)
    with pytest.raises(Stopped, match="stopped at step 4, which is saved"):
        train(tiny(train__checkpoint_every=100), tmp_path, report=until(4, fourth_done.set))
    assert loaded.wait(180)
    monkeypatch.undo()
    assert "4" in seen, "nothing was saved before the volume came"
    assert_equal_states(train(tiny(train__checkpoint_every=100), tmp_path), uninterrupted[1])


@posix
def test_a_second_ctrl_c_ends_the_process_at_once():
    """Even inside a computation that never returns to Python."""
    program = """
import ctypes, os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a background job ignore it
from jaxsr.train.stop import StopSignals
with StopSignals():
    me = os.getpid()
    threading.Thread(target=lambda: [(time.sleep(0.5), os.kill(me, signal.SIGINT)) for _ in range(2)], daemon=True).start()
    while True:
        ctypes.CDLL(None).sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT
    assert "Ctrl-C again quits at once" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ TensorBoard


def test_tensorboard_holds_every_step_once_also_after_resuming(uninterrupted, tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra [tracking]")
    with pytest.raises(Stopped):
        train(tiny(train__tensorboard=True, train__checkpoint_every=2), tmp_path, report=until(5))
    shutil.rmtree(tmp_path / "checkpoints" / "5")  # as if it had been killed before that was saved
    train(tiny(train__tensorboard=True), tmp_path)
    shown = {}
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        for event in events(path):
            if event.session_log.status == event.session_log.START:  # TensorBoard forgets what came before of these steps
                shown = {step: loss for step, loss in shown.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in shown
                    shown[event.step] = value.simple_value
    assert shown == losses(uninterrupted[0])


def events(path):
    """Of an event file: records of length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4


def test_without_its_package_tensorboard_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.tensorboard.*pip install 'jaxsr\[tracking\]'"):
        train(tiny(train__tensorboard=True), tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ what was trained


def test_a_trained_model_loads_with_the_moving_average(uninterrupted):
    folder, state = uninterrupted
    model = load_model(folder)
    assert model.step == 6
    assert_equal_states(model.variables["params"], state.ema)
    assert len(model.sha256) == 64


def test_a_folder_without_a_run_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="jaxsr train"):
        load_model(tmp_path)


# ------------------------------------------------------------------------------------------------ folders of volumes


@pytest.fixture
def heads(tmp_path):
    """Five people, of different sizes and orientations."""
    rng, folder = np.random.default_rng(0), tmp_path / "heads"
    for i, (shape, codes) in enumerate([((40, 44, 36), "RAS"), ((37, 52, 41), "LPI"), *[((30, 30, 33), "ASR")] * 3]):
        data = rng.normal(100, 30, shape).clip(0).astype(np.float32)
        image = nib.Nifti1Image(data, nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), shape))
        path = folder / f"sub-{i:02d}" / "anat" / "T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
    return folder


def cut(path):
    """The header stays whole, the voxels do not."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_unreadable_volume_is_told_once_and_the_run_is_a_function_of_step_and_files(heads, tmp_path, monkeypatch):
    """It trains on, goes on bit for bit where it was stopped, and from another folder with another spelling of the same path."""
    cut(heads / "sub-03" / "anat" / "T1w.nii.gz")
    config = {"data__voxel_size": 1.0, "data__draws": 2}  # a visit a step or two: all come
    notes = []
    straight = train(tiny(data__volumes=str(heads), **config), tmp_path / "straight", note=notes.append)
    assert int(straight.step) == 6
    assert any("train: 5 of 5 volumes" in n for n in notes)
    told = [n for n in notes if n.startswith("left out")]
    assert len(told) == 1
    assert "sub-03/anat/T1w.nii.gz" in told[0]
    assert (tmp_path / "straight" / "volumes.txt").read_text().splitlines() == [f"sub-{i:02d}/anat/T1w.nii.gz" for i in range(5)]

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):
        train(tiny(data__volumes="heads", **config), tmp_path / "stopped", report=until(3))
    monkeypatch.chdir(heads)
    resumed = train(tiny(data__volumes="../heads/.", **config), tmp_path / "stopped")
    assert_equal_states(resumed, straight)


def test_another_set_of_volumes_is_another_experiment(heads, uninterrupted, tmp_path):
    run = tmp_path / "run"
    train(tiny(data__volumes=str(heads), train__steps=1), run)
    (heads / "sub-01" / "anat" / "T1w.nii.gz").rename(heads / "sub-01" / "anat" / "T1.nii.gz")
    with pytest.raises(ConfigError, match=r"(?s)other volumes.*2 differences.*- sub-01/anat/T1w.nii.gz.*\+ sub-01/anat/T1.nii.gz"):
        train(tiny(data__volumes=str(heads)), run)


# ------------------------------------------------------------------------------------------------ prepared sets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three scans, prepared at 1 mm, and a run on them that was never stopped."""
    folder = tmp_path_factory.mktemp("prepared")
    synthetic_set(folder / "set", 3, side=16, slices=4, maps=("labels", "mask"))
    return folder / "set", train(on(folder / "set"), folder / "run")


def on(manifest, **changes):
    """An epoch is three steps."""
    data = {name: value for name, value in TINY["data"].items() if name != "voxel_size"}
    augment = {"rotation": 5.0, "elastic": 1.0, "gamma": 0.1}
    return tiny(**{"data": {**data, "manifest": str(manifest), "augment": augment, "maps": ["labels", "mask"]}, **changes})


def test_a_run_on_a_prepared_set_that_was_stopped_in_an_epoch_goes_on_bit_for_bit(prepared, tmp_path, monkeypatch):
    """Also when the set is named by another spelling of the same path."""
    folder, straight = prepared
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(on(folder), run, report=until(4))
    monkeypatch.chdir(folder)
    assert_equal_states(train(on("manifest.json"), run), straight)
    assert losses(run) == losses(folder.parent / "run")
    assert load_model(run).experiment.data.voxel_size == 1.0
    assert training_scans(load_model(run).experiment, (1.0, 1.0, 1.0)) == (2.0, 2.0, 2.0)
    export_model(load_model(run), tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").experiment.data.manifest is None


def test_a_run_is_not_resumed_on_another_prepared_set(prepared, tmp_path):
    folder, run = tmp_path / "set", tmp_path / "run"
    shutil.copytree(prepared[0], folder)
    train(on(folder, train__steps=1), run)
    assert (run / "manifest.sha256").read_text().split() == [file_sha256(folder / "manifest.json"), str(folder / "manifest.json")]
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"sub-0001"', '"sub-0007"'))
    with pytest.raises(ConfigError, match=r"begun with another prepared set: .*manifest\.json is not what .*manifest\.sha256 says"):
        train(on(folder), run)
    (folder / "manifest.json").write_text(text)
    assert int(train(on(folder), run).step) == 6


def test_an_interpolation_that_is_not_the_prepared_sets_is_refused_and_else_it_is_the_models(prepared):
    """It is what `upscale` will bring scans to the target grid with."""
    records = PreparedSet(prepared[0], "train")
    records.manifest = records.manifest.model_copy(update={"settings": '{"interpolation": "kspace"}'})
    assert fitted(on(prepared[0]), records).data.interpolation == "kspace"
    with pytest.raises(ConfigError, match=r"data\.interpolation is cubic, .* was prepared with kspace"):
        fitted(on(prepared[0], data__interpolation="cubic"), records)


def test_a_voxel_size_that_is_not_the_prepared_sets_is_refused_with_both(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.voxel_size is 6\.0, .*manifest\.json was prepared with 1\.0: set data\.voxel_size=1\.0"):
        train(on(prepared[0], data__voxel_size=6.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="volumes and manifest name 2 sets"):
        on(prepared[0], data__volumes=str(tmp_path))


def test_a_map_that_is_not_there_is_refused_before_anything_is_trained(prepared, heads, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.maps wants bias, which .* has not: it has labels, mask"):
        train(on(prepared[0], data__maps=["bias"]), tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
    with pytest.raises(ConfigError, match=r"data\.maps wants mask, which sub-0\d/.* has not: it has none of the optional maps"):
        train(tiny(data__volumes=str(heads), data__voxel_size=1.0, data__maps=["mask"]), tmp_path / "volumes")


def test_what_diverges_on_a_prepared_set_names_its_records(prepared, tmp_path):
    with pytest.raises(TrainingDiverged) as caught:
        train(on(prepared[0], optimizer={"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0}, train__checkpoint_every=1), tmp_path)
    slices = str(caught.value).splitlines()[1:]
    assert len(slices) == 4
    assert all(re.fullmatch(r"  shards/sub-000\d\.array_record \(visit 0\) (sagittal|coronal|axial) record \d", s) for s in slices)
