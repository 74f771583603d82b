"""Laws of heads from label maps: what is read, what is rendered, what comes with it. A made-up head stands in for real ones."""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from jaxsr.data.anatomy import KINDS, STRUCTURES, read_label_map, render_labels
from jaxsr.data.anatomy.contrasts import draw_means
from jaxsr.data.anatomy.label_heads import VARIATION, draw_kinds
from jaxsr.data.anatomy.labels import ABOVE_CENTRE, FIELD_OF_VIEW
from jaxsr.data.subjects import split_by_subject
from jaxsr.data.synthetic import LabelSubjects, find_label_maps
from jaxsr.experiment import DataConfig
from jaxsr.physics.acquisition import Acquisition
from jaxsr.physics.gradients import unwarp
from jaxsr.train.build import build_subjects
from jaxsr.volume.intensity import FILLING
from jaxsr.volume.io import VolumeError

SPACING = 4.0  # mm, of the made-up head
# Its whole field of view at 8 mm and at 4 mm. Four programs for all tests: each is traced and compiled for many seconds.
COARSE, FINE = (tuple(round(f / mm) for f in FIELD_OF_VIEW) for mm in (8, 4))
ALL = ("reference", "bias", "gradient", "mask")
PLAIN = dataclasses.replace(VARIATION, texture=0.0)
SOUND = dataclasses.replace(VARIATION, lesions=0)
SCANNER = Acquisition(voxel_size=(16.0, 16.0, 16.0), snr=(50.0, 60.0), bias=(0.0, 0.01))
WHITE, LESION, BONE = (STRUCTURES.index(s) for s in ("white matter", "lesion", "skull"))


def made_up(shells=True, radius=1.0):
    """Spheres: white matter in cortex in fluid in skull in soft tissue in skin, left and right, about a ventricle and two putamina."""
    sides = [round(f / SPACING) for f in (200.0, 230.0, 230.0)]
    x, y, z = np.meshgrid(*(SPACING * (np.arange(n) - (n - 1) / 2) for n in sides), indexing="ij")
    r = np.sqrt(x**2 + (y / 1.15) ** 2 + z**2) / radius
    labels = np.zeros(sides, np.int32)
    layers = [(90, 511), (86, 507), (76, 515), (70, 24)] if shells else []
    for outer, number in [*layers, (66, 3), (58, 2)]:
        labels[r < outer] = number
    labels[(r < 66) & (x > 0)] = np.where(r < 58, 41, 42)[(r < 66) & (x > 0)]
    labels[np.sqrt(x**2 + y**2 + z**2) < 12] = 4
    labels[np.sqrt((x + 25) ** 2 + y**2 + z**2) < 9] = 12
    labels[np.sqrt((x - 25) ** 2 + y**2 + z**2) < 9] = 51
    return labels


def write(path, labels, codes="LIA"):
    image = nib.Nifti1Image(labels, np.diag([SPACING, SPACING, SPACING, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)
    return path


@pytest.fixture(scope="module")
def whole_map(tmp_path_factory):
    return read_label_map(write(tmp_path_factory.mktemp("maps") / "a.nii.gz", made_up()))


@pytest.fixture(scope="module")
def head(whole_map):
    @functools.cache
    def rendered(seed=0, shape=COARSE, voxel_size=8.0, contrast="T1w", variation=PLAIN, maps=ALL):
        return jax.device_get(render_labels(jax.random.key(seed), whole_map, shape, voxel_size, contrast, variation, maps))

    return rendered


# ------------------------------------------------------------------------------------------------------------------ reading


def test_a_map_of_any_orientation_is_read_as_the_same_head_about_its_brain(tmp_path, whole_map):
    other = read_label_map(write(tmp_path / "b.mgz", made_up(), "PSR"))
    np.testing.assert_array_equal(other.structures, whole_map.structures)
    assert whole_map.structures.shape == tuple(f / SPACING for f in FIELD_OF_VIEW)
    brain = np.argwhere(np.isin(whole_map.structures, (2, 3))).mean(0) - (np.array(whole_map.structures.shape) - 1) / 2
    np.testing.assert_allclose(SPACING * brain, [0, 0, -ABOVE_CENTRE], atol=SPACING)


def test_left_and_right_are_one_structure(whole_map):
    structures = whole_map.structures
    share = (structures == structures[::-1]).mean()
    assert share > 0.95
    assert set(np.unique(structures[:24])) == set(np.unique(structures[24:]))


def test_lesions_may_be_where_white_matter_is(whole_map):
    index = np.rint(whole_map.sites / SPACING + (np.array(whole_map.structures.shape) - 1) / 2).astype(int)
    assert (whole_map.structures[tuple(index.T)] == WHITE).all()


def test_a_map_that_ends_at_the_brain_gets_fluid_skull_and_scalp(tmp_path):
    bare = read_label_map(write(tmp_path / "bare.nii", made_up(shells=False)))
    places = np.argwhere(bare.structures > 0).mean(0)
    radius = [
        np.linalg.norm(np.argwhere(bare.structures == STRUCTURES.index(s)) - places, axis=1).mean()
        for s in ("white matter", "grey matter", "skull", "scalp", "skin")
    ]
    assert (np.diff(radius) > 0).all()
    # No hole between them: what is inside the skin is something.
    assert (ndimage.binary_fill_holes(bare.structures > 0) == (bare.structures > 0)).all()


def test_specks_of_air_inside_the_head_are_closed_and_cavities_stay(tmp_path):
    labels = made_up()
    labels[25, 10, 28] = 0
    labels[24:28, 45:49, 18:22] = 0  # 64 voxels
    read = read_label_map(write(tmp_path / "holes.nii", labels)).structures
    enclosed = ndimage.binary_fill_holes(read > 0) & (read == 0)
    assert ndimage.label(enclosed)[1] == 1
    assert enclosed.sum() == 64


def test_there_is_no_air_in_a_brain(tmp_path):
    labels = made_up()
    labels[24:30, 15:21, 27:33] = 0
    read = read_label_map(write(tmp_path / "holes.nii", labels)).structures
    assert (ndimage.binary_fill_holes(read > 0) == (read > 0)).all()


@pytest.mark.parametrize(
    "change,sentence",
    [
        (lambda x: np.where(x == 12, 999, x), r"c\.nii: label 999 not among the known ones \(FreeSurfer"),
        (lambda x: np.where(x == 12, -7, x), r"c\.nii: label -7 not among"),
        (lambda x: x + np.float32(0.5) * (x == 12), "not whole numbers, so this is no label map; data.labels names"),
        (lambda x: np.where(x > 500, x, 0), "no label is of the brain"),
    ],
)
def test_what_is_no_label_map_of_a_head_is_refused_by_name(tmp_path, change, sentence):
    with pytest.raises(VolumeError, match=sentence):
        read_label_map(write(tmp_path / "c.nii", change(made_up()).astype(np.float32)))


# ---------------------------------------------------------------------------------------------------------------- rendering


def test_the_same_key_is_the_same_head_bit_for_bit_and_another_key_another_head(head, whole_map):
    again = jax.device_get(render_labels(jax.random.key(0), whole_map, COARSE, 8.0, "T1w", PLAIN, ALL))
    jax.tree.map(np.testing.assert_array_equal, again, head(0))
    assert (head(1).labels != head(0).labels).mean() > 0.05


def test_maps_change_neither_image_nor_labels_and_come_only_when_asked(head):
    alone, accompanied = head(0, maps=()), head(0)
    np.testing.assert_allclose(alone.image, accompanied.image, atol=1e-5)
    np.testing.assert_array_equal(alone.labels, accompanied.labels)
    assert alone[2:] == (None,) * 4


def test_within_a_structure_the_signal_is_one_value_and_left_and_right_share_it(head):
    image, labels, reference = head(0)[:3]
    for name in ("background", "white matter"):
        inside = ndimage.binary_erosion(labels == STRUCTURES.index(name))
        assert inside.sum() > 20
        assert image[inside].std() < 0.02
        assert reference[inside].std() < 0.02
    inside = ndimage.binary_erosion(labels == WHITE)
    middle = np.argwhere(labels > 0)[:, 0].mean()
    right = np.arange(len(image))[:, None, None] > middle
    np.testing.assert_allclose(np.median(image[inside & right]), np.median(image[inside & ~right]), atol=1e-3)


def test_the_reference_is_the_same_anatomy_in_another_contrast_with_its_own_texture(head):
    for seed in range(3):
        first, second = draw_kinds(jax.random.key(seed), -1)
        assert first != second
    plain = head(0)
    # Every edge of the one is where the other has one: within labels both are flat.
    inside = ndimage.binary_erosion(plain.labels == WHITE)
    assert (
        abs(plain.image[inside].mean() - plain.reference[inside].mean()) > 0.01
        or np.corrcoef(plain.image.ravel(), plain.reference.ravel())[0, 1] < 0.98
    )
    textured = head(0, variation=SOUND, maps=("reference",))
    rest, other = textured.image[inside] - plain.image[inside], textured.reference[inside] - plain.reference[inside]
    assert abs(np.corrcoef(rest, other)[0, 1]) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_tissues_are_in_their_contrasts_order_and_lesions_dark_in_t1w_and_bright_in_t2w(kind):
    """By ranges and by equations, 200 draws of each contrast."""
    means = jax.vmap(lambda key: draw_means(key, KINDS.index(kind)))(jax.random.split(jax.random.key(0), 200))
    csf, grey, white, lesion = (np.asarray(means)[:, STRUCTURES.index(s)] for s in ("csf", "grey matter", "white matter", "lesion"))
    assert (means >= 0).all()
    order = {"T1w": (csf, grey, white), "T2w": (white, grey, csf), "PDw": (white, grey), "FLAIR": (csf, white)}[kind]
    assert all((a < b).mean() > 0.95 for a, b in itertools.pairwise(order))
    assert ((lesion < white) if kind == "T1w" else (lesion > white)).mean() > 0.97
    background = np.asarray(means)[:, 0]
    assert background.max() <= 0.02


@pytest.mark.slow
def test_lesions_take_white_matter_and_nothing_else(head):
    taken = []
    for seed in range(8):
        with_, without = (h.labels for h in (head(seed, maps=()), head(seed, variation=SOUND, maps=("reference",))))
        assert not (without == LESION).any()
        lesion = with_ == LESION
        assert (with_[~lesion] == without[~lesion]).mean() > 0.999
        taken += without[lesion].tolist()
    assert len(taken) >= 2
    assert np.mean(np.array(taken) == WHITE) > 0.7


@pytest.mark.slow
def test_what_was_stripped_or_defaced_is_exactly_zero_and_both_kinds_of_window_occur(head):
    shares = []
    for seed in range(8):
        image, labels, reference, _, _, mask = head(seed)
        for x in (image, labels, reference):
            assert (x[~mask] == 0).all()
        if mask.mean() < 0.7:
            assert not (labels[mask] == BONE).any()
        assert (image[mask] == 0).mean() < 0.01  # where nothing was taken off, air is dark, not empty
        shares.append((image == 0).mean())
    assert min(shares) == 0
    assert max(shares) > FILLING


def test_the_bias_field_is_smooth_and_of_mean_zero_and_the_displacement_odd_within_its_range(head):
    for seed in (0, 1):
        _, labels, _, bias, gradient, _ = head(seed)
        assert abs(bias[labels > 0].mean()) < 1e-3
        assert 0.05 < bias.std() < 0.4
        assert np.abs(np.diff(bias, axis=0)).max() < 0.2
        longest = np.linalg.norm(gradient, axis=-1).max()
        assert VARIATION.nonlinearity[0] - 1e-3 <= longest <= VARIATION.nonlinearity[1] + 1e-3
        assert gradient.shape == (*COARSE, 3)


# ----------------------------------------------------------------------------------------------------------------- resolution


def band_power(image, low, high):
    window = functools.reduce(np.multiply.outer, [np.hanning(n) for n in image.shape])
    spectrum = np.abs(np.fft.fftn((image - image.mean()) * window)) ** 2
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*[2 * np.fft.fftfreq(n) for n in image.shape], indexing="ij")))
    return spectrum[(radius >= low) & (radius < high)].mean() / spectrum[(radius > 0.05) & (radius < 0.25)].mean()


@pytest.mark.slow
def test_the_truth_has_content_up_to_its_own_nyquist_frequency(head):
    fine = head(0, FINE, 4.0, maps=()).image
    coarse = head(0, maps=()).image
    interpolated = ndimage.zoom(coarse, 2, order=3, grid_mode=True, mode="nearest")
    top = (0.75, 1.0)
    assert band_power(fine, *top) > 10 * band_power(interpolated, *top)
    assert band_power(fine, *top) > 0.1 * band_power(fine, 0.5, 0.75)


@pytest.mark.slow
def test_the_same_key_at_twice_the_voxel_size_is_the_same_head(head):
    fine = head(0, FINE, 4.0, maps=()).image
    coarse = head(0, maps=()).image
    averaged = fine.reshape(24, 2, 30, 2, 26, 2).mean((1, 3, 5))
    assert np.corrcoef(averaged.ravel(), coarse.ravel())[0, 1] > 0.98


# ------------------------------------------------------------------------------------------------------------------- subjects


def folder_of(root, names):
    for name in names:
        write(root / name, made_up())
    return root


def test_no_map_is_in_two_splits_wherever_the_folder_lies_and_whatever_its_files_are_ordered_by(tmp_path):
    root = tmp_path / "maps"
    for i in range(20):
        (root / f"sub-{i:02d}").mkdir(parents=True)
        (root / f"sub-{i:02d}" / "seg.nii.gz").touch()
    paths = sorted(root.rglob("*.nii.gz"))
    splits = {s: split_by_subject(paths, root, s) for s in ("train", "validation", "test")}
    assert sorted(itertools.chain(*splits.values())) == paths
    assert [len(splits[s]) for s in splits] == [16, 2, 2]
    (tmp_path / "elsewhere").mkdir()
    moved = root.rename(tmp_path / "elsewhere" / "sub-99")
    for split, before in splits.items():
        after = split_by_subject(sorted(moved.rglob("*.nii.gz"), reverse=True), moved, split)
        assert sorted(p.relative_to(moved) for p in after) == [p.relative_to(root) for p in before]
        people = [LabelSubjects(p, r, 9, split, voxel_size=8.0, acquisition=SCANNER).ids for p, r in ((before, root), (after, moved))]
        assert people[0] == people[1]
        assert {name.split("#")[0] for name in people[0]} <= {p.relative_to(root).as_posix() for p in before}


@pytest.mark.slow
def test_people_of_a_split_are_endless_and_pairs_have_every_map_on_one_grid(tmp_path):
    root = folder_of(tmp_path, ["a.nii.gz"])
    maps = ("reference", "bias", "gradient", "labels", "mask")
    people = LabelSubjects(find_label_maps(root)[0], root, 1000, "train", voxel_size=8.0, acquisition=SCANNER, maps=maps, variation=PLAIN)
    assert len(set(people.ids)) == 1000
    pair, again, visit = people.load(998), people.load(998), people.load(998, 1)
    for name, x in pair.maps().items():
        assert x.shape[:3] == pair.grid.shape == COARSE
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(x, again.maps()[name])
    assert (pair.labels.dtype, pair.mask.dtype) == (np.uint8, bool)
    np.testing.assert_array_equal(pair.labels, visit.labels)
    assert (pair.low != visit.low).any()
    assert (people.load(999).labels != pair.labels).any()


@pytest.mark.slow
def test_a_stripped_head_is_acquired_stripped(tmp_path):
    """The low-resolution side has the same filling as the files of a stripped set have, so it gets the window that they get."""
    root = folder_of(tmp_path, ["a.nii.gz"])
    scanner = Acquisition(voxel_size=(8.0, 8.0, 8.0), snr=(10.0, 12.0), bias=(0.0, 0.01))
    people = LabelSubjects(find_label_maps(root)[0], root, 20, "train", voxel_size=8.0, acquisition=scanner, maps=ALL, variation=PLAIN)
    pair = next(pair for pair in map(people.load, range(20)) if pair.mask.mean() < 0.5)
    outside = ~ndimage.binary_dilation(pair.mask)
    assert outside.mean() > 0.3
    assert np.ptp(pair.low[outside]) < 1e-5
    assert np.ptp(pair.high[outside]) < 1e-5


def test_every_second_visit_of_a_rendered_head_is_smoothed_but_for_where_its_skull_was_taken_off(tmp_path):
    root = folder_of(tmp_path, ["a.nii.gz"])
    how = {"voxel_size": 8.0, "acquisition": SCANNER, "variation": PLAIN}
    sharp, smooth = (LabelSubjects(find_label_maps(root)[0], root, 6, "train", smooth=most, **how) for most in (0.0, 1.0))
    found = [(sharp.load(i, visit), smooth.load(i, visit), sharp.head(i)) for i in range(3) for visit in range(4)]
    alike = [np.allclose(one.high, other.high) for one, other, _ in found]
    assert 2 < sum(alike) < 10
    for (one, other, head), same in zip(found, alike, strict=True):
        if not same:
            assert np.abs(np.diff(other.high, axis=0)).mean() < np.abs(np.diff(one.high, axis=0)).mean()
            assert np.unique(other.high[~np.asarray(head.mask)].round(4)).size <= 1
    np.testing.assert_array_equal(smooth.load(1, 3).high, smooth.load(1, 3).high)


def pair_that_carries(tmp_path, carries, mm):
    root = folder_of(tmp_path, ["a.nii.gz"])
    how = {"voxel_size": mm, "acquisition": SCANNER, "maps": ALL, "carries": carries, "variation": PLAIN}
    return LabelSubjects(find_label_maps(root)[0], root, 1, "train", **how).load(0)


def test_the_target_carries_its_bias_only_when_asked_and_the_acquisition_never(tmp_path):
    plain, biased = (pair_that_carries(tmp_path, carries, 8.0) for carries in ((), ("bias",)))
    np.testing.assert_allclose(plain.low, biased.low, atol=1e-5)
    # In the window, which is affine, y ↦ b y + (b − 1) c, c its place of zero signal.
    design = np.stack([np.exp(plain.bias).ravel() * plain.high.ravel(), np.exp(plain.bias).ravel() - 1], 1)
    solution, *_ = np.linalg.lstsq(design, biased.high.ravel(), rcond=None)
    np.testing.assert_allclose(solution[0], 1, atol=1e-3)
    assert np.abs(design @ solution - biased.high.ravel()).max() < 1e-3


def test_the_target_is_moved_by_its_gradients_only_when_asked_and_the_acquisition_never(tmp_path):
    """Unwarped by the map of the pair, it is the head again, as far as interpolating twice goes."""
    plain, moved = (pair_that_carries(tmp_path, carries, 4.0) for carries in ((), ("gradient",)))
    np.testing.assert_allclose(plain.low, moved.low, atol=1e-5)
    np.testing.assert_array_equal(plain.gradient, moved.gradient)
    size = moved.grid.voxel_size
    zero = plain.high.min()  # of the signal: unwarping thins what is there by the Jacobian, and there is nothing there
    back = np.asarray(unwarp(jnp.asarray(moved.high - zero), jnp.asarray(moved.gradient), size)) + zero
    apart = [np.sqrt(np.mean((x - plain.high) ** 2)) for x in (moved.high, back)]
    assert apart[1] < 0.5 * apart[0], apart


def test_a_config_names_one_set_and_label_maps_are_one(tmp_path):
    with pytest.raises(ValueError, match="volumes and labels name 2 sets: keep one of them"):
        DataConfig(volumes=tmp_path, labels=tmp_path)
    root = folder_of(tmp_path, [f"sub-{i}.nii.gz" for i in range(10)])
    told = []
    people = build_subjects(DataConfig(labels=root, subjects=4, voxel_size=8.0), "validation", 0, told.append)
    assert isinstance(people, LabelSubjects)
    assert len(people.ids) == 4
    assert told == [f"validation: {len(set(people.paths))} of 10 label maps in {root}"]


def test_a_folder_without_label_maps_and_a_split_without_any_are_refused(tmp_path):
    with pytest.raises(VolumeError, match=r"is not a folder: data\.labels names"):
        find_label_maps(tmp_path / "nothing")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(VolumeError, match="no label map is in it"):
        find_label_maps(tmp_path)
    with pytest.raises(VolumeError, match="no label maps are in the split test"):
        LabelSubjects([], tmp_path, 3, "test", voxel_size=1.0, acquisition=SCANNER)


# ------------------------------------------------------------------------------------------------------------------ real maps


@pytest.mark.slow
def test_every_real_map_is_read_and_a_real_head_has_the_volumes_of_one(mri: Path):
    for folder in ("synthseg_labels", "synthsr_labels"):
        for path in find_label_maps(mri / folder)[0]:
            structures = read_label_map(path).structures
            litres = np.bincount(structures.ravel(), minlength=len(STRUCTURES)) / 1e6
            assert 0.3 < litres[2] < 0.8, path
            assert 0.3 < litres[3] < 0.8, path
            assert 0.2 < litres[BONE] < 1.2, path
    image = render_labels(jax.random.key(0), read_label_map(path), (192, 240, 208), 1.0).image
    assert np.isfinite(image).all()
