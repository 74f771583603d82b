"""Files in, files out: what is skipped, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from jaxsr.upscale.inputs import Job, find_jobs, is_done
from jaxsr.upscale.sidecar import check_sidecar, sidecar_path, write_json
from jaxsr.volume.io import Volume, VolumeError, write_volume


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_volume(path, Volume(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), np.eye(4)))
    return path


def test_a_file_goes_to_a_file_or_into_a_folder(scan, tmp_path):
    assert find_jobs(scan, tmp_path / "out.nii.gz") == [Job(scan, tmp_path / "out.nii.gz")]
    assert find_jobs(scan, tmp_path / "out") == [Job(scan, tmp_path / "out" / "scan.nii.gz")]


def test_a_folder_goes_to_a_folder_volume_by_volume(scan, tmp_path):
    (tmp_path / "notes.txt").write_text("no volume")
    assert find_jobs(tmp_path, tmp_path / "out") == [Job(scan, tmp_path / "out" / "scan.nii.gz")]


def test_a_list_names_paths_from_its_own_folder(scan, tmp_path):
    (tmp_path / "list.txt").write_text("# subjects\nscan.nii.gz\n\n")
    assert find_jobs(tmp_path / "list.txt", tmp_path / "out") == [Job(tmp_path / "scan.nii.gz", tmp_path / "out" / "scan.nii.gz")]


def test_an_output_that_is_the_input_is_refused(scan):
    with pytest.raises(VolumeError, match="choose another -o"):
        find_jobs(scan, scan)


def test_two_inputs_of_one_name_are_refused(scan, tmp_path):
    (tmp_path / "list.txt").write_text(f"scan.nii.gz\n{tmp_path / 'other' / 'scan.nii.gz'}\n")
    with pytest.raises(VolumeError, match="different names"):
        find_jobs(tmp_path / "list.txt", tmp_path / "out")


def test_whatever_lies_at_the_output_is_not_replaced_unasked(scan, tmp_path):
    job = Job(scan, tmp_path / "out.nii.gz")
    write_json(sidecar_path(job.output), {"JaxSR": {}})
    assert not is_done(job)  # the volume comes last
    job.output.write_bytes(b"somebody's")
    assert is_done(job)


def test_a_sidecar_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "out.json").write_text('{"RepetitionTime": 2.3}')
    with pytest.raises(VolumeError, match="not written by jaxsr"):
        check_sidecar(tmp_path / "out.nii.gz")
    write_json(tmp_path / "out.json", {"JaxSR": {}})
    check_sidecar(tmp_path / "out.nii.gz")


@pytest.mark.parametrize("name, expected", [("a.nii.gz", "a.json"), ("sub-1.v2.nii", "sub-1.v2.json"), ("b.mgz", "b.json")])
def test_the_sidecar_has_the_name_of_the_volume(name, expected):
    assert sidecar_path(Path("x") / name) == Path("x") / expected
