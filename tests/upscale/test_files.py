"""Files in, files out: what is skipped, what is refused."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.files import Settings, montage, read_source
from jaxsr.upscale.inputs import Job, check_target, find_jobs, is_done, memory_needed
from jaxsr.upscale.sidecar import check_sidecar, sidecar_path, write_json
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume


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


def test_upscaling_and_its_picture_take_no_more_memory_than_is_said(tmp_path):
    """By 2 along each axis, where the interpolations' intermediate volumes are largest beside the source."""

    class Identity:
        multiple = 8

        def upscale(self, variables, condition, keys, request):
            return UpscaleOutput(condition.low, {})

    source = tmp_path / "v.nii"
    write_volume(source, Volume(np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32), np.eye(4)))
    engine, settings = Engine(Identity(), {}, make_mesh(), batch_size=8), Settings(0.5, Request(steps=1))
    volume = read_source(source, settings)
    engine.upscale(volume, settings.request, to_mm=0.5)  # what compiling takes is not meant
    tracemalloc.start()
    try:
        result = engine.upscale(volume, settings.request, to_mm=0.5)
        write_volume(tmp_path / "out.nii.gz", result.volume)
        montage(tmp_path / "out.png", volume, result.volume, "title")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.5 * memory_needed(result.volume.grid) < peak < memory_needed(result.volume.grid)


@pytest.mark.parametrize("name, expected", [
    ("v.nii.gz", "v.nii.gz"), ("V.NII", "V.NII"), ("v.img", "v.nii.gz"), ("v.hdr.gz", "v.nii.gz"),
    ("a.b.nii.bz2", "a.b.nii.gz"), ("v", "v.nii.gz"),
])  # fmt: skip
def test_what_is_only_read_is_written_as_nifti(name, expected, tmp_path):
    assert find_jobs(tmp_path / name, tmp_path / "out") == [Job(tmp_path / name, tmp_path / "out" / expected)]


def test_files_that_would_share_a_sidecar_are_refused(scan, tmp_path):
    (tmp_path / "scan.nii").write_bytes(b"")
    with pytest.raises(VolumeError, match="different names"):
        find_jobs(tmp_path, tmp_path / "out")


def test_a_target_with_too_few_voxels_is_refused(scan):
    with pytest.raises(VolumeError, match=r"at 10 mm the volume would have only 1 × 1 × 1 voxels: choose a smaller --to-mm"):
        check_target(read_volume(scan), 10)


@pytest.mark.parametrize("name", ["x.hdr", "x.img", "x.nii.bz2", "x.GZ", "x.nrrd"])
def test_an_output_in_a_format_that_is_not_written_is_refused_and_not_taken_for_a_folder(name, scan, tmp_path):
    with pytest.raises(VolumeError, match=r"use one of \.nii, \.nii\.gz, \.mgh, \.mgz, or a folder"):
        find_jobs(scan, tmp_path / name)
    (tmp_path / name).mkdir()
    assert find_jobs(scan, tmp_path / name) == [Job(scan, tmp_path / name / scan.name)]
