"""Noise schedules: how much signal is left at each diffusion step.

A schedule is the sequence ᾱ_1 > … > ᾱ_T of [teacher, Eqs. 2–4],

    q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I),        ᾱ_t = Π_{s ≤ t} (1 − β_s),        ᾱ_0 = 1.

The betas of the published schedules were chosen for a fixed number of steps. For another T we keep the curve, not the betas:
log ᾱ is interpolated in u = (t − 1) / (T − 1), so the signal-to-noise ratio ᾱ / (1 − ᾱ) is the same at both ends whatever T is.
A network is told u as well, in steps of the reference, u · (reference_steps − 1), so that weights mean the same at any T.

log ᾱ is what is stored: in float32, 1 − ᾱ formed from ᾱ has lost all its digits where there is almost no noise.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Kind = Literal["linear", "scaled_linear", "cosine"]

COSINE_OFFSET = 0.008  # s of [Nichol & Dhariwal 2021, Eq. 17]
COSINE_LARGEST_BETA = 0.999  # ibid., below Eq. 17: no singularity at t = T


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Schedule:
    """log ᾱ_t for t = 1…T, float32 `[T]`; index 0 is t = 1. A pytree, so it can be closed over or passed to jitted functions."""

    log_alpha_bar: Array
    reference_steps: int = field(metadata={"static": True})
    zero_terminal_snr: bool = field(default=False, metadata={"static": True})

    @property
    def steps(self) -> int:
        return self.log_alpha_bar.shape[0]

    @property
    def signal(self) -> Array:
        """√ᾱ_t, `[T]`."""
        return jnp.exp(self.log_alpha_bar / 2)

    @property
    def sigma(self) -> Array:
        """√(1 − ᾱ_t), `[T]`."""
        return jnp.sqrt(-jnp.expm1(self.log_alpha_bar))

    @property
    def snr(self) -> Array:
        """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t), `[T]`."""
        return (self.signal / self.sigma) ** 2

    @property
    def time(self) -> Array:
        """What a time embedding is fed: u · (reference_steps − 1), real-valued, from 0 to reference_steps − 1, `[T]`."""
        return jnp.asarray(np.linspace(0, self.reference_steps - 1, self.steps), jnp.float32)


class Level(NamedTuple):
    """Noise levels of a batch, float32 `[B]` each: all that a network, a loss or a sampler needs to know of the schedule."""

    signal: Array  # √ᾱ
    sigma: Array  # √(1 − ᾱ)
    time: Array  # fed to a time embedding


def make_schedule(
    kind: Kind,
    steps: int,
    *,
    beta_start: float | None = None,
    beta_end: float | None = None,
    reference_steps: int,
    rescale: bool = True,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """The schedule `kind` with `steps` steps, defined by its betas at `reference_steps`.

    Args:
      kind: 'linear' (DDPM, SR3), 'scaled_linear' (latent diffusion: √β is linear) or 'cosine' (Nichol & Dhariwal, Eq. 17).
      steps: T, at least 2.
      beta_start, beta_end: first and last β, in (0, 1), as published for `reference_steps`; 'cosine' has none and does not read them.
      rescale: keep the curve and interpolate it; False keeps the betas, spread over T itself: `reference_steps` is then T.
      zero_terminal_snr: shift and scale √ᾱ so that √ᾱ_T = 0 and √ᾱ_1 stays [Lin et al. 2024, Algorithm 1]; not for ε-prediction.

    Raises:
      ValueError: for an unknown kind, fewer than 2 steps, or betas that do not rise inside (0, 1); names the values.
    """
    if steps < 2 or reference_steps < 2:
        raise ValueError(f"a schedule needs at least 2 steps, got {steps} (reference_steps={reference_steps})")
    if not rescale:
        reference_steps = steps

    u, u_reference = np.linspace(0, 1, steps), np.linspace(0, 1, reference_steps)
    log_alpha_bar = np.interp(u, u_reference, np.cumsum(np.log1p(-_betas(kind, reference_steps, beta_start, beta_end))))
    if zero_terminal_snr:
        log_alpha_bar = _zero_terminal(log_alpha_bar)
    return Schedule(jnp.asarray(log_alpha_bar, jnp.float32), reference_steps, zero_terminal_snr)


def level_at(schedule: Schedule, t: Array) -> Level:
    """The levels of steps `t`, integers `[B]`, each in 0…T. At t = 0 there is no noise: signal 1, sigma 0 (and time 0)."""
    log_alpha_bar = log_alpha_bar_at(schedule, t)
    time = jnp.where(t > 0, schedule.time[jnp.maximum(t - 1, 0)], 0.0)
    return Level(jnp.exp(log_alpha_bar / 2), jnp.sqrt(-jnp.expm1(log_alpha_bar)), time)


def continuous_level(schedule: Schedule, t: Array, u: Array) -> Level:
    """√ᾱ between the neighbours t (at u = 0) and t − 1 (as u → 1), uniform if u is [SR3, Algorithm 1; WaveGrad, §2.2].

    Args:
      t: integers `[B]`, each in 1…T.
      u: float `[B]` in [0, 1). The noiseless level t − 1 = 0 itself is never reached.
    """
    here, before = log_alpha_bar_at(schedule, t), log_alpha_bar_at(schedule, t - 1)
    signal = jnp.exp(here / 2) * (1 - u) + jnp.exp(before / 2) * u
    lost = -jnp.expm1(here / 2) * (1 - u) - jnp.expm1(before / 2) * u  # 1 − √ᾱ, with all its digits near ᾱ = 1
    time = jnp.maximum(t - 1 - u, 0) * ((schedule.reference_steps - 1) / (schedule.steps - 1))
    return Level(signal, jnp.sqrt(lost * (1 + signal)), time)


def log_alpha_bar_at(schedule: Schedule, t: Array) -> Array:
    """log ᾱ_t for integers `t` of any shape, each in 0…T; log ᾱ_0 = 0."""
    return jnp.where(t > 0, schedule.log_alpha_bar[jnp.maximum(t - 1, 0)], 0.0)


def nearest_step(schedule: Schedule, log_alpha_bar: Array) -> Array:
    """The t in 1…T whose log ᾱ_t is nearest, int of the shape of `log_alpha_bar`; of two as near, the later."""
    above = -schedule.log_alpha_bar  # which rises
    middles = (above[1:] + above[:-1]) / 2
    return jnp.searchsorted(middles, -log_alpha_bar, side="right") + 1


def _betas(kind: Kind, steps: int, beta_start: float | None, beta_end: float | None) -> np.ndarray:
    """β_1…β_T of a published schedule, float64 `[T]`."""
    if kind == "cosine":
        angle = (np.arange(steps + 1) / steps + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2
        curve = np.cos(angle) ** 2
        return np.minimum(1 - curve[1:] / curve[:-1], COSINE_LARGEST_BETA)
    if kind not in ("linear", "scaled_linear"):
        raise ValueError(f"unknown schedule kind {kind!r}; there are 'linear', 'scaled_linear' and 'cosine'")
    if beta_start is None or beta_end is None or not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"betas must rise inside (0, 1), got beta_start={beta_start}, beta_end={beta_end}")
    if kind == "linear":
        return np.linspace(beta_start, beta_end, steps)
    return np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2


def _zero_terminal(log_alpha_bar: np.ndarray) -> np.ndarray:
    signal = np.exp(log_alpha_bar / 2)
    scaled = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    # The last is exactly zero and its logarithm −∞, which exp and expm1 turn into signal 0 and sigma 1.
    return np.append(2 * np.log(scaled[:-1]), -np.inf)
