"""Laws of reading and writing volumes; what is refused stands in test_decode.py and test_header.py."""

import errno
import gzip
import os
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.files import FileError
from jaxsr.volume.io import Volume, VolumeError, read_volume, straighten, write_volume
from jaxsr.volume.orientation import Turn, codes_of, from_ras, turn_from

ALL_48 = [codes_of(Turn(order, flip)) for order in permutations(range(3)) for flip in product((False, True), repeat=3)]
REFUSED = ["5D_small.nii", "5D_zeros.nii.gz", "example4d.nii.gz", "example_nifti2.nii.gz", "not-nifti.nii"]
SUFFIXES = [".nii", ".nii.gz", ".mgh", ".mgz"]


def oblique(voxel=(0.7, 1.1, 2.3), degrees=(8, -5, 11)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * voxel
    affine[:3, 3] = (-83.3, -110.7, 21.9)
    return affine


def make_volume(shape=(16, 17, 18), orientation=("R", "A", "S"), **kwargs):
    data = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    return Volume(data, kwargs.pop("affine", oblique()), orientation, **kwargs)


def sheared():
    affine = oblique()
    affine[:3, 2] += 0.7 * affine[:3, 1]
    return affine


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("turn", range(0, 48, 5))
def test_a_written_volume_reads_as_it_was(tmp_path, suffix, turn):
    volume = make_volume(orientation=ALL_48[turn])
    write_volume(tmp_path / f"v{suffix}", volume)
    again = read_volume(tmp_path / f"v{suffix}")
    assert again.data.dtype == np.float32
    assert (again.data == volume.data).all()
    assert again.orientation == volume.orientation
    assert again.notes == ()
    np.testing.assert_allclose(again.affine, volume.affine, atol=2e-5)  # an affine is float32 in a file


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
@pytest.mark.parametrize("suffix", [".nii", ".mgz"])
def test_reading_and_writing_any_of_the_48_orientations_gives_the_file_back(tmp_path, codes, suffix):
    turned, affine = from_ras(make_volume((4, 5, 6)).data, oblique(), turn_from(codes))
    source, copy = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    (nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image)(turned, affine).to_filename(source)

    volume = read_volume(source)
    assert (np.diag(volume.affine[:3, :3]) > 0.5).all()
    write_volume(copy, volume)
    before, after = nib.load(source), nib.load(copy)
    assert (np.asarray(after.dataobj) == np.asarray(before.dataobj)).all()
    if suffix == ".nii":
        assert (after.affine == before.affine).all()
    else:  # MGH stores the centre of the volume instead of its corner
        np.testing.assert_allclose(after.affine, before.affine, atol=2e-5)


@pytest.mark.parametrize("codes", ALL_48[::7], ids="".join)
def test_every_voxel_stays_where_the_scanner_saw_it(tmp_path, codes):
    turned, affine = from_ras(make_volume((5, 6, 7)).data, oblique(), turn_from(codes))
    nib.Nifti1Image(turned, affine).to_filename(tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    stored = nib.load(tmp_path / "v.nii").affine
    for index in [(0, 0, 0), (3, 2, 1), (4, 4, 4)]:
        place = stored @ (*index, 1)
        i, j, k = np.rint(np.linalg.solve(volume.affine, place)[:3]).astype(int)
        np.testing.assert_allclose(volume.affine @ (i, j, k, 1), place, atol=1e-10)
        assert volume.data[i, j, k] == turned[index]


def test_what_is_written_says_everything_a_header_can_and_nothing_stale(tmp_path):
    write_volume(tmp_path / "v.nii.gz", make_volume(orientation=("L", "P", "S")), description="super-resolved " * 20)
    image = nib.load(tmp_path / "v.nii.gz")
    header = image.header
    assert header.get_data_dtype() == np.float32
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"
    with gzip.open(tmp_path / "v.nii.gz") as file:  # nibabel hides the slope of what it loads
        assert np.frombuffer(file.read(120)[112:], "<f4").tolist() == [1, 0]
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0, 0)
    assert header.get_intent()[0] == "none"
    assert header["descrip"].item().decode() == ("super-resolved " * 20)[:79]
    assert not header.extensions
    np.testing.assert_allclose(header["pixdim"][1:4], np.linalg.norm(image.affine[:3, :3], axis=0), rtol=1e-6)


def test_writing_the_same_volume_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_volume(tmp_path / name / "v.nii.gz", make_volume())
    assert (tmp_path / "a/v.nii.gz").read_bytes() == (tmp_path / "b/v.nii.gz").read_bytes()


def test_sides_over_32767_are_written_as_nifti_2(tmp_path):
    write_volume(tmp_path / "v.nii", make_volume((4, 4, 32768), affine=np.diag([1, 1, 0.02, 1.0])))
    assert isinstance(nib.load(tmp_path / "v.nii"), nib.Nifti2Image)
    assert read_volume(tmp_path / "v.nii").data.shape == (4, 4, 32768)


def test_missing_folders_are_made_and_nothing_but_the_volume_is_left_in_them(tmp_path):
    write_volume(tmp_path / "a" / "b" / "v.nii.gz", make_volume())
    assert os.listdir(tmp_path / "a" / "b") == ["v.nii.gz"]


def test_a_file_can_be_replaced_by_what_was_read_from_it(tmp_path):
    path = tmp_path / "v.nii"
    write_volume(path, make_volume())
    volume = read_volume(path)
    before = volume.data.copy()
    write_volume(path, volume)
    assert (volume.data == before).all()
    assert (read_volume(path).data == before).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_what_nibabel_writes(tmp_path, suffix):
    """Unpacked to the byte; packed, it is one gzip member without name or time, of about the size."""
    volume = Volume(np.random.default_rng(0).normal(size=(24, 20, 16)).astype(np.float32), np.diag([1.0, 2, 3, 1]))
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    write_volume(ours, volume)
    nib.save(nib.load(ours), theirs)
    packed = suffix.endswith("z")
    unpacked = [gzip.decompress(path.read_bytes()) if packed else path.read_bytes() for path in (ours, theirs)]
    assert unpacked[0] == unpacked[1]
    if packed:
        assert ours.read_bytes()[:10] == b"\x1f\x8b\x08\x00" + bytes(4) + ours.read_bytes()[8:10]
        assert ours.stat().st_size < 1.05 * theirs.stat().st_size


@pytest.mark.parametrize(
    "failure, raised, message",
    [(OSError(errno.ENOSPC, "No space left on device"), FileError, "disk is full"), (KeyboardInterrupt(), KeyboardInterrupt, None)],
)
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure, raised, message):
    path = tmp_path / "v.nii"
    write_volume(path, make_volume())
    before = path.read_bytes()

    def fail(image, name):
        Path(name).write_bytes(b"half")
        raise failure

    monkeypatch.setattr("jaxsr.volume.io.save_image", fail)
    with pytest.raises(raised, match=message):
        write_volume(path, make_volume((8, 8, 8)))
    assert os.listdir(tmp_path) == ["v.nii"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["v.img", "v.nrrd", "v", ".nii.gz", "v.nii.gzip"])
def test_a_suffix_that_names_no_format_is_refused(tmp_path, name):
    with pytest.raises(VolumeError, match=r"use one of \.nii, \.nii\.gz"):
        write_volume(tmp_path / name, make_volume())
    assert not os.listdir(tmp_path)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match="cannot be written"):
        write_volume(tmp_path / "file" / "v.nii", make_volume())
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        write_volume(tmp_path / "folder.nii", make_volume())
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.nii"]


@pytest.mark.parametrize("suffix", [".nii", ".mgz"])
def test_a_sheared_volume_is_written_only_when_straightened(tmp_path, suffix):
    volume = make_volume(affine=sheared())
    with pytest.raises(VolumeError, match="sheared"):
        write_volume(tmp_path / f"v{suffix}", volume)
    straight = straighten(volume)
    write_volume(tmp_path / f"v{suffix}", straight)
    np.testing.assert_allclose(read_volume(tmp_path / f"v{suffix}").affine, straight.affine, atol=2e-5)
    assert "straight grid" in straight.notes[-1]


def test_a_landmark_keeps_its_scanner_coordinate_when_a_volume_is_straightened():
    volume = make_volume((60, 50, 20), affine=sheared())
    index = np.stack(np.meshgrid(*map(np.arange, volume.data.shape), indexing="ij"), -1)
    places = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    landmark = volume.grid.centre + np.array([0.9, -1.7, 2.2])
    blob = np.exp(-((places - landmark) ** 2).sum(-1) / (2 * 3.0**2)).astype(np.float32)
    straight = straighten(Volume(blob, volume.affine))
    index = np.stack(np.meshgrid(*map(np.arange, straight.data.shape), indexing="ij"), -1)
    places = index @ straight.affine[:3, :3].T + straight.affine[:3, 3]
    weight = straight.data.astype(np.float64)
    np.testing.assert_allclose((places * weight[..., None]).sum((0, 1, 2)) / weight.sum(), landmark, atol=0.01)


def test_straightening_a_straight_volume_is_doing_nothing():
    volume = make_volume()
    assert straighten(volume) is volume


def test_a_side_of_fewer_than_four_voxels_is_refused(tmp_path):
    write_volume(tmp_path / "thin.nii", make_volume((16, 15, 4)))
    assert read_volume(tmp_path / "thin.nii").notes == ()
    write_volume(tmp_path / "thinner.nii", make_volume((16, 16, 3)))
    with pytest.raises(VolumeError, match=r"16 × 16 × 3 .*at least 4"):
        read_volume(tmp_path / "thinner.nii")


def test_voxels_that_are_not_finite_are_counted_and_set_to_zero_only_when_asked(tmp_path):
    volume = make_volume()
    volume.data[0, 0, :3] = np.nan
    volume.data[1, 1, 1:3] = np.inf, -np.inf
    write_volume(tmp_path / "v.nii", volume)
    with pytest.raises(VolumeError, match=r"3 NaN and 2 infinite voxels.*--nan zero"):
        read_volume(tmp_path / "v.nii")
    zeroed = read_volume(tmp_path / "v.nii", nan="zero")
    assert (zeroed.data[0, 0, :3] == 0).all()
    assert "3 NaN and 2 infinite" in zeroed.notes[0]


def test_a_constant_volume_is_refused(tmp_path):
    write_volume(tmp_path / "v.nii", Volume(np.full((8, 8, 8), 7, np.float32), np.eye(4)))
    with pytest.raises(VolumeError, match=r"no contrast.* 7"):
        read_volume(tmp_path / "v.nii")


def test_intensities_beyond_all_scanners_are_refused(tmp_path):
    volume = make_volume()
    volume.data[3, 4, 5] = -1e35
    write_volume(tmp_path / "v.nii", volume)
    with pytest.raises(VolumeError, match=r"intensities from -1e\+35"):
        read_volume(tmp_path / "v.nii")


def reads_or_fails_in_one_sentence(paths):
    """Names of the files refused."""
    refused = {}
    for path in paths:
        try:
            volume = read_volume(path)
        except VolumeError as error:
            refused[path] = str(error)
            continue
        assert volume.data.flags.c_contiguous
        assert np.isfinite(volume.data).all()
        assert (np.diag(volume.affine[:3, :3]) > 0).all()
    assert all(said.startswith(f"{path}: ") and "\n" not in said for path, said in refused.items())
    return sorted(path.name for path in refused)


def test_real_files_read_or_fail_in_one_sentence(mri):
    one_a_folder = [min(folder.iterdir()) for folder in mri.iterdir() if folder.is_dir() and "labels" not in folder.name]
    assert reads_or_fails_in_one_sentence({*(mri / "edge").iterdir(), *one_a_folder}) == REFUSED


@pytest.mark.slow
def test_all_real_files_read_or_fail_in_one_sentence(mri):
    assert reads_or_fails_in_one_sentence(p for p in mri.rglob("*") if p.is_file() and p.name != "SOURCES.md") == REFUSED


def test_one_of_several_real_volumes_is_read_when_named(mri):
    path = mri / "edge" / "example4d.nii.gz"
    image = nib.load(path)
    second = read_volume(path, volume=1)
    expected = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(second.data, np.asarray(expected.dataobj)[..., 1])
    np.testing.assert_allclose(second.affine, expected.affine, atol=1e-12)
