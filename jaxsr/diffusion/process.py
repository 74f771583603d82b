"""The forward process, the three things a network may predict, and the weights of the loss.

With signal = √ᾱ_t and sigma = √(1 − ᾱ_t), every quantity is a rotation of (x_0, ε) [Salimans & Ho 2022, §4 and App. D]:

    x_t =  signal · x_0 + sigma · ε                                [teacher, Eq. 4]
    v   =  signal · ε   − sigma · x_0
    x_0 =  signal · x_t − sigma · v       = (x_t − sigma · ε) / signal
    ε   =  sigma · x_t  + signal · v      = (x_t − signal · x_0) / sigma

Where signal = 0 (zero terminal signal-to-noise ratio) an ε-prediction says nothing of x_0, and nothing else here divides by signal.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from jaxsr.diffusion.schedule import Level, Schedule

Prediction = Literal["eps", "x0", "v"]
Weighting = Literal["none", "min_snr"]


def add_noise(x0: Array, noise: Array, level: Level) -> Array:
    """x_t ~ q(x_t | x_0) by reparameterisation [teacher, Eq. 4]. `x0`, `noise`: `[B, H, W, C]`; `level`: `[B]`."""
    signal, sigma = _over(level, x0)
    return signal * x0 + sigma * noise


def target(prediction: Prediction, x0: Array, noise: Array, level: Level) -> Array:
    """What the network should say, `[B, H, W, C]`."""
    signal, sigma = _over(level, x0)
    match prediction:
        case "eps":
            return noise
        case "x0":
            return x0
        case "v":
            return signal * noise - sigma * x0
    raise _unknown(prediction)


def to_x0(prediction: Prediction, output: Array, x_t: Array, level: Level) -> Array:
    """x̂_0 from what the network said (in any precision), `[B, H, W, C]` in the precision of `x_t`."""
    signal, sigma = _over(level, x_t)
    match prediction:
        case "eps":
            return (x_t - sigma * output) / signal
        case "x0":
            return output.astype(x_t.dtype)
        case "v":
            return signal * x_t - sigma * output
    raise _unknown(prediction)


def to_eps(prediction: Prediction, output: Array, x_t: Array, level: Level) -> Array:
    """ε̂ from what the network said, as `to_x0`; from x̂_0 it needs sigma > 0, that is t > 0."""
    signal, sigma = _over(level, x_t)
    match prediction:
        case "eps":
            return output.astype(x_t.dtype)
        case "x0":
            return eps_from_x0(output, x_t, level)
        case "v":
            return sigma * x_t + signal * output
    raise _unknown(prediction)


def eps_from_x0(x0: Array, x_t: Array, level: Level) -> Array:
    """The ε that explains `x_t` given `x0`, `[B, H, W, C]`; sigma > 0, that is t > 0."""
    signal, sigma = _over(level, x_t)
    return (x_t - signal * x0) / sigma


def check_prediction(schedule: Schedule, prediction: Prediction) -> None:
    """Raises ValueError for an unknown prediction, and for 'eps' with a schedule whose last step is pure noise."""
    if prediction not in ("eps", "x0", "v"):
        raise _unknown(prediction)
    if prediction == "eps" and schedule.zero_terminal_snr:
        raise ValueError(
            "prediction 'eps' cannot go with zero_terminal_snr, whose last step is pure noise and says nothing of x0; use 'v' or 'x0'"
        )


def snr_weight(level: Level, kind: Weighting, gamma: float, prediction: Prediction) -> Array:
    """Loss weights `[B]` for the squared error of `prediction`.

    'min_snr' is min(SNR, γ) on the error of x_0 [Hang et al. 2023, Eq. 9], hence min(SNR, γ) / SNR on that of ε and
    min(SNR, γ) / (SNR + 1) on that of v. Each is written as one quotient that is finite from SNR = 0 to SNR = ∞.

    Raises:
      ValueError: for an unknown kind or prediction, or γ not above 0.
    """
    if kind == "none":
        return jnp.ones_like(level.signal)
    if kind != "min_snr":
        raise ValueError(f"unknown loss weighting {kind!r}; there are 'none' and 'min_snr'")
    if gamma <= 0:
        raise ValueError(f"min-SNR weighting needs gamma > 0, got {gamma}")
    signal2, sigma2 = level.signal**2, level.sigma**2
    match prediction:
        case "eps":
            return gamma * sigma2 / jnp.maximum(signal2, gamma * sigma2)
        case "x0":
            return signal2 / jnp.maximum(sigma2, signal2 / gamma)
        case "v":
            return jnp.minimum(signal2, gamma * sigma2)
    raise _unknown(prediction)


def x0_loss_weight(level: Level) -> Array:
    """min(1, SNR), `[B]`: the weight of every loss on a one-step x̂_0, which amplifies the error of ε̂ by 1 / SNR."""
    signal2, sigma2 = level.signal**2, level.sigma**2
    return signal2 / jnp.maximum(signal2, sigma2)


def _over(level: Level, x: Array) -> tuple[Array, Array]:
    """signal and sigma, shaped to multiply `x` `[B, …]`."""
    shape = level.signal.shape + (1,) * (x.ndim - level.signal.ndim)
    return level.signal.reshape(shape), level.sigma.reshape(shape)


def _unknown(prediction: str) -> ValueError:
    return ValueError(f"unknown prediction {prediction!r}; there are 'eps', 'x0' and 'v'")
