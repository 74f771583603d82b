"""Laws of one training step: a function of (state, batch, root key) and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.experiment import OptimizerConfig, OptimizerSettings
from jaxsr.methods.base import LossOutput
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3, Sr3Config
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.state import State, init_state, make_optimizer
from jaxsr.train.step import make_step

NETWORK = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_at": (), "groups": 4, "dropout": 0.3, "middle_attention": False}
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
ROOT = jax.random.key(5)
EMA = 0.9


def batch(step, n=8, side=8):
    high, error = jax.random.normal(jax.random.key(100 + step), (2, n, side, side, 1))
    return Batch(high=high, low=high + 0.1 * error)


@functools.cache
def recipe():
    return Sr3(Sr3Config(network=NETWORK, prediction="v", residual_std=0.1))


@functools.cache
def compiled(accumulate=1):
    step = make_step(recipe(), make_optimizer(OPTIMIZER, 100), ema=EMA, steps=100, accumulate=accumulate)
    return jax.jit(step, donate_argnums=0)


@functools.cache
def initial():
    state, _ = init_state(recipe(), make_optimizer(OPTIMIZER, 100), batch(0), jax.random.key(0), make_mesh())
    return jax.device_get(state)


def new_state():
    return jax.tree.map(jnp.array, initial())


def run(state, start, stop, accumulate=1):
    for k in range(start, stop):
        state, metrics = compiled(accumulate)(state, batch(k), ROOT)
    return jax.device_get(state), jax.device_get(metrics)


def test_accumulating_over_four_parts_is_the_large_batch():
    """To float32 rounding, dropout and all: every slice has its own key. Adam divides by the gradient, so that is what is compared."""
    (once, whole), (four, parts) = (run(new_state(), 0, 1, accumulate) for accumulate in (1, 4))
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)
    np.testing.assert_allclose(parts["gradient_norm"], whole["gradient_norm"], rtol=1e-4)
    moments = [[leaf for leaf in jax.tree.leaves(s.opt) if leaf.ndim] for s in (once, four)]
    largest = max(np.abs(leaf).max() for leaf in moments[0])
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)


class Counter:
    """A method whose statistic is a running mean of what it is shown, and whose loss is where that stands."""

    @staticmethod
    def loss(variables, batch, keys, progress):
        before = variables["stats"]["mean"]
        stats = {"mean": 0.9 * before + 0.1 * batch.high.mean()}
        return LossOutput(variables["params"] * before, {"before": before}, stats)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_statistics_of_accumulated_parts_are_those_of_the_batch(accumulate):
    """Each part starts from those of before the step, so one step decays them once, whatever the number of parts."""
    optimizer = make_optimizer(OPTIMIZER, 100)
    params, stats = jnp.ones(()), {"mean": jnp.float32(3.0)}
    state = State(jnp.int32(0), params, params, optimizer.init(params), stats)
    step = jax.jit(make_step(Counter, optimizer, ema=EMA, steps=100, accumulate=accumulate))
    after, metrics = step(state, batch(0), ROOT)
    np.testing.assert_allclose(after.stats["mean"], 0.9 * 3.0 + 0.1 * batch(0).high.mean(), rtol=1e-6)
    np.testing.assert_allclose([metrics["before"], metrics["loss"], metrics["gradient_norm"]], 3.0, rtol=1e-6)


def test_the_moving_average_follows_its_formula():
    """EMA ← d EMA + (1 − d) θ with d = min(decay, (1 + step)/(10 + step))."""
    before, _ = run(new_state(), 0, 2)
    after, _ = run(jax.tree.map(jnp.array, before), 2, 3)
    d = min(EMA, (1 + 2) / (10 + 2))
    expected = jax.tree.map(lambda old, new: d * old + (1 - d) * new, before.ema, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.ema, expected)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(after.ema), jax.tree.leaves(after.params), strict=True))


def test_the_average_is_a_copy_that_outlives_the_donated_state():
    state = new_state()
    pointers = [{leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)} for tree in (state.params, state.ema)]
    assert not pointers[0] & pointers[1]
    new, _ = compiled()(state, batch(0), ROOT)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(new.ema)))
    assert int(new.step) == 1


def test_a_new_state_starts_its_average_at_the_weights():
    state = initial()
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    assert state.step == 0


def test_three_steps_and_three_more_are_six_bit_for_bit():
    through, _ = run(new_state(), 0, 6)
    half, _ = run(new_state(), 0, 3)
    resumed, _ = run(jax.tree.map(jnp.array, half), 3, 6)
    jax.tree.map(np.testing.assert_array_equal, through, resumed)
    assert through.step == 6


def test_the_root_key_and_the_step_choose_the_noise():
    _, first = compiled()(new_state(), batch(0), ROOT)
    _, other_root = compiled()(new_state(), batch(0), jax.random.key(6))
    _, other_step = compiled()(new_state()._replace(step=jnp.int32(1)), batch(0), ROOT)
    assert len({float(m["loss"]) for m in (first, other_root, other_step)}) == 3


@pytest.mark.parametrize("decay, last", [("constant", 1e-3), ("cosine", 1e-5)])
def test_the_rate_warms_up_linearly_and_ends_where_it_should(decay, last):
    """Adam's first update of a constant gradient is the rate itself: sum them up."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=4, decay=decay, clip_norm=None), 20)
    params = jnp.zeros(())
    opt, moves = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(21):
        move, opt = update(jnp.ones(()), opt, params)
        moves.append(-float(move))
    np.testing.assert_allclose(moves[:4], np.array([0.25, 0.5, 0.75, 1.0]) * 1e-3, rtol=1e-4)
    assert moves[-1] == pytest.approx(last, rel=1e-3)
    assert (np.diff(moves[4:]) <= 1e-8).all()


def test_each_player_has_an_optimiser_of_its_own():
    """Adam's first step is the rate itself: each network's, by the settings of its player; each clips by its own norm."""
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, discriminator=OptimizerSettings(learning_rate=1e-1, warmup_steps=0))
    optimizer = make_optimizer(config, 10, {"judge": "discriminator"})
    params = {"judge": {"w": jnp.ones(3)}, "network": {"w": jnp.ones(2)}, "other": {"w": jnp.ones(2)}}
    found = jax.tree.map(jnp.ones_like, params) | {"judge": {"w": 1e6 * jnp.ones(3)}}
    state = optimizer.init(params)
    updates, state = optimizer.update(found, state, params)
    moved = {name: float(jnp.abs(of["w"]).max()) for name, of in updates.items()}
    assert list(updates) == list(found)
    np.testing.assert_allclose([moved[name] for name in ("judge", "network", "other")], [1e-1, 1e-3, 1e-3], rtol=1e-4)
    same = make_optimizer(config, 10)
    alone = {"network": params["network"], "other": params["other"]}
    expected, _ = same.update({name: found[name] for name in alone}, same.init(alone), alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), {name: updates[name] for name in alone}, expected)
