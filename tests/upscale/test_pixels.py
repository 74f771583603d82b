"""Laws of methods that are shown slabs, and of those that work on a range of pixels."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import typer
from scipy import ndimage

from jaxsr.cli.targets import resolved_sizes, target_of
from jaxsr.config import from_dict
from jaxsr.data.acquired import make_pair, simulate
from jaxsr.data.pairs import beside, told_quality
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.physics.protocol import Acquisition
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.plan import NothingToDo, default_size, make_plan, working_grid
from jaxsr.upscale.settings import training_scans
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.io import Volume
from jaxsr.volume.quality import quality_of
from jaxsr.volume.slices import AXES, take_slices

ONE_STEP = Request(steps=1)


class Identity:
    """Changes nothing, on pixels of 0.7 to 1.2 mm."""

    multiple = 8
    default_request = ONE_STEP
    most_steps = 1
    pixel_range = (0.7, 1.2)

    def upscale(self, variables, condition, keys, request):
        return UpscaleOutput(condition.low, {})


class Looks:
    """Gives the slice that lies `step` further on, as it sees it beside its own."""

    multiple = 8
    default_request = ONE_STEP
    most_steps = 1
    context = 2

    def __init__(self, channel):
        self.channel = channel

    def upscale(self, variables, condition, keys, request):
        return UpscaleOutput(condition.beside[..., self.channel, None], {})


class Told:
    """Gives what it is told of the scale along one of a slice's axes."""

    multiple = 8
    default_request = ONE_STEP
    most_steps = 1
    scale_conditioning = True

    def __init__(self, channel):
        self.channel = channel

    def upscale(self, variables, condition, keys, request):
        return UpscaleOutput(condition.low * 0 + condition.scale[:, self.channel, None, None, None], {})


@pytest.mark.parametrize("axis, expected", [("sagittal", (1.5, 4.0, 2.0)), ("coronal", (2.0, 4.0, 1.5)), ("axial", (2.0, 1.5, 4.0))])
@pytest.mark.parametrize("channel", range(3))
def test_a_method_is_told_how_much_coarser_the_scan_is_along_rows_columns_and_through_each_slice(axis, expected, channel):
    """Of a scan of 2 × 1.5 × 4 mm on a grid of 1 mm; nothing is ever finer than one."""
    data = np.random.default_rng(0).normal(100, 20, (20, 20, 16)).astype(np.float32)
    volume = Volume(data, np.diag([2.0, 1.5, 4.0, 1.0]))
    engine = Engine(Told(channel), {}, make_mesh(), batch_size=8)
    result = engine.upscale(volume, ONE_STEP, to_mm=1.0, axes=(axis,))
    np.testing.assert_allclose(result.window.forward(result.volume.data), expected[channel], rtol=1e-4)
    declared = engine.upscale(volume, ONE_STEP, to_mm=1.0, axes=(axis,), from_mm=(6.0, 6.0, 0.5))
    told = dict(zip(("sagittal", "coronal", "axial"), ((6, 4, 6), (6, 4, 6), (6, 6, 4)), strict=True))[axis]  # no less than its voxels
    np.testing.assert_allclose(declared.window.forward(declared.volume.data), told[channel], rtol=1e-4)


class ToldQuality(Told):
    scale_conditioning, quality_conditioning = False, True

    def upscale(self, variables, condition, keys, request):
        return UpscaleOutput(condition.low * 0 + condition.quality[:, self.channel, None, None, None], {})


def textured(*sizes):
    """A scan of another sharpness along each axis, with noise in head and air."""
    rng = np.random.default_rng(0)
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij"))
    data = ndimage.gaussian_filter(rng.normal(size=(32, 32, 32)), (0.4, 0.6, 0.8))
    head = np.where((at**2).sum(0) < 0.7, 300 + 60 * data / data.std(), 0)
    return Volume(np.hypot(head + rng.normal(0, 5, head.shape), rng.normal(0, 5, head.shape)).astype(np.float32), np.diag([*sizes, 1.0]))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("channel", range(5))
def test_a_method_is_told_how_sharp_and_how_noisy_the_scan_is_as_it_was_acquired(axis, channel):
    volume = textured(2.0, 2.0, 2.0)
    result = Engine(ToldQuality(channel), {}, make_mesh(), batch_size=8).upscale(volume, ONE_STEP, to_mm=1.0, axes=(axis,))
    assert result.quality == quality_of(volume.data, result.window)
    assert np.ptp(result.quality.sharpness) > 0.3
    expected = told_quality(result.quality, AXES[axis])[channel]
    np.testing.assert_allclose(result.window.forward(result.volume.data), expected, rtol=1e-4)


def test_of_a_scan_that_was_interpolated_and_is_said_to_be_so_it_is_about_that_of_what_was_acquired():
    volume = textured(2.0, 2.0, 2.0)
    engine, fine = Engine(ToldQuality(0), {}, make_mesh(), batch_size=8), target_grid(volume.grid, 1.0)
    finer = Volume(np.abs(resample(volume.data, volume.grid, fine, "kspace")), fine.affine)
    acquired = engine.upscale(volume, ONE_STEP, to_mm=0.5, axes=("axial",)).quality
    declared = engine.upscale(finer, ONE_STEP, to_mm=0.5, axes=("axial",), from_mm=(2.0, 2.0, 2.0)).quality
    silent = engine.upscale(finer, ONE_STEP, to_mm=0.5, axes=("axial",)).quality
    np.testing.assert_allclose(declared.sharpness, acquired.sharpness, rtol=0.15)
    np.testing.assert_allclose(declared.noise, acquired.noise, rtol=0.2)
    assert max(silent.sharpness) < min(acquired.sharpness)


def test_in_upscaling_a_method_is_told_what_it_was_in_training():
    """Of one acquisition, whose voxels are of three sizes, with and without a mask."""
    truth = textured(1.0, 1.0, 1.0)
    acquisition = from_dict({"name": "uneven", "voxel_size": [2.0, 1.0, 1.5], "snr": [30.0, 30.0]}, Acquisition)
    engine, key = Engine(ToldQuality(0), {}, make_mesh(), batch_size=8), jax.random.key(3)
    for mask in (None, truth.data > 150):
        pair = make_pair(truth, acquisition, key, mask=mask)
        scan = simulate(truth, acquisition, key)
        if mask is not None:
            scan = Volume(np.where(resample(mask.astype(np.float32), truth.grid, scan.grid, "linear") > 0.5, scan.data, 0), scan.affine)
        assert engine.upscale(scan, ONE_STEP, to_mm=truth.grid, axes=("axial",)).quality == pair.quality()
        assert pair.quality().air == (mask is None)


def test_what_a_method_is_to_be_told_has_to_be_said():
    data = np.zeros((8, 8, 8), np.float32)
    with pytest.raises(ValueError, match="give the quality of every axis"):
        Engine(ToldQuality(0), {}, make_mesh(), batch_size=8).fuse(data, {"axial": ONE_STEP}, jax.random.key(0))
    with pytest.raises(ValueError, match="give the scale of every axis"):
        Engine(Told(0), {}, make_mesh(), batch_size=8).fuse(data, {"axial": ONE_STEP}, jax.random.key(0))


def grid(shape, *sizes):
    return Grid(shape, np.diag([*map(float, sizes), 1.0]))


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("channel", range(4))
def test_in_upscaling_a_slice_has_the_neighbours_that_it_has_in_training(channel, axis, batch_size):
    data = np.random.default_rng(0).normal(size=(17, 21, 19)).astype(np.float32)
    found, _ = Engine(Looks(channel), {}, make_mesh(), batch_size=batch_size).fuse(data, {axis: ONE_STEP}, jax.random.key(0))
    expected = np.stack([beside(data, AXES[axis], i, 2)[..., channel] for i in range(data.shape[AXES[axis]])])
    np.testing.assert_array_equal(take_slices(found, axis), expected)


@pytest.mark.parametrize(
    "scan, target, work",
    [
        ((2, 2, 2), (1, 1, 1), (1, 1, 1)),
        ((2, 2, 2), (0.43, 0.43, 2.46), (0.7, 0.7, 2.46)),  # what is not made finer keeps its voxels
        ((1, 1, 5), (1, 1, 1), (1, 1, 1)),
        ((2, 2, 2), (0.5, 0.5, 1), (0.7, 0.7, 1)),
        ((1, 1, 5), (0.98, 0.98, 0.5), (0.98, 0.98, 0.7)),
        ((3, 3, 3), (1.5, 1.5, 1.5), (1.5, 1.5, 1.5)),
    ],
)
def test_it_works_on_the_targets_voxels_but_no_finer_than_it_may(scan, target, work):
    found = working_grid(grid((40, 40, 40), *target), tuple(map(float, scan)), (0.7, 1.2))
    np.testing.assert_allclose(found.voxel_size, work, rtol=1e-6)


def test_a_scan_as_fine_as_the_target_leaves_nothing_to_do():
    with pytest.raises(NothingToDo, match=r"already at the target resolution: 1 × 1 × 1 mm.*--to-mm"):
        make_plan(Identity(), grid((32, 32, 32), 1, 1, 1), 1.0, tuple(AXES))


def test_slices_of_pixels_far_from_square_do_not_serve_and_that_is_told():
    plan = make_plan(Identity(), grid((40, 40, 30), 2, 2, 2.46), grid((160, 160, 30), 0.5, 0.5, 2.46), tuple(AXES))
    assert plan.axes == ("axial",)
    assert plan.left_out == ("sagittal slices have pixels that are far from square", "coronal slices have pixels that are far from square")
    assert make_plan(Identity(), grid((40, 40, 20), 1, 1, 5), 1.0, tuple(AXES)).axes == tuple(AXES)


def test_what_is_finer_than_its_pixels_is_resampled_from_them():
    """A smooth head comes out as interpolation has it, on the target's own grid."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij"))
    head = Volume((500 * np.exp(-3 * (points**2).sum(0))).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    target = target_grid(head.grid, (0.5, 0.5, 2.0))
    result = Engine(Identity(), {}, make_mesh(), batch_size=8).upscale(head, ONE_STEP, to_mm=target)
    assert result.volume.data.shape == target.shape
    np.testing.assert_allclose(result.plan.work.voxel_size, (0.7, 0.7, 2.0))
    rows, columns, depths = ((np.arange(n) + 0.5) * mm / 24 - 1 for n, mm in zip(target.shape, target.voxel_size, strict=True))
    whole = 500 * np.exp(-3 * (rows[:, None, None] ** 2 + columns[:, None] ** 2 + depths**2))
    inner = (slice(12, -12), slice(12, -12), slice(3, -3))
    assert np.abs(result.volume.data - whole)[inner].max() < 40  # the ball's flank rises by 30 a voxel


@pytest.mark.parametrize(
    "sizes, expected",
    [((2, 2, 2), 1.0), ((1, 1, 5), 1.0), ((0.9, 0.9, 3), 0.9), ((0.43, 0.43, 2.46), 0.7), ((1, 1, 1), 0.7), ((0.95, 0.95, 0.98), 0.7)],
)
def test_where_nothing_is_asked_for_the_scan_decides(sizes, expected):
    """Finest side of the scan, within what the model is for; where that is all of it, the finest pixels that it knows."""
    assert default_size(Identity(), 1.0, sizes) == pytest.approx(expected)
    assert default_size(Looks(0), 1.0, sizes) == 1.0  # another kind of model goes to what it was trained for


# ------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize(
    "to_mm, derivative, target, said",
    [
        (None, False, None, []),  # each scan decides
        (None, True, 1.0, []),  # names of a derivative hold one size
        (0.8, False, 0.8, []),
        (1.5, False, 1.5, ["note: the model was trained for 0.7 to 1.2 mm, not 1.5 mm"]),
    ],
)
def test_a_target_that_is_coarser_than_the_range_is_one_with_a_note(to_mm, derivative, target, said):
    recipe = SimpleNamespace(method=Identity(), experiment=from_dict({"method": {"kind": "sr3"}}, Experiment))
    assert target_of(recipe, to_mm, None, derivative=derivative) == (target, said)


@pytest.mark.parametrize("text, expected", [("auto", None), ("found", "found"), ("2", (2, 2, 2)), ("1,1.5,5", (1, 1.5, 5))])
def test_what_a_scan_resolves_is_said_by_a_word_or_in_millimetres(text, expected):
    assert resolved_sizes(text) == expected


@pytest.mark.parametrize("text", ["fnd", "1,2", "0", "1,1,50", "nan", ""])
def test_anything_else_is_refused_with_what_would_be_right(text):
    with pytest.raises(typer.BadParameter, match="neither auto nor found nor millimetres, one number or three, as in 2 or 1,1,5"):
        resolved_sizes(text)


def test_a_model_that_is_not_told_what_a_scan_resolves_refuses_to_be_and_one_that_is_need_have_no_range():
    experiment = from_dict({"method": {"kind": "sr3"}}, Experiment)
    plain, told = SimpleNamespace(default_request=ONE_STEP), SimpleNamespace(default_request=ONE_STEP, scale_conditioning=True)
    with pytest.raises(typer.BadParameter, match="a model of kind sr3 is not told what a scan resolves, standard and students are"):
        target_of(SimpleNamespace(method=plain, experiment=experiment), None, "found", derivative=False)
    assert target_of(SimpleNamespace(method=told, experiment=experiment), None, "found", derivative=False) == (1.0, [])


def test_a_stack_as_fine_in_its_plane_as_a_truth_is_like_those_of_training():
    """A thick-slice acquisition has pixels of 1 mm, and a model for pixels of 0.7 mm is not surprised by finer ones."""
    data = {"mixture": [{"share": 1}], "acquisitions": [{"name": "thick-slice"}]}
    method = {"kind": "sr3", "pixels": [0.7, 1.2]}
    stack = (0.72, 0.72, 3.0)
    assert training_scans(from_dict({"method": method, "data": data}, Experiment), stack) == (0.72, 0.72, 3.0)
    without = from_dict({"method": {"kind": "sr3"}, "data": data}, Experiment)
    assert training_scans(without, stack)[:2] == (1.0, 1.0)
    fine = (0.72, 0.72, 0.72)  # no truth is seen in any of its planes
    assert training_scans(from_dict({"method": method, "data": data}, Experiment), fine) == (1.0, 1.0, 1.0)
