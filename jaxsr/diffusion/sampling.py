"""Sampling: from noise to an image in S of the T steps, DDIM and ancestral in one formula.

One step from t to s < t [teacher, Eq. 6; Song et al. 2021, Eqs. 12 and 16], with x̂_0 and ε̂ from the network at x_t:

    x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − η² β̃) ε̂ + η √β̃ z,        β̃ = (1 − ᾱ_s) / (1 − ᾱ_t) · (1 − ᾱ_t / ᾱ_s),        z ~ N(0, I).

η = 0 is deterministic. η = 1 is the posterior q(x_s | x_t, x̂_0), so with S = T it is ancestral DDPM sampling [Ho et al. 2020, Eqs. 6–7];
for that to stay true where x̂_0 is bounded, ε̂ is recomputed from the bounded x̂_0. After the last step ᾱ_0 = 1, and x is x̂_0.

The root is written without a difference, so that float32 does not lose it where β̃ takes nearly all of 1 − ᾱ_s:

    1 − ᾱ_s − η² β̃ = (1 − ᾱ_s) · [ (1 − η²) + η² (ᾱ_t / ᾱ_s) (1 − ᾱ_s) / (1 − ᾱ_t) ].
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.diffusion.process import Prediction, check_prediction, eps_from_x0, to_eps, to_x0
from jaxsr.diffusion.schedule import Level, Schedule, level_at, log_alpha_bar_at

Spacing = Literal["trailing", "leading"]
Denoiser = Callable[[Array, Level], Array]  # x_t [B, H, W, C], level [B] → what the network predicts [B, H, W, C]


class Samples(NamedTuple):
    x0: Array  # [B, H, W, C] float32
    clipped: Array  # [B]: fraction of the entries of x̂_0 that `bounds` changed, over all sampling steps
    trajectory: Array | None = None  # [S, B, H, W, C], x̂_0 (bounded) of every step; the last is x0
    watched: Any = None  # what an `Observer` has made of the trajectory


class Observer(NamedTuple):
    """Sees x̂_0 of every sampling step while it passes, so that what is wanted of a trajectory takes no memory for the rest of it.

    Attributes:
      start: what is known before the first step; a pytree of arrays.
      see: (known, i, x̂_0 `[B, H, W, C]`) → known, for sampling step i = 0…S − 1.
    """

    start: Any
    see: Callable[[Any, Array, Array], Any]


class _Step(NamedTuple):
    """One sampling step's coefficients, or all of them, `[S]` each: x_s = signal x̂_0 + direction ε̂ + noise z."""

    t: Array
    draw: Array  # folded into the keys; 0 is the initial noise
    signal: Array
    direction: Array
    noise: Array


def sample(
    schedule: Schedule,
    denoise: Denoiser,
    keys: Array,
    shape: tuple[int, ...],
    *,
    steps: int,
    prediction: Prediction = "eps",
    eta: float = 0.0,
    spacing: Spacing = "trailing",
    bounds: Callable[[Array], Array] | None = None,
    trajectory: bool = False,
    observer: Observer | None = None,
) -> Samples:
    """Samples of `shape` (H, W, C), one for each of `keys` `[B]`; a sample depends on its own key and nothing else in the batch.

    Args:
      steps: S, in 1…T.
      eta: 0 (deterministic) to 1 (the posterior's variance).
      spacing: see `sampling_times`.
      bounds: keeps x̂_0 in range, entry by entry, e.g. `partial(jnp.clip, min=-1, max=1)`; it sees every step's x̂_0.
      trajectory: also return x̂_0 of every step, which takes S times the memory.
      observer: shown x̂_0 of every step.

    Raises:
      ValueError: for S outside 1…T, η outside [0, 1], an unknown spacing or prediction, or ε-prediction from pure noise.
    """
    check_prediction(schedule, prediction)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    times = sampling_times(schedule.steps, steps, spacing)

    def step(carry: tuple[Array, Any], at: _Step) -> tuple[tuple[Array, Any], tuple[Array, Array | None]]:
        x_t, known = carry
        level = level_at(schedule, jnp.broadcast_to(at.t, keys.shape))
        output = denoise(x_t, level).astype(jnp.float32)
        x0 = to_x0(prediction, output, x_t, level)
        if bounds is None:
            eps, clipped = to_eps(prediction, output, x_t, level), jnp.zeros(keys.shape)
        else:
            free, x0 = x0, bounds(x0)
            eps, clipped = eps_from_x0(x0, x_t, level), jnp.mean(x0 != free, axis=tuple(range(1, x0.ndim)), dtype=jnp.float32)
        x_s = at.signal * x0 + at.direction * eps
        if eta > 0:
            x_s = x_s + at.noise * draw_noise(keys, at.draw, shape)
        if observer is not None:
            known = observer.see(known, at.draw - 1, x0)
        return (x_s, known), (clipped, x0 if trajectory else None)

    start = (draw_noise(keys, 0, shape), observer.start if observer else None)
    (x0, watched), (clipped, x0s) = jax.lax.scan(step, start, _coefficients(schedule, times, eta))
    return Samples(x0, clipped.mean(0), x0s, watched)


def sampling_times(total: int, steps: int, spacing: Spacing) -> np.ndarray:
    """The S times sampled at, integers `[S]` falling from at most T to at least 1; after the last comes 0.

    'trailing': t_i = round(T (S − i) / S), i = 0…S − 1, so that the first is T [Lin et al. 2024, §3.3].
    'leading': ⌊T / S⌋ (S − 1 − i) + 1, DDIM's own; the first is below T unless S = T.

    Raises:
      ValueError: for S outside 1…T, or an unknown spacing.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"sampling steps must lie in 1…{total}, the steps of the schedule, got {steps}")
    left = np.arange(steps, 0, -1)  # S − i
    match spacing:
        case "trailing":
            return np.round(total * left / steps).astype(int)
        case "leading":
            return total // steps * (left - 1) + 1
    raise ValueError(f"unknown spacing {spacing!r}; there are 'trailing' and 'leading'")


def draw_noise(keys: Array, index: int | Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise `[B, *shape]`, float32: draw number `index` of each of the `keys` `[B]`, whatever the batch they are in."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32))(keys)


def _coefficients(schedule: Schedule, times: np.ndarray, eta: float) -> _Step:
    """Every step's coefficients, `[S]` each."""
    here = log_alpha_bar_at(schedule, jnp.asarray(times))
    after = log_alpha_bar_at(schedule, jnp.asarray(np.append(times[1:], 0)))
    variance_here, variance_after = -jnp.expm1(here), -jnp.expm1(after)  # 1 − ᾱ_t, 1 − ᾱ_s
    shrink = variance_after / variance_here
    return _Step(
        t=jnp.asarray(times),
        draw=jnp.arange(1, len(times) + 1),
        signal=jnp.exp(after / 2),
        direction=jnp.sqrt(variance_after * ((1 - eta**2) + eta**2 * jnp.exp(here - after) * shrink)),
        noise=eta * jnp.sqrt(shrink * -jnp.expm1(here - after)),
    )
