"""The four cells of the teacher's Table I: heads that show what their scanner does, one model run with the maps of that and without.

What is rendered is a ball here, and the model adds the maps to what it is given, so that its outputs tell which it had.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxsr.cli import app
from jaxsr.config import ConfigError, load
from jaxsr.data.anatomy import Head
from jaxsr.data.gradients import gradient_map, jacobian_map
from jaxsr.evaluate import benchmark
from jaxsr.evaluate.benchmark import run_protocol
from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.heads import find_heads
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.protocol import Protocol, load_protocol
from jaxsr.evaluate.rendered import planned_heads
from jaxsr.evaluate.statistics import ALPHA
from jaxsr.experiment import DataConfig
from jaxsr.physics.gradients import warp
from jaxsr.upscale.engine import Engine
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.io import read_volume, write_volume

CONFIGS = Path(__file__).parents[2] / "configs" / "ablations"
TEXT = """\
name: cells
heads: {count: 2, voxel_size: 4.0, contrast: T1w, carries: [bias, gradient]}
guidance: [[bias, gradient], [bias], [gradient], []]
acquisition: {voxel_size: [8.0, 8.0, 8.0]}
seed: 3
metrics: [psnr, rmse]
against: none
"""
RUNS = ("teacher-bias-gradient", "teacher-bias", "teacher-gradient", "teacher-none")
MODEL = {"teacher": Path("a")}
BIAS, GRADIENT, JACOBIAN = 0.1, 0.01, 2.0  # what the model adds of a map


def ball(key, shape, mm, contrast, *, maps):
    """A head of this key, and all that it can come with."""
    at = np.stack(np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij"))
    strength = 1 + np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist()).random()
    image = np.where((at**2).sum(0) < 1, 0.5 + 0.2 * np.cos(9 * strength * at[0]) * np.cos(8 * at[1]), 0).astype(np.float32)
    drawn = {
        "bias": (0.3 * strength * at[1] + 0.1).astype(np.float32),
        "gradient": np.stack([4 * strength * at[0], -2 * at[1] ** 2, at[2] ** 3], -1).astype(np.float32),
    }
    return Head(image, np.zeros(shape, np.uint8), **{name: x for name, x in drawn.items() if name in maps})


class Guided:
    multiple, most_steps = 8, 1

    def __init__(self):
        from jaxsr.methods.base import Request

        self.default_request = Request(steps=1)

    def upscale(self, variables, condition, keys, request):
        from jaxsr.methods.base import UpscaleOutput

        image = condition.low
        image = image if condition.bias is None else image + BIAS * condition.bias
        image = image if condition.gradient is None else image + GRADIENT * condition.gradient.sum(-1, keepdims=True)
        image = image if condition.jacobian is None else image + JACOBIAN * condition.jacobian
        return UpscaleOutput(image, {})


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """The engines made. A model is guided by b and g, as jacobian by b and the Jacobian of g, as bias by b, or, as plain, by none."""
    from jaxsr.runtime.mesh import make_mesh

    made = []

    def make_engine(model, *, batch_size):
        made.append(Engine(model.method, {}, make_mesh(devices=jax.local_devices()), batch_size=8))
        return made[-1]

    def load_model(path, note=None):
        maps = {"plain": (), "bias": ("bias",), "jacobian": ("bias", "jacobian")}.get(path.name, ("bias", "gradient"))
        experiment = SimpleNamespace(
            method=SimpleNamespace(kind="guided", maps=maps), data=DataConfig(voxel_size=4.0, acquired=(8.0, 8.0, 8.0))
        )
        return SimpleNamespace(name=path.stem, step=1, sha256=f"of {path}", frozen={}, method=Guided(), experiment=experiment)

    monkeypatch.setattr("jaxsr.data.subjects.render", ball)
    monkeypatch.setattr("jaxsr.upscale.files.make_engine", make_engine)
    monkeypatch.setattr("jaxsr.upscale.model.load_model", load_model)
    return made


@pytest.fixture
def protocol(tmp_path):
    (tmp_path / "cells.yaml").write_text(TEXT)
    return load_protocol(tmp_path / "cells.yaml")


def evaluated(protocol, out, models=MODEL, **changes):
    changed = protocol._replace(protocol=protocol.protocol.model_copy(update=changes))
    return run_protocol(changed, planned_heads(changed.protocol, out), models, out, montage=False)


def times(out, place="."):
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in (out / place).rglob("*.nii.gz")}


def said(path):
    return json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())


def test_each_run_of_one_model_is_given_the_maps_of_its_cell_and_no_others(tmp_path, protocol, engines):
    out = tmp_path / "out"
    comparison = evaluated(protocol, out)
    assert {row.method for row in comparison.rows} == {*INTERPOLATIONS, *RUNS}
    assert (len(engines), {path.name for path in (out / "upscaled").iterdir()}) == (1, {*RUNS})
    for subject in ("sub-0000", "sub-0001"):
        images = {run: read_volume(out / "upscaled" / run / f"{subject}.nii.gz").data for run in RUNS}
        low, high = said(out / f"upscaled/teacher-none/{subject}.nii.gz")["JaxSR"]["IntensityWindow"]
        field = np.log(read_volume(out / f"heads/bias/{subject}.nii.gz").data)
        vectors = gradient_map(read_volume(out / f"heads/high/{subject}.nii.gz").grid, out / f"heads/gradient/{subject}.nii.gz")
        unit = (high - low) / 2
        added = {"bias": unit * BIAS * (field - field.mean()), "gradient": unit * GRADIENT * vectors.sum(-1)}
        for run in RUNS:
            cell = [name for name in added if name in run.split("-")]
            expected = images["teacher-none"] + sum(added[name] for name in cell)
            np.testing.assert_allclose(images[run], expected, atol=1e-3 * unit * BIAS)
            assert set(said(out / f"upscaled/{run}/{subject}.nii.gz")["JaxSR"]["Guidance"]) == set(cell)
        assert min(np.abs(images[a] - images[b]).max() for a in RUNS for b in RUNS if a != b) > 0.1 * unit * BIAS


def test_a_model_that_the_jacobian_guides_is_run_in_the_same_cells_by_that_of_the_heads_displacement(tmp_path, protocol):
    out, name = tmp_path / "out", "sub-0000.nii.gz"
    evaluated(protocol, out, {"teacher": Path("jacobian")}, guidance=(("gradient",), ()))
    guided, alone = (out / f"upscaled/teacher-{cell}/{name}" for cell in ("gradient", "none"))
    low, high = said(alone)["JaxSR"]["IntensityWindow"]
    grid, added = read_volume(guided).grid, read_volume(guided).data - read_volume(alone).data
    expected = (high - low) / 2 * JACOBIAN * jacobian_map(grid, gradient_map(grid, out / "heads/gradient" / name))
    np.testing.assert_allclose(added, expected, atol=1e-3 * (high - low))
    assert np.ptp(expected) > 0.05 * (high - low)
    assert said(guided)["JaxSR"]["Guidance"]["gradient"]["As"] == "log_jacobian"


def test_models_that_a_map_guides_are_told_that_heads_show_none(tmp_path, protocol):
    """And those that it does not are run beside them."""
    out, heads = tmp_path / "out", protocol.protocol.heads.model_copy(update={"carries": ()})
    models = {"teacher": Path("a"), "sr3": Path("plain")}
    evaluated(protocol, out, models, heads=heads, guidance=(), flat=("bias", "gradient"), against="tricubic")
    facts = {name: said(out / f"upscaled/{name}/sub-0000.nii.gz")["JaxSR"] for name in models}
    assert facts["teacher"]["Guidance"] == {"bias": {"Flat": True}, "gradient": {"Flat": True}}
    assert facts["sr3"]["Guidance"] == {}
    first = times(out, "upscaled/teacher")
    evaluated(protocol, out, models, heads=heads, guidance=(), against="tricubic")  # not told, it is another output
    assert said(out / "upscaled/teacher/sub-0000.nii.gz")["JaxSR"]["Guidance"] == {}
    assert times(out, "upscaled/teacher") != first


def test_axes_and_sampling_steps_are_what_the_protocol_says_and_another_s_output_is_made_again(tmp_path, protocol, monkeypatch):
    out, plain = tmp_path / "out", {"guidance": (), "against": "tricubic", "heads": protocol.protocol.heads.model_copy(update={"count": 1})}
    monkeypatch.setattr(Guided, "most_steps", 4)
    evaluated(protocol, out, **plain)
    facts = said(out / "upscaled/teacher/sub-0000.nii.gz")["JaxSR"]
    assert (facts["Axes"], facts["SamplingSteps"]) == (["sagittal", "coronal", "axial"], 1)
    for changes, expected in (({"axes": ("axial",)}, (["axial"], 1)), ({"axes": ("axial",), "steps": 9}, (["axial"], 4))):
        comparison = evaluated(protocol, out, **plain, **changes)
        facts = said(out / "upscaled/teacher/sub-0000.nii.gz")["JaxSR"]
        assert (facts["Axes"], facts["SamplingSteps"]) == expected
    assert "teacher took 4 sampling steps, as many as it can, and not the protocol's 9" in comparison.notes


def test_what_is_acquired_has_neither_map_in_it_and_the_truth_has_both(tmp_path, protocol):
    """The truth is b · x(r + g); the acquisition is that of x, drawn as for any head of its name."""
    out = tmp_path / "out"
    evaluated(protocol, out)
    plain = protocol._replace(protocol=protocol.protocol.model_copy(update={"heads": None, "guidance": (), "against": "tricubic"}))
    os.rename(out / "heads" / "plain", tmp_path / "plain")
    run_protocol(plain, find_heads(tmp_path / "plain", plain.protocol), {}, tmp_path / "other", montage=False)
    for subject in ("sub-0000", "sub-0001"):
        low, same, other = (
            read_volume(place / f"{subject}.nii.gz").data for place in (out / "low", tmp_path / "other/low", tmp_path / "plain")
        )
        np.testing.assert_array_equal(low, same)
        high, field = (read_volume(out / place / f"{subject}.nii.gz") for place in ("heads/high", "heads/bias"))
        moved = warp(jnp.asarray(other), gradient_map(high.grid, out / f"heads/gradient/{subject}.nii.gz"), high.voxel_size)
        np.testing.assert_allclose(high.data, field.data * np.maximum(moved, 0), atol=1.0)  # of 1000
        np.testing.assert_array_equal(read_volume(out / f"reference/{subject}.nii.gz").data, high.data)
        assert np.abs(high.data / field.data - other).max() > 50


def test_the_tables_say_which_run_had_what_and_all_are_tested_against_the_first_models_run_without_maps(tmp_path, protocol):
    comparison = evaluated(protocol, tmp_path / "out", {"teacher": Path("a"), "other": Path("b")})
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {test["against"] for test in document["tests"]} == {"teacher-none"} == {document["provenance"]["against"]}
    assert {name: facts["guidance"] for name, facts in document["provenance"]["models"].items() if name in RUNS} == {
        "teacher-bias-gradient": ["bias", "gradient"],
        "teacher-bias": ["bias"],
        "teacher-gradient": ["gradient"],
        "teacher-none": [],
    }
    assert document["protocol"]["settings"]["heads"]["carries"] == ["bias", "gradient"]
    told = " ".join(comparison.all_notes)
    assert "teacher is one set of weights in 4 runs: teacher-bias-gradient with bias field and gradient nonlinearity, " in told
    assert "teacher-none without maps" in told
    assert "the heads are synthetic: rendered from the embedded anatomy, T1w, 4 mm; they show their scanner's bias field and" in told


def test_an_interrupted_ablation_goes_on_and_a_finished_one_makes_nothing_again(tmp_path, protocol, engines, monkeypatch):
    out = tmp_path / "out"

    def interrupted(path, *rest, **how):
        write_volume(path, *rest, **how)
        if "upscaled/teacher-bias/" in path.as_posix():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "write_volume", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluated(protocol, out)
    before = times(out)
    assert len(before) == 2 * 4 + 2 * 2 + 3  # roles of heads, what is made of them, both of the first run and one of the second
    first = evaluated(protocol, out)
    after = times(out)
    assert len(after) == 2 * 4 + 2 * 2 + 2 * 4
    assert {name: after[name] for name in before} == before
    assert evaluated(protocol, out).rows == first.rows
    assert (times(out), len(engines)) == (after, 2)


def test_what_another_map_guided_is_not_scored_but_made_again(tmp_path, protocol):
    out = tmp_path / "out"
    rows = evaluated(protocol, out).rows
    before, path = times(out), out / "heads/bias/sub-0001.nii.gz"
    field = read_volume(path)
    path.unlink()
    write_volume(path, type(field)(field.data**2, field.affine))
    changed = evaluated(protocol, out).rows
    after = times(out)
    remade = {name for name in after if after[name] != before[name]}
    assert remade == {"heads/bias/sub-0001.nii.gz", *(f"upscaled/{run}/sub-0001.nii.gz" for run in RUNS[:2])}
    assert {row.method for row, old in zip(changed, rows, strict=True) if row != old} == {*RUNS[:2]}


def test_a_guided_output_is_never_taken_for_that_of_a_model_of_the_same_name_without_maps(tmp_path, protocol):
    out = tmp_path / "out"
    evaluated(protocol, out)
    guided, alone = (read_volume(out / f"upscaled/{run}/sub-0000.nii.gz").data for run in ("teacher-bias", "teacher-none"))
    evaluated(protocol, out, {"teacher-bias": Path("a")}, guidance=(), against="tricubic")
    now = read_volume(out / "upscaled/teacher-bias/sub-0000.nii.gz").data
    np.testing.assert_array_equal(now, alone)
    assert not np.array_equal(now, guided)


def test_the_shipped_cells_differ_by_contrast_alone_and_have_heads_enough_for_holms_correction():
    """The smallest two-sided p of n pairs is 2^(1 − n), times as many as are tested against one."""
    first, second = (load_protocol(CONFIGS / f"{name}.yaml").protocol for name in ("guidance", "guidance-t2w"))
    assert (first.heads.contrast, second.heads.contrast) == ("T1w", "T2w")
    same = {"name": "", "heads": first.heads}
    assert first.model_copy(update=same) == second.model_copy(update=same)
    assert first.heads.model_copy(update={"contrast": "T2w"}) == second.heads
    assert (len(INTERPOLATIONS) + len(first.guidance) - 1) * 2.0 ** (1 - first.heads.count) < ALPHA


@pytest.mark.parametrize("change", ["seed", "source"])
def test_heads_made_in_another_way_are_rendered_again(change, tmp_path, protocol, monkeypatch):
    out = tmp_path / "out"
    evaluated(protocol, out)
    before = times(out)
    if change == "source":
        monkeypatch.setattr("jaxsr.evaluate.rendered.source_sha256", lambda: "another")
    again = evaluated(protocol, out, seed=4 if change == "seed" else 3)
    remade = {name for name, at in times(out).items() if at != before[name]}
    assert remade >= {name for name in before if change == "seed" or name.startswith("heads/")}
    fresh = evaluated(protocol, tmp_path / "fresh", seed=4 if change == "seed" else 3)
    assert again.rows == fresh.rows


def test_heads_that_somebody_else_generated_are_left_alone(tmp_path, protocol):
    from jaxsr.generate import generate

    out = tmp_path / "out"
    generate(out / "heads", 1, voxel_size=8.0)
    before = times(out)
    with pytest.raises(VolumeError, match=r"generated in another way .*: choose another folder"):
        evaluated(protocol, out)
    assert times(out) == before


@pytest.mark.parametrize(
    "models, said",
    [
        ({"sr3": "plain"}, "sr3 is guided by no maps, and the protocol's guidance has bias and gradient"),
        ({"teacher": "a", "half": "bias"}, "half is guided by bias only, and the protocol's guidance has gradient"),
        ({"teacher": "a", "teacher-bias": "a"}, "teacher-bias-gradient would be a run of teacher and one of teacher-bias"),
        ({"tricubic": "a"}, "cannot go by the name 'tricubic'"),
        ({}, "tests against 'none', which is no interpolation, no cell"),
    ],
)
def test_what_cannot_be_run_in_every_cell_is_refused_before_a_head_is_rendered(models, said, tmp_path, protocol):
    with pytest.raises(EvaluationError, match=said):
        evaluated(protocol, tmp_path / "out", {name: Path(path) for name, path in models.items()})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "override, said",
    [
        ("heads.carries=[bias]", "guidance names gradient, which heads.carries does not"),
        ("heads=null", "guidance names bias and gradient, which heads.carries does not"),
        ("guidance=[[bias], [bias]]", "twice: bias, bias"),
        ("guidance=[[bias, gradient], [gradient, bias]]", "twice: bias-gradient, bias-gradient"),
        ("guidance=[[bias, bias]]", "twice"),
        ("guidance=[[labels]]", "guidance"),
        ("heads.voxel_size=7.0", "1.14 times coarser"),
        ("heads.count=0", "heads.count"),
        ("heads.contrast=FLAIR", "heads.contrast"),
        ("regions=[mask]", "without masks"),
        ("flat=[bias]", "flat and guidance do not go together"),
        ("axes=[axial, axial]", "each once, got axial, axial"),
        ("axes=[]", "each once, got none"),
        ("steps=0", "steps"),
    ],
)
def test_what_no_ablation_can_be_is_refused(override, said, tmp_path):
    (tmp_path / "cells.yaml").write_text(TEXT)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "cells.yaml", [override], Protocol)


def test_the_command_takes_no_heads_for_such_a_protocol_and_needs_them_for_others(tmp_path, protocol):
    words = ["evaluate", "--protocol", str(tmp_path / "cells.yaml"), "--models", "teacher=a", "-o", str(tmp_path / "out")]
    planned = CliRunner().invoke(app, [*words, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "2 of 2 heads enter cells" in planned.output
    assert all(run in planned.output for run in RUNS)
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, [*words, "-r", str(tmp_path)]).exit_code == 2
    (tmp_path / "given.yaml").write_text("name: given\nacquisition: {voxel_size: [8.0, 8.0, 8.0]}\n")
    refused = CliRunner().invoke(app, ["evaluate", "--protocol", str(tmp_path / "given.yaml"), "-o", str(tmp_path / "out")])
    assert (refused.exit_code, "renders none" in refused.output) == (2, True)


def test_heads_cannot_show_what_they_are_said_not_to(tmp_path):
    (tmp_path / "cells.yaml").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"flat names bias, which heads.carries does, too"):
        load(tmp_path / "cells.yaml", ["guidance=[]", "flat=[bias]"], Protocol)
