"""How experts and their gate learn together [MoEDiff-SR, Eqs. 13–18].

    c_i = cos θ(ẑ_0(i), z_0)                                    how near expert i came: `jaxsr.losses.pixels.cosine`
    T   = 1.4826 · median_i |c_i − median c|                    [Eq. 14]
    G*  = softmax(c / T)                                        [Eq. 15]
    L_gating = − 1/K Σ_i G*_i log G_i  +  log(1 + 1/K Σ_i max_{j≠i} cos θ(ẑ_0(i), ẑ_0(j)))      [Eq. 16]
    L   = Σ_i G_i L_E(i)  +  w L_gating,       w = 1/σ²         [Eqs. 13, 17, 18]

Experts are the last axis, of K entries, whatever stands before it: `[B, K]` of a gate of slices, `[B, h, w, K]` of a gate of pixels.

G* is what the gate is asked for, so T and G* are constants: through them the experts would learn to be as unequal as the gate would like.

σ² is of the gating loss from slice to slice. The paper's is of the loss, a mean over a batch: that falls as 1/B, and w would rise with the
batch. What is kept, running means of the loss and of its square, is linear in the batch: what all of it makes of them is the mean of what
its parts make, each from the same statistics, so that devices and accumulation change nothing. For the same reason w is to be of the
statistics from before the batch: it is one number for all parts.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.losses.pixels import cosine

MAD_TO_DEVIATION = 1.4826  # of a normal distribution
TEMPERATURE_FLOOR = 1e-3  # T of Eq. 14 is 0 wherever two of three experts agree; at the floor an expert must be 0.001 better for e : 1
GATE_FLOOR = 1e-20  # of G in its logarithm; scores are cosines, so a gate's own are above e⁻²/K
DIVERSITY_FLOOR = 1e-3  # of the logarithm's argument; of K > 2 vectors it is never below 1 − 1/(K − 1), of two that are opposite it is 0
CEILING = 10.0  # of w: a gating loss whose deviation between slices is below 0.3 weighs no more

Stats = dict[str, Array]  # a dictionary, as exported files hold it


def mixed(x0s: Array, weights: Array) -> Array:
    """Σ_i G_i ẑ_0(i) [Eq. 9] of `x0s` `[K, B, h, w, C]` by `weights` `[B, K]` or `[B, h, w, K]` → `[B, h, w, C]`: a mean, also where
    weights as printed sum to less than one."""
    by_expert = jnp.moveaxis(weights / weights.sum(-1, keepdims=True), -1, 0)
    return (by_expert.reshape(*by_expert.shape, *(1,) * (x0s.ndim - by_expert.ndim)) * x0s).sum(0)


def mixed_errors(weights: Array, errors: Array) -> Array:
    """Σ_i G_i L_E(i) [Eq. 13]: `[…, K]` both → `[…]`. The gate too is moved by it, towards experts that err less."""
    return (weights.astype(jnp.float32) * errors.astype(jnp.float32)).sum(-1)


def expert_errors(weights: Array, errors: Array, tasks: Array) -> Array:
    """Σ_i G_i (error_i + task_i) [Eqs. 6 and 13], `[B]`, of errors `[B, h, w, K]` and task losses `[B, K]`: weights `[B, h, w, K]` weigh
    each pixel's own error, and task losses, which are of slices, by their mean."""
    of_pixels = weights if weights.ndim == 4 else weights[:, None, None]
    return mixed_errors(of_pixels, errors).mean((1, 2)) + mixed_errors(of_slices(weights), tasks)


def of_slices(weights: Array) -> Array:
    """`[B, K]` of weights `[B, …, K]`: those of pixels by their mean."""
    return weights.reshape(len(weights), -1, weights.shape[-1]).mean(1)


def entropy(weights: Array) -> Array:
    """Of weights over experts, `[…, K]` → `[…]`, in nats; log K where they are equal."""
    return -(weights * jnp.log(jnp.maximum(weights, GATE_FLOOR))).sum(-1)


def temperature(similarity: Array, floor: float = TEMPERATURE_FLOOR) -> Array:
    """T [Eq. 14], at least `floor`: cosines `[…, K]` → `[…]`, without gradient.

    Of three experts the median deviation is the smaller of the two gaps between them.
    """
    c = jax.lax.stop_gradient(similarity.astype(jnp.float32))
    deviation = jnp.median(jnp.abs(c - jnp.median(c, axis=-1, keepdims=True)), axis=-1)
    return jnp.maximum(MAD_TO_DEVIATION * deviation, floor)


def gate_target(similarity: Array, floor: float = TEMPERATURE_FLOOR) -> Array:
    """G* [Eq. 15] of cosines `[…, K]`: it sums to one over the experts, and has no gradient."""
    c = jax.lax.stop_gradient(similarity.astype(jnp.float32))
    return jax.nn.softmax(c / temperature(c, floor)[..., None], axis=-1)


def gating_errors(weights: Array, target: Array) -> Array:
    """−1/K Σ_i G*_i log G_i [Eq. 16, first term]: `[…, K]` both → `[…]`. Least where G = G*."""
    return -(target * jnp.log(jnp.maximum(weights.astype(jnp.float32), GATE_FLOOR))).mean(-1)


def diversity(x0s: Array) -> Array:
    """log(1 + 1/K Σ_i max_{j≠i} cos θ(ẑ_0(i), ẑ_0(j))) [Eq. 16, second term]: what the experts make of a batch, `[K, B, h, w, C]`, → `[B]`.

    log 2 where all agree, 0 where all are orthogonal; its gradient is finite everywhere.

    Raises:
      ValueError: for less than two experts.
    """
    experts = len(x0s)
    if experts < 2:
        raise ValueError(f"diversity is between experts, got {experts}: give two or more, or leave the term out")
    pairs = jax.vmap(jax.vmap(cosine, (None, 0)), (0, None))(x0s, x0s)  # [K, K, B]
    nearest = jnp.where(jnp.eye(experts, dtype=bool)[..., None], -jnp.inf, pairs).max(1)  # [K, B]
    return jnp.log(jnp.maximum(1 + nearest.mean(0), DIVERSITY_FLOOR))


def initial_variance() -> Stats:
    """Statistics of no batch yet: a variance of 1, so that w begins at 1 and grows, over some hundred batches, as the loss is found steady.

    Adam's correction would have w jump to whatever the first batch had.
    """
    return {"mean": jnp.zeros((), jnp.float32), "square": jnp.ones((), jnp.float32)}


def updated_variance(stats: Stats, errors: Array, decay: float = 0.99) -> Stats:
    """`stats` after a batch whose gating losses were `errors`, `[B]`; linear in the batch, and without gradient."""
    errors = jax.lax.stop_gradient(errors.astype(jnp.float32))
    new = {"mean": errors.mean(), "square": jnp.square(errors).mean()}
    return {name: decay * stats[name] + (1 - decay) * new[name] for name in stats}


def variance(stats: Stats) -> Array:
    """σ² of Eq. 17, a float32 scalar, not below 0."""
    return jnp.maximum(stats["square"] - jnp.square(stats["mean"]), 0)


def uncertainty_weight(stats: Stats, ceiling: float = CEILING) -> Array:
    """w = min(1 / σ², ceiling) [Eq. 17], a scalar without gradient, finite also where σ² is 0."""
    return jax.lax.stop_gradient(1 / jnp.maximum(variance(stats), 1 / ceiling))


def warmed(weights: Array, progress: Array, share: float = 0.2) -> Array:
    """G `[…, K]`, or 1/K for the first `share` of the run [§III-C: 1000 of 5000 epochs], when Eq. 13 does not move the gate.

    Args:
      progress: how much of the run is done, from 0 to 1.
    """
    return jnp.where(progress < share, 1 / weights.shape[-1], weights)
