"""Training in two phases: what was trained elsewhere is loaded by name, stays as it was, and is known by its SHA-256."""

import json
import shutil

import jax
import nibabel
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import ConfigError, from_dict, to_dict
from jaxsr.experiment import Experiment
from jaxsr.train.build import abstract_batch
from jaxsr.train.loop import train
from jaxsr.train.state import abstract_variables
from jaxsr.upscale.export import export_model
from jaxsr.upscale.files import make_engine, upscale_file
from jaxsr.upscale.guides import Guides
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.model import ModelError, load_model
from jaxsr.upscale.settings import Settings
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume
from jaxsr.weights.file import digest, write_arrays

NETWORK = {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}
ENCODER = {"patch": 8, "width": 8, "layers": 1, "heads": 2, "projection": 6, "side": 16}
DATA = {"voxel_size": 6.0, "crop": 8, "subjects": 3, "draws": 8, "window": 2, "threads": 1}
TRAIN = {"steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 100}


def autoencoder(steps=2, seed=0):
    method = {"kind": "autoencoder", "network": NETWORK}
    return from_dict({"method": method, "data": DATA, "train": {**TRAIN, "steps": steps}, "seed": seed}, Experiment)


def teacher(source, steps=2, maps=("bias", "gradient"), **settings):
    method = {
        "kind": "teacher",
        "autoencoder": {"network": NETWORK},
        "unet": {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "heads": 2, "context_width": 6, "groups": 4},
        "image_encoder": None,
        "guidance": {"width": 4, "groups": 2},
        "lambda_rec": 0.5,
        "sampling_steps": 2,
        "weights": {"autoencoder": str(source)},
        **settings,
    }
    data = {**DATA, "maps": list(maps)}
    rate = {"learning_rate": 0.05, "warmup_steps": 0}  # so that guidance, which starts at zero, shows
    return from_dict({"method": method, "data": data, "optimizer": rate, "train": {**TRAIN, "steps": steps}}, Experiment)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of each phase."""
    folder = tmp_path_factory.mktemp("phases")
    train(autoencoder(), folder / "autoencoder")
    train(teacher(folder / "autoencoder"), folder / "teacher")
    return folder


def same(a, b):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def test_the_frozen_autoencoder_is_that_of_its_run_and_no_part_of_the_checkpoint(first):
    model, source = load_model(first / "teacher"), load_model(first / "autoencoder")
    same(model.variables["frozen"]["autoencoder"], source.variables["params"])
    assert model.frozen == {"autoencoder": source.sha256}
    assert "autoencoder" not in model.variables["params"]
    saved = json.loads((first / "teacher/checkpoints/2/about/metadata").read_text())
    assert saved["frozen"] == {"autoencoder": source.sha256}


def test_two_phases_that_were_stopped_and_resumed_equal_two_that_were_not(first, tmp_path):
    for steps in (1, 2):
        train(autoencoder(steps), tmp_path / "autoencoder")
    for steps in (1, 2):
        train(teacher(tmp_path / "autoencoder", steps), tmp_path / "teacher")
    same(*(load_model(folder / "teacher").variables for folder in (first, tmp_path)))


def test_a_teacher_refuses_another_autoencoder_and_names_both_hashes(first, tmp_path):
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    train(autoencoder(steps=1, seed=1), tmp_path / "other")
    now, then = load_model(tmp_path / "other").sha256, load_model(tmp_path / "autoencoder").sha256
    with pytest.raises(ModelError, match=f"SHA-256 {then} then, {now} now"):
        train(teacher(tmp_path / "other", steps=3), tmp_path / "teacher")
    config = tmp_path / "teacher/config.yaml"
    config.write_text(config.read_text().replace(str(first / "autoencoder"), str(tmp_path / "other")))
    with pytest.raises(ModelError, match=f"{then} then, {now} now.*config.yaml"):
        load_model(tmp_path / "teacher")
    # The same one in another place is the same.
    config.write_text(config.read_text().replace(str(tmp_path / "other"), str(tmp_path / "autoencoder")))
    assert load_model(tmp_path / "teacher").frozen == {"autoencoder": then}


def test_an_exported_teacher_holds_all_it_needs_and_says_where_nothing_was(first, tmp_path):
    model = load_model(first / "teacher")
    export_model(model, tmp_path / "teacher.safetensors")
    alone = load_model(tmp_path / "teacher.safetensors")
    same(alone.variables, model.variables)
    assert alone.frozen == model.frozen
    assert alone.sha256 == model.sha256
    assert alone.experiment.method.weights.autoencoder is None
    assert str(first).encode() not in (tmp_path / "teacher.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"weights": {}}, "method.weights.autoencoder names nothing.*jaxsr train configs/autoencoder.yaml"),
        ({"weights": {"autoencoder": "/nowhere/run"}}, "method.weights.autoencoder=/nowhere/run is not there: check the path"),
        ({"image_encoder": ENCODER}, "image_encoder.train=true"),
        ({"autoencoder": {"network": {**NETWORK, "groups": 4}}}, "another network.*\n.*groups: 2 → 4"),
    ],
)
def test_what_a_teacher_needs_and_does_not_get_is_said_before_anything_is_written(first, tmp_path, settings, said):
    experiment = teacher(first / "autoencoder", **settings)
    with pytest.raises(ConfigError if "network" in settings.get("autoencoder", {}) else ModelError, match=said):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.slow
def test_a_run_of_another_kind_is_no_autoencoder(first, tmp_path):
    with pytest.raises(ConfigError, match="holds a model of kind teacher, expected autoencoder"):
        train(teacher(first / "teacher"), tmp_path / "run")


@pytest.mark.slow
def test_imported_weights_are_what_training_starts_from(first, tmp_path):
    trained = {**ENCODER, "train": True}
    experiment = teacher(first / "autoencoder", image_encoder=trained)
    method = experiment.method.build()
    shapes = abstract_variables(method, abstract_batch(experiment))["params"]["unet"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    sizes = {"in_channels": 4, "channels": 2, **{name: value for name, value in to_dict(experiment.method.unet).items() if name != "remat"}}
    context = {"kernel": rng.normal(size=(6, 6)).astype(np.float32), "bias": rng.normal(size=6).astype(np.float32)}  # Zero-1-to-3's
    variables = {"params": params, "context": context}
    about = {"format": "jaxsr weights 1", "kind": "unet", "configuration": json.dumps(sizes), "sha256": digest(variables)}
    write_arrays(tmp_path / "unet.safetensors", variables, about)
    paths = {"autoencoder": str(first / "autoencoder"), "unet": str(tmp_path / "unet.safetensors")}
    started = teacher(first / "autoencoder", steps=1, weights=paths, image_encoder=trained)
    frugal = started.model_copy(update={"optimizer": started.optimizer.model_copy(update={"learning_rate": 1e-12})})
    state = train(frugal, tmp_path / "run")
    found, wanted = ({"unet": tree, "context": of} for tree, of in ((state.params["unet"], state.params["context"]), (params, context)))
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (found, wanted)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Slices of one shape along all axes: one program for each set of maps."""
    path, affine = tmp_path_factory.mktemp("scan") / "scan.nii.gz", np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = 6.0
    write_volume(path, Volume(np.random.default_rng(0).uniform(100, 900, (16, 16, 16)).astype(np.float32), affine))
    return path


def write_field(path, kind, shape=(10, 9, 9), size=12.0, origin=3.0):
    """Of one field whatever the grid: with x = −1 … 1 from 3 to 111 mm, exp(0.3 x), or a displacement by (2, −1, 1/2) x mm."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = origin
    x = ((size * np.arange(shape[0]) + origin - 57) / 54)[:, None, None] * np.ones(shape)
    data = np.exp(0.3 * x) if kind == "bias" else np.stack([2 * x, -x, 0.5 * x], -1)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), affine), path)
    return path


OPTIONS = {"bias": "--bias-field", "gradient": "--gradient-map"}


def upscale(first, scan, out, maps):
    """The exit status of `jaxsr upscale --model RUN`, by the run of the second phase."""
    named = [word for kind, path in maps.items() for word in (OPTIONS[kind], str(path))]
    words = ["upscale", "-i", str(scan), "-o", str(out), "--model", str(first / "teacher"), "--no-montage", "--batch-size", "16", *named]
    return run(lambda: app(words, standalone_mode=False))


def test_upscale_works_with_maps_and_without_and_a_map_on_another_grid_is_the_same_map(first, scan, tmp_path):
    """By its affine: the same fields on voxels of 12 mm and of 4 mm. The sidecar says which maps there were."""
    coarse, fine = (
        {k: write_field(tmp_path / f"{k}{i}.nii.gz", k, **grid) for k in OPTIONS}
        for i, grid in enumerate(({}, {"shape": (30, 27, 26), "size": 4.0, "origin": -1.0}))
    )
    images = {}
    for name, maps in {"none": {}, "one": {"bias": coarse["bias"]}, "both": coarse, "both, finer": fine}.items():
        out = tmp_path / f"out {name}.nii.gz"
        assert upscale(first, scan, out, maps) == 0
        facts = json.loads((tmp_path / f"out {name}.json").read_text())["JaxSR"]
        assert set(facts.get("Guidance", {})) == set(maps)
        assert facts["Frozen"] == load_model(first / "teacher").frozen
        images[name] = read_volume(out).data
    finer = images.pop("both, finer")
    apart = min(np.abs(a - b).max() for i, a in enumerate(images.values()) for b in list(images.values())[:i])
    assert np.abs(images["both"] - finer).max() < 0.01 * apart


def test_a_scan_of_a_folder_that_has_no_field_fails_alone(first, scan, tmp_path, capsys):
    scans, fields = tmp_path / "scans", tmp_path / "fields"
    scans.mkdir()
    fields.mkdir()
    for name in ("sub-01", "sub-02"):
        (scans / f"{name}.nii.gz").write_bytes(scan.read_bytes())
    write_field(fields / "sub-02_bias.nii.gz", "bias")
    assert upscale(first, scans, tmp_path / "out", {"bias": fields}) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 failed" in said
    assert "has no map for sub-01.nii.gz by its name: add it, as in scan01_bias.nii.gz" in said
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["sub-02.nii.gz"]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_map_that_does_not_lie_on_the_head_is_refused(first, scan, tmp_path, capsys, kind):
    path = write_field(tmp_path / "map.nii.gz", kind, origin=503.0)
    assert upscale(first, scan, tmp_path / "out.nii.gz", {kind: path}) == 2
    assert "map.nii.gz: covers 0% of the volume" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.nii.gz").exists()


def made(model, scan, out, guides):
    settings = Settings(6.0, model.method.default_request, picture=False)
    written = upscale_file(make_engine(model, batch_size=16), model, Job(scan, out), settings, guides=guides)
    return read_volume(out).data, written.facts["JaxSR"]


def test_a_teacher_that_is_told_the_jacobian_upscales_with_a_displacement_and_without(first, scan, tmp_path):
    """With random weights; tests/train/test_encoded.py trains one."""
    guidance = {"width": 4, "groups": 2, "bias": False, "gradient": "log_jacobian"}
    experiment, rng = teacher(first / "autoencoder", maps=("jacobian",), guidance=guidance), np.random.default_rng(0)
    method = experiment.method.build()
    shapes = abstract_variables(method, abstract_batch(experiment))["params"]
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    model = load_model(first / "teacher")
    model = model._replace(experiment=experiment, method=method, variables={**model.variables, "params": params})
    gradient, bias = (write_field(tmp_path / f"{kind}.nii.gz", kind) for kind in ("gradient", "bias"))
    guided, facts = made(model, scan, tmp_path / "guided.nii.gz", Guides(None, gradient))
    assert (facts["Guidance"]["gradient"]["File"], facts["Guidance"]["gradient"]["As"]) == ("gradient.nii.gz", "log_jacobian")
    alone, facts = made(model, scan, tmp_path / "alone.nii.gz", Guides())
    assert "Guidance" not in facts
    assert np.abs(guided - alone).max() > 1e-3
    with pytest.raises(VolumeError, match="guided by gradient only: leave --bias-field out"):
        made(model, scan, tmp_path / "out.nii.gz", Guides(bias))


def test_a_bias_field_that_is_none_is_refused(first, scan, tmp_path):
    path = tmp_path / "bias.nii.gz"
    write_volume(path, Volume(np.zeros((10, 9, 9), np.float32), np.diag([12.0, 12.0, 12.0, 1.0])))
    with pytest.raises(VolumeError, match=r"above 0.*not its logarithm"):
        made(load_model(first / "teacher"), scan, tmp_path / "out.nii.gz", Guides(path))
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_model_without_guidance_refuses_maps(first, scan, tmp_path):
    path = write_field(tmp_path / "bias.nii.gz", "bias")
    with pytest.raises(VolumeError, match="guided by no maps: leave --bias-field out"):
        made(load_model(first / "autoencoder"), scan, tmp_path / "out.nii.gz", Guides(path))
