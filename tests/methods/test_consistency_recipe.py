"""Laws of the one-step student [Song et al. 2023, Alg. 2]. Where the way from noise to images is known, so is where each path ends."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.diffusion.process import add_noise, target
from jaxsr.diffusion.sampling import sample
from jaxsr.diffusion.schedule import level_at
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.consistency import Consistency, ConsistencyConfig
from jaxsr.methods.student import purposes

NETWORK = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_at": (), "groups": 4, "middle_attention": False}
COARSE = {"kind": "linear", "steps": 100, "beta_start": 1e-3, "beta_end": 0.1, "reference_steps": 100}  # far from where float32 hurts
SIDE, SLICES = 12, 4
PROGRESS = jnp.float32(0)


def recipe(**settings):
    return Consistency(ConsistencyConfig(network=NETWORK, stages={"count": 3}, **{"schedule": COARSE, "grid": 4, **settings}))


def batch():
    output, low, mean_map = jnp.tanh(jax.random.normal(jax.random.key(1), (3, SLICES, SIDE, SIDE, 1)))
    return Batch(high=None, low=low, output=output, mean_map=mean_map, spread=jnp.arange(SLICES) / 10)


def keys_of():
    return jax.random.split(jax.random.key(7), SLICES)


def variables_of(method):
    """Random weights, the stages' too; φ has others than θ."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), batch())["params"])
    params, student = (jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes) for _ in range(2))
    return {"params": params, "stats": {}, "frozen": {"student": student}}


def task_of(method, variables, data):
    return method.task(variables, data, purposes(keys_of()), PROGRESS)


def gaussian(method, gains):
    """Networks that are right of images whose residuals are standard normal: E[x_0 | x_t] = signal x_t; `gains`, by which network, is what
    the image that it says is multiplied by at each time."""

    def denoise(params, condition, stage, x_t, level):
        signal, sigma = (level.signal[:, None, None, None], level.sigma[:, None, None, None])
        x0 = gains[params](signal) * x_t
        return (signal * x_t - x0) / jnp.where(sigma > 0, sigma, 1)  # v, of x_0 = signal x_t − sigma v

    method.denoise = denoise


def test_the_end_of_a_path_is_x_itself_where_there_is_no_noise():
    """f(x, 0) = x, whatever the network says: the boundary condition [Song et al. 2023, Eq. 4]."""
    method = recipe()
    variables, data = variables_of(method), batch()
    task = task_of(method, variables, data)
    level = level_at(method.schedule, jnp.zeros(SLICES, int))
    np.testing.assert_array_equal(method.end(variables["params"], task.condition, task.stage, task.noise, level), task.noise)


def test_following_a_student_along_the_grid_is_sampling_with_it():
    method = recipe(bound=0.5, residual_std=0.5)
    variables, data = variables_of(method), batch()
    task = task_of(method, variables, data)
    student, x = variables["frozen"]["student"], task.noise
    for t, s in zip(method.times[:-1], method.times[1:], strict=True):
        x = method.follow(student, task, x, *(level_at(method.schedule, jnp.full(SLICES, at)) for at in (t, s)))
    noise = iter([task.noise])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxsr.diffusion.sampling.draw_noise", lambda *_: next(noise))
        denoise = functools.partial(method.denoise, student, task.condition, task.stage)
        bounds = method.pixels.bounds(task.condition)
        drawn = sample(method.schedule, denoise, keys_of(), (SIDE, SIDE, 1), steps=4, prediction="v", bounds=bounds)
    assert float(drawn.clipped.mean()) > 0.05
    np.testing.assert_allclose(x, drawn.x0, atol=1e-5)


def test_the_function_that_ends_every_path_has_no_loss_and_another_has():
    """Of standard normal images a DDIM step from t to s multiplies x by cos(φ_t − φ_s), where signal = cos φ: paths end at the product. The
    mean of all images, which one step of the student says, is not where its path ends."""
    method = recipe(bound=None)
    gaussian(method, {"student": lambda signal: signal, "right": normal_ends(method), "mean": lambda signal: signal})
    found = {}
    for name in ("right", "mean"):
        variables = {"params": name, "stats": {}, "frozen": {"student": "student"}}
        found[name] = float(method.loss(variables, batch(), keys_of(), PROGRESS).loss)
    assert found["right"] < 1e-8 < 1e-4 < found["mean"]


def normal_ends(method):
    """f of standard normal images, by the signal of a time of the grid."""
    angles = np.arccos(np.asarray(level_at(method.schedule, jnp.asarray(method.times)).signal, np.float64))
    ends = np.append(np.cumprod(np.cos(angles[:-1] - angles[1:])[::-1])[::-1], 1.0)

    def ending(signal):
        return jnp.asarray(ends, jnp.float32)[jnp.argmin(jnp.abs(jnp.arccos(signal)[..., None] - angles), -1)]

    return ending


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_in_any_number_of_steps_standard_normal_images_have_unit_variance(steps):
    """Their paths do not change x, so f is the identity. Alg. 1 with it gives samples; DDIM, which takes f for a mean, up to 4."""
    method = recipe(bound=None, grid=20)
    gaussian(method, {"exact": jnp.ones_like})
    keys, low = jax.random.split(jax.random.key(0), 8), jnp.zeros((8, 64, 64, 1))
    x0 = method.draw({"params": "exact"}, low, jnp.ones(8, int), keys, Request(steps))[0].x0
    np.testing.assert_allclose(x0.std(), 1.0, atol=0.02)


def test_the_gradient_is_that_of_the_distance_to_a_fixed_answer():
    """No gradient goes through the answer, or to φ."""
    method = recipe()
    variables, data = variables_of(method), batch()

    def loss(params, frozen):
        return method.loss({"params": params, "stats": {}, "frozen": frozen}, data, keys_of(), PROGRESS).loss

    by_params, by_frozen = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], variables["frozen"])
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(by_frozen))

    draw = purposes(keys_of())
    task = task_of(method, variables, data)
    i = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(draw["time"])
    level, after = (level_at(method.schedule, jnp.asarray(method.times)[at]) for at in (i, i + 1))
    x_t = add_noise(task.x0, task.noise, level)
    answer = method.end(
        variables["params"], task.condition, task.stage, method.follow(variables["frozen"]["student"], task, x_t, level, after), after
    )
    direct = jax.jit(jax.grad(lambda params: ((method.end(params, task.condition, task.stage, x_t, level) - answer) ** 2).mean()))(
        variables["params"]
    )
    for one, other in zip(jax.tree.leaves(by_params), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_at_the_last_time_of_the_grid_the_answer_is_what_the_student_says():
    method = recipe(grid=2)
    variables, data = variables_of(method), batch()
    task = task_of(method, variables, data)
    last, none = (level_at(method.schedule, jnp.full(SLICES, at)) for at in method.times[-2:])
    x_t = add_noise(task.x0, task.noise, last)
    answer = method.end(
        variables["params"], task.condition, task.stage, method.follow(variables["frozen"]["student"], task, x_t, last, none), none
    )
    x0 = method.end(variables["frozen"]["student"], task.condition, task.stage, x_t, last)
    np.testing.assert_allclose(answer, method.pixels.bounds(task.condition)(x0), atol=1e-6)


def test_lambda_adds_the_distance_to_the_teacher_s_maps():
    data, variables = batch(), variables_of(recipe())
    plain, with_it = (recipe(lambda_distill=rate).loss(variables, data, keys_of(), PROGRESS) for rate in (0.0, 2.0))
    np.testing.assert_allclose(with_it.loss, plain.loss + 2 * plain.metrics["distillation"], rtol=1e-6)


def test_whoever_knows_all_stages_goes_through_them_in_one_evaluation_each():
    method, data, asked = recipe(residual_std=0.1), batch(), []

    def denoise(params, condition, stage, x_t, level):
        asked.append(stage)
        x0 = method.pixels.diffused(method.stages.target(data.output, stage), condition)
        signal, sigma = (part[:, None, None, None] for part in (level.signal, level.sigma))
        return target("v", x0, (x_t - signal * x0) / sigma, level)

    method.denoise = denoise
    found = method.upscale({"params": {}}, Condition(data.low), keys_of(), method.default_request).image
    assert method.default_request == Request(1, 0.0)
    assert len(asked) == 1  # traced once, for all stages and their only step
    np.testing.assert_allclose(found, data.output, atol=1e-5)


def test_only_its_training_needs_the_student():
    method = recipe()
    image = jnp.zeros((1, SIDE, SIDE, 1))
    assert method.frozen() == method.frozen(Batch(image, image)) == {}
    needed, own = method.frozen(batch())["student"], jax.eval_shape(method.init, jax.random.key(0), batch())["params"]
    assert jax.tree.map(jnp.shape, needed) == jax.tree.map(jnp.shape, own)


@pytest.mark.parametrize("settings, said", [
    ({"prediction": "eps"}, "prediction must be 'v', got 'eps'"),
    ({"prediction": "x0"}, "prediction must be 'v', got 'x0'"),
    ({"grid": 101}, "grid must be at most 100"),
    ({"grid": 1}, "grid"),
    ({"sampling_steps": 5}, "sampling_steps must be at most 4"),
    ({"rollout_steps": 5}, "rollout_steps must be at most 4"),
    ({"eta": 0.5}, "eta must be 0, got 0.5"),
])  # fmt: skip
def test_what_has_no_boundary_or_no_such_times_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        recipe(**settings)
