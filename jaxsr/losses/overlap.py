"""Whether soft masks, probabilities p and q of K classes at every pixel, are the same regions:

    Dice               2 Σ p q / (Σ p² + Σ q²)        sums over the pixels of a slice     [Milletari et al., 3DV 2016, §3]
    cross-entropy      mean −Σ_k q_k log p_k          p: softmax of logits

With squares below, soft masks that are equal have a Dice of 1, and no others; with Σ p + Σ q they would gain by being hard.
"""

import jax
import jax.numpy as jnp
from jax import Array

SMOOTHING = 1.0  # pixels, beside sums over pixels


def soft_dice(p: Array, q: Array) -> Array:
    """(2 Σ p q + 1) / (Σ p² + Σ q² + 1) of each slice and class: `[B, K]` of probabilities `[B, H, W, K]`.

    The 1 makes it 1 where neither has anything of a class, as in slices below or above a tissue. Being a whole pixel, it lets the little
    that a softmax always leaves, Σ p² ≪ 1, cost next to nothing there: with a tiny one it would cost as much as missing the tissue.
    """
    p, q = p.astype(jnp.float32), q.astype(jnp.float32)
    both, either = (p * q).sum((1, 2)), (p**2).sum((1, 2)) + (q**2).sum((1, 2))
    return (2 * both + SMOOTHING) / (either + SMOOTHING)


def dice_errors(p: Array, q: Array) -> Array:
    """1 less the mean of `soft_dice` over classes: `[B]` of probabilities `[B, H, W, K]`."""
    return 1 - soft_dice(p, q).mean(-1)


def cross_entropies(logits: Array, q: Array) -> Array:
    """−Σ_k q_k log softmax(logits)_k, the mean over pixels: `[B]` of logits and probabilities `[B, H, W, K]`."""
    return -(q.astype(jnp.float32) * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1).mean((1, 2))
