"""Reading what a layout finds."""

import nibabel as nib
import numpy as np
import pytest

from jaxsr.data.layouts import read_bias, read_scan
from jaxsr.volume.errors import VolumeError


def save(path, data):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.diag([2.0, 2, 2, 1])), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "A.NII", "A.NII.GZ", "a.mgh"])
def test_volumes_are_read_as_everywhere(plant, name):
    assert read_scan(plant(name) / name).data.shape == (16, 16, 16)


def test_a_bias_field_is_its_logarithm_and_nothing_where_it_is_0(tmp_path):
    field = np.exp(np.random.default_rng(0).normal(0, 0.2, (8, 8, 8)))
    field[0] = 0
    volume = read_bias(save(tmp_path / "b.nii", field))
    np.testing.assert_allclose(np.exp(volume.data[1:]), field[1:], rtol=1e-6)
    assert (volume.data[0] == 0).all()
    assert "64 voxels" in volume.notes[-1]


def test_a_logarithm_is_not_taken_for_a_field(tmp_path):
    with pytest.raises(VolumeError, match="if this is its logarithm"):
        read_bias(save(tmp_path / "b.nii", np.random.default_rng(0).normal(0, 0.2, (8, 8, 8))))
