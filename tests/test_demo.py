"""The demo, end to end: what it writes, and that a second run only looks."""

import contextlib

import numpy as np
import pytest

from jaxsr.demo import gains, run_demo
from jaxsr.evaluate.tables import Comparison, Row
from jaxsr.volume.io import read_volume

COARSE = ["data.voxel_size=5.0", "data.crop=16", "data.draws=8", "data.window=2", "train.steps=2", "method.network.width=8"]


@contextlib.contextmanager
def quiet(title, total):
    yield lambda done, text="", total=None: None, lambda sentence: None


def test_the_demo_leaves_volumes_tables_pictures_and_a_model_and_a_second_run_leaves_them_alone(tmp_path):
    said = []
    found = run_demo(tmp_path, said.append, quiet, train=True, overrides=COARSE)
    assert [s.split()[0] for s in said] == ["training", "simulating", "upscaling", "comparing"]
    assert found.model.joinpath("config.yaml").is_file()
    assert {row.method for row in found.held_out.rows} == {"sr3", "nearest", "trilinear", "tricubic", "zero-filled"}
    assert len({row.subject for row in found.held_out.rows}) == 2
    assert all(path.is_file() for path in [*found.held_out.files, *found.held_out.montages, *found.template.montages])
    truth, upscaled = (read_volume(next((tmp_path / "held_out" / name).glob("*.nii.gz"))) for name in ("truth", "upscaled"))
    np.testing.assert_allclose(truth.affine, upscaled.affine, atol=1e-4)

    outputs = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    again = run_demo(tmp_path, said.append, quiet, train=True, overrides=COARSE)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")} == outputs
    assert again.held_out.summary == found.held_out.summary


def test_a_gain_is_over_the_best_interpolation_of_each_metric():
    values = {"sr3": (30.0, 0.9), "nearest": (20.0, 0.95), "tricubic": (29.0, 0.8)}
    rows = [Row("a", name, "image", 1.0, 10, {"psnr": psnr, "ssim": ssim}) for name, (psnr, ssim) in values.items()]
    assert gains(Comparison(tuple(rows)), "image", "sr3") == pytest.approx({"psnr": 1.0, "ssim": -0.05})
