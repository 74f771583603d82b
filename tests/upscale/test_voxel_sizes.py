"""Laws of volumes upscaled by a method that goes from voxel size to voxel size (spec 20-student, multi-scale use)."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.methods.stages import StagesConfig
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.plan import NothingToDo, make_plan
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume

STAGES = StagesConfig(count=20, low_mm=2.0, high_mm=0.7)


class Brighter:
    """Adds a hundredth for each stage that it is asked to run."""

    multiple, pixel, most_steps, default_request = 8, 0.7, 1, Request(1)

    @staticmethod
    def stages(request):
        return STAGES.between(request.from_mm, request.to_mm)

    def idle(self, request):
        return not self.stages(request)

    def upscale(self, variables, condition, keys, request):
        return UpscaleOutput(condition.low + 0.01 * len(self.stages(request)), {"clipped": jnp.zeros(len(keys))})


def head(shape, mm):
    rng = np.random.default_rng(0)
    return Volume(rng.uniform(10, 1000, shape).astype(np.float32), np.diag([*mm, 1.0]))


def engine():
    return Engine(Brighter(), {}, make_mesh(), batch_size=16)


def plan_of(mm, to, **more):
    return make_plan(Brighter(), Grid((40, 40, 40), np.diag([*mm, 1.0])), to, ("sagittal", "coronal", "axial"), **more)


def test_a_slice_goes_from_the_coarser_of_its_two_voxel_sizes():
    plan = plan_of((1.0, 1.5, 2.0), 0.7)
    assert [(of.from_mm, of.to_mm) for of in plan.requests] == [(2.0, 0.7), (2.0, 0.7), (1.5, 0.7)]
    assert plan.compilations == len(plan.programs)


def test_what_a_scan_resolves_counts_in_place_of_its_voxels_where_it_is_said():
    plan = plan_of((1.0, 1.0, 1.0), 0.7, from_mm=(1.0, 1.0, 2.0))
    assert [of.from_mm for of in plan.requests] == [2.0, 2.0, 1.0]


def test_slices_are_upscaled_on_the_method_s_own_pixels_and_brought_to_the_target_after():
    plan = plan_of((2.0, 2.0, 2.0), 1.5)
    np.testing.assert_allclose(plan.work.voxel_size, 0.7)
    np.testing.assert_allclose(plan.grid.voxel_size, 1.5)
    assert plan.counts == tuple(plan.work.shape)
    assert {len(STAGES.between(of.from_mm, of.to_mm)) for of in plan.requests} == {4}


@pytest.mark.parametrize("to", [0.7, 1.5])
def test_every_plane_runs_its_own_stages_and_those_without_any_are_passed_on(to):
    """Slices of 0.7 × 0.7 mm have nothing to gain: the mean over axes holds them as they are."""
    volume = head((40, 40, 24), (0.7, 0.7, 2.0))
    result = engine().upscale(volume, Request(1), to_mm=to)
    plan, window = result.plan, fit_window(volume.data)
    assert plan.requests[2] is None
    assert "axial slices are passed on as they are" in plan.left_out
    assert plan.counts[2] == 0
    low = window.forward(resample(volume.data, volume.grid, plan.work))
    gained = 0.01 * len(STAGES.between(2.0, to)) * 2 / 3
    expected = low + gained if to == 0.7 else resample(low + np.float32(gained), plan.work, plan.grid)
    np.testing.assert_allclose(window.forward(result.volume.data), expected, atol=1e-5)
    np.testing.assert_allclose(result.volume.voxel_size, to)


def test_a_target_coarser_than_the_pixels_gets_nothing_that_it_cannot_hold():
    """Anti-aliasing: a wave of 0.8 periods per voxel of the target is gone, where nearest sampling would fold it to 0.2."""
    plan = plan_of((2.0, 2.0, 2.0), 2.0 / 1.2)
    wave = np.cos(2 * np.pi * 0.8 / plan.grid.voxel_size[0] * 0.7 * np.arange(plan.work.shape[0]))
    data = np.broadcast_to(wave[:, None, None], plan.work.shape).astype(np.float32)
    inner = slice(6, -6)
    assert np.abs(resample(data, plan.work, plan.grid)[inner]).max() < 0.15


@pytest.mark.parametrize("mm, to", [((0.7, 0.7, 0.7), 0.7), ((1.0, 1.0, 1.0), 2.0), ((0.5, 0.6, 0.5), 0.7)])
def test_a_volume_that_has_the_resolution_already_is_refused_with_the_way_out(mm, to):
    with pytest.raises(NothingToDo, match=r"already at the target resolution.*--from-mm"):
        engine().upscale(head((40, 40, 40), mm), Request(1), to_mm=to)


def test_heads_whose_voxels_differ_in_the_last_digits_share_their_programs():
    used = engine()
    first = used.upscale(head((24, 24, 24), (2.0, 2.0, 2.0)), Request(1), to_mm=0.7)
    again = used.upscale(head((24, 24, 24), (2.0000002, 2.0, 1.9999999)), Request(1), to_mm=0.7)
    assert (first.compilations, again.compilations) == (1, 0)


def test_a_method_of_one_pair_of_voxel_sizes_works_on_the_target_and_is_told_nothing():
    class Plain:
        multiple, default_request = 8, Request(1)

    grid = Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    plan = make_plan(Plain(), grid, 1.0, ("axial",))
    assert plan.work is plan.grid
    assert plan.requests == (Request(1),)
    np.testing.assert_allclose(plan.grid.affine, target_grid(grid, 1.0).affine)
