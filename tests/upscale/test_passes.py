"""A method that goes over a volume several times: what it is shown of the pass before, and what is planned, counted and told of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.forecast import batch_sizes, trace_batches, volume_multiply_adds
from jaxsr.upscale.plan import in_pass
from jaxsr.volume.io import Volume
from jaxsr.volume.slices import AXES

SHAPE, CONTEXT = (16, 18, 20), 2
ALL = dict.fromkeys(AXES, Request(steps=1))


class Shown:
    """Gives one of the channels that it is shown of the estimate, plus 1, and says how many axes it was told."""

    multiple, context, passes, axes_conditioning, channel = 1, CONTEXT, 2, True, 0
    default_request, most_steps = Request(steps=1), 10

    def upscale(self, variables, condition, keys, request):
        told = {"axes": condition.axes, "steps": jnp.full(condition.axes.shape, float(request.steps))}
        return UpscaleOutput(condition.estimate[..., self.channel, None] + 1, told)


def engine(**settings):
    method = Shown()
    for name, value in settings.items():
        setattr(method, name, value)
    return Engine(method, {}, make_mesh(), batch_size=8)


@pytest.fixture
def low():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize("passes", [2, 3])
def test_each_pass_is_shown_the_mean_of_the_one_before_and_the_first_the_volume(low, passes):
    kept = low.copy()
    found, _ = engine(passes=passes).fuse(low, ALL, jax.random.key(0))
    np.testing.assert_allclose(found, kept + passes, atol=1e-6)
    np.testing.assert_array_equal(low, kept)


@pytest.mark.parametrize("channel, step", [(1, -2), (2, -1), (3, 1), (4, 2)])
def test_slices_beside_are_those_of_the_estimate(low, channel, step):
    """Across one axis alone: after two passes each slice is that of twice as many steps further, and stays within the volume."""
    found, _ = engine(channel=channel).fuse(low, {"coronal": ALL["coronal"]}, jax.random.key(0))
    once = np.clip(np.arange(SHAPE[1]) + step, 0, SHAPE[1] - 1)
    np.testing.assert_allclose(found, low[:, once][:, once] + 2, atol=1e-6)


@pytest.mark.parametrize("axes", [("axial",), ("sagittal", "axial"), tuple(AXES)])
def test_it_is_told_over_how_many_axes_the_mean_is_taken(low, axes):
    _, metrics = engine().fuse(low, {axis: ALL[axis] for axis in axes}, jax.random.key(0))
    assert metrics["axes"] == len(axes)


def test_before_the_last_pass_it_is_an_estimate_in_one_step(low):
    """Metrics are of the last; its sampling steps are those that were asked for."""
    running = engine()
    _, metrics = running.fuse(low, dict.fromkeys(AXES, Request(steps=4)), jax.random.key(0))
    assert metrics["steps"] == 4
    assert running.compilations == 4  # of slices of 16 × 32 and of 32 × 32, in one step and in four
    assert [in_pass(Request(steps=4), number, 3).steps for number in range(3)] == [1, 1, 4]


def test_progress_counts_the_slices_of_all_passes_and_plans_tell_them(low):
    seen, running = [], engine()
    volume = Volume(low - low.min() + 1, np.eye(4))
    result = running.upscale(volume, Request(steps=1), progress=lambda done, total: seen.append((done, total)))
    assert result.plan.passes == 2
    assert seen[-1] == (2 * sum(SHAPE), 2 * sum(SHAPE))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


# ------------------------------------------------------------------------------------------------ of a network

NETWORK = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": None, "dropout": 0.0, "middle_attention": False}
SETTINGS = {"network": NETWORK, "prediction": "x0", "residual_std": 0.1, "terminal": 1.0, "fused": True, "sampling_steps": 4}


def built(**settings):
    method = Sr3Config(**SETTINGS, **settings).build()
    image = jnp.zeros((1, 16, 16, 1))
    return method, jax.tree.map(lambda x: x + 0.1, method.init(jax.random.key(0), Batch(image, image)))


def test_work_is_counted_of_every_pass_with_its_own_sampling_steps(low):
    """Four sampling steps after one are five; two passes of one step are two."""
    volume, work = Volume(low - low.min() + 1, np.eye(4)), {}
    for steps in (1, 4):
        method, variables = built(passes=2)
        plan = Engine(method, variables, make_mesh(), batch_size=8).plan(volume, None, tuple(AXES), Request(steps))
        sizes = batch_sizes(method, plan, 8, 1)
        work[steps] = volume_multiply_adds(trace_batches(method, variables, sizes), plan, sizes, method, variables)
        assert len(plan.programs) == (1 if steps == 1 else 2) * len(set(plan.shapes))
    assert work[4] == pytest.approx(2.5 * work[1], rel=0.02)
