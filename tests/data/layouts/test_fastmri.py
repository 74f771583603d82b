"""The layout fastmri, and reading its files."""

import sys

import h5py
import numpy as np
import pytest

from jaxsr.data.layouts import Wanted, find, read_scan
from jaxsr.volume.errors import VolumeError

H5 = (".h5", ".hdf5")


def brain(show, root, acquisition, number, patient, folder="multicoil_train", **how):
    path = root / folder / f"file_brain_{acquisition}_200_{number}.h5"
    show.write_fastmri(path, acquisition, patient, **how)
    return path


def test_files_of_one_patient_are_one_person(tmp_path, show):
    for number, (acquisition, patient) in enumerate([("AXT1", "a"), ("AXT2", "a"), ("AXFLAIR", "b"), ("AXT2", "b")]):
        brain(show, tmp_path, acquisition, number, patient)
    found = find("fastmri", tmp_path)
    assert [scan.person for scan in found.scans] == ["b", "a", "a", "b"]
    found = find("fastmri", tmp_path, Wanted(high="AXT2", reference="AXT1"))
    assert show.scans(found, tmp_path) == {
        "file_brain_AXT2_200_1": {
            "high": "multicoil_train/file_brain_AXT2_200_1.h5",
            "reference": "multicoil_train/file_brain_AXT1_200_0.h5",
        }
    }
    assert "no AXT1 of the same patient" in show.reasons(found, "partner")["multicoil_train/file_brain_AXT2_200_3.h5"]
    assert "of AXFLAIR, not AXT2" in show.reasons(found, "unused")["multicoil_train/file_brain_AXFLAIR_200_2.h5"]
    assert not show.unaccounted(found, tmp_path, H5)


def test_what_cannot_be_read_is_told(tmp_path, show):
    brain(show, tmp_path, "AXT2", 1, None)
    brain(show, tmp_path, "AXT2", 2, "b", names=(), folder="multicoil_test")
    (tmp_path / "broken.h5").write_bytes(b"x" * 2000)
    (tmp_path / "empty.h5").write_bytes(b"")
    found = find("fastmri", tmp_path)
    assert [scan.person for scan in found.scans] == ["file_brain_AXT2_200_1"]
    assert "no patient_id" in show.reasons(found, "note")["multicoil_train/file_brain_AXT2_200_1.h5"]
    why = show.reasons(found, "unreadable")
    assert "no reconstruction_rss or reconstruction_esc" in why["multicoil_test/file_brain_AXT2_200_2.h5"]
    assert "cannot be read as HDF5" in why["broken.h5"]
    assert "is empty" in why["empty.h5"]
    assert not show.unaccounted(found, tmp_path, H5)


def test_of_a_knee_in_both_folders_the_multicoil_file_is_taken(tmp_path, show):
    for folder, names in (("multicoil_train", ("reconstruction_rss",)), ("singlecoil_train", ("reconstruction_esc", "reconstruction_rss"))):
        show.write_fastmri(tmp_path / folder / "file1000001.h5", "CORPD_FBK", "k", names=names)
    found = find("fastmri", tmp_path)
    assert show.scans(found, tmp_path) == {"file1000001": {"high": "multicoil_train/file1000001.h5"}}
    assert "was taken" in show.reasons(found, "duplicate")["singlecoil_train/file1000001.h5"]
    one = find("fastmri", tmp_path, Wanted(high_in="singlecoil_train"))
    assert show.scans(one, tmp_path) == {"file1000001": {"high": "singlecoil_train/file1000001.h5"}}


def test_a_brain_has_the_voxel_size_of_its_field_of_view_and_slices_upwards(tmp_path, show):
    path = brain(show, tmp_path, "AXT2", 1, "a")
    volume = read_scan(path)
    with h5py.File(path) as file:
        stored = file["reconstruction_rss"][()]  # [6 slices, 20 rows, 18 columns]
    assert volume.data.shape == (18, 20, 6)
    np.testing.assert_allclose(volume.voxel_size, (180 / 18, 220 / 20, 5))
    np.testing.assert_allclose(volume.grid.centre, 0, atol=1e-9)
    # The first row is in front, the first column on the patient's right, the first slice below.
    assert volume.data[-1, -1, 0] == stored[0, 0, 0]
    assert volume.data[0, -1, 5] == stored[5, 0, -1]
    assert "assumed" in volume.notes[0]


def test_a_knee_is_coronal_and_the_rss_is_read_before_the_esc(tmp_path, show):
    path = tmp_path / "file1000001.h5"
    show.write_fastmri(path, "CORPD_FBK", names=("reconstruction_esc", "reconstruction_rss"))
    with h5py.File(path, "r+") as file:
        file["reconstruction_rss"][...] *= 2
        stored = file["reconstruction_rss"][()]
    volume = read_scan(path)
    np.testing.assert_allclose(volume.voxel_size, (180 / 18, 5, 220 / 20))
    assert volume.data[-1, 2, -1] == stored[2, 0, 0]


@pytest.mark.parametrize("how, why", [
    ({"names": ()}, "no reconstruction_rss or reconstruction_esc, only ismrmrd_header, kspace"),
    ({"xml": ""}, "no ismrmrd_header"),
    ({"xml": "<broken"}, "no XML"),
    ({"xml": "<ismrmrdHeader/>"}, "no reconSpace"),
    ({"shape": (6, 20)}, "is 6 × 20 of float32"),
    ({"shape": (2, 20, 18)}, "too thin"),
])  # fmt: skip
def test_a_file_that_is_no_magnitude_volume_is_refused(tmp_path, show, how, why):
    show.write_fastmri(tmp_path / "x.h5", **how)
    with pytest.raises(VolumeError, match=why) as caught:
        read_scan(tmp_path / "x.h5")
    assert str(caught.value).count("x.h5") == 1


def test_without_h5py_the_extra_is_named(tmp_path, show, monkeypatch):
    show.write_fastmri(tmp_path / "x.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: find("fastmri", tmp_path), lambda: read_scan(tmp_path / "x.h5")):
        with pytest.raises(VolumeError, match=r"pip install 'jaxsr\[fastmri\]'"):
            call()
