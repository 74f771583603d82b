"""Which affine is believed, what is noted about the others, and what is refused; the cases are those users have met."""

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.volume.io import VolumeError, read_volume

DATA = np.random.default_rng(0).integers(0, 1000, (16, 17, 18)).astype(np.int16)
AFFINE = np.array([[1.0, 0, 0, -8], [0, 1.2, 0, -9], [0, 0, 0.9, -7], [0, 0, 0, 1]])


def turned(degrees, shift=(0, 0, 0), scale=1.0):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() * scale
    turn[:3, 3] = shift
    return turn @ AFFINE


def saved(path, sform=AFFINE, qform=AFFINE, codes=(1, 1), patch=lambda header: None, kind=nib.Nifti1Image):
    image = kind(DATA, None)
    image.header["pixdim"][1:4] = (1, 1.2, 0.9)
    image.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    header = image.header.copy()
    image.to_filename(path)
    raw = bytearray(path.read_bytes())  # nibabel mends headers as it writes: the one meant goes in afterwards
    patch(header)
    header["magic"], header["vox_offset"] = b"n+1", 352
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


def pixdim(*values):
    def patch(header):
        header["pixdim"][1:4] = values

    return patch


def field(name, value):
    def patch(header):
        header[name] = value

    return patch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "v.nii"


def test_equal_forms_need_no_note(path):
    volume = read_volume(saved(path))
    assert volume.notes == ()
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 4)])
def test_one_coded_form_is_enough(path, codes):
    volume = read_volume(saved(path, codes=codes))
    assert volume.notes == ()
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    "other, said", [(turned(0, (30, 0, 0)), "30.00 mm"), (turned(5), "5.00 degrees"), (AFFINE @ np.diag([-1, 1, 1, 1]), "mirrored")]
)
def test_where_the_forms_disagree_the_sform_is_used_and_the_difference_noted(path, other, said):
    volume = read_volume(saved(path, qform=other))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert len(volume.notes) == 1
    assert said in volume.notes[0]


def test_a_qform_that_is_no_rotation_is_noted(path):
    volume = read_volume(saved(path, patch=field("quatern_b", 3.0)))
    assert "qform places nothing" in volume.notes[0]


def test_a_qform_that_is_no_rotation_is_refused_where_it_is_all_there_is(path):
    with pytest.raises(VolumeError, match="quaternion"):
        read_volume(saved(path, codes=(0, 1), patch=field("quatern_b", 3.0)))


def test_without_any_orientation_left_and_right_are_doubted_aloud(path):
    volume = read_volume(saved(path, codes=(0, 0)))
    assert "left and right may be exchanged" in volume.notes[0]
    np.testing.assert_allclose(volume.voxel_size, (1, 1.2, 0.9), rtol=1e-6)


@pytest.mark.parametrize("wrong, message", [
    (np.diag([1.0, 1.0, 0.0, 1.0]), r"singular \(row 3 is \[0, 0, 0, 0\]\)"),
    (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    (np.diag([1.0, np.nan, 1.0, 1.0]), "row 2 .*not finite"),
    (np.diag([np.inf, 1.0, 1.0, 1.0]), "row 1 .*not finite"),
    (np.diag([1e-9, 1e-9, 1e-9, 1.0]), "units"),
    (turned(0, (1e9, 0, 0)), "from the scanner's centre"),
])  # fmt: skip
def test_an_affine_that_places_nothing_is_refused(path, wrong, message):
    with pytest.raises(VolumeError, match=message):
        read_volume(saved(path, sform=wrong))


def test_shear_is_read_and_noted(path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.3
    volume = read_volume(saved(path, sform=sheared, codes=(1, 0)))
    np.testing.assert_allclose(volume.affine, sheared, atol=1e-6)
    assert "18.4 degrees off a right angle" in volume.notes[0]


@pytest.mark.parametrize("unit, scale", [(1, 1e-3), (3, 1e3)])
def test_metres_and_microns_become_millimetres(path, unit, scale):
    scaled = np.diag([scale, scale, scale, 1]) @ AFFINE

    def patch(header):
        header["xyzt_units"] = unit | 8

    volume = read_volume(saved(path, sform=scaled, qform=scaled, patch=patch))
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-5)
    assert "converted to millimetres" in volume.notes[0]


def test_units_that_make_no_sense_are_refused(path):
    with pytest.raises(VolumeError, match="units"):
        read_volume(saved(path, patch=field("xyzt_units", 1)))


def test_a_pixdim_a_little_off_is_noted_and_one_far_off_refused(path):
    volume = read_volume(saved(path, codes=(1, 0), patch=pixdim(1.03, 1.2, 0.9)))
    np.testing.assert_allclose(volume.voxel_size, (1, 1.2, 0.9), rtol=1e-6)
    assert "the sform is used" in volume.notes[0]
    with pytest.raises(VolumeError, match=r"1\.1 × 1\.2 × 0\.9.*5%"):
        read_volume(saved(path, codes=(1, 0), patch=pixdim(1.1, 1.2, 0.9)))


@pytest.mark.parametrize("values", [(0, 0, 0), (1, 1.2, -0.9), (np.nan, 1.2, 0.9)])
def test_a_pixdim_that_is_no_size_is_taken_from_the_sform_or_refused_without_one(path, values):
    volume = read_volume(saved(path, codes=(1, 0), patch=pixdim(*values)))
    np.testing.assert_allclose(volume.voxel_size, (1, 1.2, 0.9), rtol=1e-6)
    assert "taken from the sform" in volume.notes[0]
    if not min(values) < 0:
        with pytest.raises(VolumeError, match="no voxel size"):
            read_volume(saved(path, codes=(0, 0), patch=pixdim(*values)))
