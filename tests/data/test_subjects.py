"""Laws of subjects: whose volumes they are, and that training sees what upscaling will."""

from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from jaxsr.data import acquired
from jaxsr.data import subjects as module
from jaxsr.data.acquired import make_pair, simulate
from jaxsr.data.anatomy import Head
from jaxsr.data.people import person_of
from jaxsr.data.subjects import AnatomySubjects, FolderSubjects, find_volumes, split_by_subject
from jaxsr.physics.acquisition import Acquisition, named_acquisition
from jaxsr.volume.geometry import resample, target_grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume

SCANNER = named_acquisition("1.5T")
SPLITS = ("train", "validation", "test")


def truth(shape=(16, 18, 20), voxel_size=1.0, seed=0):
    """A bright block with structure in air, oblique in the scanner."""
    data = np.zeros(shape, np.float32)
    inner = tuple(n - 6 for n in shape)
    data[3:-3, 3:-3, 3:-3] = np.random.default_rng(seed).uniform(50, 150, inner)
    affine = np.diag([voxel_size] * 3 + [1.0])
    affine[:3, 3] = (-8, 5, 3)
    return Volume(data, affine)


def folder_of(root: Path, names, **how):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, truth(seed=i, **how))
    return root


def listed(root: Path, names):
    """Paths only: splitting reads no file."""
    return [root / name for name in sorted(names)]


# ------------------------------------------------------------------------------------------------ who is who


def splits(paths, root, seed=0):
    return {split: split_by_subject(paths, root, split, seed) for split in SPLITS}


LAYOUTS = {
    "flat": lambda i, s: f"person{i:02d}.nii.gz" if s == 0 else f"person{i:02d}.mgz",
    "BIDS": lambda i, s: f"sub-{i:02d}/ses-{s}/anat/sub-{i:02d}_ses-{s}_T1w.nii.gz",
    "BIDS names, no folders": lambda i, s: f"sub-{i:02d}.mgz" if s == 0 else f"sub-{i:02d}_T2w.nii",
    "a folder each visit": lambda i, s: f"{('baseline', 'follow-up')[s]}/person{i:02d}.nii",
    "a folder each person and visit": lambda i, s: f"OAS1_{i:04d}_MR{s + 1}/scan.nii",
    "visits in names": lambda i, s: f"OAS1_{i:04d}_MR{s + 1}_mpr_anon.nii",
    "a folder each": lambda i, s: f"person{i:02d}/visit{s}/scan.nii",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nobody_is_in_two_splits_and_everybody_in_one(layout):
    root = Path("/data/set")
    name = LAYOUTS[layout]
    people = {root / name(i, s): i for i in range(30) for s in range(2)}
    found = splits(sorted(people), root)
    assert sorted(p for paths in found.values() for p in paths) == sorted(people)
    persons = {split: {people[p] for p in paths} for split, paths in found.items()}
    assert [len(persons[split]) for split in SPLITS] == [24, 3, 3]  # 8:1:1


def test_what_lies_above_the_folder_says_nothing_of_who_is_who():
    """A set below a folder called sub-… is not one person."""
    root = Path("/home/sub-jects/set")
    found = splits(listed(root, [f"person{i:02d}.nii" for i in range(20)]), root)
    assert [len(found[split]) for split in SPLITS] == [16, 2, 2]


def test_a_split_is_drawn_from_the_seed_and_does_not_depend_on_the_place():
    here, there = Path("/a"), Path("/b/c")
    names = [f"person{i:02d}.nii" for i in range(30)]
    chosen = [
        [p.name for p in split_by_subject(listed(root, names), root, "test", seed)] for root, seed in ((here, 0), (there, 0), (here, 1))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_few_people_all_train():
    root = Path("/set")
    found = splits(listed(root, ["a.nii", "b.nii"]), root)
    assert [len(found[split]) for split in SPLITS] == [2, 0, 0]


@pytest.mark.parametrize("path, person", [
    ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01"),
    ("sub-01/T1.mgz", "sub-01"),
    ("sub-01.mgz", "sub-01"),
    ("person/visit/scan.nii", "person"),
    ("IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828"),
    ("IXI-T2/IXI002-Guys-0828-T2.nii.gz", "IXI002-Guys-0828"),
    ("x_t1ce.nii", "x"),
    ("x.FLAIR.nii.gz", "x"),
    ("x PDw.nii", "x"),
    ("x_3T_T1w.nii", "x"),
    ("x-T2-1.5T.nii", "x"),
    ("x_64mT.nii", "x"),
    ("3T/x.nii", "x"),
    ("x_13.nii", "x_13"),
    ("scanT1.nii", "scanT1"),
    ("T1.nii", "unnamed"),
    ("baseline/p01.nii", "p01"),
    ("followup/p01.nii", "p01"),
    ("ses-M06/p01/T1.nii", "p01"),
    ("Visit 3/x.nii", "x"),
    ("m12/x.nii", "x"),
    ("month06/x.nii", "x"),
    ("y1/x.nii", "x"),
    ("tp2/x.nii", "x"),
    ("scan1/x.nii", "x"),
    ("OAS1_0001_MR2/a.nii", "OAS1_0001"),
    ("OAS30001_MR_d0129/anat2/x.nii", "OAS30001"),
    ("x_visit2.nii", "x"),
    ("x_ses-2_T1w.nii", "x"),
    ("x_T1_post.nii", "x"),
    ("x-baseline.nii", "x"),
    ("x_follow-up-1.nii", "x"),
    ("x-6months.nii", "x"),
    ("screening_x.nii", "x"),
    ("baseline.nii", "unnamed"),
    ("scan1.nii", "scan1"),
    ("m06.nii", "m06"),
    ("prefix_1.nii", "prefix_1"),
    ("postcode1/x.nii", "postcode1"),
    ("sub-01_ses-2.nii", "sub-01"),
    ("sub-baseline/ses-1/x.nii", "sub-baseline"),
    ("Jose\u0301.nii", "Jos\u00e9"),
])  # fmt: skip
def test_a_person_is_named_by_bids_or_the_folder_or_by_the_file_without_contrast_and_visit(path, person):
    assert person_of(Path(path)) == person


# ------------------------------------------------------------------------------------------------ pairs


def test_the_low_side_is_what_upscaling_the_simulated_file_would_be_given(tmp_path):
    """Written to disk, read back, brought to the grid in its own window: the same to float32."""
    high, key = truth(), jax.random.key(1)
    pair = make_pair(high, SCANNER, key)
    write_volume(tmp_path / "low.nii.gz", simulate(high, SCANNER, key))
    low = read_volume(tmp_path / "low.nii.gz")
    grid = target_grid(low.grid, 1.0)
    condition = fit_window(low.data).forward(resample(low.data, low.grid, grid))
    assert grid.shape == pair.grid.shape
    np.testing.assert_allclose(grid.affine, pair.grid.affine, atol=1e-4)
    np.testing.assert_allclose(condition, pair.low, atol=1e-4)


def test_truth_and_simulation_share_a_window_and_a_field_of_view():
    high, key = truth(), jax.random.key(1)
    pair, low = make_pair(high, SCANNER, key), simulate(high, SCANNER, key)
    window = fit_window(low.data)
    np.testing.assert_allclose(window.inverse(pair.high), high.data, atol=1e-3)
    np.testing.assert_allclose(low.grid.centre, high.grid.centre, atol=1e-6)
    np.testing.assert_allclose(low.voxel_size, (2, 2, 2), atol=1e-6)


def test_a_visit_is_another_acquisition_of_the_same_person(tmp_path):
    folder = folder_of(tmp_path, ["a.nii"])
    people = FolderSubjects([folder / "a.nii"], folder, voxel_size=1.0, acquisition=SCANNER)
    first, again, second = (people.load(0, visit) for visit in (0, 0, 1))
    np.testing.assert_array_equal(first.low, again.low)
    assert not np.array_equal(first.low, second.low)
    # Only the window differs in `high`: it is that of another acquisition.
    assert np.corrcoef(first.high.ravel(), second.high.ravel())[0, 1] == pytest.approx(1, abs=1e-5)


def test_what_is_simulated_goes_by_the_path_below_the_root_wherever_that_lies(tmp_path):
    """Two files of one name in folders of one name are two volumes; the same tree elsewhere is the same set."""
    names = ["a/anat/T1.nii", "b/anat/T1.nii"]
    drawn = []
    for root in (tmp_path / "here", tmp_path / "there" / "deeper"):
        for name in names:
            (root / name).parent.mkdir(parents=True)
            write_volume(root / name, truth())
        people = FolderSubjects([root / name for name in names], root, voxel_size=1.0, acquisition=SCANNER)
        assert people.ids == names
        drawn.append([people.load(i).low for i in range(2)])
    assert not np.array_equal(drawn[0][0], drawn[0][1])
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_volumes_of_different_sizes_and_orientations_load_on_their_own_grids(tmp_path):
    names, shapes = ("a.nii", "b.nii.gz", "c.mgz"), ((16, 18, 20), (12, 20, 16), (14, 14, 14))
    for name, shape, size, turn in zip(names, shapes, (1.0, 0.8, 1.0), (("R", "A", "S"), ("L", "P", "S"), ("P", "S", "R")), strict=True):
        volume = truth(shape, size)
        write_volume(tmp_path / name, Volume(volume.data, volume.affine, turn))
    assert nib.aff2axcodes(nib.load(tmp_path / "c.mgz").affine) == ("P", "S", "R")
    paths, left_out = find_volumes(tmp_path, 1.0)
    assert not left_out
    people = FolderSubjects(paths, tmp_path, voxel_size=1.0, acquisition=SCANNER)
    for i, shape in enumerate(((16, 18, 20), (10, 16, 13), (14, 14, 14))):
        pair = people.load(i)
        assert pair.high.shape == pair.low.shape == pair.grid.shape == shape
        assert pair.high.dtype == pair.low.dtype == np.float32
        assert np.corrcoef(pair.high.ravel(), pair.low.ravel())[0, 1] > 0.5


# ------------------------------------------------------------------------------------------------ what is in a folder


def test_what_can_be_no_truth_is_left_out_with_its_reason(tmp_path):
    folder_of(tmp_path, ["fine.nii", "deep/er/fine.nii.gz"])
    folder_of(tmp_path, ["coarse.nii"], voxel_size=3.0)
    (tmp_path / "broken.nii").write_bytes(b"not a volume")
    (tmp_path / ".hidden.nii").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 5), np.float32), np.eye(4)), tmp_path / "series.nii")
    paths, left_out = find_volumes(tmp_path, 1.0)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == ["deep/er/fine.nii.gz", "fine.nii"]
    assert len(left_out) == 3
    for word in (
        "broken.nii: not a volume in a format that is read",
        "3 × 3 × 3 mm are no truth at data.voxel_size=1 mm",
        "8 × 8 × 8 × 5 is not one volume",
    ):
        assert any(word in sentence for sentence in left_out)


def test_a_folder_without_a_truth_is_refused_with_every_reason(tmp_path):
    with pytest.raises(VolumeError, match="no file ends in"):
        find_volumes(tmp_path, 1.0)
    folder_of(tmp_path, ["coarse.nii"], voxel_size=3.0)
    with pytest.raises(VolumeError, match=r"would serve with data.voxel_size=3:\n.*coarse\.nii: voxels of 3 × 3 × 3 mm"):
        find_volumes(tmp_path, 1.0)
    with pytest.raises(VolumeError, match="is not a folder"):
        find_volumes(tmp_path / "absent", 1.0)
    with pytest.raises(VolumeError, match="split is empty"):
        FolderSubjects([], tmp_path, voxel_size=1.0, acquisition=SCANNER)


# ------------------------------------------------------------------------------------------------ the embedded set


@pytest.fixture
def drawn(monkeypatch):
    """Records the keys that heads are rendered and acquired from, and renders nothing."""
    keys = {"heads": [], "acquisitions": []}

    def render(key, shape, voxel_size, contrast, **_):
        keys["heads"].append(bytes(jax.random.key_data(key)))
        return Head(np.random.default_rng(0).uniform(0, 1, (8, 8, 8)), np.zeros((8, 8, 8), np.uint8))

    def make_pair(truth, acquisition, key, *_, **__):
        keys["acquisitions"].append(bytes(jax.random.key_data(key)))

    monkeypatch.setattr(module, "render", render)
    monkeypatch.setattr(acquired, "make_pair", make_pair)
    return keys


def test_no_head_and_no_acquisition_is_drawn_twice(drawn):
    """Over splits, people and visits all keys differ: held-out heads have deformations and contrasts never trained on."""
    for split in SPLITS:
        people = AnatomySubjects(6, split, voxel_size=4.0, acquisition=SCANNER)
        for i in range(6):
            for visit in range(4):
                people.load(i, visit)
    assert len(set(drawn["heads"])) == 3 * 6
    assert len(set(drawn["acquisitions"])) == 3 * 6 * 4
    # Nor is an acquisition's key among those that the renderer folds from the head's.
    folded = {
        bytes(jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(np.frombuffer(key, np.uint32)), i)))
        for key in set(drawn["heads"])
        for i in range(8)
    }
    assert not folded & set(drawn["acquisitions"])


def test_a_person_has_the_same_head_at_every_visit(drawn):
    people = AnatomySubjects(2, "train", voxel_size=4.0, acquisition=SCANNER)
    people.load(1, 0)
    people.load(1, 9)
    people.truth(1)
    people.labels(1)
    assert len(set(drawn["heads"])) == 1


@pytest.mark.slow
def test_an_embedded_pair_at_one_millimetre_is_a_head_that_the_window_fits():
    people = AnatomySubjects(1, "test", voxel_size=1.0, acquisition=SCANNER)
    pair = people.load(0)
    assert pair.high.shape == pair.low.shape == people.grid.shape
    assert 0.9 < np.percentile(pair.low, 99.5) < 1.5
    assert np.percentile(pair.low, 5) < -0.8
    error = np.sqrt(((pair.high - pair.low) ** 2).mean())
    assert 0.02 < error < 0.3


def test_a_coarser_acquisition_is_further_from_the_truth():
    high = truth((24, 24, 24))
    errors = []
    for size in (1.5, 2.0, 3.0):
        pair = make_pair(high, Acquisition(voxel_size=(size,) * 3, snr=(1e6, 1e6), bias=(0.0, 0.0)), jax.random.key(0))
        errors.append(float(np.sqrt(((pair.high - pair.low) ** 2).mean() / pair.high.var())))
    assert errors == sorted(errors)
