"""`jaxsr simulate`: from high-resolution files to what a scanner would have made of them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.physics.protocol import load_acquisition
from jaxsr.simulate import Settings, key_of, read_truth, simulate_file
from jaxsr.upscale.inputs import Job
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume

SHAPE, SIZE = (24, 28, 26), (1.0, 1.0, 1.0)
LANDMARK = np.array([4.0, -5.0, 3.0])  # scanner mm


def affine(degrees=(0, 0, 0), size=SIZE, shape=SHAPE):
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * size
    turned[:3, 3] = -turned[:3, :3] @ ((np.array(shape) - 1) / 2) + (1.5, -0.7, 2.2)
    return turned


def blob(at=LANDMARK, degrees=(0, 0, 0), size=SIZE, shape=SHAPE, width=3.0):
    """A smooth bright spot at a place in the scanner."""
    place = affine(degrees, size, shape)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    away = index @ place[:3, :3].T + place[:3, 3] - at
    return Volume((900 * np.exp(-(away**2).sum(-1) / (2 * width**2))).astype(np.float32), place)


def place_of_the_spot(path):
    """Scanner mm of the intensity's centre in the file as it is stored."""
    image = nib.load(path)
    data = np.asarray(image.dataobj, np.float64)
    data = np.where(data > 0.3 * data.max(), data, 0)
    index = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), -1)
    return (data[..., None] * (index @ image.affine[:3, :3].T + image.affine[:3, 3])).sum((0, 1, 2)) / data.sum()


def written(path, volume=None, orientation=("R", "A", "S")):
    volume = volume or blob()
    write_volume(path, Volume(volume.data, volume.affine, orientation))
    return path


def settings(source="1.5T", *overrides, **others):
    return Settings(load_acquisition(source, overrides), **others)


def jaxsr(*words):
    return run(lambda: app([*map(str, words)], standalone_mode=False))


# ------------------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize("same_grid", [False, True])
@pytest.mark.parametrize("orientation, degrees", [("RAS", (0, 0, 0)), ("LSP", (0, 0, 0)), ("PSR", (9, -6, 14))])
@pytest.mark.parametrize("name", ["1.5T", "thick-slice"])
def test_a_landmark_stays_where_it_was_in_the_scanner(tmp_path, name, orientation, degrees, same_grid):
    """In any orientation, oblique or not; the output has the input's, and slices lie across its own superior axis."""
    source = written(tmp_path / "high.nii.gz", blob(degrees=degrees), tuple(orientation))
    slices = ("voxel_size=[1,1,4]", "gap=1") if name == "thick-slice" else ()
    chosen = settings(name, *slices, same_grid=same_grid)
    simulate_file(Job(source, tmp_path / "low.nii.gz"), chosen)
    np.testing.assert_allclose(place_of_the_spot(tmp_path / "low.nii.gz"), LANDMARK, atol=0.25)
    low, high = nib.load(tmp_path / "low.nii.gz"), nib.load(source)
    assert nib.aff2axcodes(low.affine) == nib.aff2axcodes(high.affine)
    np.testing.assert_allclose(low.get_sform(), low.get_qform(), atol=1e-4)
    assert low.header["sform_code"] == low.header["qform_code"] == 1
    if same_grid:
        assert low.shape == high.shape
        np.testing.assert_allclose(low.affine, high.affine, atol=1e-4)
    else:
        sizes = dict(zip(orientation, low.header.get_zooms(), strict=True))
        across = sizes["S"]
        assert across == pytest.approx(5.2 if name == "thick-slice" else 2.0)  # 26 mm in 5 slices
        assert min(low.shape) < 24


def test_the_sidecar_says_that_it_is_simulated_and_what_was_drawn(tmp_path):
    source = written(tmp_path / "high.nii.gz")
    simulate_file(Job(source, tmp_path / "out" / "low.nii.gz"), settings("thick-slice", seed=3))
    facts = json.loads((tmp_path / "out" / "low.json").read_text())
    ours = facts["JaxSR"]
    assert facts["Description"].startswith("Simulated")
    assert facts["Sources"] == ["../high.nii.gz"]
    assert (ours["Simulated"], ours["Seed"], ours["DrawnBy"], ours["SameGrid"]) == (True, 3, "high", False)
    assert ours["Acquisition"]["name"] == "thick-slice"
    assert 20 <= ours["Drawn"]["snr"] <= 50
    low = read_volume(tmp_path / "out" / "low.nii.gz")
    assert list(low.data.shape) == ours["AcquiredShape"]
    spacing = ours["Drawn"]["voxel_size"][2] + ours["Drawn"]["gap"]
    assert low.data.shape[2] == round(26 / spacing)


def test_without_noise_it_is_the_volume_seen_by_coarser_voxels(tmp_path):
    """A smooth spot is resolved by 2 mm: the acquired voxels are samples of the truth."""
    source = written(tmp_path / "high.nii.gz")
    simulate_file(Job(source, tmp_path / "low.nii.gz"), settings("1.5T", "snr=null", "bias=0"))
    low = read_volume(tmp_path / "low.nii.gz")
    expected = blob(degrees=(0, 0, 0))
    index = np.stack(np.meshgrid(*map(np.arange, low.data.shape), indexing="ij"), -1)
    away = index @ low.affine[:3, :3].T + low.affine[:3, 3] - LANDMARK
    np.testing.assert_allclose(low.data, 900 * np.exp(-(away**2).sum(-1) / 18), atol=0.01 * expected.data.max())


def test_what_is_drawn_depends_on_the_name_and_the_seed_alone(tmp_path):
    """Not on folder, compression or what else is in the batch."""
    places = [tmp_path / "a.nii", tmp_path / "else" / "a.nii.gz", tmp_path / "b.nii"]
    for path in places:
        written(path)
    outputs = []
    for i, (path, seed) in enumerate([(places[0], 0), (places[1], 0), (places[2], 0), (places[0], 1)]):
        simulate_file(Job(path, tmp_path / f"{i}.nii"), settings(seed=seed))
        outputs.append(read_volume(tmp_path / f"{i}.nii").data)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])
    assert not np.array_equal(outputs[0], outputs[3])
    assert jaxsr("simulate", "-i", tmp_path, "-o", tmp_path / "batch", "-q") == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "batch" / "a.nii").data, outputs[0])
    assert (key_of(Path("x/sub-01.nii.gz"), 4) == key_of(Path("y/sub-01.nii"), 4)).all()


# ------------------------------------------------------------------------------------------------ the command


def test_a_list_goes_to_a_folder_what_exists_is_kept_and_overwrite_redoes_it(tmp_path, capsys):
    written(tmp_path / "a.nii.gz")
    written(tmp_path / "b.mgz")
    (tmp_path / "some.txt").write_text("a.nii.gz  \n# a comment\nb.mgz\n")
    words = ("simulate", "-i", tmp_path / "some.txt", "-o", tmp_path / "out", "-a", "3T", "voxel_size.2=3")
    assert jaxsr(*words, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert "16 × 19 × 9 voxels of 1.5 × 1.4737 × 2.8889 mm" in capsys.readouterr().out
    assert jaxsr(*words) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "a.nii.gz", "b.json", "b.mgz"]
    before = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert jaxsr(*words) == 0
    assert "2 done already" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == before
    assert jaxsr(*words, "--overwrite", "-q") == 0
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns > before


def test_one_bad_volume_does_not_stop_the_others(tmp_path, capsys):
    written(tmp_path / "a.nii.gz")
    (tmp_path / "bad.nii").write_bytes(b"no volume")
    written(tmp_path / "z.nii.gz")
    assert jaxsr("simulate", "-i", tmp_path, "-o", tmp_path / "out", "-q") == 1
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "z.nii.gz"]
    assert "1 of 3 failed" in (said := capsys.readouterr().err)
    assert "bad.nii" in said


@pytest.mark.parametrize(
    "words, status, message",
    [
        (("-a", "7T"), 2, "unknown acquisition '7T'; known: 1.5T, 3T, 64mT, thick-slice"),
        (("snr=abc",), 2, "snr: should be a list"),
        (("voxel_size=[9,9,9]",), 2, "would have only 3 × 3 × 3 voxels"),
        (("--interpolation", "lanczos"), 2, "none of linear, cubic, kspace"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, capsys, words, status, message):
    written(tmp_path / "a.nii.gz")
    assert jaxsr("simulate", "-i", tmp_path / "a.nii.gz", "-o", tmp_path / "low.nii.gz", *words) == status
    said = capsys.readouterr().err
    assert message in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.glob("low*"))


def test_bad_input_is_refused_as_upscale_refuses_it(tmp_path, capsys):
    written(tmp_path / "a.nii.gz")
    (tmp_path / "none").mkdir()
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii")
    (tmp_path / "mine.json").write_text("{}")
    out = tmp_path / "low.nii.gz"
    for source, output, status, message in [
        ("absent.nii", out, 2, "absent.nii"),
        ("none", tmp_path / "out", 3, "no volumes to simulate from"),
        ("nan.nii", out, 2, "512 NaN"),
        ("a.nii.gz", tmp_path / "a.nii.gz", 2, "the output is the input"),
        ("a.nii.gz", tmp_path / "mine.nii.gz", 2, "was not written by jaxsr"),
        ("a.nii.gz", tmp_path / "low.nrrd", 2, "the suffix names no format"),
    ]:
        assert jaxsr("simulate", "-i", tmp_path / source, "-o", output) == status
        assert message in capsys.readouterr().err
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ intensities and voxels


def test_what_lies_a_little_below_zero_is_set_to_zero_and_told(tmp_path):
    volume = blob()
    volume.data[0, 0, :3] = -2.0
    told = []
    truth = read_truth(written(tmp_path / "a.nii", volume), settings(), told.append)
    assert truth.data.min() == 0
    assert told == ["a.nii: 3 voxels below zero set to 0"]


def test_a_normalised_volume_is_refused(tmp_path):
    """Half of it below zero is no magnitude: to cut it off would be a silent guess."""
    volume = blob()
    normal = Volume(volume.data - volume.data.mean(), volume.affine)
    with pytest.raises(VolumeError, match=r"z\.nii: 50% of the intensity lies below zero \(to -.*shift it so that air is 0"):
        read_truth(written(tmp_path / "z.nii", normal), settings())


def test_an_axis_that_is_coarse_already_stays_and_is_told(tmp_path):
    path = written(tmp_path / "a.nii", blob(size=(1.0, 1.0, 3.0), shape=(24, 28, 10)))
    told = []
    read_truth(path, settings(), told.append)
    assert told == ["a.nii: voxels are no finer than the acquisition's: 3 mm from bottom to top stays"]
    simulate_file(Job(path, tmp_path / "low.nii"), settings())
    assert read_volume(tmp_path / "low.nii").data.shape == (12, 14, 10)


def test_a_volume_that_would_not_fit_in_memory_is_refused_before_it_is_tried(tmp_path, monkeypatch):
    path = written(tmp_path / "a.nii")
    monkeypatch.setattr("jaxsr.simulate.free_memory", lambda: 60 * 24 * 28 * 26)
    read_truth(path, settings())
    with pytest.raises(VolumeError, match=r"a\.nii: simulating it needs .* GB of memory.*leave out warp or motion"):
        read_truth(path, settings("3T", "warp=2"))
