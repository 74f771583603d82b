"""Laws of the maps that guide a model: how their files are matched to scans, read and refused."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.data.bias import foreground
from jaxsr.upscale.guide_maps import bias_map, guidance_facts, read_guides
from jaxsr.upscale.guides import FLAT, Guides, check_guides, guides_of
from jaxsr.upscale.inputs import Job
from jaxsr.volume.geometry import target_grid
from jaxsr.volume.io import Volume, VolumeError, write_volume

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
MODEL = SimpleNamespace(method=SimpleNamespace(maps=("bias", "gradient")))


@pytest.fixture(scope="module")
def scan():
    """A bright block at one end of the field of view, on dim noise."""
    data = np.random.default_rng(0).uniform(0, 20, (24, 24, 24)).astype(np.float32)
    data[2:12, 4:20, 4:20] += 500
    return Volume(data, AFFINE)


def field(log):
    return Volume(np.exp(log).astype(np.float32), AFFINE)


def slope(strength):
    return strength * np.linspace(-1, 1, 24)[:, None, None] * np.ones((24, 24, 24))


def test_a_bias_field_has_mean_zero_over_the_head_wherever_that_lies_in_the_field_of_view(scan, tmp_path):
    """As `prepare` stores it for training: the factor that a field leaves to the scanner's units means nothing."""
    write_volume(tmp_path / "one.nii.gz", field(slope(0.3)))
    write_volume(tmp_path / "other.nii.gz", field(slope(0.3) + 1.0))
    one, other = (bias_map(scan.grid, tmp_path / name, scan) for name in ("one.nii.gz", "other.nii.gz"))
    assert abs(one[foreground(scan)].mean()) < 1e-3
    assert one.mean() > 0.05  # over all of it, it is not
    np.testing.assert_allclose(one, other, atol=1e-4)
    finer = bias_map(target_grid(scan.grid, 1.5), tmp_path / "one.nii.gz", scan)
    assert abs(finer[::2, ::2, ::2].mean() - one.mean()) < 0.02


@pytest.mark.parametrize("log, said", [
    (slope(8.0), "no coil's field goes beyond 20: is it a bias field, or an image?"),
    (np.where(slope(1.0) > 0.9, np.nan, 0.0), "all of it is finite and above 0"),
])  # fmt: skip
def test_what_no_coil_makes_is_refused(scan, tmp_path, log, said):
    write_volume(tmp_path / "field.nii.gz", field(log))
    with pytest.raises(VolumeError, match=f"field.nii.gz: .*{said}"):
        bias_map(scan.grid, tmp_path / "field.nii.gz", scan)


def test_an_array_of_several_volumes_is_no_field_and_nothing_says_to_pick_one_of_the_scan_s(scan, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((24, 24, 24, 2), np.float32), AFFINE), tmp_path / "field.nii.gz")
    with pytest.raises(VolumeError, match=r"field.nii.gz: a bias field is one volume, and this is an array of 24 × 24 × 24 × 2"):
        bias_map(scan.grid, tmp_path / "field.nii.gz", scan)


@pytest.mark.parametrize("beside", [(), ("sub-01_T2w.nii.gz", "sub-03_T1w.nii.gz")])
def test_fields_are_matched_to_the_scans_that_are_upscaled_whatever_lies_beside_them(tmp_path, beside):
    scans, fields = tmp_path / "scans", tmp_path / "fields"
    for folder in (scans, fields):
        folder.mkdir()
    for name in ("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", *beside):
        (scans / name).touch()
    for name in ("sub-01_T1w_bias.nii.gz", "sub-02_T1w_bias.nii.gz"):
        (fields / name).touch()
    jobs = [Job(scans / f"sub-0{i}_T1w.nii.gz", tmp_path / f"{i}.nii.gz") for i in (1, 2)]
    expected = {job.source: fields / job.source.name.replace("T1w", "T1w_bias") for job in jobs}
    listed = tmp_path / "list.txt"
    listed.touch()
    for source in (scans, listed):
        assert {scan: of.bias for scan, of in guides_of(jobs, source, fields, None, "ras", (0, 0, 0)).items()} == expected
    alone = guides_of(jobs[:1], jobs[0].source, fields, None, "ras", (0, 0, 0))
    assert alone[jobs[0].source].bias == expected[jobs[0].source]


def test_a_scan_that_a_folder_of_fields_has_none_for_lacks_it_and_the_others_do_not(tmp_path):
    fields = tmp_path / "fields"
    fields.mkdir()
    jobs = [Job(tmp_path / f"sub-0{i}_T1w.nii.gz", tmp_path / f"{i}.nii.gz") for i in (1, 2)]
    for job in jobs:
        job.source.touch()
    with pytest.raises(VolumeError, match=r"has no map for sub-01_T1w.nii.gz, sub-02_T1w.nii.gz by its name"):
        guides_of(jobs, tmp_path, fields, None, "ras", (0, 0, 0))
    (fields / "sub-02_T1w_bias.nii.gz").touch()
    found = guides_of(jobs, tmp_path, fields, None, "ras", (0, 0, 0))
    assert "has no map for sub-01_T1w.nii.gz by its name: add it" in found[jobs[0].source].lacking
    assert (found[jobs[1].source].bias, found[jobs[1].source].lacking) == (fields / "sub-02_T1w_bias.nii.gz", "")


def test_a_field_is_that_of_the_longest_name_that_it_goes_on_after(tmp_path):
    """`scan_2_bias` is the field of scan_2, also where scan has none; and a folder's name may hold anything."""
    fields = tmp_path / "fields{x}"
    fields.mkdir()
    jobs = [Job(tmp_path / f"{name}.nii.gz", tmp_path / f"out_{name}.nii.gz") for name in ("scan", "scan_2")]
    for job in jobs:
        job.source.touch()
    (fields / "scan_2_bias.nii.gz").touch()
    found = guides_of(jobs, tmp_path, fields, None, "ras", (0, 0, 0))
    assert found[jobs[1].source].bias == fields / "scan_2_bias.nii.gz"
    assert found[jobs[0].source].bias is None
    assert "fields{x} has no map for scan.nii.gz" in found[jobs[0].source].lacking


def test_the_sidecar_says_how_a_gradient_s_map_was_read(tmp_path):
    for name in ("warp.nii.gz", "coil.grad"):
        (tmp_path / name).write_bytes(b"content")
    told = [guidance_facts(MODEL, Guides(None, tmp_path / "warp.nii.gz", convention))["gradient"] for convention in ("ras", "lps")]
    assert [of["Convention"] for of in told] == ["ras", "lps"]
    assert "Isocentre" not in told[0]
    coil = guidance_facts(MODEL, Guides(None, tmp_path / "coil.grad", isocentre=(0.0, 5.0, 0.0)))["gradient"]
    assert coil["Isocentre"] == [0.0, 5.0, 0.0]
    assert "Convention" not in coil


@pytest.mark.parametrize("words", [("--isocentre", "0", "5", "0"), ("--gradient-convention", "lps")])
def test_how_to_read_a_map_that_is_not_given_is_refused(words):
    with pytest.raises(Exception, match=f"{words[0]}|is for --gradient-map"):
        app(["upscale", "-i", "scan.nii.gz", "-o", "out.nii.gz", "--model", "run", *words], standalone_mode=False)


@pytest.mark.parametrize("maps", [("bias", "gradient"), ("bias", "jacobian")])
def test_flat_is_what_files_that_show_nothing_say(scan, tmp_path, maps):
    model = SimpleNamespace(method=SimpleNamespace(maps=maps))
    write_volume(tmp_path / "ones.nii.gz", field(slope(0.0)))
    nib.save(nib.Nifti1Image(np.zeros((24, 24, 24, 3), np.float32), AFFINE), tmp_path / "zeros.nii.gz")
    flat = read_guides(model, Guides(flat=("bias", "gradient")), scan.grid, scan)
    files = read_guides(model, Guides(tmp_path / "ones.nii.gz", tmp_path / "zeros.nii.gz"), scan.grid, scan)
    assert flat.keys() == files.keys() == {*maps}
    for name in maps:
        assert flat[name].dtype == files[name].dtype == np.float32
        np.testing.assert_array_equal(flat[name], files[name])
    assert guidance_facts(model, Guides(flat=("bias",))) == {"bias": {"Flat": True}}


def test_flat_holds_for_all_scans_unless_a_file_goes_by_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [Job(tmp_path / f"{name}.nii.gz", tmp_path / "out" / f"{name}.nii.gz") for name in "ab"]
    told = guides_of(jobs, tmp_path, FLAT, None, "ras", (0, 0, 0))
    assert {of.flat for of in told.values()} == {("bias",)}
    assert {of.bias for of in told.values()} == {None}
    FLAT.touch()
    assert guides_of(jobs[:1], jobs[0].source, FLAT, None, "ras", (0, 0, 0))[jobs[0].source][:2] == (FLAT, None)


def test_a_model_that_takes_no_field_is_not_told_that_there_is_none():
    with pytest.raises(VolumeError, match="flat: this model is guided by no maps: leave --bias-field out"):
        check_guides(SimpleNamespace(method=SimpleNamespace()), Guides(flat=("bias",)))
