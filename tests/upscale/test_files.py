"""Files in, files out: what is skipped, what is refused."""

import re
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer

from jaxsr.cli.options import choices
from jaxsr.evaluate.files import sidecar_path
from jaxsr.experiment import Experiment
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.base import Request
from jaxsr.upscale.files import make_engine, montage, upscale_file
from jaxsr.upscale.inputs import Job, check_target, find_jobs, is_done, memory_needed, read_input, resolution_notes, scale_notes
from jaxsr.upscale.inspect import inspect
from jaxsr.upscale.model import Model, load_model
from jaxsr.upscale.settings import Settings, notes_of, settled
from jaxsr.upscale.sidecar import check_record, check_sidecar, write_json
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume
from jaxsr.volume.resolution import resolved_mm
from jaxsr.volume.slices import AXES
from jaxsr.weights.standard import SHIPPED


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


@pytest.mark.parametrize("shape, voxel_size", [
    ((80, 90, 100), (1, 1, 1)), ((48, 52, 56), (2, 2, 2)), ((100, 110, 20), (1, 1, 6)), ((20, 110, 100), (6, 1, 1)),
    ((120, 120, 120), (0.5, 0.5, 0.5)),
])  # fmt: skip
@pytest.mark.parametrize("picture", [False, True])
def test_the_hosts_memory_is_enough_and_not_half_too_much(shape, voxel_size, picture, identity_method, tmp_path):
    """At sizes where volumes count for more than all else; with larger output than input the interpolations count, else the input."""

    volume = Volume(
        np.random.default_rng(0).normal(100, 30, shape).astype(np.float32), np.diag([*voxel_size, 1.0]), path=tmp_path / "v.nii"
    )
    job, settings = Job(tmp_path / "v.nii", tmp_path / "o.nii"), Settings(1.0, Request(steps=1), picture=picture)
    expected = memory_needed(volume, check_target(volume, settings.to_mm), picture=picture)
    write_volume(job.source, volume)
    model = Model("run", 1, Experiment(method=AutoencoderConfig()), identity_method, {}, "")
    engine = make_engine(model, batch_size=8)
    engine.upscale(volume, settings.request, to_mm=settings.to_mm)  # what compiling takes is not meant
    if picture:
        montage(tmp_path / "warm.png", volume, volume, "nor what is imported and cached at first")
    del volume
    tracemalloc.start()
    try:
        done = upscale_file(engine, model, job, settings)
        if picture:
            montage(tmp_path / "o.png", done.low, done.output, "title")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.65 * expected < peak < expected


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


def test_an_axis_that_does_not_serve_is_told_once(tmp_path):
    data = np.random.default_rng(0).normal(size=(20, 20, 8)).astype(np.float32)
    write_volume(tmp_path / "thin.nii", Volume(data, np.eye(4)))
    told = []
    assert read_input(tmp_path / "thin.nii", note=told.append).notes == ()
    assert told == [f"thin.nii: {axis} slices would be only 8 voxels wide, so that axis is left out" for axis in ("sagittal", "coronal")]


def test_an_axis_named_twice_is_refused():
    with pytest.raises(typer.BadParameter, match="names one of them twice"):
        choices("--axes", "axial, axial", tuple(AXES))
    assert choices("--axes", "axial,coronal", tuple(AXES)) == ("axial", "coronal")


@pytest.mark.parametrize("voxel, count, sentence", [
    (1.0, 5, r"holds 5 volumes: name one \(upscale and inspect take --volume K, K from 0 to 4\), or split it"),
    (np.nan, 1, r"or have them set to 0 \(upscale and inspect take --nan zero\)"),
])  # fmt: skip
def test_a_way_out_names_the_commands_that_have_it(voxel, count, sentence, tmp_path):
    """`evaluate` and `prepare` read by the same function, and have neither option."""
    data = np.random.default_rng(0).normal(size=(5, 5, 5, count)).astype(np.float32)
    data[0, 0, 0] = voxel
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(VolumeError, match=sentence):
        read_volume(tmp_path / "v.nii")


def test_a_picture_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "out.png").write_bytes(b"figure 1 of my paper")
    check_sidecar(tmp_path / "out.nii.gz")
    with pytest.raises(VolumeError, match=r"out\.png exists and was not written by jaxsr: .*--no-montage"):
        check_sidecar(tmp_path / "out.nii.gz", picture=True)
    write_json(tmp_path / "out.json", {"JaxSR": {}})
    check_sidecar(tmp_path / "out.nii.gz", picture=True)


@pytest.mark.parametrize("name, what", [
    ("scan.nii.gz", "an input"), ("out.nii.gz", "an output"), ("out.json", "a sidecar"), ("x/../out.png", "a picture"),
    (".", "the outputs' folder"),
])  # fmt: skip
def test_the_record_of_a_run_takes_no_other_files_place(name, what, scan, tmp_path):
    with pytest.raises(VolumeError, match=f"is the place of {what}: name another file"):
        check_record(tmp_path / name, [Job(scan, tmp_path / "out.nii.gz")])


def test_the_record_of_a_run_replaces_only_records_of_runs(scan, tmp_path):
    jobs = [Job(scan, tmp_path / "out.nii.gz"), Job(Path("a\0b.nii"), tmp_path / "a\0b.nii")]
    check_record(tmp_path / "run.json", jobs)
    for content in ('{"RepetitionTime": 2.3}', "[]", "\0"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(VolumeError, match=r"run\.json exists and is no record of a run: name another file"):
            check_record(tmp_path / "run.json", jobs)
    write_json(tmp_path / "run.json", {"DryRun": True, "Volumes": []})
    check_record(tmp_path / "run.json", jobs)


def volume_of(*voxel_size):
    return Volume(np.zeros((4, 4, 4), np.float32), np.diag([*voxel_size, 1.0]))


def test_axes_that_get_coarser_are_told():
    assert scale_notes(volume_of(1.0, 0.5, 0.5), 1.0) == (
        "1 mm is coarser than the scan (0.5 mm from back to front, 0.5 mm from bottom to top): what it resolves there is lost, "
        "unless --to-mm is less",
    )
    assert scale_notes(volume_of(1.0, 0.995, 2.0), 1.0) == ()  # less than 1 % is rounding
    assert scale_notes(volume_of(1.0, 0.5, 0.5), None) == ()


def test_a_scan_unlike_those_of_the_training_is_told():
    assert scale_notes(volume_of(10, 1.95, 1.28), 1.0, (2.0, 2.0, 2.0)) == (
        "the model was trained on scans of 2 mm, this one has 10 × 1.95 × 1.28 mm",
    )
    assert scale_notes(volume_of(2.4, 1.7, 2.0), 1.0, (2.0, 2.0, 2.0)) == ()  # within a quarter


@pytest.fixture
def interpolated():
    """A ball of 1 × 0.8 × 1 mm, half of whose k-space along y was left empty: it resolves 1.6 mm there."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, 64)] * 3, indexing="ij"))
    spectrum = np.fft.fft(((points**2).sum(0) < 0.6) * 100 + np.random.default_rng(0).normal(size=(64, 64, 64)), axis=1)
    spectrum[:, 16:49] = 0
    return Volume(np.abs(np.fft.ifft(spectrum, axis=1)).astype(np.float32), np.diag([1.0, 0.8, 1.0, 1.0]))


SEEMS = r"it seems to have been interpolated, and to resolve 1\.[5-7]\d? mm from back to front, where its k-space ends"


def test_a_scan_that_was_interpolated_is_told_unless_somebody_has_said_what_it_resolves(interpolated, tmp_path):
    found = resolved_mm(interpolated.data, interpolated.voxel_size)
    (note,) = resolution_notes(interpolated.voxel_size, found)
    assert re.fullmatch(SEEMS + "; --from-mm found goes by that", note)
    (note_without,) = resolution_notes(interpolated.voxel_size, found, told=False)  # by a model that is not told
    assert re.fullmatch(SEEMS, note_without)
    assert resolution_notes(interpolated.voxel_size, found, (1.0, 1.5, 1.0)) == ()  # about that
    assert re.fullmatch(
        r"taken for a scan of 1 × 1\.[5-7]\d? × 1 mm, where its k-space ends", *resolution_notes(interpolated.voxel_size, found, "found")
    )
    write_volume(tmp_path / "scan.nii.gz", interpolated)
    report = inspect(tmp_path / "scan.nii.gz")
    assert note in report["notes"]
    assert report["volume"]["resolves_mm"] == pytest.approx([1, 1.6, 1], rel=0.07)


def test_what_no_scan_resolves_or_this_one_does_not_is_told(interpolated):
    found = resolved_mm(interpolated.data, interpolated.voxel_size)
    finer, seems = resolution_notes(interpolated.voxel_size, found, (1.0, 0.5, 1.0))
    assert finer.startswith("--from-mm says 1 × 0.5 × 1 mm, no scan resolves less than its voxels: taken for one of 1 × 0.8 × 1 mm")
    assert re.match(SEEMS, seems)


@pytest.mark.parametrize("said, expected", [(None, (1, 0.8, 1)), ("found", (1, 1.6, 1)), ((0.5, 2.0, 1.0), (1, 2, 1))], ids=str)
def test_what_a_scan_is_taken_to_resolve_decides_what_it_is_brought_to(interpolated, said, expected):
    """Where nothing is asked for: the scan's finest side, within what the model is for."""
    recipe = load_model(SHIPPED).recipe
    settings = settled(Settings(None, Request(1), from_mm=said), recipe, interpolated)
    assert settings.resolves == pytest.approx(expected, rel=0.07)
    assert settings.to_mm == pytest.approx(min(expected))
    notes = notes_of(interpolated, settled(Settings(0.9, Request(1), from_mm=said), recipe, interpolated), recipe)
    assert any("coarser than the scan" in note for note in notes) == (said is None)


def test_inspect_tells_of_axes_that_get_coarser_as_upscale_does(tmp_path):
    data = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    write_volume(tmp_path / "v.nii", Volume(data, np.diag([1.0, 0.5, 1.0, 1.0])))
    (note,) = inspect(tmp_path / "v.nii", to_mm=1.0)["notes"]
    assert note.startswith("1 mm is coarser than the scan (0.5 mm from back to front)")
