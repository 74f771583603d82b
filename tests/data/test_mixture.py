"""Laws of mixtures: several sources, several acquisitions, volumes that keep their voxels, slabs of slices."""

import nibabel as nib
import numpy as np
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.data.acquired import drawn_acquisition
from jaxsr.data.augmentation import AugmentConfig, Draw
from jaxsr.data.cubes import CubeStream
from jaxsr.data.pairs import beside, planes
from jaxsr.data.pipeline import SliceStream, magnified, make_sample
from jaxsr.data.subjects import FolderSubjects, MixedSubjects, Pair
from jaxsr.experiment import DataConfig, Experiment
from jaxsr.physics.protocol import Acquisition, named_acquisition
from jaxsr.train.build import build_stream, build_subjects
from jaxsr.volume import quality
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import Volume, write_volume
from jaxsr.volume.quality import Quality

SHAPE = (12, 14, 16)
SMOOTH = {"name": "smooth", "voxel_size": [4.0, 4.0, 4.0]}


class Called:
    """Subjects whose voxels say which collection they are of, which of them they are, and at which visit."""

    def __init__(self, name, count, grid=None):
        self.number, self.ids, self.grid = name, [f"{name}-{i}" for i in range(count)], grid or Grid(SHAPE, np.eye(4))

    def load(self, index, visit=0):
        high = np.full(self.grid.shape, self.number + index / 10, np.float32)
        return Pair(high, high + np.float32(visit), self.grid)


def save(path, voxel_size, shape=(24, 24, 24), seed=0):
    data = np.random.default_rng(seed).uniform(100, 200, shape).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(data, np.diag([*voxel_size, 1.0])))
    return path


# ------------------------------------------------------------------------------------------------ whose turn it is


def test_sources_come_in_their_shares_and_people_of_one_alike():
    mixed = MixedSubjects([(Called(1, 1), 3.0), (Called(2, 4), 1.0)])
    turns = np.bincount([mixed.turn(visit, 0) for visit in range(4000)], minlength=5) / 4000
    np.testing.assert_allclose(turns, [0.75, *[0.0625] * 4], atol=0.02)  # 3 σ of the rarest is 0.011


def test_whoever_has_the_turn_is_loaded_at_that_visit():
    mixed = MixedSubjects([(Called(1, 2), 1.0), (Called(2, 3), 1.0)])
    assert mixed.ids == ["1-0", "1-1", "2-0", "2-1", "2-2"]
    for index, expected in enumerate([1.0, 1.1, 2.0, 2.1, 2.2]):
        pair = mixed.load(index, 7)
        assert pair.high.flat[0] == np.float32(expected)
        assert pair.low.flat[0] == np.float32(np.float32(expected) + 7)


def test_a_stream_takes_turns_as_the_mixture_draws_them_and_any_position_is_what_it_is_without_those_before_it():
    mixed = MixedSubjects([(Called(1, 2), 1.0), (Called(2, 3), 2.0)])
    make = lambda: SliceStream(mixed, (8, 8), draws=8, window=2, seed=3, augment=False)  # noqa: E731
    first, again = make(), make()
    samples = [first[i] for i in range(40)]
    for i in (33, 2, 39):
        np.testing.assert_array_equal(again[i]["low"], samples[i]["low"])
    for sample in samples:
        visit, subject = sample["origin"][:2]
        assert subject == mixed.turn(int(visit), 3)


def test_of_several_acquisitions_each_is_drawn_and_a_single_one_is_itself():
    import jax

    several = tuple(named_acquisition(name) for name in ("1.5T", "3T", "thick-slice"))
    drawn = [drawn_acquisition(jax.random.key(i), several).name for i in range(40)]
    assert set(drawn) == {"1.5T", "3T", "thick-slice"}
    assert drawn_acquisition(jax.random.key(0), several[0]) is several[0]


def test_the_same_visit_draws_the_same_acquisition_and_another_visit_may_draw_another(tmp_path):
    save(tmp_path / "heads" / "a.nii.gz", (1.0, 1.0, 1.0))
    ways = (named_acquisition("1.5T"), named_acquisition("3T"))
    subjects = FolderSubjects([tmp_path / "heads" / "a.nii.gz"], tmp_path / "heads", voxel_size=1.0, acquisition=ways)
    first, again = subjects.load(0, 1), subjects.load(0, 1)
    np.testing.assert_array_equal(first.low, again.low)
    assert not all(np.array_equal(subjects.load(0, visit).low, first.low) for visit in (2, 3))


# ------------------------------------------------------------------------------------------------ volumes as they are


def test_native_volumes_are_left_as_coarse_as_they_are_and_made_no_finer_than_asked(tmp_path):
    path = save(tmp_path / "a.nii.gz", (0.5, 1.0, 3.0))
    subjects = FolderSubjects([path], tmp_path, voxel_size=0.7, native=True, acquisition=named_acquisition("1.5T"))
    np.testing.assert_allclose(subjects.load(0).grid.voxel_size, (0.7, 1.0, 3.0))


@pytest.mark.parametrize(
    "sizes, expected", [((1, 1, 1), [0, 1, 2]), ((0.7, 0.7, 3), [2]), ((0.7, 1.0, 1.0), [0, 1, 2]), ((1, 3, 9), [0, 1, 2])]
)
def test_slices_are_cut_where_pixels_are_about_square(sizes, expected):
    """Where no plane has such pixels, any will have to do."""
    assert planes(Grid(SHAPE, np.diag([*map(float, sizes), 1.0]))) == expected


def test_slices_of_thick_ones_are_cut_in_their_plane_alone():
    mixed = MixedSubjects([(Called(1, 1, Grid(SHAPE, np.diag([1.0, 1.0, 4.0, 1.0]))), 1.0)])
    stream = SliceStream(mixed, (8, 8), draws=8, window=2)
    assert {int(stream[i]["origin"][2]) for i in range(24)} == {2}


# ------------------------------------------------------------------------------------------------ slabs


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_beside_a_slice_are_its_neighbours_and_beyond_the_volume_its_outermost_slice(axis):
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    stack = np.moveaxis(volume, axis, 0)
    n = len(stack)
    for index, expected in ((5, [3, 4, 6, 7]), (0, [0, 0, 1, 2]), (n - 1, [n - 3, n - 2, n - 1, n - 1])):
        np.testing.assert_array_equal(beside(volume, axis, index, 2), np.stack([stack[i] for i in expected], -1))


def test_slices_say_how_much_coarser_than_themselves_they_were_scanned_also_where_they_are_transposed(tmp_path):
    """Voxels of 4 × 5 × 6 mm that stand for ones of 1, 1 and 2 mm."""
    path = save(tmp_path / "a.nii.gz", (1.0, 1.0, 1.2), shape=(40, 40, 40))
    acquisition = from_dict({"name": "made", "voxel_size": [4.0, 5.0, 6.0]}, Acquisition)
    subjects = FolderSubjects([path], tmp_path, voxel_size=1.0, native=True, acquisition=acquisition)
    pair = subjects.load(0)
    along = np.array(pair.scanned) / pair.grid.voxel_size
    np.testing.assert_allclose(along, (4, 5, 5), rtol=0.03)  # whole voxels in the field of view
    stream = SliceStream(subjects, (16, 16), draws=64, window=2, augment=AugmentConfig(transpose=True), scale=True)
    seen = {(int(sample["origin"][2]), *np.round(sample["scale"], 4)) for sample in (stream[i] for i in range(64))}
    x, y, z = np.round(along.astype(np.float32), 4)
    assert seen == {(0, y, z, x), (0, z, y, x), (1, x, z, y), (1, z, x, y), (2, x, y, z), (2, y, x, z)}
    assert not {"scale", "quality"} & SliceStream(subjects, (16, 16), draws=8, window=2)[0].keys()


def test_slices_say_how_sharp_their_scan_was_also_where_they_are_transposed():
    class Uneven(Called):
        def load(self, index, visit=0):
            return super().load(index, visit)._replace(quality=lambda: Quality((1.0, 2.0, 3.0), 0.05, True))

    stream = SliceStream(Uneven(1, 1), (16, 16), draws=64, window=2, augment=AugmentConfig(transpose=True), quality=True)
    seen = {(int(sample["origin"][2]), *map(float, sample["quality"][:3])) for sample in (stream[i] for i in range(64))}
    assert seen == {(0, 2, 3, 1), (0, 3, 2, 1), (1, 1, 3, 2), (1, 3, 1, 2), (2, 1, 2, 3), (2, 2, 1, 3)}
    np.testing.assert_array_equal(stream[0]["quality"][3:], np.float32([0.05, 1]))


@pytest.mark.parametrize("kind", [SliceStream, CubeStream], ids=["slices", "cubes"])
@pytest.mark.parametrize("tissue", [True, False])
def test_slices_say_how_much_their_head_lacks(kind, tissue):
    """0.3 where there is tissue, which is what counts if there is any; 1 in the air."""

    class Known(Called):
        def load(self, index, visit=0):
            low = np.full((20, 20, 20), -1.0, np.float32)
            low[:10] = 0.5 if tissue else -1
            return Pair(low + np.where(low > 0, np.float32(0.3), np.float32(1.0)), low, Grid(low.shape, np.eye(4)))

    stream = kind(Known(1, 1), 8 if kind is CubeStream else (8, 8), draws=48, window=2, lacks=True)
    assert [stream[i]["lacks"] for i in (0, 30)] == [pytest.approx(0.3 if tissue else 1.0)] * 2
    assert stream[0]["lacks"].dtype == np.float32


def test_quality_is_measured_where_somebody_is_told_and_once_a_visit(monkeypatch, tmp_path):
    measured, wanted = [], quality.quality_of
    monkeypatch.setattr(quality, "quality_of", lambda data, window: measured.append(1) or wanted(data, window))
    path = save(tmp_path / "a.nii.gz", (1.0, 1.0, 1.0), shape=(20, 20, 20))
    subjects = FolderSubjects([path], tmp_path, voxel_size=1.0, native=True, acquisition=from_dict(SMOOTH, Acquisition))
    for told, count in ((False, 0), (True, 1)):
        with SliceStream(subjects, (8, 8), draws=16, window=1, quality=told) as stream:
            assert all(("quality" in stream[i]) == told for i in range(16))
        assert len(measured) in (count, 2 * count)  # the next visit may have been prepared


def test_of_a_slice_that_is_magnified_the_scan_is_coarser_by_as_much_but_not_through_it():
    scale = np.array([2.0, 3.0, 4.0], np.float32)
    np.testing.assert_allclose(magnified(scale, Draw(linear=np.eye(2) / 1.5)), [3.0, 4.5, 4.0], rtol=1e-6)
    np.testing.assert_allclose(magnified(scale, Draw(linear=np.eye(2) / 1.5, transposed=True)), [4.5, 3.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(magnified(scale, Draw(linear=np.eye(2) / 0.4)), [1.0, 1.2, 4.0], rtol=1e-6)  # never finer than the slice


def test_of_a_window_that_is_bent_no_noise_is_told():
    settings = {"kind": "sr3", "scale_conditioning": True, "quality_conditioning": True}
    experiment = from_dict({"method": settings, "data": {"augment": {"gamma": 0.1}}}, Experiment)
    with pytest.raises(ConfigError, match=r"data.augment.gamma: .*set one of them to 0"):
        build_stream(experiment, Called(1, 1))


def test_in_a_window_that_is_bent_a_slice_does_not_lack_what_its_head_does():
    settings = {"kind": "sr3", "loss": "l2", "residual_std": 0.1, "relative": True, "relative_to": "head"}
    experiment = from_dict({"method": settings, "data": {"augment": {"gamma": 0.1}}}, Experiment)
    with pytest.raises(ConfigError, match=r"data.augment.gamma: .*set data.augment.gamma=0, or method.relative_to=slice"):
        build_stream(experiment, Called(1, 1))


def test_a_slice_that_is_turned_has_no_scale(tmp_path):
    settings = {"kind": "sr3", "scale_conditioning": True}
    experiment = from_dict({"method": settings, "data": {"augment": {"rotation": 5.0}}}, Experiment)
    with pytest.raises(ConfigError, match=r"data.augment.rotation: .*set one of them to 0"):
        build_stream(experiment, Called(1, 1))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_slab_is_turned_as_its_slice_is(transposed):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(8, 8)).astype(np.float32)
    maps = {"high": low, "low": low, "beside": np.stack([low, low], -1)}
    sample = make_sample(maps, (0, 0), (8, 8), Draw((True, False), exponents=(1.2, 1.0), transposed=transposed), np.zeros(4))
    expected = low[::-1].T if transposed else low[::-1]
    for channel in (0, 1):
        np.testing.assert_array_equal(sample["beside"][..., channel], sample["low"][..., 0])
    order = lambda x: np.argsort(x, axis=None)  # noqa: E731  a window that is bent keeps what is brighter
    np.testing.assert_array_equal(order(sample["high"][..., 0]), order(expected))


def test_of_a_transposed_slice_displacements_change_places():
    field = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    maps = {"high": field[..., 0], "low": field[..., 0], "gradient": field}
    sample = make_sample(maps, (0, 0), (8, 8), Draw(transposed=True), np.zeros(4))
    np.testing.assert_array_equal(sample["gradient"], np.swapaxes(field, 0, 1)[..., [1, 0, 2]])


# ------------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize(
    "data, message",
    [
        ({"mixture": [{"volumes": "a"}]}, "names no acquisitions"),
        ({"acquisitions": [SMOOTH]}, "acquisitions are of a mixture"),
        ({"mixture": [{"volumes": "a", "labels": "b", "acquisitions": [SMOOTH]}]}, "name two sets"),
        ({"mixture": [{"labels": "b", "native": True, "acquisitions": [SMOOTH]}]}, "native is of volumes"),
        ({"volumes": "c", "mixture": [{"volumes": "a", "acquisitions": [SMOOTH]}]}, "volumes and mixture name 2 sets"),
        ({"maps": ["labels"], "mixture": [{"acquisitions": [SMOOTH]}]}, "its slices have no maps"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(data, DataConfig)


def test_a_mixture_is_built_of_its_sources_with_their_own_acquisitions_or_those_of_all(tmp_path):
    save(tmp_path / "fine" / "a.nii.gz", (1.0, 1.0, 1.0))
    save(tmp_path / "thick" / "b.nii.gz", (1.0, 1.0, 3.0))
    data = from_dict(
        {
            "mixture": [
                {"volumes": str(tmp_path / "fine"), "acquisitions": [SMOOTH]},
                {"volumes": str(tmp_path / "thick"), "native": True},
                {"subjects": 2, "voxel_size": 4.0, "contrast": "T1w"},
            ],
            "acquisitions": ["1.5T", {"name": "thick-slice"}],
        },
        DataConfig,
    )
    subjects = build_subjects(data, "train", 0)
    assert subjects.ids == ["a.nii.gz", "b.nii.gz", "anatomy-train-0000", "anatomy-train-0001"]
    assert data.range_acquired == (1.0, 6.0)
    assert [of.name for of in data.all_acquisitions] == ["smooth", "1.5T", "thick-slice"]
    np.testing.assert_allclose(subjects.load(1).grid.voxel_size, (1.0, 1.0, 3.0))
    np.testing.assert_allclose(subjects.load(2).grid.voxel_size, 4.0)


def test_volumes_that_are_no_truth_at_the_size_asked_for_are_one_where_they_keep_their_voxels(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32) + np.eye(20)[..., None], np.diag([1, 1, 3, 1])), tmp_path / "b.nii.gz")
    source = {"volumes": str(tmp_path), "voxel_size": 1.0, "acquisitions": [SMOOTH]}
    assert build_subjects(from_dict({"mixture": [source | {"native": True}]}, DataConfig), "train", 0).ids == ["b.nii.gz"]
    with pytest.raises(ValueError, match=r"no truth at data\.voxel_size=1"):
        build_subjects(from_dict({"mixture": [source]}, DataConfig), "train", 0)
