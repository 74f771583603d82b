"""Laws of SPCDD's recipe [SPCDD §3.3 to §3.5, Algorithm 1]. A network that knows the answer shows what the recipe does with it."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxsr.config import ConfigError, from_dict
from jaxsr.diffusion.process import target
from jaxsr.diffusion.schedule import level_at
from jaxsr.experiment import Experiment
from jaxsr.losses.overlap import dice_errors
from jaxsr.methods.base import Adversarial, Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.spcdd_config import SpcddConfig
from jaxsr.methods.spcdd_networks import Guided, SpcddNetworks, means_of_blocks
from jaxsr.models.anatomy import template

ANATOMY = {"width": 4, "multipliers": [1, 2], "groups": 2}
SMALL = {"plain": {"width": 8}, "prior": {"network": ANATOMY}, "intensity": {"base": 4, "groups": 2}}
SAMPLED = {"schedule": {"kind": "linear", "steps": 50, "beta_start": 1e-3, "beta_end": 0.2, "reference_steps": 50}, "sampling_steps": 4}
GAME = {"losses": {"adversarial": 0.5}, "discriminator": {"width": 4, "layers": 1}}
LATENT = {
    "plain": None,
    "unet": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": [2], "heads": 2, "context_width": 8, "groups": 4},
    "autoencoder": {"network": {"width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 2, "groups": 2}},
    **SAMPLED,
}
FLAT = {**LATENT["unet"], "multipliers": [1], "attention_at": []}
SIDE, COUNT = 16, 4


def recipe(**settings):
    return from_config(**settings).build()


def from_config(**settings):
    return SpcddConfig(**{**SMALL, **settings})


def batch(seed=0, n=COUNT, paired=None):
    high, error = jax.random.normal(jax.random.key(seed), (2, n, SIDE, SIDE, 1))
    return Batch(high=jnp.tanh(high), low=jnp.tanh(high + 0.3 * error), paired=None if paired is None else jnp.array(paired, jnp.float32))


def keys_of(n=COUNT, seed=7):
    return jax.random.split(jax.random.key(seed), n)


def variables_of(method, seed=0, scale=0.2):
    """Random weights everywhere, also where layers start at zero."""
    rng = np.random.default_rng(seed)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), batch()) | {"frozen": method.frozen(batch())})

    def drawn(path, leaf):
        leaf = jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32)
        return leaf / jnp.linalg.norm(leaf) if "spectral" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def loss_of(method, variables, *given):
    return method.loss(variables, *(given or (batch(), keys_of(), jnp.float32(0))))


def gradients(method, variables, what=lambda output: output.loss, among=None):
    among = among or batch()
    return jax.grad(lambda params: what(method.loss({**variables, "params": params}, among, keys_of(), jnp.float32(0))))(
        variables["params"]
    )


def same(a, b, **how):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-4, "atol": 1e-6, **how}), a, b)


# What the denoiser is told.


def test_the_template_of_its_own_masks_stands_beside_the_slice():
    """§3.3: x̃ = concat(x, a)."""
    method = recipe()
    variables = variables_of(method)
    params = method._params(variables)
    shown = method.guided.show(params, {}, batch().low)
    masks = method.segment(variables, batch().condition)
    np.testing.assert_allclose(masks.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(shown.beside[..., :1], batch().low)
    np.testing.assert_allclose(shown.beside[..., 1:], template(batch().low, masks), rtol=1e-5)


@pytest.mark.parametrize("told, channels", [("template", 2), ("masks", 5), ("both", 6)])
def test_template_masks_or_both_are_told(told, channels):
    method = recipe(prior={"network": ANATOMY, "told": told})
    assert method.guided.inputs == method.guided.show(method._params(variables_of(method)), {}, batch().low).beside.shape[-1] == channels


def test_untrained_intensity_modulation_is_the_identity():
    """30-spcdd: zero-initialised, at every resolution; then it is not."""
    method, plain = recipe(), recipe(intensity=None)
    params = nn.meta.unbox(method.init(jax.random.key(0), batch()))["params"]
    frozen = {"frozen": variables_of(method)["frozen"]}
    outputs = [
        m.upscale({"params": {n: p for n, p in params.items() if n in kept}, **frozen}, batch().condition, keys_of(), Request(1)).image
        for m, kept in ((method, ("network", "intensity")), (plain, ("network",)))
    ]
    np.testing.assert_array_equal(*outputs)
    assert not np.allclose(outputs[0], method.upscale(variables_of(method), batch().condition, keys_of(), Request(1)).image)


def test_in_latents_slice_and_template_are_told_as_latents_and_masks_as_means():
    method = recipe(**LATENT, prior={"network": ANATOMY, "told": "both"})
    variables = variables_of(method)
    shown = method.guided.show(method._params(variables), method._autoencoder(variables), batch().low)
    masks = method.segment(variables, batch().condition)
    of_latents = {"params": variables["frozen"]["autoencoder"]}
    told = [method.autoencoder.posterior(of_latents, x).mode for x in (batch().low, template(batch().low, masks))]
    np.testing.assert_allclose(shown.beside, jnp.concatenate([*told, means_of_blocks(masks, 2)], -1), rtol=1e-4, atol=1e-6)
    assert [m.shape for m in shown.modulation] == [(COUNT, 8, 8, 16), (COUNT, 4, 4, 32)]


def test_sizes_of_the_paper():
    """Table 1: channels [2, 64, 64, 1] and [1, 32, 32, 1], three convolutions of 3 × 3."""
    counts = {}
    for width, prior in ((64, SMALL["prior"]), (32, None)):
        guided = Guided(SpcddNetworks(plain={"width": width}, prior=prior, intensity=None), None, False, jnp.float32)
        params = jax.eval_shape(guided.init, jax.random.key(0), batch().low)["network"]
        counts[width] = sum(x.size for x in jax.tree.leaves(params))
    assert counts == {
        64: (9 * 2 * 64 + 64) + (9 * 64 * 64 + 64) + (9 * 64 + 1),
        32: (9 * 1 * 32 + 32) + (9 * 32 * 32 + 32) + (9 * 32 + 1),
    }


# The answer, and what it costs.


@pytest.mark.parametrize("residual_std", [None, 0.1])
@pytest.mark.parametrize("settings", [{}, SAMPLED | {"prediction": "x0"}, SAMPLED | {"prediction": "v"}, SAMPLED | {"prediction": "eps"}])
def test_whoever_knows_the_answer_has_no_loss(settings, residual_std):
    """Of none of the losses: L1, gradients, histograms, contrast, Dice of what the extractor sees; one evaluation or sampled."""
    losses = {"reconstruction": 1, "gradient": 1, "histogram": 1, "contrast": 1, "structure": 1}
    method = recipe(**settings, losses=losses, residual_std=residual_std)
    variables, high, low = variables_of(method), batch().high, batch().low

    def knows(params, shown, z_t, time):
        x0 = method.pixels.diffused(high, low)
        if z_t is None:
            return x0, x0
        level = level_at(method.schedule, 1 + jnp.round(time).astype(int))  # time counts from 0
        signal, sigma = (x[:, None, None, None] for x in (level.signal, level.sigma))
        return target(method.config.prediction, x0, (z_t - signal * x0) / sigma, level), z_t

    method.guided.denoise = knows
    output = loss_of(method, variables)
    assert {*losses} <= output.metrics.keys()
    assert float(output.loss) < 2e-3
    made = method.upscale(variables, batch().condition, keys_of(), method.default_request)
    np.testing.assert_allclose(made.image, high, atol=5e-3)


def test_one_evaluation_costs_the_mean_absolute_error():
    """§5.2: L1 alone."""
    method = recipe()
    variables = variables_of(method)
    image = method.upscale(variables, batch().condition, keys_of(), Request(1)).image
    np.testing.assert_allclose(loss_of(method, variables).loss, jnp.abs(image - batch().high).mean(), rtol=1e-5)


@pytest.mark.parametrize("settings", [SAMPLED, LATENT])
def test_losses_on_an_estimate_count_as_much_as_it_holds_signal(settings):
    """30-spcdd: where it is sampled they act on x̂_0, and are weighed by min(1, SNR)."""
    losses = {"denoising": 0, "reconstruction": 1}
    weighed, plain = (recipe(**settings, losses=losses, x0_loss_weight=kind) for kind in ("snr", "none"))
    variables = variables_of(weighed)
    assert 0 < float(loss_of(weighed, variables).loss) < float(loss_of(plain, variables).loss)


def test_the_extractor_does_not_learn_from_how_it_judges():
    """The structural loss has a gradient by the image and none by the extractor's weights, even where those are trained."""
    losses = {"reconstruction": 0, "structure": 1}
    method = recipe(losses=losses, prior={"network": ANATOMY, "train": True}, intensity=None)
    variables = variables_of(method)
    method.guided.show = lambda params, of_latents, low: Guided.show(method.guided, jax.lax.stop_gradient(params), of_latents, low)
    found = gradients(method, variables)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found["network"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["anatomy"]))


def test_a_trained_prior_learns_from_what_the_denoiser_makes_of_its_template():
    method = recipe(prior={"network": ANATOMY, "train": True})
    found = gradients(method, variables_of(method))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found["anatomy"]["out"]))


@pytest.mark.parametrize("settings", [{}, SAMPLED, LATENT])
def test_a_slice_does_not_depend_on_those_beside_it(settings):
    method = recipe(**settings)
    variables, keys, request = variables_of(method), keys_of(), method.default_request
    together = method.upscale(variables, batch().condition, keys, request).image
    alone = method.upscale(variables, Condition(batch().low[1:2]), keys[1:2], request).image
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


# Distillation.


@pytest.mark.parametrize("settings", [{}, SAMPLED, LATENT])
def test_a_student_that_equals_its_teacher_has_no_loss(settings):
    """Algorithm 1."""
    networks = {name: {**SMALL, **settings}[name] for name in ("plain", "prior", "intensity", "unet") if name in {**SMALL, **settings}}
    none = {"denoising": 0, "reconstruction": 0}
    method = recipe(**settings, losses=none, distill={"teacher": networks})
    variables = variables_of(method)
    variables["frozen"]["teacher"] = {**variables["params"], "anatomy": variables["frozen"]["anatomy"]}
    output = loss_of(method, variables)
    assert float(output.loss) == 0
    assert method.projection is None
    other = variables_of(method)
    assert float(loss_of(method, other).loss) > 0


def test_distillation_is_algorithm_1():
    """α |ŷ_s − ŷ_t|₁ + β mean (Φ_s − P Φ_t)², α = β = 0.5, against both outputs computed apart; P only where widths differ."""
    method = recipe(
        plain={"width": 4}, prior=None, intensity=None, losses={"denoising": 0, "reconstruction": 0}, distill={"teacher": SMALL}
    )
    variables = variables_of(method)
    teacher = Guided(SpcddNetworks(**SMALL), None, False, jnp.float32)
    of_teacher = variables["frozen"]["teacher"]
    y_t, f_t = teacher.denoise(of_teacher, teacher.show(of_teacher, {}, batch().low), None, None)
    student = Guided(SpcddNetworks(plain={"width": 4}, prior=None, intensity=None), None, False, jnp.float32)
    y_s, f_s = student.denoise(variables["params"], student.show(variables["params"], {}, batch().low), None, None)
    projection = variables["params"]["projection"]
    projected = f_s @ projection["kernel"] + projection["bias"]
    expected = 0.5 * jnp.abs(y_s - y_t).mean() + 0.5 * jnp.square(projected - f_t).mean()
    np.testing.assert_allclose(loss_of(method, variables).loss, expected, rtol=1e-5)


def test_the_teacher_is_no_part_of_what_upscales():
    method = recipe(distill={"teacher": SMALL})
    assert method.frozen().keys() == {"anatomy"}
    assert method.frozen(batch()).keys() == {"anatomy", "teacher"}


# Two players.


def test_each_player_has_the_gradient_of_its_own_loss_alone():
    """§3.5: one step of both. The sum's gradient is, by the generator's weights, that of its losses, and by D's that of D's own."""
    method = recipe(**GAME | {"discriminator": {**GAME["discriminator"], "r1": 0.3}})
    variables = variables_of(method)
    assert isinstance(method, Adversarial)
    assert method.players == {"discriminator": "discriminator"}
    total = gradients(method, variables)
    of_generator = gradients(method, variables, lambda out: out.metrics["reconstruction"] + 0.5 * out.metrics["generator"])
    of_discriminator = gradients(method, variables, lambda out: out.metrics["discriminator"] + 0.3 * out.metrics["r1"])
    same(total["network"], of_generator["network"])
    same(total["discriminator"], of_discriminator["discriminator"])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(of_generator["network"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_discriminator["network"]))
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves(gradients(method, variables, lambda out: out.metrics["generator"])["discriminator"])
    )


def test_what_the_extractor_sees_needs_no_pair():
    """Dice of x̂ and y holds the generator to what it was shown, where only a discriminator would; of a pair, of x̂ and x."""
    method = recipe(losses={"reconstruction": 0, "structure": 1})
    variables, some = variables_of(method), batch(paired=[2, 0, 2, 0])
    image = method.upscale(variables, some.condition, keys_of(), Request(1)).image
    like = jnp.where(some.paired[:, None, None, None] > 0, some.high, some.low)
    masks = [method.guided.masks(method._params(variables), x) for x in (image, like)]
    np.testing.assert_allclose(loss_of(method, variables, some, keys_of(), jnp.float32(0)).loss, dice_errors(*masks).mean(), rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, SAMPLED])
def test_of_slices_without_a_pair_the_generator_learns_nothing_of_their_truth(settings):
    """30-spcdd: their high-resolution side is seen by the discriminator only; not in a loss, not through z_t."""
    method = recipe(**settings, **GAME)
    variables, some = variables_of(method), batch(paired=[2, 0, 2, 0])
    other = some._replace(high=some.high.at[1::2].set(batch(seed=1).high[1::2]))
    same(gradients(method, variables, among=some)["network"], gradients(method, variables, among=other)["network"])
    changed = some._replace(high=some.high.at[0::2].set(batch(seed=1).high[0::2]))
    with pytest.raises(AssertionError):
        same(gradients(method, variables, among=some)["network"], gradients(method, variables, among=changed)["network"])
    with pytest.raises(AssertionError):
        same(gradients(method, variables, among=some)["discriminator"], gradients(method, variables, among=other)["discriminator"])


def test_statistics_of_spectral_normalisation_are_of_weights_only():
    method = recipe(**GAME)
    variables = variables_of(method)
    first, second = (method.loss(variables, batch(seed), keys_of(), jnp.float32(0)).stats for seed in (0, 1))
    same(first, second, rtol=0, atol=0)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (first, variables["stats"])), strict=True))


@pytest.mark.parametrize("settings, message", [
    ({"plain": None}, "one denoiser"),
    ({"unet": LATENT["unet"]}, "one denoiser"),
    ({**LATENT, "autoencoder": None}, "unet works in an autoencoder's latents"),
    ({**LATENT, "schedule": None}, "in latents it is sampled"),
    ({"losses": {"structure": 1}, "prior": None}, "losses.structure"),
    ({"prior": None, "weights": {"anatomy": Path("runs/a")}}, "weights.anatomy names one, and prior is null"),
    ({"losses": {"adversarial": 1}}, "losses.adversarial"),
    ({"discriminator": {}}, "losses.adversarial"),
    ({**SAMPLED, **GAME, "prediction": "eps"}, "cannot tell"),
    ({**SAMPLED, "sampling_steps": 51}, "sampling_steps must be"),
    ({"sampling_steps": 5, "loss": "l2"}, "loss and sampling_steps say how it is sampled"),
    ({"losses": {"reconstruction": 0}}, "nothing would be learnt"),
    ({**SAMPLED, "losses": {"denoising": 0, "reconstruction": 0}}, "nothing would be learnt"),
    ({"weights": {"teacher": Path("runs/t")}}, "weights.teacher names one, and distill is null"),
    ({"weights": {"autoencoder": Path("runs/t")}}, "weights.autoencoder names one"),
    ({**LATENT, "distill": {"teacher": {"plain": None, "unet": FLAT}}}, "2 and 1 levels"),
    ({**LATENT, "distill": {"teacher": SMALL}}, "distill.teacher"),
    ({"intensity": {"base": 6, "groups": 4}}, "base must be a multiple"),
    ({"prior": {"network": {**ANATOMY, "tissues": ["bone", "gold"]}}}, "unknown tissue gold"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        from_config(**settings)


@pytest.mark.parametrize("settings", [{}, SAMPLED, LATENT, GAME])
def test_parts_are_counted_with_the_shapes_they_have(settings):
    method = recipe(**settings)
    for part in method.parts(SIDE).values():
        jax.eval_shape(part.apply, part.variables, *part.inputs)
    assert {"denoiser", "intensity branch", "anatomy extractor"} <= method.parts(SIDE).keys()


@pytest.mark.parametrize("beta, alpha", [(0, 0.5), (0.5, 0)])
def test_a_term_of_distillation_that_does_not_count_is_not_computed(beta, alpha):
    """Outputs alone, or features alone, of a student of another width."""
    method = recipe(plain={"width": 4}, losses={"reconstruction": 0}, distill={"teacher": SMALL, "alpha": alpha, "beta": beta})
    output = loss_of(method, variables_of(method))
    assert ("distilled_output" in output.metrics, "distilled_features" in output.metrics) == (alpha > 0, beta > 0)
    assert float(output.loss) > 0


@pytest.mark.parametrize("settings, data, message", [
    (GAME | {"discriminator": {"layers": 3}}, {"crop": 16}, "at least 24 for the discriminator"),
    ({"losses": {"contrast": 1}}, {"crop": 8}, "at least 11"),
    ({"prior": None, "distill": {"teacher": SMALL}}, {"crop": 17}, "multiple of 2 for the teacher"),
    (GAME, {"crop": 16, "paired": 0.5}, "must be even"),
])  # fmt: skip
def test_slices_that_do_not_suit_are_refused(settings, data, message):
    tree = {"method": {"kind": "spcdd", **SMALL, **settings}, "data": data, "train": {"batch_size": 5}}
    with pytest.raises(ConfigError, match=message):
        from_dict(tree, Experiment)
