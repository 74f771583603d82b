"""Laws of the student's recipe [teacher paper §II-B]. A network that knows the answer shows what the recipe does with it."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.diffusion.process import target
from jaxsr.diffusion.schedule import Level
from jaxsr.experiment import load_experiment
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.student import Student, StudentConfig

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_at": (), "groups": 4, "middle_attention": False}
COARSE = {"kind": "linear", "steps": 100, "beta_start": 1e-3, "beta_end": 0.1, "reference_steps": 100}  # far from where float32 hurts
SIDE, SLICES = 12, 4


def recipe(stages={"count": 5}, **settings):  # noqa: B006
    return Student(StudentConfig(network=NETWORK, stages=stages, **{"sampling_steps": 3, "schedule": COARSE, **settings}))


def images(seed=0, n=SLICES):
    return jnp.tanh(jax.random.normal(jax.random.key(seed), (n, SIDE, SIDE, 1)))


def batch(**changes):
    maps = images(1) + 0.1 * jax.random.normal(jax.random.key(9), (3, SLICES, SIDE, SIDE, 1))  # F_k, K = 3
    mean = maps.mean(0)
    spread = ((maps - mean) ** 2).mean((0, 2, 3, 4))
    return Batch(high=None, low=images(2), output=images(1), mean_map=mean, spread=spread)._replace(**changes), maps


def keys_of(n=SLICES, seed=7):
    return jax.random.split(jax.random.key(seed), n)


def weights(method, scale=0.3):
    """Random weights, the stages' too, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), batch()[0]))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32), shapes)


def let_it_know(method, output, low, shift=0.0):
    """Replaces the network by one that solves for the noise, given what is really diffused at each stage, `shift` added to that; the stage
    comes to it as the embedding that it gets."""

    class Oracle:
        @staticmethod
        def apply(variables, x_t, condition, signal, stage):
            stage = stage[:, 0].astype(jnp.int32)
            x0 = method.pixels.diffused(method.stages.target(output, stage) + shift, condition)
            level = Level(signal, jnp.sqrt(1 - signal**2), signal)
            s, sigma = signal[:, None, None, None], level.sigma[:, None, None, None]
            return target(method.config.prediction, x0, (x_t - s * x0) / sigma, level)

    method.network = Oracle()
    return {"params": {"network": {}, "stage": jnp.arange(1.0, method.stages.count + 1)[:, None]}, "stats": {}}


@pytest.mark.parametrize("prediction, residual_std, rollout", [("eps", None, 0.0), ("x0", 0.1, 0.0), ("v", None, 1.0), ("v", 0.1, 1.0)])
def test_whoever_knows_the_stage_s_target_has_no_loss_and_the_distance_to_the_teacher_s_maps(prediction, residual_std, rollout):
    """Eq. 8 is 0, and Eq. 9 is what the targets themselves leave; also where conditions are the student's own outputs, which are ideal."""
    method = recipe(prediction=prediction, residual_std=residual_std, rollout=rollout, curriculum="uniform", x0_loss_weight="none")
    data, maps = batch()
    variables = let_it_know(method, data.output, data.low)
    loss = method.loss(variables, data, keys_of(), jnp.float32(0))
    stage = method.draw_stages(jax.vmap(jax.random.fold_in, (0, None))(keys_of(), 0), jnp.float32(0))
    distance = ((method.stages.target(data.output, stage) - maps) ** 2).mean((0, 2, 3, 4))
    assert float(loss.metrics["denoising"]) < 1e-3
    np.testing.assert_allclose(loss.metrics["distillation"], (method.stages.ratio(stage) * distance).mean(), rtol=2e-3)


def test_the_mean_map_and_one_number_stand_for_all_199_maps():
    """Eq. 9 by the direct sum over K maps, and by Σ_k ‖O − F_k‖² = K ‖O − F̄‖² + Σ_k ‖F_k − F̄‖²: value and gradient."""
    maps = images(1) + 0.3 * jax.random.normal(jax.random.key(5), (199, SLICES, SIDE, SIDE, 1))
    mean = maps.mean(0)
    spread = ((maps - mean) ** 2).mean((0, 2, 3, 4))
    ratio = jnp.array([1.0, 0.75, 0.5, 0.0])

    def direct(image):
        return (ratio * ((image - maps) ** 2).mean((0, 2, 3, 4))).mean()

    def brief(image):
        return (ratio * (((image - mean) ** 2).mean((1, 2, 3)) + spread)).mean()

    one, other = (jax.value_and_grad(f)(images(3)) for f in (direct, brief))
    np.testing.assert_allclose(other[0], one[0], rtol=1e-5)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-4, atol=1e-5 * float(jnp.abs(one[1]).max()))


def test_the_recipe_s_loss_and_gradient_are_those_of_the_direct_sum():
    """The same, through the recipe and its network: only the distance differs."""
    method = recipe(curriculum="uniform", prediction="v")
    data, maps = batch()
    variables = weights(method)

    def loss_of(params, data):
        return method.loss({"params": params, "stats": {}}, data, keys_of(), jnp.float32(0)).loss

    brief = jax.value_and_grad(loss_of)(variables["params"], data)
    each = [jax.value_and_grad(loss_of)(variables["params"], data._replace(mean_map=f, spread=jnp.zeros(SLICES))) for f in maps]
    direct = jax.tree.map(lambda *parts: sum(parts) / len(parts), *each)
    np.testing.assert_allclose(brief[0], direct[0], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(brief[1]), jax.tree.leaves(direct[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * max(float(jnp.abs(other).max()), 1e-3))


@pytest.mark.parametrize("progress, most", [(0.0, 1), (0.19, 1), (0.2, 2), (0.79, 4), (0.8, 5), (1.0, 5)])
def test_stages_open_one_after_another_and_all_that_are_open_are_drawn(progress, most):
    keys = keys_of(2000)
    drawn = np.asarray(recipe().draw_stages(keys, jnp.float32(progress)))
    counts = np.bincount(drawn, minlength=most + 1)
    assert drawn.max() == most
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 2000, 1 / most, atol=0.05)
    assert set(np.asarray(recipe(curriculum="uniform").draw_stages(keys, jnp.float32(progress)))) == {1, 2, 3, 4, 5}


def test_own_outputs_stand_for_conditions_as_often_as_asked_and_never_at_the_first_stage():
    method, seen = recipe(rollout=0.5, prediction="v"), []
    many = jax.tree.map(lambda x: jnp.repeat(x[:1], 400, 0), batch()[0])
    variables = let_it_know(method, many.output, many.low, shift=3.0)  # so that its own outputs can be told from ideal ones
    apply = method.network.apply

    def watched(params, x_t, condition, signal, stage):
        seen.append((condition, stage[:, 0]))
        return apply(params, x_t, condition, signal, stage)

    method.network.apply = watched
    method.loss(variables, many, keys_of(400), jnp.float32(1))
    condition, stage = (np.asarray(x) for x in seen[-1])  # the last call is that of the loss
    ideal = np.asarray(method.stages.condition(many.output, many.low, jnp.asarray(stage, jnp.int32)))
    own = np.abs(condition - ideal).mean((1, 2, 3)) > 0.1
    assert not own[stage == 1].any()
    assert 0.4 < own[stage > 1].mean() < 0.6


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_perfect_student_ends_with_the_teacher_s_output_and_passes_all_targets_on_the_way(eta):
    method = recipe(prediction="v", stages={"count": 5, "blur": "paper"})
    data, _ = batch()
    variables = let_it_know(method, data.output, data.low)
    output, path = method.path(variables, Condition(data.low), keys_of(), Request(3, eta))
    np.testing.assert_allclose(output.image, data.output, atol=2e-4)
    assert not output.metrics["clipped"].any()
    for n, image in enumerate(path, 1):
        np.testing.assert_allclose(image, method.stages.target(data.output, jnp.full(SLICES, n)), atol=2e-4)


def test_stages_1_to_4_and_then_5_to_20_are_stages_1_to_20():
    """§IV-D, slice by slice: noise is keyed by the stage's own number."""
    method = recipe(stages={"count": 20}, prediction="v", residual_std=0.1, sampling_steps=2)
    variables, low = weights(method, 0.05), images(2)
    run = jax.jit(method.upscale, static_argnums=3)
    whole = run(variables, Condition(low), keys_of(), Request(2, 1.0, 2.0, 0.7)).image
    half = run(variables, Condition(low), keys_of(), Request(2, 1.0, 2.0, 1.5)).image
    both = run(variables, Condition(half), keys_of(), Request(2, 1.0, 1.5, 0.7)).image
    assert float(jnp.abs(half - whole).max()) > 1e-3
    np.testing.assert_allclose(both, whole, atol=1e-5)


def test_where_there_is_no_stage_to_run_the_input_is_the_output():
    method = recipe()
    request = Request(3, 0.0, from_mm=0.7, to_mm=0.7)
    assert method.idle(request)
    assert not method.idle(Request(3))
    output = method.upscale(weights(method), Condition(images()), keys_of(), request)
    np.testing.assert_array_equal(output.image, images())


def test_twenty_stages_are_no_larger_a_program_than_two():
    method = recipe(stages={"count": 20})
    shapes = jax.eval_shape(lambda: (weights(method), keys_of()))
    few, many = (
        len(str(jax.make_jaxpr(functools.partial(method.upscale, request=request))(shapes[0], Condition(images()), shapes[1])))
        for request in (Request(3, 0.0, 2.0, 1.75), Request(3))
    )
    assert many < 1.01 * few


def test_a_slice_s_output_does_not_depend_on_the_batch_it_is_in():
    method = recipe(prediction="v")
    variables, low, keys = weights(method, 0.05), images(2), keys_of()
    together = method.upscale(variables, Condition(low), keys, Request(2, 1.0)).image
    alone = method.upscale(variables, Condition(low[2:3]), keys[2:3], Request(2, 1.0)).image
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)


def test_the_network_is_told_the_stage_and_not_before_it_is_trained():
    method = recipe(prediction="v")
    variables = weights(method, 0.1)
    silent = {"params": {**variables["params"], "stage": jnp.zeros_like(variables["params"]["stage"])}}
    told, untold = method, recipe(prediction="v", stage_conditioning=False)
    arguments = (images(), jnp.array([1, 2, 3, 5]), images(4), Level(*(jnp.full(SLICES, 0.6),) * 3))
    same = untold.denoise({"network": variables["params"]["network"]}, *arguments)
    np.testing.assert_array_equal(told.denoise(silent["params"], *arguments), same)
    assert float(jnp.abs(told.denoise(variables["params"], *arguments) - same).max()) > 1e-3
    boxed = jax.eval_shape(method.init, jax.random.key(0), batch()[0])["params"]["stage"]
    assert nn.meta.unbox(boxed).shape == (5, 8)
    assert not jax.jit(method.init)(jax.random.key(0), batch()[0])["params"]["stage"].value.any()


@pytest.mark.parametrize("name, parameters", [("student", 271_420_673), ("student-table4", 363_834_305)])
def test_the_published_networks_have_the_published_counts_and_the_stages_are_apart(name, parameters):
    parts = load_experiment(CONFIGS / f"{name}.yaml").method.build().parts(128)
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(of.variables)) for part, of in parts.items()}
    assert sizes == {"denoiser": parameters, "stage embedding": 20 * 64}
