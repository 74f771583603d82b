"""Slices of a mixture go to one expert each, and no other runs for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.methods.base import Explanation, Request, UpscaleOutput
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.volume.slices import AXES, take_slices

TOP1 = Request(steps=1, routing="top1")
BRIGHT = 3.0  # a maximum, which padding does not change


class Two:
    """A mixture: expert 0 negates dark slices, expert 1 doubles bright ones. The noise of a slice is its key's."""

    multiple = 4
    default_request = TOP1
    most_steps = 1
    experts = ("negates", "doubles")

    def __init__(self):
        self.asked = []

    def route(self, variables, condition):
        return (condition.low.max((1, 2, 3)) > BRIGHT).astype(jnp.int32)

    def explain(self, variables, condition):
        return Explanation(
            jax.nn.one_hot(self.route(variables, condition), 2),
            jnp.concatenate([condition.low, 2 * condition.low], -1),
            jnp.concatenate([3 * condition.low, 0 * condition.low], -1),
        )

    def upscale(self, variables, condition, keys, request):
        self.asked.append(request.expert)
        noise = jax.vmap(jax.random.normal)(keys)
        alone = [-condition.low, 2 * condition.low]
        best = self.route(variables, condition)[:, None, None, None] == 1
        image = jnp.where(best, alone[1], alone[0]) if request.expert is None else alone[request.expert]
        return UpscaleOutput(image + noise[:, None, None, None], {"noise": noise})


@pytest.fixture
def low():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(9, 11, 7)) + rng.normal(size=(9, 1, 1)) + rng.normal(size=(1, 11, 1))).astype(np.float32)


def engine_of(method, batch_size=4):
    return Engine(method, {}, make_mesh(), batch_size=batch_size)


def test_grouped_slices_are_what_ungrouped_ones_are(low):
    """Whichever way: the expert of a slice, its noise and its place are its own."""
    method = Two()
    together, _ = engine_of(method).fuse(low, dict.fromkeys(AXES, TOP1._replace(routing="all")), jax.random.key(3))
    grouped, _ = engine_of(method, batch_size=3).fuse(low, dict.fromkeys(AXES, TOP1), jax.random.key(3))
    np.testing.assert_allclose(grouped, together, rtol=1e-6, atol=1e-6)
    assert set(method.asked) == {None, 0, 1}


def test_no_slice_is_upscaled_by_another_expert_than_its_own(low):
    """Multiply-adds of 'top1' are those of the chosen: as many batches run as the groups fill, not as many for every expert."""
    engine, batches = engine_of(Two()), []
    compile_ = engine._batches._compile

    def counted(key, size):
        program, work = compile_(key, size), key.work

        def run(*arguments):
            batches.append((work.task, work.request and work.request.expert))
            return program(*arguments)

        run.memory_analysis = program.memory_analysis
        return run

    engine._batches._compile = counted
    engine.fuse(low, {"sagittal": TOP1}, jax.random.key(0))
    bright = int((take_slices(low, 0).max((1, 2)) > BRIGHT).sum())
    expected = {("upscale", 0): -(-(9 - bright) // 4), ("upscale", 1): -(-bright // 4), ("route", None): 3}
    assert 0 < bright < 9
    assert {key: batches.count(key) for key in set(batches)} == expected


def test_explanations_lie_where_their_slices_do(low):
    found = engine_of(Two()).explain(low, "coronal")
    assert found.weights.shape == (11, 2)
    np.testing.assert_array_equal(found.weights[:, 1], take_slices(low, 1).max((1, 2)) > BRIGHT)
    np.testing.assert_array_equal(found.attention[..., 0], take_slices(low, 1))
    np.testing.assert_array_equal(found.attention[..., 1], 2 * take_slices(low, 1))
    np.testing.assert_array_equal(found.local[..., 0], 3 * take_slices(low, 1))


def test_a_method_without_experts_explains_nothing(identity_method, low):
    with pytest.raises(ValueError, match="mixture of experts"):
        engine_of(identity_method).explain(low, "axial")
