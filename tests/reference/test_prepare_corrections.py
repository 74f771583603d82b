"""`prepare` with SimpleITK: what it corrects and registers, where the truth is known."""

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.data.anatomy import render
from jaxsr.data.layouts.base import Scan, Wanted
from jaxsr.physics.fields import bias_field
from jaxsr.prepare.scan import TISSUE, Prepared, prepare_scan
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.volume.geometry import resample
from jaxsr.volume.io import Volume, write_volume

pytestmark = pytest.mark.reference
pytest.importorskip("SimpleITK", reason="needs the [reference] extra")

SHAPE, MM = (50, 58, 46), 4.0


def volume(contrast: str, moved: np.ndarray | None = None, field: np.ndarray | float = 1.0) -> Volume:
    affine = np.diag([MM, MM, MM, 1.0])
    affine[:3, 3] = -MM * (np.array(SHAPE) - 1) / 2
    image = np.asarray(render(jax.random.key(3), SHAPE, MM, contrast).image) * 500 * field
    noise = np.random.default_rng(0).normal(0, 5, (2, *SHAPE))
    return Volume(np.hypot(image + noise[0], noise[1]).astype(np.float32), affine if moved is None else moved @ affine)


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    return np.asarray(bias_field(jax.random.key(5), SHAPE, 0.15))


@pytest.fixture(scope="module")
def moved() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (4, -3, 5), degrees=True).as_matrix()
    matrix[:3, 3] = (6, -4, 5)
    return matrix


def run(folder: Path, files: dict[str, Volume], **settings) -> Prepared:
    for role, scan in files.items():
        write_volume(folder / f"{role}.nii.gz", scan)
    wanted = Wanted(high="T1w", reference="T2w" if "reference" in files else None)
    scan = Scan("sub-1", "sub-1", {role: folder / f"{role}.nii.gz" for role in files})
    return prepare_scan(scan, PrepareSettings(layout="folder", voxel_size=MM, wanted=wanted, **settings))


def still_on(made: Prepared) -> np.ndarray:
    """The second contrast where it should be, cropped as the set was."""
    still = volume("T2w")
    return resample(still.data, still.grid, made.pair.grid, "nearest")


def correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(np.corrcoef(a[where], b[where])[0, 1])


def test_a_second_contrast_that_lay_elsewhere_comes_to_lie_on_the_truth(tmp_path, moved):
    registered = run(tmp_path, {"high": volume("T1w"), "reference": volume("T2w", moved)}, bias="off")
    tissue = (registered.pair.high > TISSUE) & registered.covered
    assert correlation(registered.pair.reference, still_on(registered), tissue) > 0.97
    left = run(tmp_path, {"high": volume("T1w"), "reference": volume("T2w", moved)}, bias="off", registration="off")
    assert correlation(left.pair.reference, still_on(left), (left.pair.high > TISSUE) & left.covered) < 0.8


@pytest.mark.slow
def test_the_bias_map_is_the_field_and_the_truth_is_free_of_it(tmp_path, field):
    made = run(tmp_path, {"high": volume("T1w", field=field)}, bias="correct")
    tissue = made.pair.high > TISSUE
    log = np.log(field)
    error = (made.pair.bias - log)[tissue]
    assert error.std() < 0.4 * log[tissue].std()  # N4 takes up a little anatomy
    clean = volume("T1w").data
    uncorrected = run(tmp_path, {"high": volume("T1w", field=field)}, bias="map")
    assert correlation(made.pair.high, clean, tissue) > correlation(uncorrected.pair.high, clean, tissue)
    np.testing.assert_allclose(uncorrected.pair.bias, made.pair.bias, atol=1e-5)


@pytest.mark.slow
def test_a_real_low_resolution_scan_has_a_window_of_its_own_and_lies_on_the_truth(tmp_path, moved):
    def prepared(matrix, registration):
        low = volume("T1w", matrix)
        low = Volume(low.data[::2, ::2, ::2] * 7, low.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
        return run(tmp_path, {"high": volume("T1w"), "low": low}, bias="off", registration=registration)

    def likeness(made):
        return correlation(made.pair.low, made.pair.high, (made.pair.high > TISSUE) & made.covered)

    made = prepared(moved, "rigid")
    best = likeness(prepared(np.eye(4), "off"))  # of one that never moved
    assert likeness(made) > best - 0.02
    assert likeness(prepared(moved, "off")) < best - 0.2
    tissue = (made.pair.high > TISSUE) & made.covered
    assert abs(made.pair.low[tissue].mean() - made.pair.high[tissue].mean()) < 0.2  # seven times as bright in the file
    np.testing.assert_allclose(made.acquired, 2 * MM, rtol=1e-5)
