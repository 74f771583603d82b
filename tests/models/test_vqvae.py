"""Laws of the VQ-VAE's encoder and codebook [MoEDiff-SR §III; van den Oord et al. 2017], and the size that the paper's settings give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxsr.models.autoencoder import Decoder, Encoder
from jaxsr.models.vqvae import (
    SMOOTHING,
    Codebook,
    VqEncoder,
    codes,
    dead,
    new_codebook,
    perplexity,
    quantise,
    restarted,
    straight_through,
    updated,
)

TINY = {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "groups": 4}
K, D = 7, 5


def shapes_of(network, x):
    return nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x))


def codebook(seed=0, codes=K):
    """Of uneven usage, whose shares sum to one."""
    rng = np.random.default_rng(seed)
    usage = rng.dirichlet(np.ones(codes)).astype(np.float32)
    return Codebook(jnp.asarray(usage), jnp.asarray(usage[:, None] * rng.normal(size=(codes, D)), jnp.float32))


def vectors(shape=(4, 3, 2), seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, D)), jnp.float32)


def close(ours, expected, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, expected)


def test_the_published_network_has_88_840_577_parameters_and_latents_of_32_by_32():
    """MoEDiff-SR §III: base 128, 512 numbers in a code; spec: an eighth of the resolution, three channels in and one out."""
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    z, encoder = jax.eval_shape(VqEncoder().init_with_output, jax.random.key(0), image)
    out, decoder = jax.eval_shape(Decoder(channels=1).init_with_output, jax.random.key(0), z)
    assert sum(leaf.size for leaf in jax.tree.leaves((encoder, decoder))) == 88_840_577
    assert z.shape == (1, 32, 32, 512)
    assert out.shape == (1, 256, 256, 1)


def test_its_encoder_is_the_autoencoder_s_but_for_the_last_convolution():
    """With as many numbers in a vector as there are moments, one starts from the weights of the other."""
    x = jnp.zeros((1, 8, 8, 3))
    one, other = (flatten_dict(shapes_of(network, x)["params"]) for network in (VqEncoder(**TINY, embedding=6), Encoder(**TINY, latent=3)))
    renamed = {("quantise" if path[0] == "moments" else path[0], *path[1:]): leaf for path, leaf in other.items()}
    assert one == renamed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_vectors_and_parameters_are_float32_whatever_is_computed_in(dtype):
    image = jax.ShapeDtypeStruct((2, 16, 24, 3), jnp.float32)
    z, encoder = jax.eval_shape(VqEncoder(**TINY, embedding=D, dtype=dtype).init_with_output, jax.random.key(0), image)
    assert z.shape == (2, 4, 6, D)
    assert {leaf.dtype for leaf in jax.tree.leaves((z, encoder))} == {jnp.dtype(jnp.float32)}


def test_sides_that_do_not_divide_are_refused_with_the_multiple():
    with pytest.raises(ValueError, match="multiples of 4 for 3 levels, got 16 × 18"):
        shapes_of(VqEncoder(**TINY), jnp.zeros((1, 16, 18, 1)))


def test_the_code_of_a_vector_is_the_nearest_by_brute_force():
    """van den Oord et al., Eqs. 1 and 2."""
    book, z = codebook(), vectors()
    z_q, indices = quantise(z, book)
    c = np.asarray(codes(book), np.float64)
    distances = np.square(np.asarray(z, np.float64)[..., None, :] - c).sum(-1)
    np.testing.assert_array_equal(indices, distances.argmin(-1))
    np.testing.assert_array_equal(z_q, codes(book)[indices])
    assert len(np.unique(indices)) > 3


def test_what_a_vector_has_beside_all_codes_does_not_hide_which_is_nearest():
    """|z|² of 1e10 leaves float32 steps of 1024, and these distances differ by 1."""
    z = jnp.zeros((K, D)).at[:, 0].set(1e5).at[:, 1].set(jnp.arange(K) + 0.2)
    usage = jnp.full(K, 1 / K)
    _, indices = quantise(z, Codebook(usage, jnp.zeros((K, D)).at[:, 1].set(usage * jnp.arange(K))))
    np.testing.assert_array_equal(indices, jnp.arange(K))


def test_what_is_quantised_is_its_own_code():
    book = codebook()
    z_q, indices = quantise(vectors(), book)
    again, same = quantise(z_q, book)
    np.testing.assert_array_equal(again, z_q)
    np.testing.assert_array_equal(same, indices)


def test_straight_through_is_the_code_to_the_bit_and_has_the_gradient_of_the_vector():
    """van den Oord et al., §3.2."""
    z, z_q, c = vectors(), vectors(seed=2), vectors(seed=3)
    np.testing.assert_array_equal(straight_through(z, z_q), z_q)
    by_z, by_code = jax.grad(lambda z, z_q: (c * jnp.square(straight_through(z, z_q))).sum(), (0, 1))(z, z_q)
    close(by_z, 2 * c * z_q)
    np.testing.assert_array_equal(by_code, 0)


def test_codes_are_means_smoothed_by_a_share_of_what_each_should_have():
    """van den Oord et al., App. A.1, of shares: where all are used alike, smoothing changes nothing, however much that is in all."""
    c = vectors((K,))
    for each in (1 / K, 1e-3 / K, 1e-6):
        usage = jnp.full(K, each)
        close(codes(Codebook(usage, usage[:, None] * c)), c)
    usage, _ = book = codebook()
    smoothed = (usage + SMOOTHING / K) / (usage.sum() + SMOOTHING) * usage.sum()
    close(codes(book), book.sums / smoothed[:, None])
    assert np.isfinite(codes(Codebook(usage.at[0].set(0), book.sums))).all()


def test_the_codebook_s_update_is_its_formula_by_counting():
    """van den Oord et al., App. A.1, every count divided by the number of vectors."""
    book, z = codebook(), vectors()
    _, indices = quantise(z, book)
    flat, which = np.asarray(z).reshape(-1, D), np.asarray(indices).ravel()
    shares = np.array([(which == k).mean() for k in range(K)])
    sums = np.array([flat[which == k].sum(0) / len(flat) for k in range(K)])
    expected = Codebook(0.9 * book.usage + 0.1 * shares, 0.9 * book.sums + 0.1 * sums)
    close(jax.jit(updated)(book, z, indices, 0.9), expected)


def test_codes_come_to_the_means_of_what_comes_to_them_and_usage_stays_a_share():
    book, z = codebook(), vectors()
    _, indices = quantise(z, book)
    step = jax.jit(lambda book: updated(book, z, indices, 0.5))
    for _ in range(40):
        book = step(book)
        np.testing.assert_allclose(book.usage.sum(), 1, rtol=1e-6)
    flat, which = np.asarray(z).reshape(-1, D), np.asarray(indices).ravel()
    for k in np.unique(which):
        close(codes(book)[k], flat[which == k].mean(0), 2 * SMOOTHING * K)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_mean_of_the_updates_by_parts_of_a_batch_is_the_update_by_the_batch(parts):
    book, z = codebook(), vectors()
    _, indices = quantise(z, book)
    each = [updated(book, *part, 0.99) for part in zip(jnp.split(z, parts), jnp.split(indices, parts), strict=True)]
    close(jax.tree.map(lambda *leaves: sum(leaves) / parts, *each), updated(book, z, indices, 0.99))


def test_the_update_does_not_depend_on_how_often_a_batch_is_repeated():
    book, z = codebook(), vectors()
    _, indices = quantise(z, book)
    twice = updated(book, jnp.concatenate([z, z]), jnp.concatenate([indices, indices]), 0.99)
    close(twice, updated(book, z, indices, 0.99))


def test_dead_codes_become_vectors_of_the_batch_and_no_other_code_moves():
    book, z = codebook(), vectors()
    book = book._replace(usage=book.usage.at[jnp.array([1, 4])].set(1e-4))
    least = 0.1 / K
    np.testing.assert_array_equal(dead(book, least), np.asarray(book.usage) < least)
    new = jax.jit(restarted)(book, z, jax.random.key(0), least)
    gone = np.asarray(dead(book, least))
    assert gone[[1, 4]].all()
    assert not gone.all()
    np.testing.assert_allclose(new.usage[gone], 1 / K)
    flat = np.asarray(z).reshape(-1, D)
    for vector in np.asarray(new.sums)[gone] * K:
        assert np.isclose(flat, vector, atol=1e-6).all(-1).sum() == 1
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[~gone], b[~gone]), new, book)


def test_which_vectors_codes_become_is_chosen_by_the_key_and_none_twice_where_there_are_enough():
    book, z = codebook(), vectors()
    one, other = (restarted(book, z, jax.random.key(seed), 1.0) for seed in (0, 1))
    np.testing.assert_array_equal(restarted(book, z, jax.random.key(0), 1.0).sums, one.sums)
    assert (one.sums != other.sums).any()
    assert len(np.unique(one.sums, axis=0)) == K
    few = restarted(book, vectors((K - 1,)), jax.random.key(0), 1.0)
    assert np.isfinite(few.sums).all()


def test_a_new_codebook_is_dead_and_the_first_batch_makes_it():
    book, z = new_codebook(jax.random.key(0), K, D), vectors()
    assert dead(book, 0.01 / K).all()
    assert np.abs(codes(book)).max() < 1
    made = restarted(book, z, jax.random.key(0), 0.01 / K)
    nearest = np.square(np.asarray(z).reshape(-1, 1, D) - np.asarray(codes(made))).sum(-1).min(0)
    np.testing.assert_allclose(nearest, 0, atol=1e-9)


def test_of_a_codebook_that_is_never_restarted_the_first_vectors_make_the_codes_they_come_to():
    """UNUSED of a fair share is little beside what comes with the first batch, even at a decay of 0.99."""
    book, z = new_codebook(jax.random.key(0), K, D), vectors()
    _, indices = quantise(z, book)
    assert len(np.unique(indices)) > K // 2
    after, flat, which = codes(updated(book, z, indices, 0.99)), np.asarray(z).reshape(-1, D), np.asarray(indices).ravel()
    for k in np.unique(which):
        mean = flat[which == k].mean(0)
        assert np.abs(after[k] - mean).max() < 0.5 * np.abs(mean).max()


@pytest.mark.parametrize("used", [1, 3, K])
def test_perplexity_is_the_number_of_codes_that_are_used_where_they_are_used_alike(used):
    indices = jnp.tile(jnp.arange(used), 5).reshape(5, used)
    np.testing.assert_allclose(perplexity(indices, K), used, rtol=1e-6)


def test_uneven_usage_has_a_lower_perplexity_than_even():
    """exp of the entropy: (1/2, 1/4, 1/4) has 2^1.5."""
    np.testing.assert_allclose(perplexity(jnp.array([0, 0, 1, 2]), K), 2**1.5, rtol=1e-6)
