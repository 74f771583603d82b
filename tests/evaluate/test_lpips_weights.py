"""LPIPS is a column where its weights are named, and nothing is scored where they are missing, damaged or in vain."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.data.records import file_sha256
from jaxsr.evaluate.benchmark import run_protocol
from jaxsr.evaluate.compare import compare_volumes
from jaxsr.evaluate.heads import find_heads
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.lpips_weights import read_lpips
from jaxsr.evaluate.metrics import perceptual
from jaxsr.evaluate.metrics.perceptual import lpips
from jaxsr.evaluate.protocol import load_protocol
from jaxsr.evaluate.scores import DEFAULT, RULES, Rules
from jaxsr.models.perceptual import perceptual_shapes
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, write_volume
from jaxsr.weights.file import write_arrays
from jaxsr.weights.perceptual import FORMAT

SHAPE = (20, 22, 9)  # the network sees 9 axial slices


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file for the smallest network, drawn: what it gives is no LPIPS, but is computed as that."""
    rng = np.random.default_rng(0)

    def drawn(leaf):
        values = np.sqrt(2 / np.prod(leaf.shape[:-1])) * rng.normal(size=leaf.shape)
        return np.asarray(np.abs(values) if leaf.shape[-1] == 1 else values, np.float32)

    path = tmp_path_factory.mktemp("weights") / "squeeze.safetensors"
    write_arrays(path, jax.tree.map(drawn, perceptual_shapes("squeeze")), {"format": FORMAT, "net": "squeeze"})
    return path


def head(seed=0, shape=SHAPE):
    random = np.random.default_rng(seed)
    radius = np.sqrt(sum(np.linspace(-1.2, 1.2, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(shape)))
    return Volume(np.where(radius < 1, 140 + 20 * random.random(shape), 40).astype(np.float32), np.eye(4))


def noisy(volume):
    return replace(volume, data=volume.data + 8 * np.random.default_rng(9).standard_normal(volume.data.shape).astype(np.float32))


def evaluate(*words):
    return run(lambda: app(["evaluate", *map(str, words)], standalone_mode=False))


@pytest.mark.parametrize("kind", ["robust", "full"])
def test_the_column_is_lpips_between_the_ends_of_the_data_range(weights, kind):
    truth, rules = head(), RULES._replace(metrics=("lpips",), data_range=kind, lpips=read_lpips(weights))
    image, inside = compare_volumes(truth, {"a": noisy(truth)}, rules=rules)
    region = foreground(truth.data)
    window = fit_window(truth.data, mask=region) if kind == "robust" else (truth.data[region].min(), truth.data[region].max())
    assert image.data_range == inside.data_range == pytest.approx(window[1] - window[0])
    for row, mask in ((image, None), (inside, region)):
        expected = lpips(noisy(truth).data, truth.data, rules.lpips.weights, data_range=tuple(window), mask=mask)
        assert row.values["lpips"] == pytest.approx(float(expected), rel=1e-5)
    assert image.values["lpips"] != pytest.approx(inside.values["lpips"], rel=0.05)


def test_slices_may_be_few_but_not_smaller_than_the_network_needs(weights):
    rules = RULES._replace(metrics=("lpips", "rmse"), lpips=read_lpips(weights))
    row = compare_volumes(head(shape=(22, 16, 20)), {"a": noisy(head(shape=(22, 16, 20)))}, rules=rules)[0]
    assert np.isnan(row.values["lpips"])
    assert row.values["rmse"] > 0


def test_the_network_is_compiled_once_a_shape_and_region(weights):
    rules = RULES._replace(metrics=("lpips",), lpips=read_lpips(weights))
    perceptual._lpips.clear_cache()
    for seed in range(3):
        compare_volumes(head(seed), {"a": noisy(head(seed)), "b": head(9)}, rules=rules)
    assert perceptual._lpips._cache_size() == 2


def test_without_weights_there_is_no_lpips():
    for rules, message in ((Rules(("psnr", "lpips")), "needs its published weights"), (RULES._replace(lpips=object()), "in vain")):
        with pytest.raises(ValueError, match=message):
            compare_volumes(head(), {"a": head()}, rules=rules)


def test_the_file_named_on_the_command_line_adds_the_column_and_stands_in_the_json(weights, tmp_path):
    write_volume(tmp_path / "truth.nii.gz", head())
    write_volume(tmp_path / "out.nii.gz", noisy(head()))
    files = "-i", tmp_path / "out.nii.gz", "-r", tmp_path / "truth.nii.gz", "--lpips-weights", weights, "--no-montage"
    assert evaluate(*files, "-o", tmp_path / "e") == 0
    document = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert document["provenance"]["lpips"] == {"file": "squeeze.safetensors", "net": "squeeze", "sha256": file_sha256(weights)}
    assert list(document["rows"][0]["values"]) == [*DEFAULT, "lpips"]
    assert "lpips" in document["conventions"]
    assert evaluate(*files, "-o", tmp_path / "f", "--metrics", "lpips") == 0
    alone = json.loads((tmp_path / "f" / "metrics.json").read_text())["rows"][0]["values"]
    assert alone == {"lpips": document["rows"][0]["values"]["lpips"]}


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda data: data[: len(data) // 2], "squeeze.safetensors"),
        (lambda data: data.replace(b'"net":"squeeze"', b'"net":"vgg"    '), "fit"),
    ],
)
def test_damaged_weights_and_those_of_another_network_are_refused_by_their_reader(weights, tmp_path, capsys, spoil, sentence):
    (tmp_path / "squeeze.safetensors").write_bytes(spoil(weights.read_bytes()))
    assert (tmp_path / "squeeze.safetensors").read_bytes() != weights.read_bytes()
    write_volume(tmp_path / "truth.nii.gz", head())
    at = tmp_path / "truth.nii.gz"
    assert evaluate("-i", at, "-r", at, "--lpips-weights", tmp_path / "squeeze.safetensors", "-o", tmp_path / "e") == 4
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_protocol_that_names_lpips_scores_it(weights, tmp_path):
    write_volume(tmp_path / "head.nii.gz", head(shape=(24, 26, 22)))
    (tmp_path / "p.yaml").write_text("name: p\nacquisition: {voxel_size: [2.0, 2.0, 2.0]}\nmetrics: [rmse, lpips]\n")
    file = load_protocol(tmp_path / "p.yaml")
    out, given = tmp_path / "out", read_lpips(weights)
    comparison = run_protocol(file, find_heads(tmp_path / "head.nii.gz", file.protocol), {}, out, lpips=given, montage=False)
    assert {row.method for row in comparison.rows} == set(INTERPOLATIONS)
    assert all(row.values["lpips"] > 0 for row in comparison.rows)
    assert json.loads((out / "metrics.json").read_text())["provenance"]["lpips"] == given.facts
