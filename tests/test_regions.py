"""Where a mixture's experts are to be scored: `docs/make_regions.py`, of which `launch/experts.sh` makes its masks."""

import importlib.util
from pathlib import Path

import numpy as np

from jaxsr.volume.io import Volume, read_volume, write_volume

SCRIPT = Path(__file__).parents[1] / "docs" / "make_regions.py"


def maker():
    spec = importlib.util.spec_from_file_location("make_regions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_regions_are_disjoint_all_of_grey_and_white_matter_and_the_junction_is_a_voxel_to_each_side(tmp_path):
    make = maker()
    labels = np.zeros((9, 9, 9), np.float32)
    labels[1:8, 1:8, 1:8] = make.GREY
    labels[3:6, 3:6, 3:6] = make.WHITE
    for role in ("high", "labels"):
        write_volume(tmp_path / f"heads/{role}/a.nii.gz", Volume(labels, np.eye(4)))
    make.main(tmp_path / "heads", tmp_path / "out")
    found = {name: read_volume(tmp_path / f"out/{name}/a.nii.gz").data == 1 for name in ("white", "cortex", "junction")}
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in found.values()), labels > 0)
    inner = np.zeros(labels.shape, bool)
    inner[4, 4, 4] = True
    np.testing.assert_array_equal(found["white"], inner)
    assert found["junction"].sum() == 26 + 6 * 9  # the rest of the white cube, and what of the grey shares a face with it


def test_the_middle_lies_where_it_lay():
    make = maker()
    data = np.random.default_rng(0).normal(size=(170, 192, 41)).astype(np.float32)
    cut = make.middle(Volume(data, np.diag([2.0, 1.0, 1.0, 1.0])))
    assert cut.data.shape == make.BOX
    voxel = np.array([3, 4, 5, 1])
    place = np.linalg.inv(np.diag([2.0, 1.0, 1.0, 1.0])) @ cut.affine @ voxel
    assert data[tuple(place[:3].astype(int))] == cut.data[3, 4, 5]
