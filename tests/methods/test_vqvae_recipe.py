"""Laws of the VQ-VAE's recipe [MoEDiff-SR §II-A and §III; van den Oord et al. 2017, Eq. 3]."""

import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.experiment import Experiment, OptimizerConfig
from jaxsr.methods.base import Request
from jaxsr.methods.condition import UNIT, Batch, Condition
from jaxsr.methods.vqvae import Vqvae, VqvaeConfig, as_frozen, of_frozen
from jaxsr.models.vqvae import Codebook, codes, quantise, restarted, updated
from jaxsr.train.state import State, make_optimizer
from jaxsr.train.step import make_step

K, D = 6, 3
NETWORK = {"channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1, "embedding": D, "codes": K, "groups": 4}
SIDE = 8
MAPS = ("bias", "jacobian")


def recipe(network=NETWORK, **settings):
    return Vqvae(VqvaeConfig(network=network, **settings))


def batch(n=4, side=SIDE):
    high, bias, jacobian = jax.random.normal(jax.random.key(0), (3, n, side, side, 1))
    return Batch(high=jnp.tanh(high), low=jnp.tanh(high), bias=0.2 * bias, jacobian=0.05 * jacobian)


def keys_of(n, seed=7):
    return jax.random.split(jax.random.key(seed), n)


def codebook(seed=3):
    """Used alike."""
    return Codebook(jnp.full(K, 1 / K), jnp.asarray(np.random.default_rng(seed).normal(size=(K, D)) / K, jnp.float32))


def weights(method, scale=0.3):
    """Random weights without compiling the initialisers, and a codebook that is used."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), batch()))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32), shapes)
    return {"params": params, "stats": codebook()._asdict()}


def loss_of(method, variables, batch, keys):
    return jax.jit(method.loss)(variables, batch, keys, jnp.float32(0))


class FixedEncoder:
    """Knows what it is asked for, and keeps what it was shown."""

    def __init__(self, z):
        self.z, self.seen = z, []

    def apply(self, variables, image):
        self.seen.append(image)
        return self.z


class FixedDecoder(FixedEncoder):
    pass


NOTHING = {"params": {"encoder": {}, "decoder": {}}, "stats": codebook()._asdict()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_the_loss_is_the_mean_square_and_the_commitment_to_the_nearest_code(channels, commitment):
    """van den Oord et al., Eq. 3, every norm a mean: 0.25 beside β · 0.01, of vectors that lie 0.1 from a code in every number."""
    method = recipe({**NETWORK, "channels": channels}, commitment=commitment)
    nearest = jnp.tile(codes(codebook())[2], (3, 4, 4, 1))
    method.encoder = FixedEncoder(nearest + 0.1)
    method.decoder = FixedDecoder(jnp.repeat(batch(3).high, channels, -1) + 0.5)
    out = method.loss(NOTHING, batch(3), keys_of(3), jnp.float32(0))
    np.testing.assert_allclose(out.loss, 0.25 + commitment * 0.01, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["reconstruction"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["commitment"], 0.01, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["psnr"], 10 * np.log10(4 / 0.25), rtol=1e-5)
    np.testing.assert_allclose([out.metrics["perplexity"], out.metrics["perplexity_share"]], [1, 1 / K], rtol=1e-6)
    np.testing.assert_array_equal(method.decoder.seen[0], nearest)


def test_a_perfect_reconstruction_has_finite_metrics():
    """The trainer stops at anything else."""
    method = recipe()
    method.encoder, method.decoder = FixedEncoder(jnp.tile(codes(codebook())[2], (4, 4, 4, 1))), FixedDecoder(batch().high)
    out = method.loss(NOTHING, batch(), keys_of(4), jnp.float32(0))
    assert np.isfinite([out.loss, *out.metrics.values()]).all()


@pytest.mark.parametrize("maps", [MAPS, MAPS[::-1], ("jacobian",), ()])
def test_the_encoder_is_shown_the_slice_and_the_maps_in_their_units(maps):
    """spec: input channels 1 (slice) + 1 (b) + 1 (log-Jacobian of g); what is not given is flat."""
    method, all_of = recipe(maps=maps), batch()
    method.encoder = FixedEncoder(jnp.zeros((4, 4, 4, D)))
    method.encode(NOTHING, all_of.high, all_of.bias, all_of.jacobian)
    method.encode(NOTHING, all_of.high)
    expected = [all_of.high, *(getattr(all_of, name) / UNIT[name] for name in maps)]
    np.testing.assert_array_equal(method.encoder.seen[0], jnp.concatenate(expected, -1))
    np.testing.assert_array_equal(method.encoder.seen[1], jnp.concatenate([all_of.high, *[jnp.zeros_like(all_of.high)] * len(maps)], -1))


def test_training_and_upscaling_show_it_the_same():
    method, all_of = recipe(), batch()
    method.encoder, method.decoder = FixedEncoder(jnp.zeros((4, 4, 4, D))), FixedDecoder(all_of.high)
    method.loss(NOTHING, all_of, keys_of(4), jnp.float32(0))
    method.upscale(NOTHING, all_of.condition, keys_of(4), Request(steps=1))
    np.testing.assert_array_equal(*method.encoder.seen)


def test_latents_are_scaled_and_not_quantised_and_what_is_decoded_is_the_nearest_code():
    """spec: z_0 is the latent before quantisation × 0.2; it is quantised before decoding."""
    method, z = recipe(latent_scale=0.2), jax.random.normal(jax.random.key(1), (4, 4, 4, D))
    method.encoder, method.decoder = FixedEncoder(z), FixedDecoder(batch().high)
    latents = method.encode(NOTHING, batch().high)
    np.testing.assert_allclose(latents, 0.2 * z, rtol=1e-6)
    assert method.decode(NOTHING, latents).shape == (4, SIDE, SIDE, 1)
    np.testing.assert_array_equal(method.decoder.seen[0], quantise(z, codebook())[0])


def test_an_image_s_gradient_reaches_the_latents_as_if_they_were_codes():
    """Straight through, so that a loss of the decoded image can be one of what is diffused; s takes its part."""
    method, latents = recipe(latent_scale=0.2), jax.random.normal(jax.random.key(1), (2, 4, 4, D))
    variables = weights(method)
    c = jax.random.normal(jax.random.key(2), (2, SIDE, SIDE, 1))
    z_q, _ = quantise(latents / 0.2, codebook())
    decoder = {"params": variables["params"]["decoder"]}
    by_code = jax.jit(jax.grad(lambda z: (c * method.decoder.apply(decoder, z)).sum()))(z_q)
    by_latents = jax.jit(jax.grad(lambda latents: (c * method.decode(variables, latents)).sum()))(latents)
    np.testing.assert_allclose(by_latents, by_code / 0.2, atol=1e-5 * np.abs(by_latents).max())
    assert np.abs(by_latents).max() > 0


def test_the_codebook_after_a_batch_is_its_running_mean():
    method, variables, all_of = recipe(decay=0.9), weights(recipe()), batch()
    out = loss_of(method, variables, all_of, keys_of(4))
    z = jax.jit(method.encode)(variables, all_of.high, all_of.bias, all_of.jacobian) / method.config.latent_scale
    expected = updated(codebook(), z, quantise(z, codebook())[1], 0.9)
    assert out.metrics["restarted"] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), Codebook(**out.stats), expected)


def test_the_first_batch_makes_the_codebook_and_the_second_leaves_it():
    method, params = recipe(), weights(recipe())["params"]
    new = jax.jit(method.init)(jax.random.key(0), batch())["stats"]
    first = loss_of(method, {"params": params, "stats": nn.meta.unbox(new)}, batch(), keys_of(4))
    assert first.metrics["restarted"] == K
    assert first.metrics["perplexity"] > 2
    assert loss_of(method, {"params": params, "stats": first.stats}, batch(), keys_of(4)).metrics["restarted"] == 0
    never = loss_of(recipe(restart=0.0), {"params": params, "stats": nn.meta.unbox(new)}, batch(), keys_of(4))
    assert never.metrics["restarted"] == 0


def test_no_gradient_passes_by_codes_that_were_made_of_the_batch():
    """Those that start anew are vectors of the encoder: the gradient is that of the same codes from elsewhere."""
    method, all_of, keys = recipe(), batch(), keys_of(4)
    variables = weights(method)
    used = codebook()
    half = Codebook(used.usage.at[: K // 2].set(0), used.sums)
    z = jax.jit(method.encode)(variables, all_of.high, all_of.bias, all_of.jacobian) / method.config.latent_scale
    there = restarted(half, z, keys[0], method.config.restart / K)

    @jax.jit
    def gradient(codebook):
        return jax.value_and_grad(lambda p: method.loss({"params": p, "stats": codebook._asdict()}, all_of, keys, 0.0).loss)(
            variables["params"]
        )

    (loss, gradients), (expected, from_elsewhere) = gradient(half), gradient(there)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(from_elsewhere))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), gradients, from_elsewhere)


def test_upscaling_is_decoding_what_is_shown_in_whatever_company():
    method, shown = recipe(), batch().condition
    variables = weights(method)
    upscale = jax.jit(lambda shown, keys: method.upscale(variables, shown, keys, method.default_request).image)
    out = upscale(shown, keys_of(4))
    decoded = jax.jit(lambda shown: method.decode(variables, method.encode(variables, shown.low, shown.bias, shown.jacobian)))(shown)
    np.testing.assert_allclose(out, decoded, atol=1e-5 * np.abs(out).max())
    turned = jax.tree.map(lambda x: x[::-1], shown)
    np.testing.assert_allclose(upscale(turned, keys_of(4, seed=8))[::-1], out, atol=1e-5 * np.abs(out).max())
    alone = upscale(Condition(shown.low[1:2]), keys_of(1))  # without maps
    assert np.abs(alone - out[1:2]).max() > 1e-3 * np.abs(out).max()


def test_accumulating_over_two_parts_is_the_batch_codebook_and_all():
    """Where no code is dead: loss, gradients (by Adam's moments) and statistics."""
    method, optimizer = recipe(), make_optimizer(OptimizerConfig(), 10)
    variables = weights(method)

    def once(accumulate):
        params = jax.tree.map(jnp.copy, variables["params"])
        state = State(jnp.int32(0), params, params, optimizer.init(params), variables["stats"])
        return jax.jit(make_step(method, optimizer, ema=0.9, steps=10, accumulate=accumulate))(state, batch(), jax.random.key(0))

    (whole, told), (parts, told_of_parts) = once(1), once(2)
    for name in ("loss", "reconstruction", "commitment", "restarted"):
        np.testing.assert_allclose(told_of_parts[name], told[name], rtol=1e-5)
    for ours, expected in ((parts.opt, whole.opt), (parts.stats, whole.stats)):
        leaves = [[leaf for leaf in jax.tree.leaves(tree) if leaf.ndim] for tree in (ours, expected)]
        largest = max(np.abs(leaf).max() for leaf in leaves[1])
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * largest)
    assert np.abs(whole.stats["usage"] - variables["stats"]["usage"]).max() > 1e-4


def test_a_small_network_overfits_one_batch_and_its_codes_stay_in_use():
    method, all_of = recipe({**NETWORK, "codes": 32}), batch()
    params, optimizer = weights(method, 0.1)["params"], optax.adam(1e-2)
    stats = nn.meta.unbox(method.init(jax.random.key(0), all_of))["stats"]

    @jax.jit
    def step(params, stats, opt, i):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of(4), i)

        def loss(params):
            out = method.loss({"params": params, "stats": stats}, all_of, keys, 0.0)
            return out.loss, (out.stats, out.metrics)

        (_, (stats, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), stats, opt, metrics

    opt, told = optimizer.init(params), []
    for i in range(60):
        params, stats, opt, metrics = step(params, stats, opt, i)
        told.append({name: float(value) for name, value in metrics.items()})
    assert np.isfinite([list(metrics.values()) for metrics in told]).all()
    errors = [metrics["reconstruction"] for metrics in told]
    assert np.mean(errors[-10:]) < 0.7 * np.mean(errors[:5])
    assert told[-1]["perplexity"] > 4


def test_as_one_network_it_is_parameters_and_codebook_and_back():
    variables = weights(recipe())
    network = as_frozen(variables)
    assert network.keys() == {"encoder", "decoder", "usage", "sums"}
    jax.tree.map(np.testing.assert_array_equal, of_frozen(network), variables)


def test_its_parts_are_all_that_it_trains_and_the_codebook():
    parts = recipe({**NETWORK, "channels": 3}).parts(16)
    variables = jax.eval_shape(recipe({**NETWORK, "channels": 3}).init, jax.random.key(0), batch())
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part.variables)) for name, part in parts.items()}
    expected = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    assert sizes == {**expected, "codebook": K + K * D}
    for part in parts.values():
        jax.eval_shape(part.apply, part.variables, *part.inputs)


@pytest.mark.parametrize("wrong, message", [
    ({"commitment": -1.0}, "commitment"),
    ({"decay": 1.0}, "decay"),
    ({"restart": 1.0}, "restart"),
    ({"latent_scale": 0.0}, "latent_scale"),
    ({"maps": ["gradient"]}, "'bias' or 'jacobian'"),
    ({"maps": ["bias", "bias"]}, "maps names one of them twice: bias, bias"),
    ({"network": {"width": 60}}, "width 60 and groups 32"),
    ({"network": {"multipliers": []}}, "there must be a multiplier"),
    ({"network": {"codes": 1}}, "codes"),
])  # fmt: skip
def test_wrong_settings_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(wrong, VqvaeConfig)


def test_data_without_the_maps_that_it_is_shown_are_refused():
    with pytest.raises(ConfigError, match=r"data.maps must have jacobian"):
        from_dict({"method": {"kind": "vqvae"}, "data": {"maps": ["bias"]}}, Experiment)


MANY_DEVICES = f"""
import jax, jax.numpy as jnp, numpy as np
import jaxsr.runtime.mesh as meshes
from jaxsr.experiment import OptimizerConfig
from jaxsr.methods.condition import Batch
from jaxsr.methods.vqvae import Vqvae, VqvaeConfig
from jaxsr.train.state import init_state, make_optimizer
from jaxsr.train.step import make_step

assert jax.device_count() == 4
meshes.FSDP_FLOOR = 64  # so that a network this small is split
method = Vqvae(VqvaeConfig(network={NETWORK!r}, decay=0.5))
optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, epsilon=1e-2, learning_rate=1e-2), 3)
high, bias, jacobian = np.random.default_rng(0).normal(size=(3, 8, 8, 8, 1)).astype(np.float32)
batch = Batch(high=high, low=high, bias=0.2 * bias, jacobian=0.05 * jacobian)

def run(mesh):
    state, shardings = init_state(method, optimizer, batch, jax.random.key(0), mesh)
    step = jax.jit(make_step(method, optimizer, ema=0.9, steps=3), out_shardings=(shardings, meshes.replicated(mesh)))
    told = []
    for _ in range(3):
        state, metrics = step(state, jax.device_put(batch, meshes.batch_sharding(mesh)), jax.random.key(1))
        told.append((metrics["loss"], metrics["restarted"], metrics["perplexity"]))
    return jax.device_get((told, state.stats, state.params))

one = run(meshes.make_mesh(devices=jax.devices()[:1]))
assert one[0][0][1] == {K}  # the first batch makes the codebook: of the same vectors on any number of devices
for ours, expected in zip(run(meshes.make_mesh(data=2, fsdp=2)), one):
    ours, expected = jax.tree.leaves(ours), jax.tree.leaves(expected)
    largest = max(np.abs(leaf).max() for leaf in expected)
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)
print("the same")
"""


def test_on_four_devices_loss_codebook_and_weights_are_those_of_one():
    """The mean over all vectors is one over devices too, and nothing in the recipe says so. Devices are made of one processor."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MANY_DEVICES], env=environment, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "the same", done.stderr[-3000:]
