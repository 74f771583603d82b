"""Laws of the teacher's recipe [teacher paper, Algorithms 1 and 2, Eqs. 1, 5 and 6]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.count import count_part, multiply_adds
from jaxsr.config import ConfigError, from_dict
from jaxsr.diffusion.process import add_noise
from jaxsr.diffusion.sampling import draw_noise
from jaxsr.diffusion.schedule import level_at
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.teacher import Teacher, TeacherConfig
from jaxsr.methods.teacher_networks import GuidanceConfig
from jaxsr.models.clip import clip_image, patches_of_slice
from jaxsr.train.state import abstract_variables

AUTOENCODER = {"network": {"channels": 1, "width": 4, "multipliers": (1, 1), "blocks": 1, "latent": 2, "groups": 2}}
UNET = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_at": (1,), "heads": 2, "context_width": 6, "groups": 4}
ENCODER = {"patch": 8, "width": 8, "layers": 1, "heads": 2, "projection": 6, "side": 16}
SIDE = 8


def recipe(**settings):
    settings = {"image_encoder": ENCODER, "guidance": {"width": 4, "groups": 2}, "sampling_steps": 3, **settings}
    return Teacher(TeacherConfig(autoencoder=AUTOENCODER, unet=UNET, **settings))


def batch(n=4, height=SIDE, width=SIDE):
    high, error, bias = jax.random.normal(jax.random.key(0), (3, n, height, width, 1))
    gradient = jax.random.normal(jax.random.key(1), (n, height, width, 3))
    maps = {"bias": 0.2 * bias, "gradient": gradient, "jacobian": 0.02 * gradient[..., :1]}
    return Batch(high=jnp.tanh(high), low=jnp.tanh(high) + 0.3 * error, **maps)


def keys_of(n, seed=7):
    return jax.random.split(jax.random.key(seed), n)


def weights(method, scale=0.3, untrained=()):
    """Random weights without compiling the initialisers; those whose path has a word of `untrained` are zero, as a network starts."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if any(word in jax.tree_util.keystr(path) for word in untrained):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(method, batch()))


UNTRAINED_GUIDANCE = ("level0_out",)


def upscaled(method, variables, condition, steps=3):
    """The program is the same for all conditions with the same maps."""
    keys = keys_of(len(condition.low))
    return jax.jit(method.upscale, static_argnames="request")(variables, condition, keys, request=Request(steps)).image


def test_before_training_the_guided_network_is_the_unguided_one_exactly():
    """Whatever the maps say: their last convolutions start at zero."""
    guided, given = recipe(), batch()
    variables = weights(guided, untrained=UNTRAINED_GUIDANCE)
    image = upscaled(guided, variables, given.condition)
    other = given.condition._replace(bias=0 * given.bias, gradient=7 + given.gradient)
    np.testing.assert_array_equal(image, upscaled(guided, variables, other))
    unguided = recipe(guidance=None)
    trained = {**variables, "params": {name: tree for name, tree in variables["params"].items() if name != "guidance"}}
    np.testing.assert_allclose(image, upscaled(unguided, trained, Condition(given.low)), rtol=1e-5, atol=1e-6 * float(jnp.abs(image).max()))
    # And it could be another: the law is about the zeros, not about deaf ears.
    assert jnp.abs(image - upscaled(guided, weights(guided), given.condition)).max() > 1e-3


def test_a_network_that_is_told_the_jacobian_starts_as_the_unguided_one_exactly_and_then_listens_to_nothing_else_of_g():
    by_jacobian = {"width": 4, "groups": 2, "bias": False, "gradient": "log_jacobian"}
    guided, unguided, given = recipe(image_encoder=None, guidance=by_jacobian), recipe(image_encoder=None, guidance=None), batch()
    variables = weights(guided)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if UNTRAINED_GUIDANCE[0] in jax.tree_util.keystr(path) else leaf, variables
    )
    alone = {**silent, "params": {"unet": silent["params"]["unet"]}}
    z, level = jax.random.normal(jax.random.key(2), (4, SIDE // 2, SIDE // 2, 2)), level_at(guided.schedule, jnp.full(4, 700))

    def denoised(method):
        present = lambda c: {"gradient": jnp.full(4, float(c.jacobian is not None))} if method.pyramids else {}  # noqa: E731
        return jax.jit(lambda v, c: method._denoise(v, method._show(v, c, present(c)), z, level))

    of_guided, known = denoised(guided), Condition(given.low, jacobian=given.jacobian)
    np.testing.assert_array_equal(of_guided(silent, known), denoised(unguided)(alone, Condition(given.low)))
    trained = of_guided(variables, known)
    assert jnp.abs(trained - of_guided(variables, known._replace(jacobian=-given.jacobian))).max() > 1e-3
    np.testing.assert_array_equal(trained, of_guided(variables, known._replace(gradient=given.gradient, bias=given.bias)))


def test_displacement_and_jacobian_are_told_to_one_network_but_for_the_channels_of_its_first_convolution():
    """And 'displacement' is what true has always meant: no run and no checkpoint becomes another."""
    displacement, jacobian = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_variables(method, batch()))}
        for method in (recipe(guidance={"width": 4, "groups": 2, "gradient": told}) for told in ("displacement", "log_jacobian"))
    )
    assert displacement.keys() == jacobian.keys()
    apart = {name: (displacement[name], jacobian[name]) for name in displacement if displacement[name] != jacobian[name]}
    assert apart == {"['params']['guidance']['gradient']['stem0']['kernel']": ((3, 3, 3 + 1, 4), (3, 3, 1 + 1, 4))}  # and the flag
    assert GuidanceConfig(gradient=True) == GuidanceConfig(gradient="displacement") == GuidanceConfig()


def test_one_network_answers_with_both_maps_with_either_and_with_none():
    """The four cells of Table I."""
    method, given = recipe(), batch()
    variables = weights(method)
    cells = [
        upscaled(method, variables, Condition(given.low, bias=bias, gradient=gradient))
        for bias in (given.bias, None)
        for gradient in (given.gradient, None)
    ]
    apart = [float(jnp.abs(a - b).max()) for i, a in enumerate(cells) for b in cells[:i]]
    assert min(apart) > 1e-4


def test_a_network_that_says_nothing_has_the_loss_of_the_noise_itself():
    """Eq. 5: mean ε² over pixels, of the noise that each slice's own key draws."""
    method, given, keys = recipe(), batch(), keys_of(4)
    variables = weights(method, untrained=("['unet']['out']",))
    noise = draw_noise(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), 0, (SIDE // 2, SIDE // 2, 2))
    loss = jax.jit(method.loss)(variables, given, keys, 0).loss
    np.testing.assert_allclose(loss, jnp.square(noise).mean(), rtol=1e-5)


@pytest.mark.parametrize("weighted", ["snr", "none"])
def test_lambda_weighs_eq_1_of_the_decoded_one_step_estimate(weighted):
    """Algorithm 1: ẑ_0 = (z_t − √(1 − ᾱ) ε̂) / √ᾱ, here with ε̂ = 0; decoded, against x; times min(1, SNR)."""
    method, given, keys = recipe(lambda_rec=0.7, x0_loss_weight=weighted), batch(), keys_of(4)
    variables = weights(method, untrained=("['unet']['out']",))
    folded = [jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(3)]
    t = jax.vmap(lambda key: jax.random.randint(key, (), 1, 5001))(folded[0])
    level = level_at(method.schedule, t)
    autoencoder = {"params": variables["frozen"]["autoencoder"]}
    z0 = method.autoencoder.encode(autoencoder, given.high, folded[2])
    noise = draw_noise(folded[1], 0, z0.shape[1:])
    estimate = add_noise(z0, noise, level) / level.signal[:, None, None, None]
    errors = jnp.square(method.autoencoder.decode(autoencoder, estimate) - given.high).mean((1, 2, 3))
    if weighted == "snr":
        errors = errors * jnp.minimum(1, (level.signal / level.sigma) ** 2)
    output = jax.jit(method.loss)(variables, given, keys, 0)
    np.testing.assert_allclose(output.metrics["reconstruction"], errors.mean(), rtol=1e-4)
    np.testing.assert_allclose(output.loss, jnp.square(noise).mean() + 0.7 * errors.mean(), rtol=1e-4)


def test_with_lambda_at_zero_nothing_is_decoded():
    """In multiply-adds: the difference is the decoder's, once a slice."""
    given, keys = batch(), keys_of(4)
    work = {}
    for rec in (0.0, 1.0):
        method = recipe(lambda_rec=rec)
        work[rec] = multiply_adds(method.loss, abstract_variables(method, given), given, keys, 0)
    decoder = count_part(recipe().autoencoder.parts(SIDE)["decoder"], [])
    assert work[1.0] - work[0.0] == 4 * decoder["multiply_adds"] > 0


def test_what_is_frozen_is_no_parameter_and_all_of_what_is_trained_gets_a_gradient():
    method, given, keys = recipe(lambda_rec=1.0), batch(), keys_of(4)
    variables = weights(method)
    assert variables["params"].keys() == {"unet", "guidance", "context"}
    assert variables["frozen"].keys() == {"autoencoder", "image_encoder"}
    loss = lambda params: method.loss({**variables, "params": params}, given, keys, 0).loss  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(variables["params"])
    silent = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if not jnp.abs(leaf).max() > 0]
    # Of one token, attention makes the same whatever is asked and whatever the key.
    assert [name for name in silent if not ("['cross']" in name and ("query" in name or "key" in name)) and "norm2" not in name] == []


def test_an_image_encoder_that_is_trained_is_a_parameter():
    method = recipe(image_encoder={**ENCODER, "train": True})
    variables = abstract_variables(method, batch())
    assert variables["params"].keys() == {"unet", "guidance", "context", "image_encoder"}
    assert variables["frozen"].keys() == {"autoencoder"}


def test_without_an_image_encoder_nothing_of_it_is_left():
    method = recipe(image_encoder=None, guidance=None)
    variables = abstract_variables(method, batch())
    assert variables["params"].keys() == {"unet"}
    assert "image encoder" not in method.parts(SIDE)
    assert upscaled(method, weights(method), Condition(batch().low)).shape == (4, SIDE, SIDE, 1)


def test_a_map_that_is_left_out_of_a_training_slice_is_not_looked_at():
    """With dropout near 1 hardly any map is looked at, with 0 every one: then what lies in it matters."""
    given, keys = batch(), keys_of(4)
    other = given._replace(bias=given.bias + 3, gradient=given.gradient - 5)
    apart = {}
    for dropout in (0.0, 1 - 1e-6):
        method = recipe(guidance={"width": 4, "groups": 2, "dropout": dropout})
        variables, loss = weights(method), jax.jit(method.loss)
        apart[dropout] = float(jnp.abs(loss(variables, given, keys, 0).loss - loss(variables, other, keys, 0).loss))
    assert apart[0.0] > 1e-4
    assert apart[1 - 1e-6] == 0


def test_each_map_is_left_out_by_itself_as_often_as_configured():
    method = recipe(guidance={"width": 4, "groups": 2, "dropout": 0.25})
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of(4000), 3)
    others = jax.vmap(jax.random.fold_in, (0, None))(keys_of(4000), 4)
    bias, gradient = method._present(keys), method._present(others)
    assert abs(float(bias.mean()) - 0.75) < 0.03
    assert abs(float((bias * gradient).mean()) - 0.75**2) < 0.03


def test_a_slice_comes_out_the_same_in_any_batch():
    method, given = recipe(), batch()
    variables, keys = weights(method), keys_of(4)
    whole = jax.jit(method.upscale, static_argnames="request")(variables, given.condition, keys, request=Request(3)).image
    last = jax.tree.map(lambda x: x[3:], (given.condition, keys))
    alone = jax.jit(method.upscale, static_argnames="request")(variables, *last, request=Request(3)).image
    np.testing.assert_allclose(alone[0], whole[3], atol=1e-5 * float(jnp.abs(whole).max()))


def test_the_latents_beside_z_t_are_not_scaled():
    """Ruling of 10-teacher.md: the mode of E_1(y), whatever scale diffusion has."""
    given, shown = batch(), []
    for scale in (0.2, 0.5):
        method = Teacher(
            TeacherConfig(
                autoencoder={**AUTOENCODER, "latent_scale": scale}, unet=UNET, image_encoder=None, guidance=None, sampling_steps=1
            )
        )
        variables = weights(method)
        shown.append(method._show(variables, given.condition, {}).spatial)
    expected = method.autoencoder.posterior({"params": variables["frozen"]["autoencoder"]}, given.low).mean
    np.testing.assert_array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(shown[0], expected)


def test_the_context_starts_as_what_clip_says_itself():
    method, given = recipe(guidance=None), batch()
    params = nn.meta.unbox(method.init(jax.random.key(0), given))["params"]
    variables = {**weights(method), "params": params}
    seen = method.image_encoder.apply({"params": variables["frozen"]["image_encoder"]}, clip_image(given.low, ENCODER["side"]))
    np.testing.assert_allclose(method._show(variables, given.condition, {}).context[:, 0], seen.pooled, rtol=1e-4, atol=1e-5)


def test_patches_are_a_context_of_all_tokens():
    method, given = recipe(image_encoder={**ENCODER, "context": "patches"}), batch()
    present = {name: jnp.ones(4) for name in ("bias", "gradient")}
    assert method._show(weights(method), given.condition, present).context.shape == (4, 1 + 4, 6)


@pytest.mark.parametrize("height, width", [(8, 8), (8, 16), (16, 8)])
def test_patches_in_place_of_latents_lie_where_the_slice_does(height, width):
    """A square patch lights up where the slice does, in the middle of the padded square that E_2 sees."""
    method = recipe(spatial="vit", guidance=None)
    variables, given = weights(method), batch(2, height, width)
    spatial = method._show(variables, given.condition, {}).spatial
    assert spatial.shape == (2, height // 2, width // 2, 2)
    whole = max(height, width) // 2
    grid = jnp.arange(4.0).reshape(2, 2)
    tokens = jnp.concatenate([jnp.full((1, 1, 1), 99.0), grid.reshape(1, 4, 1)], axis=1)
    square = jax.image.resize(grid, (whole, whole), "bilinear")
    top, left = (whole - height // 2) // 2, (whole - width // 2) // 2
    cut = square[top : top + height // 2, left : left + width // 2]
    np.testing.assert_allclose(patches_of_slice(tokens, (height // 2, width // 2))[0, ..., 0], cut, atol=1e-6)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"sampling_steps": 5001}, "sampling_steps"),
        ({"schedule": {"zero_terminal_snr": True}}, "zero_terminal_snr"),
        ({"spatial": "vit", "image_encoder": None}, "image_encoder"),
        ({"guidance": {"bias": False, "gradient": False}}, "guidance: null"),
        ({"guidance": {"gradient": "jacobian"}}, "should be true or false or 'displacement' or 'log_jacobian', found"),
        ({"unet": {"width": 36}}, "multiple of groups"),
        ({"image_encoder": {"patch": 15}}, "multiple of patch"),
    ],
)
def test_a_config_that_makes_no_sense_says_what_to_change(settings, said):
    data = {"crop": 256, "maps": ["bias", "gradient"]}
    with pytest.raises(ConfigError, match=said):
        from_dict({"method": {"kind": "teacher", **settings}, "data": data}, Experiment)


def test_a_guided_teacher_needs_the_maps_in_its_data():
    with pytest.raises(ConfigError, match=r"data.maps must have gradient"):
        from_dict({"method": {"kind": "teacher"}, "data": {"crop": 256, "maps": ["bias"]}}, Experiment)
    method = {"kind": "teacher", "guidance": {"gradient": "log_jacobian"}}
    with pytest.raises(ConfigError, match=r"data.maps must have jacobian"):
        from_dict({"method": method, "data": {"crop": 256, "maps": ["bias", "gradient"]}}, Experiment)
