"""Laws of Dice and cross-entropy of soft masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.evaluate.metrics.tissue import dice
from jaxsr.losses.overlap import cross_entropies, dice_errors, soft_dice

K = 4


def masks(seed=0, shape=(2, 24, 21)):
    """Soft masks of K classes and the logits that they are softmax of."""
    logits = 2 * np.random.default_rng(seed).normal(size=(*shape, K)).astype(np.float32)
    return jax.nn.softmax(logits), logits


def test_of_hard_masks_it_is_the_metric():
    """To the one pixel that smoothing adds, beside hundreds."""
    p, q = (jax.nn.one_hot(masks(seed)[0].argmax(-1), K) for seed in (0, 1))
    q = jnp.where(jnp.arange(24)[:, None, None] < 16, p, q)
    expected = dice(p.argmax(-1, keepdims=True), q.argmax(-1, keepdims=True), labels=range(K))
    np.testing.assert_allclose(soft_dice(p, q), expected, atol=1 / 150)


def test_equal_soft_masks_have_a_dice_of_one_and_no_others_have():
    """Milletari et al. 2016: 1 − 2 Σ p q / (Σ p² + Σ q²) = Σ (p − q)² / (Σ p² + Σ q²), smoothed alike."""
    (p, _), (q, _) = masks(), masks(1)
    np.testing.assert_allclose(soft_dice(p, p), 1, rtol=1e-6)
    squares = (p**2 + q**2).sum((1, 2)) + 1
    np.testing.assert_allclose(1 - soft_dice(p, q), ((p - q) ** 2).sum((1, 2)) / squares, rtol=1e-4)
    np.testing.assert_allclose(dice_errors(p, q), 1 - soft_dice(p, q).mean(-1), rtol=1e-6)


def test_where_neither_has_a_class_it_is_one_and_what_a_softmax_leaves_there_costs_next_to_nothing():
    nothing = jnp.zeros((1, 256, 256, K))
    np.testing.assert_array_equal(soft_dice(nothing, nothing), 1)
    np.testing.assert_allclose(soft_dice(nothing + 1e-4, nothing), 1, atol=1e-3)
    assert (soft_dice(nothing + 0.1, nothing) < 0.01).all()


@pytest.mark.parametrize("q", [masks(1)[0], jax.nn.one_hot(masks(1)[0].argmax(-1), K)], ids=["soft", "hard"])
def test_cross_entropy_is_least_at_its_target_where_it_is_the_entropy(q):
    """Its gradient in the logits is softmax − q, a pixel's share of it."""
    _, logits = masks()
    entropy = -jax.scipy.special.xlogy(q, q).sum(-1).mean((1, 2))
    assert (cross_entropies(logits, q) > entropy).all()
    np.testing.assert_allclose(cross_entropies(jnp.log(q + 1e-30), q), entropy, atol=1e-6)
    slope = jax.jit(jax.grad(lambda z: cross_entropies(z, q).sum()))(logits)
    np.testing.assert_allclose(slope, (jax.nn.softmax(logits) - q) / (24 * 21), atol=1e-8)


def test_cross_entropy_does_not_see_a_constant_of_the_logits_and_bears_large_ones():
    q, logits = masks()
    np.testing.assert_allclose(cross_entropies(logits + 7, q), cross_entropies(logits, q), rtol=1e-5)
    hard = jax.nn.one_hot(q.argmax(-1), K)
    np.testing.assert_allclose(cross_entropies(1e4 * (2 * hard - 1), hard), 0, atol=1e-6)
    np.testing.assert_allclose(cross_entropies(-1e4 * hard, hard), 1e4 + np.log(K - 1), rtol=1e-5)
