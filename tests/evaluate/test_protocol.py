"""A protocol is the whole definition of a benchmark, and a benchmark does what it says, once."""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxsr.config import ConfigError, dump, load
from jaxsr.evaluate import benchmark
from jaxsr.evaluate.benchmark import run_protocol
from jaxsr.evaluate.compare import Means, compare_files
from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.heads import NoHeads, find_heads
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.origin import origin
from jaxsr.evaluate.protocol import Protocol, load_protocol
from jaxsr.evaluate.scores import Rules
from jaxsr.experiment import DataConfig
from jaxsr.files import FileError
from jaxsr.upscale.engine import Engine
from jaxsr.volume.io import Volume, read_volume, write_volume

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted((CONFIGS / "protocols").glob("*.yaml"))
ABLATIONS = [path for path in sorted((CONFIGS / "ablations").glob("*.yaml")) if re.search("^acquisition:", path.read_text(), re.MULTILINE)]
TEXT = """\
name: small
acquisition: {voxel_size: [2.0, 2.0, 2.0], snr: [20.0, 40.0]}
seed: 3
metrics: [psnr, rmse]
"""


def head(seed=0, shape=(36, 40, 34), voxel_size=(1.0, 1.0, 1.0)):
    random = np.random.default_rng(seed)
    radius = np.sqrt(sum(np.linspace(-1.2, 1.2, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(shape)))
    return Volume(np.where(radius < 1, 100 + 20 * random.random(shape), 0).astype(np.float32), np.diag([*voxel_size, 1.0]))


@pytest.fixture
def heads(tmp_path):
    for seed in range(2):
        write_volume(tmp_path / "heads" / f"sub-{seed}_T1w.nii.gz", replace(head(seed), orientation=("P", "S", "L")))
    return tmp_path / "heads"


@pytest.fixture
def protocol(tmp_path):
    (tmp_path / "small.yaml").write_text(TEXT)
    return load_protocol(tmp_path / "small.yaml")


@pytest.fixture
def engines(monkeypatch, identity_method):
    """Every model is one that changes nothing; the engines made, one a model."""
    from types import SimpleNamespace

    import jax

    from jaxsr.runtime.mesh import make_mesh

    made = []

    def make_engine(model, *, batch_size):
        made.append(Engine(identity_method, {}, make_mesh(devices=jax.local_devices()), batch_size=4))
        return made[-1]

    def load_model(path, note=None):
        data = load(path / "config.yaml", (), DataConfig) if path.is_dir() else DataConfig(acquired=(2.0, 2.0, 2.0))
        experiment = SimpleNamespace(method=SimpleNamespace(kind="identity"), data=data)
        return SimpleNamespace(name=path.stem, step=1, sha256=f"of {path}", frozen={}, method=identity_method, experiment=experiment)

    monkeypatch.setattr("jaxsr.upscale.files.make_engine", make_engine)
    monkeypatch.setattr("jaxsr.upscale.model.load_model", load_model)
    return made


@pytest.mark.parametrize("path", [*SHIPPED, *ABLATIONS], ids=lambda path: path.name)
def test_a_shipped_protocol_says_everything_itself(path, tmp_path):
    file = load_protocol(path)
    assert file.protocol.name == path.stem
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "dumped.yaml").write_text(dump(file.protocol))
    assert load_protocol(tmp_path / "dumped.yaml").protocol == file.protocol


@pytest.mark.parametrize(
    "override, message",
    [
        ("colour=red", "colour"),
        ("metrics=[psnr, beauty]", "beauty"),
        ("metrics=[dice]", "dice"),
        ("acquisition.voxel_size.2=[3.0, 6.0]", "range"),
        ("regions=[foreground, mask]", "regions"),
        ("least_ratio=1.0", "least_ratio"),
    ],
)
def test_what_no_benchmark_can_be_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load(SHIPPED[0], [override], Protocol)


def test_a_protocol_with_a_base_is_not_whole(tmp_path):
    (tmp_path / "a.yaml").write_text(TEXT)
    (tmp_path / "b.yaml").write_text("base: a.yaml\nseed: 4\n")
    with pytest.raises(ConfigError, match="base"):
        load_protocol(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    "size, why",
    [
        ((1.0, 1.0, 1.0), None),
        ((1.53, 1.0, 1.0), None),  # 2 / 1.53 is 1.307
        ((1.0, 1.6, 1.0), "1.25 times coarser, 1.3"),
        ((1.0, 1.0, 3.0), None),  # the third axis is not degraded
        ((2.0, 2.0, 2.0), "no finer"),
    ],
)
def test_a_head_enters_where_every_degraded_axis_gets_clearly_coarser(size, why):
    found = load_protocol(SHIPPED[1]).protocol.refusal(size)
    assert found is None if why is None else why in found


def test_a_protocol_of_one_size_takes_heads_of_that_size():
    protocol = load_protocol(SHIPPED[0]).protocol
    assert protocol.voxel_size == 0.7
    assert protocol.refusal((0.7, 0.73, 0.68)) is None
    assert "0.7 mm within 5%" in protocol.refusal((0.7, 0.7, 0.8))


def test_voxel_sizes_are_told_along_the_heads_axes_not_the_files(tmp_path, protocol):
    coarse = replace(head(voxel_size=(1.8, 1.0, 1.0)), orientation=("A", "S", "R"))
    write_volume(tmp_path / "heads" / "a.nii.gz", coarse)
    (tmp_path / "heads" / "b.nii").write_text("no volume")
    heads = find_heads(tmp_path / "heads", protocol.protocol)
    assert not heads.entered
    assert "1.8 × 1 × 1 mm" in heads.left_out["a"]
    assert "not a volume" in heads.left_out["b"]
    with pytest.raises(NoHeads, match=r"no head enters small: a does not enter: its voxels are 1\.8"):
        run_protocol(protocol, heads, {}, tmp_path / "out")


def test_a_benchmark_degrades_upscales_scores_and_keeps_what_it_made(tmp_path, heads, protocol, engines, monkeypatch):
    from jaxsr.upscale import model as models

    load_model, read = models.load_model, []
    monkeypatch.setattr(models, "load_model", lambda path, **how: read.append(path) or load_model(path, **how))
    write_volume(heads / "thick.nii.gz", head(voxel_size=(2.0, 2.0, 2.0)))
    found = find_heads(heads, protocol.protocol)
    out = tmp_path / "out"
    comparison = run_protocol(protocol, found, {"same": Path("a.safetensors")}, out, montage=False)
    assert {r.method for r in comparison.rows} == {*INTERPOLATIONS, "same"}
    assert {r.region for r in comparison.rows} == {"foreground", "image"}

    document = json.loads((out / "metrics.json").read_text())
    assert document["protocol"]["text"] == TEXT
    assert document["protocol"]["settings"]["least_ratio"] == 1.3
    assert document["protocol"]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert document["provenance"]["models"]["same"]["sha256"] == "of a.safetensors"
    assert document["provenance"]["models"]["same"]["heads_seen"]["known"] is False
    assert {key: document["provenance"][key] for key in ("version", "commit", "source_sha256")} == origin()
    assert not comparison.notes
    assert "no finer" in document["failures"]["thick"]
    assert document["files"]["sub-0"] == {
        "reference": "reference/sub-0.nii.gz",
        "low": "low/sub-0.nii.gz",
        "mask": None,
        "outputs": {"same": "upscaled/same/sub-0.nii.gz"},
    }
    assert {t["against"] for t in document["tests"]} == {"tricubic"}

    # One model is read once and has one engine, one program for heads of one shape and slices of one padded size.
    assert (len(read), len(engines)) == (1, 1)
    assert engines[0].compilations == len(set(engines[0].plan(head(), None, ("sagittal", "coronal", "axial")).shapes))
    # The output of a model that changes nothing is its interpolation, on the grid and in the orientation of the head.
    output, truth = (read_volume(out / place) for place in ("upscaled/same/sub-0.nii.gz", "reference/sub-0.nii.gz"))
    assert output.orientation == truth.orientation == ("P", "S", "L")
    assert np.allclose(output.affine, truth.affine)
    values = {r.method: r.values["rmse"] for r in comparison.rows if (r.subject, r.region) == ("sub-0", "image")}
    assert values["same"] == pytest.approx(values["tricubic"], rel=0.02)  # but for what the window cuts off

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert len(before) == 6
    again = run_protocol(protocol, found, {"same": Path("a.safetensors")}, out, montage=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (again.rows, len(engines)) == (comparison.rows, 1)


def test_what_was_made_in_another_way_is_made_again(tmp_path, heads, protocol, engines):
    out, found = tmp_path / "out", find_heads(heads, protocol.protocol)
    run_protocol(protocol, found, {"same": Path("a")}, out, montage=False)
    low, output = out / "low" / "sub-0.nii.gz", out / "upscaled" / "same" / "sub-0.nii.gz"
    first = low.stat().st_mtime_ns, output.stat().st_mtime_ns
    run_protocol(protocol, found, {"same": Path("b")}, out, montage=False)
    second = low.stat().st_mtime_ns, output.stat().st_mtime_ns
    assert second[0] == first[0]
    assert second[1] > first[1]
    reseeded = protocol._replace(protocol=protocol.protocol.model_copy(update={"seed": 4}))
    run_protocol(reseeded, found, {"same": Path("b")}, out, montage=False)
    assert low.stat().st_mtime_ns > second[0]
    assert output.stat().st_mtime_ns > second[1]


def test_an_interrupted_benchmark_goes_on(tmp_path, heads, protocol, engines, monkeypatch):
    out, found = tmp_path / "out", find_heads(heads, protocol.protocol)

    def interrupted(path, *rest, **how):
        write_volume(path, *rest, **how)
        if "upscaled" in str(path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "write_volume", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_protocol(protocol, found, {"same": Path("a")}, out, montage=False)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert len(made) == 5  # both heads degraded, one upscaled
    comparison = run_protocol(protocol, found, {"same": Path("a")}, out, montage=False)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert {r.subject for r in comparison.rows} == {"sub-0", "sub-1"}


@pytest.mark.parametrize("place", ["reference/sub-0.nii.gz", "low/sub-0.nii.gz", "upscaled/same/sub-0.nii.gz"])
def test_a_volume_is_never_taken_for_what_a_newer_sidecar_says(place, tmp_path, heads, protocol, engines, monkeypatch):
    found, out, model = find_heads(heads, protocol.protocol), tmp_path / "out", {"same": Path("a")}
    run_protocol(protocol, found, model, out, montage=False)
    reseeded = protocol._replace(protocol=protocol.protocol.model_copy(update={"seed": 4}))
    replaces = os.replace

    def killed(source, target):
        if str(target).endswith(place):
            raise KeyboardInterrupt
        replaces(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run_protocol(reseeded, found, model, out, montage=False)
    assert not (out / place).exists()
    resumed = run_protocol(reseeded, found, model, out, montage=False)
    assert resumed.rows == run_protocol(reseeded, found, model, tmp_path / "fresh", montage=False).rows


def test_what_is_drawn_goes_by_the_files_name_and_so_does_what_is_kept(tmp_path, heads, protocol):
    before = run_protocol(protocol, find_heads(heads, protocol.protocol), {}, tmp_path / "out", montage=False)
    (heads / "sub-0_T1w.nii.gz").rename(heads / "sub-0_acq-b_T1w.nii.gz")
    found = find_heads(heads, protocol.protocol)
    assert set(found.entered) == {"sub-0", "sub-1"}
    after = run_protocol(protocol, found, {}, tmp_path / "out", montage=False)
    assert after.rows == run_protocol(protocol, found, {}, tmp_path / "fresh", montage=False).rows
    assert after.rows != before.rows


def test_another_state_of_the_source_makes_everything_again(tmp_path, heads, protocol, engines, monkeypatch):
    out, found = tmp_path / "out", find_heads(heads, protocol.protocol)
    run_protocol(protocol, found, {"same": Path("a")}, out, montage=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    monkeypatch.setattr(benchmark, "source_sha256", lambda: "another")
    run_protocol(protocol, found, {"same": Path("a")}, out, montage=False)
    assert len(before) == 6
    assert all(path.stat().st_mtime_ns > made for path, made in before.items())


def test_a_model_is_told_the_smallest_voxel_and_heads_unlike_its_own_are_told_once(tmp_path, heads, protocol, engines, monkeypatch):
    write_volume(heads / "sub-2_T1w.nii.gz", head(2, voxel_size=(1.0, 1.0, 1.4)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("voxel_size: 2.0\nacquired: [4.0, 4.0, 4.0]\n")
    told, upscale = [], Engine.upscale

    def spied(engine, low, request, **how):
        told.append(request.to_mm)
        return upscale(engine, low, request, **how)

    monkeypatch.setattr(Engine, "upscale", spied)
    found = find_heads(heads, protocol.protocol)
    comparison = run_protocol(protocol, found, {"same": tmp_path / "run"}, tmp_path / "out", montage=False)
    assert told == [1.0, 1.0, 1.0]
    scans = [note for note in comparison.all_notes if "trained on scans of 4 mm" in note]
    voxels = [note for note in comparison.all_notes if "voxels of 2 mm, this head has 1 × 1 × 1 mm" in note]
    assert [len(scans), len(voxels)] == [1, 1]
    assert scans[0].startswith("same: 3 of 3 heads are unlike its training: sub-0, ")
    assert voxels[0].startswith("same: 3 of 3 heads are unlike its training: sub-0, ")


def test_heads_that_a_model_was_trained_on_are_told_with_the_scores(tmp_path, heads, protocol, engines):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"volumes: {heads}\nacquired: [2.0, 2.0, 2.0]\n")
    (tmp_path / "run" / "volumes.txt").write_text("sub-1_T1w.nii.gz\n")
    found = find_heads(heads, protocol.protocol)
    comparison = run_protocol(protocol, found, {"same": tmp_path / "run"}, tmp_path / "out", montage=False)
    assert "1 of 2 heads is in the training split of same: their scores say nothing of unseen heads" in comparison.all_notes
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["provenance"]["models"]["same"]["heads_seen"] == {"known": True, "train": ["sub-1"], "trained_on": {"model": ["sub-1"]}}
    assert any("training split of same" in note for note in document["notes"])


def test_what_a_benchmark_made_compares_like_any_files(tmp_path, heads, protocol, engines):
    out = tmp_path / "out"
    rows = run_protocol(protocol, find_heads(heads, protocol.protocol), {"same": Path("a")}, out, montage=False).rows
    means = Means(Rules(("psnr",)), montage=False)
    again = compare_files({"same": out / "upscaled/same"}, out / "reference", tmp_path / "again", low=out / "low", means=means)
    ours = {(r.subject, r.method, r.region): r.values["psnr"] for r in rows}
    assert ours == {(r.subject, r.method, r.region): r.values["psnr"] for r in again.rows}


def test_a_head_that_fails_does_not_stop_the_others(tmp_path, heads, protocol, engines):
    write_volume(heads / "sub-2_T1w.nii.gz", replace(head(2), data=-head(2).data))
    comparison = run_protocol(protocol, find_heads(heads, protocol.protocol), {}, tmp_path / "out", montage=False)
    assert "below zero" in comparison.failures["sub-2"]
    assert {r.subject for r in comparison.rows} == {"sub-0", "sub-1"}


def test_a_benchmark_replaces_no_file_of_others_and_takes_none_of_its_own_for_a_head(tmp_path, heads, protocol, engines):
    out = heads / "out"
    write_volume(out / "reference" / "sub-0.nii.gz", head(5))
    before = (out / "reference" / "sub-0.nii.gz").read_bytes()
    found = find_heads(heads, protocol.protocol, out)
    assert set(found.entered) == {"sub-0", "sub-1"}
    comparison = run_protocol(protocol, found, {}, out, montage=False)
    assert "not written by jaxsr" in comparison.failures["sub-0"]
    assert (out / "reference" / "sub-0.nii.gz").read_bytes() == before
    with pytest.raises(NoHeads, match="no heads"):
        find_heads(out / "reference", protocol.protocol, out)


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json", "montages/sub-1.png"])
def test_a_table_or_picture_of_others_is_found_before_a_head_is_degraded(tmp_path, heads, protocol, name):
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("of somebody else")
    with pytest.raises(FileError, match=f"{theirs.name} exists and was not written by jaxsr"):
        run_protocol(protocol, find_heads(heads, protocol.protocol), {}, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "of somebody else"


def test_heads_that_differ_by_format_alone_stay_apart_and_as_they_are(tmp_path, heads, protocol, engines):
    write_volume(heads / "sub-0_T1w.nii", head(5))
    before = {path: path.read_bytes() for path in heads.iterdir()}
    comparison = run_protocol(protocol, find_heads(heads, protocol.protocol), {}, tmp_path / "out", montage=False)
    assert {r.subject for r in comparison.rows} == {path.name for path in before}
    assert {path: path.read_bytes() for path in heads.iterdir()} == before


@pytest.mark.parametrize("subject", ["/elsewhere/a", "../../a", "sub-1/../sub-0"])
def test_no_volume_of_a_benchmark_lies_outside_its_folder_or_on_another(tmp_path, heads, protocol, subject):
    found = find_heads(heads, protocol.protocol)
    found.entered[subject] = found.entered["sub-1"]
    with pytest.raises(EvaluationError, match=r"lies outside|is that of sub-0, too"):
        run_protocol(protocol, found, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tricubic", "../out", "a b", ""])
def test_a_model_needs_a_name_that_a_folder_can_have(tmp_path, heads, protocol, name):
    with pytest.raises(EvaluationError, match="name"):
        run_protocol(protocol, find_heads(heads, protocol.protocol), {name: Path("a")}, tmp_path / "out")


def test_the_region_mask_goes_with_masks_and_takes_them(tmp_path, heads, protocol, engines):
    masked = protocol._replace(protocol=protocol.protocol.model_copy(update={"regions": ("mask",)}))
    found = find_heads(heads, masked.protocol)
    with pytest.raises(EvaluationError, match="--mask"):
        run_protocol(masked, found, {}, tmp_path / "out")
    for subject in ("sub-0", "sub-1"):
        inside = replace(head(), data=(head().data > 0).astype(np.float32), orientation=("P", "S", "L"))
        write_volume(tmp_path / "masks" / f"{subject}_desc-brain_mask.nii.gz", inside)
    comparison = run_protocol(masked, found, {}, tmp_path / "out", masks=tmp_path / "masks", montage=False)
    assert {(r.region, r.voxels) for r in comparison.rows} == {("mask", int((head().data > 0).sum()))}


def test_an_image_for_a_mask_is_refused_before_anything_is_degraded(tmp_path, heads, protocol):
    masked = protocol._replace(protocol=protocol.protocol.model_copy(update={"regions": ("mask",)}))
    with pytest.raises(EvaluationError, match="the reference itself"):
        run_protocol(
            masked, find_heads(heads / "sub-0_T1w.nii.gz", masked.protocol), {}, tmp_path / "out", masks=heads / "sub-0_T1w.nii.gz"
        )
    assert not (tmp_path / "out").exists()


def test_lpips_and_its_weights_go_together_and_that_is_seen_before_anything_is_degraded(tmp_path, heads, protocol):
    named = protocol._replace(protocol=protocol.protocol.model_copy(update={"metrics": ("psnr", "lpips")}))
    found = find_heads(heads, protocol.protocol)
    with pytest.raises(ValueError, match="needs its published weights"):
        run_protocol(named, found, {}, tmp_path / "out")
    with pytest.raises(ValueError, match="in vain"):
        run_protocol(protocol, found, {}, tmp_path / "out", lpips=object())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_of_the_interpolations_zero_filling_resolves_most_of_a_real_head(mri, tmp_path, protocol):
    """It alone passes every frequency that was acquired as it is."""
    resolved = protocol._replace(protocol=protocol.protocol.model_copy(update={"metrics": ("resolution",)}))
    heads = find_heads(mri / "clinical_toolbox" / "T2_1mm.nii", protocol.protocol)
    comparison = run_protocol(resolved, heads, {}, tmp_path / "out", montage=False)
    sizes = {r.method: r.values["resolution"] for r in comparison.rows if r.region == "foreground"}
    assert sorted(sizes, key=sizes.__getitem__)[0] == "zero-filled"
    assert all(2 < mm < 4 for mm in sizes.values())  # finer than the 4 mm of 2 mm voxels' axes: their corners reach 4 / sqrt(3) mm
