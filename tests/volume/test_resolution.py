"""Laws of what a scan resolves: k-space that was filled with zeros is found, and a head that ends by itself is not taken for it."""

import numpy as np
import pytest

from jaxsr.data.anatomy import template_t1
from jaxsr.volume.geometry import Grid, resample
from jaxsr.volume.io import Volume, read_volume
from jaxsr.volume.resolution import RANGE, cutoff, resolved_mm


@pytest.fixture(scope="module")
def head():
    """At 2 mm, which is as good as any head and quick."""
    template = template_t1()
    grid = grid_of(template, tuple(n // 4 * 2 for n in template.data.shape))
    return Volume(resample(template.data, template.grid, grid, "kspace"), grid.affine)


def acquired(head, shape, noise=0.01):
    """The magnitude of the lowest frequencies of `head`, on a grid of `shape` in the same field of view, with complex noise."""
    low = resample(head.data, head.grid, grid_of(head, shape), "kspace")
    real, imaginary = noise * float(head.data.max()) * np.random.default_rng(0).normal(size=(2, *shape))
    return np.hypot(low + real, imaginary).astype(np.float32)


def grid_of(head, shape):
    scale = np.array(head.data.shape) / shape
    affine = head.affine @ np.diag([*scale, 1.0])
    affine[:3, 3] += head.affine[:3, :3] @ (scale - 1) / 2  # corners stay where they are
    return Grid(shape, affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("share", [0.25, 0.4, 0.5, 0.67, 0.8])
def test_where_k_space_was_filled_with_zeros_is_found(head, axis, share):
    shape = tuple(2 * round(n * (share if a == axis else 1) / 2) for a, n in enumerate(head.data.shape))
    scan = resample(acquired(head, shape), grid_of(head, shape), head.grid, "kspace")
    for along in range(3):
        expected = shape[axis] / head.data.shape[axis] if along == axis else 1.0
        assert cutoff(scan, along) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_units_and_offsets_do_not_matter(head, scale):
    shape = tuple(n // 4 * 2 for n in head.data.shape)
    scan = resample(acquired(head, shape), grid_of(head, shape), head.grid, "kspace")
    found = [cutoff(scan, axis) for axis in range(3)]
    assert [cutoff(scale * (scan + 10), axis) for axis in range(3)] == pytest.approx(found)


def test_scans_that_are_as_fine_as_their_voxels_resolve_them(head):
    for shape in (head.data.shape, tuple(n // 3 * 2 for n in head.data.shape), tuple(n // 2 for n in head.data.shape)):
        for noise in (0.0, 0.01, 0.05):
            scan = acquired(head, shape, noise)
            assert resolved_mm(scan, (1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((40, 40, 40), np.float32),
        np.full((40, 40, 40), 7.0, np.float32),
        np.abs(np.random.default_rng(0).normal(size=(40, 40, 40))).astype(np.float32),
        np.random.default_rng(0).integers(0, 2, (40, 4, 1)),
        np.pad(np.ones((8, 8, 8), np.float32), 16),
    ],
    ids=["nothing", "constant", "noise", "thin", "box"],
)
def test_what_is_no_head_has_no_cutoff(data):
    assert [cutoff(data, axis) for axis in range(3)] == [1, 1, 1]


# By eye, from the spectra: shares of the Nyquist frequency. Heads that were resampled to an atlas, or acquired as they are, have none.
REAL = {
    "open_ms_long_patient12/study1_FLAIR.nii.gz": (0.68, 1, 1),
    "fnndsc_adult/T2w_FSE_axial_thick_defaced.nii.gz": (0.67, 1, 1),
    "ulf_055T_3T_pair/F6B_0p055T_T1w.nii.gz": (0.79, 0.52, 1),
    "clinical_toolbox/T2_1mm.nii": (0.78, 1, 1),
    "py_synthsr/FLAIR_1mm_defaced.nii.gz": (1, 1, 1),
    "freesurferformats/brain.mgz": (1, 1, 1),
    "open_ms_patient07/T1_brain_MNI1mm.nii.gz": (1, 1, 1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_scans_resolve_what_their_spectra_show(mri, name):
    volume = read_volume(mri / name)
    found = [cutoff(volume.data, axis) for axis in range(3)]
    assert found == pytest.approx(REAL[name], abs=0.04)
    assert all(of == 1 or RANGE[0] <= of <= RANGE[1] for of in found)
