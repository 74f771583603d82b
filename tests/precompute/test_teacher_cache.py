"""Laws of distilled sets: what a teacher makes of slices, a function of the set, the teacher and how it samples [teacher paper, Eq. 9]."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set, synthetic_variables
from jaxsr.cli import app
from jaxsr.config import ConfigError, from_dict
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.record_stream import RecordStream
from jaxsr.data.records import file_sha256, read_manifest, verify, write_manifest
from jaxsr.data.subjects import stable_hash
from jaxsr.diffusion.sampling import sample
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Condition
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.precompute.job import make_set
from jaxsr.precompute.teacher_cache import check_teacher, distill_slices, maps_seen, plan_distillation
from jaxsr.runtime.distributed import Place
from jaxsr.train.build import abstract_batch, build_method, fitted
from jaxsr.train.loop import train
from jaxsr.upscale.model import Model, ModelError
from jaxsr.weights.file import digest

NETWORK = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 4, "middle_attention": False}
SCANS, SLICES, SIDE, CROP, STEPS = 3, 3, 24, 16, 5
TEACHER = {
    "method": {"kind": "sr3", "network": {**NETWORK, "dropout": 0.0}, "prediction": "v", "residual_std": 0.1, "sampling_steps": 4},
    "data": {"voxel_size": 1.0, "crop": CROP},
}
STUDENT = {
    "method": {
        "kind": "student",
        "network": NETWORK,
        "stages": {"count": 3, "low_mm": 2.0, "high_mm": 1.0},
        "prediction": "v",
        "residual_std": 0.1,
        "sampling_steps": 1,
    },
    "data": {"crop": 8, "threads": 1},
    "train": {"steps": 4, "batch_size": 2, "log_every": 1, "checkpoint_every": 2},
}


def model_of(settings, seed=0):
    experiment = from_dict(settings, Experiment)
    method = build_method(experiment)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), abstract_batch(experiment))
    variables = synthetic_variables(method, batch, seed)
    return Model("teacher", 7, experiment, method, variables, digest(variables["params"]), {})


@pytest.fixture(scope="module")
def teacher():
    return model_of(TEACHER)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set of three people, one of them for validation."""
    folder = tmp_path_factory.mktemp("prepared")
    synthetic_set(folder, SCANS, side=SIDE, slices=SLICES, maps=("bias", "gradient"))
    manifest = read_manifest(folder)
    splits = zip(manifest.shards, ("train", "validation", "train"), strict=True)
    write_manifest(folder, manifest.model_copy(update={"shards": tuple(s.model_copy(update={"split": split}) for s, split in splits)}))
    return folder


def plan_of(prepared, out, teacher, **settings):
    return plan_distillation(prepared, out, teacher, **{"steps": STEPS, "dtype": "float32", "seed": 3, **settings})


@pytest.fixture(scope="module")
def made(prepared, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "cache"
    make_set(plan_of(prepared, out, teacher), batch_size=2)
    return out


def files(folder):
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def sampler_of(teacher, low):
    return teacher.method.sampler(teacher.variables, Condition(low))


def keys_of(n):
    return jax.random.split(jax.random.key(5), n)


@pytest.mark.parametrize("every, k", [(1, 5), (2, 3), (4, 2)])
def test_the_mean_map_and_the_spread_are_those_of_all_images_on_the_way(teacher, every, k):
    """F_k: the decoded x̂_0 of sampling steps 1 … S − 1, each `every`-th; against the whole trajectory."""
    low = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    sampler = sampler_of(teacher, low)
    found = jax.jit(lambda keys: distill_slices(sampler, keys, Request(6, 0.5), every))(keys_of(2))
    whole = sample(sampler.schedule, sampler.denoise, keys_of(2), sampler.shape, steps=6, prediction=sampler.prediction, eta=0.5,
                   bounds=sampler.bounds, trajectory=True)  # fmt: skip
    images = jnp.stack([sampler.decode(x0) for x0 in whole.trajectory[:-1:every]])
    assert len(images) == maps_seen(6, every) == k
    np.testing.assert_allclose(found.mean_map, images.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.spread, ((images - images.mean(0)) ** 2).mean((0, 2, 3, 4)), rtol=1e-4)
    np.testing.assert_allclose(found.output, sampler.decode(whole.x0), atol=1e-5)


def test_two_hundred_steps_give_the_199_maps_of_the_paper():
    assert maps_seen(200, 1) == 199


def test_memory_does_not_grow_with_the_number_of_maps(teacher):
    """The compiler's plan for 4 and for 64 sampling steps: a mean that runs along, no trajectory."""
    low = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)

    def planned(steps):
        def run(low, keys):
            return distill_slices(sampler_of(teacher, low), keys, Request(steps))

        return jax.jit(run).lower(low, keys_of(2)).compile().memory_analysis().temp_size_in_bytes

    few, many = planned(4), planned(64)
    assert many < 1.05 * few + 64 * 64  # some numbers a step


def test_one_step_has_no_images_on_the_way(teacher):
    with pytest.raises(ValueError, match="at least 2 steps"):
        distill_slices(sampler_of(teacher, jnp.zeros((1, 8, 8, 1))), keys_of(1), Request(1))


def test_a_record_is_what_the_teacher_makes_of_the_training_slices_and_of_no_other(prepared, teacher, made):
    manifest, source = verify(made), PreparedSet(prepared, "train")
    assert [shard.subject for shard in manifest.shards] == ["sub-0000", "sub-0002"]
    assert manifest.maps == ("mean_map", "output", "spread", "low")
    said = manifest.distillation
    assert (said.teacher, said.steps, said.every, said.crop) == (teacher.sha256, STEPS, 1, CROP)
    assert manifest.precomputed == "distilled"
    records = PreparedSet(made, "train")
    assert len(records) == len(source) == 2 * SLICES
    for i in (0, 4):
        shard, number = records.place(i)
        stored, whole = records.read(i), source.read(i)["low"]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (CROP, CROP)).reshape(-1, CROP, CROP)
        assert (np.abs(windows - stored["low"]).max((1, 2)) == 0).any()  # a square of the slice, not varied
        place = (stable_hash(records.shards[shard].subject) % 2**31, number, 0)
        key = functools.reduce(jax.random.fold_in, place, jax.random.key(3))
        low = jnp.asarray(stored["low"])[None, ..., None]
        expected = jax.jit(lambda low, keys: distill_slices(sampler_of(teacher, low), keys, Request(STEPS, 1.0)))(low, key[None])
        np.testing.assert_allclose(stored["output"], expected.output[0, ..., 0], atol=2e-5)
        np.testing.assert_allclose(stored["mean_map"], expected.mean_map[0, ..., 0], atol=2e-5)
        np.testing.assert_allclose(stored["spread"], expected.spread[0], rtol=1e-3)
        assert stored["spread"].shape == ()
        assert stored["spread"].dtype == np.float32


def test_noise_is_keyed_by_the_scan_the_slice_and_the_copy(prepared, teacher, made, tmp_path):
    """Batches of another size change rounding only; another seed changes everything, another copy too."""
    make_set(plan_of(prepared, tmp_path / "three", teacher), batch_size=3)
    make_set(plan_of(prepared, tmp_path / "seed", teacher, seed=4), batch_size=2)
    make_set(plan_of(prepared, tmp_path / "copies", teacher, copies=2, crop=SIDE), batch_size=2)
    one, three, other = (PreparedSet(folder, "train") for folder in (made, tmp_path / "three", tmp_path / "seed"))
    for record in (0, len(one) - 1):
        for name, x in one.read(record).items():
            np.testing.assert_allclose(three.read(record)[name], x, atol=2e-5, err_msg=name)
        assert not np.allclose(other.read(record)["output"], one.read(record)["output"], atol=1e-3)
    copies = PreparedSet(tmp_path / "copies", "train")
    first, second = copies.read(0), copies.read(1)
    np.testing.assert_array_equal(first["low"], second["low"])  # the whole slice, not varied
    assert not np.allclose(first["output"], second["output"], atol=1e-3)


def test_what_was_killed_goes_on_and_two_processes_make_the_same_set(prepared, teacher, made, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, name):
        if done > SLICES:
            raise Killed

    with pytest.raises(Killed):
        make_set(plan_of(prepared, tmp_path / "killed", teacher), batch_size=2, advance=kill)
    make_set(plan_of(prepared, tmp_path / "killed", teacher), batch_size=2)
    assert files(tmp_path / "killed") == files(made)
    first = make_set(plan_of(prepared, tmp_path / "two", teacher), batch_size=2, place=Place(0, 2))
    assert first is None
    with pytest.raises(Exception, match="no manifest"):
        read_manifest(tmp_path / "two")
    assert make_set(plan_of(prepared, tmp_path / "two", teacher), batch_size=2, place=Place(1, 2)) is not None
    assert files(tmp_path / "two") == files(made)


@pytest.mark.parametrize("change, message", [
    ({"steps": 6}, r"other settings.*\n  steps: 5 → 6"),
    ({"every": 2}, "every: 1 → 2"),
    ({"eta": 0.5}, "eta: 1.0 → 0.5"),
])  # fmt: skip
def test_a_cache_refuses_another_way_of_sampling(prepared, teacher, made, change, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(prepared, made, teacher, **change)


def test_a_cache_refuses_another_teacher_with_both_sums(prepared, teacher, made):
    other = model_of(TEACHER, seed=1)
    with pytest.raises(ConfigError, match=f'teacher: "{teacher.sha256}" → "{other.sha256}"'):
        plan_of(prepared, made, other)


def test_a_teacher_that_cannot_teach_this_set_is_refused(prepared, teacher, tmp_path):
    finer = model_of({**TEACHER, "data": {"voxel_size": 0.7, "crop": CROP}})
    with pytest.raises(ConfigError, match=r"voxels of 1 mm, and teacher was trained on 0.7 mm"):
        plan_of(prepared, tmp_path / "cache", finer)
    network = {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}
    with pytest.raises(ConfigError, match="teacher of kind autoencoder does not sample"):
        plan_of(prepared, tmp_path / "cache", model_of({"method": {"kind": "autoencoder", "network": network}, "data": {"crop": CROP}}))


def student(cache, **settings):
    return from_dict({**STUDENT, "data": {**STUDENT["data"], "manifest": str(cache), "voxel_size": 1.0}, **settings}, Experiment)


def test_training_slices_are_crops_of_records_flipped_and_the_number_stays(made):
    records = PreparedSet(made, "train")
    stream = RecordStream(records, (8, 8), ("low", "output", "mean_map", "spread"), seed=0)
    for position in range(4):
        sample, record = stream[position], records.read(stream.record(position))
        assert sample["spread"] == record["spread"]
        assert sample["output"].shape == sample["mean_map"].shape == sample["low"].shape == (8, 8, 1)
        crop, whole = sample["output"][..., 0], record["output"]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (8, 8)).reshape(-1, 8, 8)
        turned = [crop[::a, ::b] for a in (1, -1) for b in (1, -1)]
        assert any((np.abs(windows - one).max((1, 2)) == 0).any() for one in turned)


def test_a_student_trains_on_a_cache_and_a_stopped_run_goes_on_to_the_bit(made, tmp_path):
    whole = train(student(made), tmp_path / "whole")
    train(student(made, train={**STUDENT["train"], "steps": 4, "checkpoint_every": 1}), tmp_path / "parts")
    for folder in sorted((tmp_path / "parts" / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(folder)
    again = train(student(made), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_a_curriculum_by_the_length_of_the_run_fixes_that_length(made, tmp_path):
    train(student(made), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.steps: 4 → 6"):
        train(student(made, train={**STUDENT["train"], "steps": 6}), tmp_path / "run")


@pytest.mark.parametrize("settings, message", [
    ({"data": {"crop": 8}}, "learns from what a teacher made of a set, and data.manifest names none: `jaxsr distill`"),
    ({"data": {"crop": 24, "manifest": "cache"}}, "squares of 16: set data.crop=16"),
    ({"data": {"crop": 8, "manifest": "cache", "augment": {"rotation": 5.0}}}, "can be flipped and not varied otherwise"),
    ({"data": {"crop": 8, "manifest": "set"}}, "data.manifest=.* is none"),
    ({"method": {**STUDENT["method"], "stages": {"count": 3, "low_mm": 2.0, "high_mm": 0.7}}}, "high_mm is 0.7: set it to 1"),
])  # fmt: skip
def test_a_set_that_does_not_suit_the_student_is_refused_with_the_way_out(prepared, made, settings, message):
    named = {"cache": str(made), "set": str(prepared)}
    data = settings.get("data", {"crop": 8, "manifest": "cache"})
    data = {**data, **({"manifest": named[data["manifest"]]} if "manifest" in data else {})}
    experiment = from_dict({**STUDENT, **settings, "data": data}, Experiment)
    records = PreparedSet(experiment.data.manifest, "train") if experiment.data.manifest else None
    with pytest.raises(ConfigError, match=message):
        fitted(experiment, records)


def test_what_the_student_cannot_learn_from_is_refused_before_the_teacher_runs(prepared, teacher, tmp_path):
    """From what the set will be: a crop larger than the squares, other voxels, a method that learns from images."""
    preview = plan_of(prepared, tmp_path / "cache", teacher).preview()
    fitted(student(tmp_path / "cache"), preview)
    for settings, message in (
        ({"data": {"crop": 24, "manifest": "cache"}}, "squares of 16: set data.crop=16"),
        ({"method": {**STUDENT["method"], "stages": {"count": 3, "low_mm": 2.0, "high_mm": 0.7}}}, "high_mm is 0.7"),
        ({"method": TEACHER["method"]}, "kind=sr3 learns from images"),
    ):
        experiment = from_dict({**STUDENT, "data": {"crop": 8, "manifest": "cache"}, **settings}, Experiment)
        with pytest.raises(ConfigError, match=message):
            fitted(experiment, preview)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("key, value", [("context", 1), ("scale_conditioning", True)])
def test_what_is_told_more_of_a_scan_than_slices_say_neither_learns_from_a_set_nor_teaches(prepared, tmp_path, key, value):
    experiment = from_dict(
        {**TEACHER, "method": {**TEACHER["method"], key: value}, "data": {"crop": 8, "manifest": str(prepared)}}, Experiment
    )
    with pytest.raises(ConfigError, match=f"method.{key}: slices of a prepared set lie alone"):
        fitted(experiment, PreparedSet(prepared, "train"))
    with pytest.raises(ConfigError, match="told more of a scan than slices of a prepared set say"):
        check_teacher(experiment.method.build(), "method.kind=sr3", 4)


def test_what_goes_over_a_volume_twice_teaches_nobody():
    method = {**TEACHER["method"], "passes": 2, "fused": True, "terminal": 1.0, "residual_std": 0.1}
    with pytest.raises(ConfigError, match="told more of a scan than slices of a prepared set say"):
        check_teacher(from_dict(method, Sr3Config).build(), "method.kind=sr3", 4)


def test_of_a_prepared_set_there_are_no_cubes(prepared):
    method, data = {**TEACHER["method"], "fused": True, "terminal": 1.0}, {"crop": 8, "draws": 192, "manifest": str(prepared)}
    experiment = from_dict({**TEACHER, "method": method, "data": data, "train": {"batch_size": 24}}, Experiment)
    with pytest.raises(ConfigError, match=r"method\.fused: slices of a prepared set lie alone"):
        fitted(experiment, PreparedSet(prepared, "train"))


def test_slices_of_a_prepared_set_do_not_say_how_much_their_heads_lack(prepared):
    method = {**TEACHER["method"], "loss": "l2", "residual_std": 0.1, "relative": True, "relative_to": "head"}
    experiment = from_dict({**TEACHER, "method": method, "data": {"crop": 8, "manifest": str(prepared)}}, Experiment)
    with pytest.raises(ConfigError, match=r"method\.relative_to=head: slices of a prepared set lie alone"):
        fitted(experiment, PreparedSet(prepared, "train"))


def test_images_are_no_cache_and_a_cache_no_images(made):
    with pytest.raises(ConfigError, match=r"holds a teacher's outputs, and method.kind=sr3 learns from images"):
        fitted(from_dict({**TEACHER, "data": {"crop": 8, "manifest": str(made)}}, Experiment), PreparedSet(made, "train"))


def test_a_guided_teacher_is_shown_the_maps_of_the_set(prepared, tmp_path):
    """And the student's records have none of them."""
    autoencoder = {"network": {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}}
    unet = {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [], "heads": 2, "context_width": 4, "groups": 2}
    method = {"kind": "teacher", "autoencoder": autoencoder, "unet": unet, "image_encoder": None, "guidance": {"width": 4, "groups": 2}}
    model = model_of({"method": {**method, "prediction": "v"}, "data": {"crop": CROP, "maps": ["bias", "gradient"]}})
    plan = plan_of(prepared, tmp_path / "cache", model)
    assert plan.settings.guided == plan.maker.reads[1:] == ("bias", "gradient")
    maps = {"low": jnp.ones((1, 16, 16, 1)), "bias": jnp.ones((1, 16, 16, 1)), "gradient": jnp.ones((1, 16, 16, 3))}
    make = jax.jit(functools.partial(plan.maker.make, settings=plan.settings))
    seen, blind = (make(plan.maker.params, of, keys_of(1))["output"] for of in (maps, {**maps, "bias": -maps["bias"]}))
    assert float(jnp.abs(seen - blind).max()) > 1e-4
    assert set(plan.made) | set(plan.kept) == {"output", "mean_map", "spread", "low"}

    flat = plan_of(prepared, tmp_path / "flat", model, flat=("gradient", "bias"))
    assert (flat.settings.guided, flat.settings.flat, flat.maker.reads) == ((), ("bias", "gradient"), ("low",))
    told = flat.maker.make(flat.maker.params, {"low": maps["low"]}, keys_of(1), flat.settings)["output"]
    np.testing.assert_allclose(
        told,
        make(plan.maker.params, {"low": maps["low"], "bias": 0 * maps["bias"], "gradient": 0 * maps["gradient"]}, keys_of(1))["output"],
        atol=1e-5,
    )
    half = plan_of(prepared, tmp_path / "half", model, flat=("bias",))
    assert (half.settings.guided, half.settings.flat) == (("gradient",), ("bias",))
    assert half.facts()["distillation"].flat == ("bias",)


def test_a_teacher_without_maps_is_not_told_that_they_are_flat(prepared, teacher, tmp_path):
    with pytest.raises(ConfigError, match="--flat names bias, and teacher is guided by no maps: leave it out"):
        plan_of(prepared, tmp_path / "cache", teacher, flat=("bias",))


def cli(*words):
    try:
        app([str(word) for word in words], standalone_mode=False)
    except SystemExit as done:
        return done.code
    return 0


def test_one_command_makes_the_cache_and_trains_the_student_and_does_neither_again(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(json.dumps({**TEACHER, "train": {"steps": 1, "batch_size": 2, "checkpoint_every": 1}}))
    (tmp_path / "student.yaml").write_text(json.dumps(STUDENT))
    cli("train", "teacher.yaml", f"data.manifest={prepared}", "data.threads=1", "--run-dir", "teacher")
    words = ["distill", "student.yaml", "--teacher", "teacher", "--set", prepared, "--cache", "cache", "--run-dir", "run", "--steps", "3"]
    cli(*words, "--dry-run")
    assert not (tmp_path / "cache").exists()
    assert "samples each in 3 steps, without guidance, and decodes 2 images on the way" in " ".join(capsys.readouterr().out.split())
    cli(*words)
    before = files(tmp_path / "cache")
    cli(*words)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 are there already" in said
    assert "run is already at step 4 of 4" in said
    assert files(tmp_path / "cache") == before
    assert not {"maps", "bias"} & set(read_manifest(tmp_path / "cache").maps)


def test_what_the_student_s_training_would_refuse_is_refused_before_the_teacher_runs(prepared, tmp_path, monkeypatch):
    """A network that it needs, and a run directory of another experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(json.dumps({**TEACHER, "train": {"steps": 1, "batch_size": 2, "checkpoint_every": 1}}))
    (tmp_path / "student.yaml").write_text(json.dumps(STUDENT))
    one_step = {**STUDENT["method"], "kind": "consistency", "grid": 4}
    (tmp_path / "one-step.yaml").write_text(json.dumps({**STUDENT, "method": one_step}))
    cli("train", "teacher.yaml", f"data.manifest={prepared}", "data.threads=1", "--run-dir", "teacher")
    words = ["--teacher", "teacher", "--set", prepared, "--run-dir", "run", "--steps", "3"]
    with pytest.raises(ModelError, match=r"method.weights.student names nothing"):
        cli("distill", "one-step.yaml", "--cache", "cache", *words)
    assert not (tmp_path / "cache").exists()
    cli("distill", "student.yaml", "--cache", "cache", *words)
    shutil.rmtree(tmp_path / "cache" / "shards")
    with pytest.raises(ConfigError, match=r"run holds another experiment"):
        cli("distill", "student.yaml", "method.rollout=0.5", "--cache", "cache", *words)
    assert not (tmp_path / "cache" / "shards").exists()
