"""Laws of the autoencoder's recipe [teacher paper, Eq. 1]."""

import json
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
from jaxsr.experiment import Experiment
from jaxsr.methods.autoencoder import LOW, Autoencoder, AutoencoderConfig
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.models.autoencoder import Gaussian
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.loop import train
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.files import Job, make_engine, upscale_file
from jaxsr.upscale.model import load_model
from jaxsr.upscale.settings import Settings
from jaxsr.volume.io import Volume, write_volume

NETWORK = {"channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1, "latent": 2, "groups": 4}
SIDE = 8


def recipe(network=NETWORK, **settings):
    return Autoencoder(AutoencoderConfig(network=network, **settings))


def batch(n=4, side=SIDE):
    high, error = jax.random.normal(jax.random.key(0), (2, n, side, side, 1))
    return Batch(high=jnp.tanh(high), low=jnp.tanh(high) + 0.3 * error)


def keys_of(n, seed=7):
    return jax.random.split(jax.random.key(seed), n)


def weights(method, scale=0.3):
    """Random weights without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), batch()))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32), shapes)


def loss_of(method, variables, batch, keys):
    return jax.jit(method.loss)(variables, batch, keys, jnp.int32(0))


class ConstantEncoder:
    """q(z | x) = N(1, e) for every latent, at half the resolution."""

    @staticmethod
    def apply(variables, image):
        batch, height, width, _ = image.shape
        ones = jnp.ones((batch, height // 2, width // 2, 2))
        return Gaussian(ones, ones)


class FixedDecoder:
    """Knows its answer."""

    def __init__(self, answer):
        self.apply = lambda variables, latents: answer


NOTHING = {"params": {"encoder": {}, "decoder": {}}, "stats": {}}
KL = 0.5 * (1 + np.e - 1 - 1)  # of one latent of ConstantEncoder


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_is_eq_1_and_the_divergence_a_number_of_the_image_whatever_its_size(channels, side):
    """Half a latent a pixel (2 for 4): w · KL / 2 beside a mean square of 0.25, whatever the batch and the side."""
    method = recipe({**NETWORK, "channels": channels}, kl_weight=0.1)
    method.encoder = ConstantEncoder()
    method.decoder = FixedDecoder(jnp.repeat(batch(3, side).high, channels, -1) + 0.5)
    out = loss_of(method, NOTHING, batch(3, side), keys_of(3))
    np.testing.assert_allclose(out.loss, 0.25 + 0.1 * KL * 0.5 / channels, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["reconstruction"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["kl"], KL, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["psnr"], 10 * np.log10(4 / 0.25), rtol=1e-5)


def test_the_deviation_of_latents_is_reported_as_it_is_and_scaled():
    method = recipe(latent_scale=0.2)
    method.encoder, method.decoder = ConstantEncoder(), FixedDecoder(batch(200).high)
    metrics = loss_of(method, NOTHING, batch(200), keys_of(200)).metrics
    np.testing.assert_allclose(metrics["latent_std"], np.exp(0.5), rtol=0.05)
    np.testing.assert_allclose(metrics["latent_std_scaled"], 0.2 * metrics["latent_std"], rtol=1e-6)


def test_a_perfect_reconstruction_has_finite_metrics():
    """The trainer stops at anything else."""
    method = recipe()
    method.encoder, method.decoder = ConstantEncoder(), FixedDecoder(batch().high)
    out = loss_of(method, NOTHING, batch(), keys_of(4))
    assert np.isfinite([out.loss, *out.metrics.values()]).all()


def test_the_network_sees_grey_in_every_channel_and_its_answer_is_averaged():
    method, seen = recipe({**NETWORK, "channels": 3}), []

    class Listener(ConstantEncoder):
        @staticmethod
        def apply(variables, image):
            seen.append(image)
            return ConstantEncoder.apply(variables, image)

    low = batch().low
    method.encoder, method.decoder = Listener(), FixedDecoder(low + jnp.array([0.0, 1.0, 5.0]))
    out = method.upscale(NOTHING, Condition(low), keys_of(4), Request(steps=1))
    np.testing.assert_array_equal(seen[0], np.repeat(low, 3, -1))
    np.testing.assert_allclose(out.image, low + 2, atol=1e-6)


def test_latents_are_scaled_on_the_way_out_and_back_on_the_way_in():
    """What diffusion sees is `latent_scale` times mode or sample; the image does not depend on it."""
    method, seen = recipe(latent_scale=0.2), []
    variables, image, keys = weights(method), batch().high, keys_of(4)

    class Listener:
        @staticmethod
        def apply(variables, latents):
            seen.append(latents)
            return image

    @jax.jit
    def run(image, keys):
        posterior, latents = method.posterior(variables, image), method.encode(variables, image)
        return posterior, latents, method.encode(variables, image, keys), posterior.sample(keys), method.decode(variables, latents)

    posterior, mode, sample, expected, image_again = run(image, keys)
    np.testing.assert_allclose(mode, 0.2 * posterior.mode, rtol=1e-5)
    np.testing.assert_allclose(sample, 0.2 * expected, rtol=1e-5)
    assert image_again.shape == image.shape
    method.decoder = Listener()
    method.decode(variables, mode)
    np.testing.assert_allclose(seen[0], posterior.mode, rtol=1e-5)


def test_upscaling_is_decoding_the_mode_of_what_is_shown_and_needs_no_noise():
    method, low = recipe(), batch().low
    variables = weights(method)
    upscale = jax.jit(lambda low, keys: method.upscale(variables, Condition(low), keys, method.default_request).image)
    out = upscale(low, keys_of(4))
    np.testing.assert_array_equal(upscale(low, keys_of(4, seed=8)), out)
    decoded = jax.jit(lambda low: method.decode(variables, method.encode(variables, low)))(low)
    np.testing.assert_allclose(out, decoded, atol=1e-5 * np.abs(out).max())
    np.testing.assert_allclose(upscale(low[::-1], keys_of(4))[::-1], out, atol=1e-5 * np.abs(out).max())
    np.testing.assert_allclose(upscale(low[1:2], keys_of(1)), out[1:2], atol=1e-5 * np.abs(out).max())


@pytest.mark.parametrize("images", ["high", "both"])
def test_the_loss_of_a_batch_is_the_mean_of_its_slices_losses(images):
    """Each slice has its own key: accumulation over parts of a batch is the batch."""
    method, all_of, keys = recipe(images=images), batch(), keys_of(4)
    variables = weights(method)
    loss = jax.jit(lambda b, k: method.loss(variables, b, k, 0).loss)
    alone = [loss(jax.tree.map(lambda x, i=i: x[i : i + 1], all_of), keys[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(loss(all_of, keys), np.mean(alone), rtol=1e-5)


def test_with_both_sides_the_loss_is_the_mean_of_those_of_high_and_of_low():
    high_only, both, all_of = recipe(), recipe(images="both"), batch()
    variables, keys = weights(high_only), keys_of(4)
    of_one = jax.jit(lambda image, k: high_only.loss(variables, Batch(high=image, low=image), k, 0).loss)
    high = of_one(all_of.high, keys)
    low = of_one(all_of.low, jax.vmap(jax.random.fold_in, (0, None))(keys, LOW))
    assert not np.isclose(high, low, rtol=1e-2)
    np.testing.assert_allclose(loss_of(both, variables, all_of, keys).loss, (high + low) / 2, rtol=1e-5)


def test_a_small_network_overfits_one_batch():
    method, all_of = recipe(), batch()
    variables = weights(method, 0.1)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, opt, i):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of(4), i)
        loss, grads = jax.value_and_grad(lambda p: method.loss({"params": p, "stats": {}}, all_of, keys, i).loss)(params)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), opt, loss

    params, opt, losses = variables["params"], optimizer.init(variables["params"]), []
    for i in range(60):
        params, opt, loss = step(params, opt, i)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_a_volume_of_odd_sides_is_padded_for_it_and_comes_back_in_its_shape():
    method = recipe()
    data = np.random.default_rng(0).normal(size=(17, 19, 23)).astype(np.float32)
    engine = Engine(method, weights(method), make_mesh(), batch_size=32)
    plan = engine.plan(Volume(data, np.eye(4)), None, ("axial",))
    assert {side % method.multiple for side in plan.shapes[0]} == {0}
    assert engine.upscale(Volume(data, np.eye(4)), method.default_request, axes=("axial",)).volume.data.shape == data.shape


RUN = {
    "method": {"kind": "autoencoder", "network": NETWORK},
    "data": {"voxel_size": 8.0, "crop": 8, "subjects": 2, "draws": 8, "window": 2, "threads": 1},
    "train": {"steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 2},
}


def test_a_trained_run_reconstructs_a_volume_and_the_sidecar_says_by_what(tmp_path):
    train(from_dict(json.loads(json.dumps(RUN)), Experiment), tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "reconstruction", "psnr", "kl", "latent_std", "latent_std_scaled"} <= logged[-1].keys()
    data = np.random.default_rng(0).gamma(2.0, 100.0, (16, 17, 18)).astype(np.float32)
    write_volume(tmp_path / "scan.nii.gz", Volume(data, np.diag([8.0, 8.0, 8.0, 1.0])))
    model = load_model(tmp_path / "run")
    job = Job(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    result = upscale_file(make_engine(model, batch_size=32), model, job, Settings(8.0, model.method.default_request, axes=("axial",)))
    assert result.output.data.shape == data.shape
    assert json.loads((tmp_path / "out.json").read_text())["JaxSR"]["Method"] == "autoencoder"


@pytest.mark.parametrize("wrong, message", [
    ({"kl_weight": -1.0}, "kl_weight"),
    ({"latent_scale": 0.0}, "latent_scale"),
    ({"images": "low"}, "'high' or 'both'"),
    ({"network": {"width": 60}}, "width 60 and groups 32"),
    ({"network": {"multipliers": []}}, "there must be a multiplier"),
    ({"network": {"channels": 0}}, "channels"),
])  # fmt: skip
def test_wrong_settings_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(wrong, AutoencoderConfig)


REAL_SIZE = """
import sys
import jax
from jaxsr.experiment import load_experiment
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.state import abstract_state, make_optimizer, shardings_of
from jaxsr.train.step import make_step

experiment = load_experiment("configs/autoencoder.yaml")
mesh = make_mesh(data=1, fsdp=2, tensor=2)
method, optimizer, batch = build_method(experiment), make_optimizer(experiment.optimizer, 10), abstract_batch(experiment)
state = abstract_state(method, optimizer, batch, mesh)
shardings = shardings_of(state)
leaves = jax.tree.leaves(state)
whole = sum(leaf.size for leaf in leaves)
held = sum(int(jax.numpy.prod(jax.numpy.array(leaf.sharding.shard_shape(leaf.shape)))) for leaf in leaves)
assert whole > 4 * 83_653_863, whole
assert held < 0.26 * whole, held / whole

batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), batch)
step = jax.jit(make_step(method, optimizer, ema=0.99, steps=100), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
lowered = step.lower(state, batch, jax.random.key(0))
if "compile" in sys.argv:
    lowered.compile()
print("laid out on", jax.device_count())
"""


def real_size(*words):
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", REAL_SIZE, *words], env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    return done.stdout.strip() or done.stderr[-3000:]


def test_of_the_real_size_each_of_four_devices_holds_a_quarter_and_the_step_lowers():
    """Parameters, their average and both moments, split over fsdp and tensor; nothing is allocated."""
    assert real_size() == "laid out on 4"


@pytest.mark.slow
def test_the_step_of_the_real_size_compiles_for_four_devices():
    assert real_size("compile") == "laid out on 4"
