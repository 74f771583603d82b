"""Laws of AutoencoderKL, and its published size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxsr.models.autoencoder import LOG_VARIANCE, Decoder, Encoder, Gaussian

TINY = {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "groups": 4}


def drawn(network, x, scale=0.3):
    """Random weights without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def gaussian(shape=(3, 4, 2, 5), seed=0):
    mean, log_variance = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    return Gaussian(jnp.asarray(mean), jnp.asarray(log_variance))


def test_the_published_network_has_exactly_its_published_parameters_and_eighths_the_resolution():
    """spec: 83,653,863 with z of 4 channels, three channels in and out."""
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    posterior, encoder = jax.eval_shape(Encoder().init_with_output, jax.random.key(0), image)
    out, decoder = jax.eval_shape(Decoder().init_with_output, jax.random.key(0), posterior.mode)
    assert sum(leaf.size for leaf in jax.tree.leaves((encoder, decoder))) == 83_653_863
    assert posterior.mean.shape == posterior.log_variance.shape == (1, 32, 32, 4)
    assert out.shape == image.shape


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels, latent", [(1, 4), (3, 2)])
def test_moments_images_and_parameters_are_float32_whatever_is_computed_in(dtype, channels, latent):
    image = jax.ShapeDtypeStruct((2, 16, 24, channels), jnp.float32)
    posterior, encoder = jax.eval_shape(Encoder(**TINY, latent=latent, dtype=dtype).init_with_output, jax.random.key(0), image)
    out, decoder = jax.eval_shape(Decoder(**TINY, channels=channels, dtype=dtype).init_with_output, jax.random.key(0), posterior.mode)
    assert posterior.mean.shape == (2, 4, 6, latent)
    assert out.shape == image.shape
    assert {leaf.dtype for leaf in jax.tree.leaves((posterior, out, encoder, decoder))} == {jnp.dtype(jnp.float32)}


def test_sides_that_do_not_divide_are_refused_with_the_multiple():
    with pytest.raises(ValueError, match="multiples of 4 for 3 levels, got 16 × 18"):
        jax.eval_shape(Encoder(**TINY).init, jax.random.key(0), jnp.zeros((1, 16, 18, 1)))


def test_activations_computed_again_give_the_same_parameters_values_and_gradients():
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 2))
    kept, again = (Encoder(**TINY, remat=remat) for remat in (False, True))
    variables = drawn(kept, x)
    assert jax.tree.map(jnp.shape, drawn(again, x)) == jax.tree.map(jnp.shape, variables)
    total = lambda network: jax.jit(jax.value_and_grad(lambda v: network.apply(v, x).mean.sum()))(variables)  # noqa: E731
    (value, gradients), (value_again, gradients_again) = total(kept), total(again)
    np.testing.assert_allclose(value_again, value, rtol=1e-5)
    largest = max(jnp.abs(g).max() for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradients_again, gradients)


def test_slices_of_a_batch_do_not_see_each_other():
    encoder, decoder = Encoder(**TINY), Decoder(**TINY, channels=1)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    encode = jax.jit(lambda x, v=drawn(encoder, x): encoder.apply(v, x).mean)
    z = encode(x)
    np.testing.assert_allclose(encode(x.at[1].set(0))[0], z[0], atol=1e-6 * np.abs(z).max())
    decode = jax.jit(lambda z, v=drawn(decoder, z): decoder.apply(v, z))
    out = decode(z)
    np.testing.assert_allclose(decode(z.at[1].set(0))[0], out[0], atol=1e-6 * np.abs(out).max())


@pytest.mark.parametrize("mean, log_variance", [(0.0, 0.0), (1.5, 0.7), (-0.3, -4.0)])
def test_the_divergence_is_its_integral(mean, log_variance):
    """KL(q ‖ p) = ∫ q log (q / p), in one dimension by quadrature."""
    q, p = stats.norm(mean, np.exp(log_variance / 2)), stats.norm()
    expected, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *q.interval(1 - 1e-12))
    one = Gaussian(jnp.full((1, 1, 1, 1), mean), jnp.full((1, 1, 1, 1), log_variance))
    np.testing.assert_allclose(one.kl(), [expected], atol=1e-5)


def test_the_divergence_of_a_slice_is_the_sum_over_its_latents():
    q = gaussian()
    each = Gaussian(*(x.reshape(-1, 1, 1, 1) for x in q)).kl().reshape(q.mean.shape)
    np.testing.assert_allclose(q.kl(), each.sum((1, 2, 3)), rtol=1e-5)


def test_samples_have_the_mean_and_the_variance_they_should_and_each_slice_its_own_key():
    n, one = 2000, gaussian((1, 4, 2, 5))
    sample = jax.jit(lambda keys: Gaussian(*(jnp.broadcast_to(x, (n, *x.shape[1:])) for x in one)).sample(keys))
    samples, std = np.asarray(sample(jax.random.split(jax.random.key(3), n))), np.exp(np.asarray(one.log_variance[0]) / 2)
    assert (np.abs(samples.mean(0) - one.mean[0]) < 5 * std / np.sqrt(n)).all()
    assert (np.abs(samples.std(0) / std - 1) < 5 / np.sqrt(2 * n)).all()
    same = sample(jnp.broadcast_to(jax.random.key(3), (n,)))
    np.testing.assert_array_equal(same[0], same[1])


def test_gradients_reach_both_moments_through_a_sample():
    """The reparameterisation: ∂z/∂μ = 1, ∂z/∂log σ² = (z − μ) / 2."""
    q, keys = gaussian(), jax.random.split(jax.random.key(0), 3)
    gradient = jax.grad(lambda q: q.sample(keys).sum())(q)
    np.testing.assert_allclose(gradient.mean, 1, rtol=1e-6)
    np.testing.assert_allclose(gradient.log_variance, (q.sample(keys) - q.mean) / 2, atol=1e-6)


def test_a_log_variance_out_of_range_is_held_at_the_edge():
    x = jnp.ones((1, 4, 4, 1))
    encoder = Encoder(**TINY)
    variables = drawn(encoder, x)
    variables["params"]["moments"]["bias"] = jnp.array([0.0] * 4 + [1e4, -1e4, 1e4, -1e4])
    posterior = jax.jit(encoder.apply)(variables, x)
    np.testing.assert_array_equal(posterior.log_variance[0, 0, 0], [LOG_VARIANCE[1], LOG_VARIANCE[0]] * 2)
    assert np.isfinite(posterior.kl()).all()
    assert (jnp.exp(posterior.log_variance) > 0).all()
