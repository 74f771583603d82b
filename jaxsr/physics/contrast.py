"""Contrast: what tissues' relaxation times make of a pulse sequence, and changes of contrast of images that exist.

    gradient echo (FLASH)   S = ρ sin α (1 − E1) / (1 − E1 cos α) · e^(−TE/T2*),  E1 = e^(−TR/T1)      [Haase 1986]
                            largest at the Ernst angle, cos α = E1                                    [Ernst & Anderson 1966]
    spin echo               S = ρ (1 − 2 e^(−(TR − TE/2)/T1) + e^(−TR/T1)) · e^(−TE/T2)
                            a fast spin echo is taken for a spin echo at its effective echo time
    FLAIR                   S = |ρ (1 − 2 e^(−TI/T1) + e^(−TR/T1))| · e^(−TE/T2),  zero at TI = T1 ln(2 / (1 + e^(−TR/T1)))
    MPRAGE                  the cyclic steady state of: inversion, delay, n low-angle pulses τ apart, recovery
                            every step takes the magnetisation m to a + b m, so the state before inversion has a closed form;
                            S = |ρ m sin α| · e^(−TE/T2*) at the pulse of the middle of k-space.      [Deichmann 2000; Marques 2010]
                            Simplified: spoiling is perfect, and relaxation along the train blurs nothing.

Times are milliseconds, flip angles degrees, ρ the proton density relative to water's. `Tissue` may hold arrays: everything broadcasts and
is differentiable.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Tissue(NamedTuple):
    """Relaxation times `t1`, `t2`, `t2_star` in ms and proton density `pd`, 0…1; numbers, or arrays of one shape."""

    t1: Array | float
    t2: Array | float
    t2_star: Array | float
    pd: Array | float


# Tesla → tissue → parameters. T1 of grey and white matter: Wright 2008 (MAGMA 21:121), one method at all three field strengths. T1 and T2
# of muscle and blood and T2 of grey and white matter at 1.5 and 3 T: Stanisz 2005 (Magn Reson Med 54:507). T2* of grey and white matter:
# Peters 2007 (Magn Reson Imaging 25:748). T1 of CSF, the same at every field: Rooney 2007 (Magn Reson Med 57:308). Fat: about what Gold
# 2004 (Am J Roentgenol 183:343) found in the knee. For comparison, Wansapura 1999 (J Magn Reson Imaging 9:531) has T1 of 1331 and 832 ms
# and T2 of 110 and 80 ms for grey and white matter at 3 T. The rest is about right, no more: T2 of CSF (seconds; shorter at 7 T), all of
# 7 T but T1 and T2* of the brain, bone (its water decays before any of these sequences reads it), a lesion (demyelinated white matter:
# longer T1 and T2, more water), blood without its flow, T2* of all but the brain, proton densities.
TISSUES: dict[float, dict[str, Tissue]] = {
    1.5: {
        "csf": Tissue(4300.0, 2000.0, 1000.0, 1.00),
        "grey": Tissue(1197.0, 95.0, 84.0, 0.83),
        "white": Tissue(646.0, 72.0, 66.2, 0.70),
        "bone": Tissue(200.0, 0.5, 0.4, 0.20),
        "fat": Tissue(288.0, 165.0, 45.0, 0.90),
        "muscle": Tissue(1008.0, 44.0, 32.0, 0.78),
        "lesion": Tissue(1050.0, 150.0, 110.0, 0.86),
        "vessel": Tissue(1441.0, 290.0, 150.0, 0.80),
    },
    3.0: {
        "csf": Tissue(4300.0, 2000.0, 800.0, 1.00),
        "grey": Tissue(1607.0, 99.0, 66.0, 0.83),
        "white": Tissue(838.0, 69.0, 53.2, 0.70),
        "bone": Tissue(220.0, 0.5, 0.4, 0.20),
        "fat": Tissue(371.0, 133.0, 30.0, 0.90),
        "muscle": Tissue(1412.0, 50.0, 28.0, 0.78),
        "lesion": Tissue(1400.0, 140.0, 85.0, 0.86),
        "vessel": Tissue(1932.0, 275.0, 60.0, 0.80),
    },
    7.0: {
        "csf": Tissue(4300.0, 1100.0, 400.0, 1.00),
        "grey": Tissue(1939.0, 55.0, 33.2, 0.83),
        "white": Tissue(1126.0, 46.0, 26.8, 0.70),
        "bone": Tissue(260.0, 0.4, 0.3, 0.20),
        "fat": Tissue(450.0, 90.0, 15.0, 0.90),
        "muscle": Tissue(1750.0, 30.0, 15.0, 0.78),
        "lesion": Tissue(1750.0, 90.0, 45.0, 0.86),
        "vessel": Tissue(2200.0, 100.0, 15.0, 0.80),
    },
}

Number = Array | float


@dataclasses.dataclass(frozen=True)
class Flash:
    """A spoiled gradient echo: repetition and echo time in ms, flip angle in degrees. ValueError where TE is not within TR."""

    repetition: Number
    echo: Number
    flip: Number

    def __post_init__(self) -> None:
        _refuse_below_zero(self, "the echo time", self.echo)
        _refuse_below_zero(self, "the time from echo to repetition", self.repetition - self.echo)


@dataclasses.dataclass(frozen=True)
class SpinEcho:
    """A spin echo, or a fast one at its effective echo time: repetition and echo time in ms. ValueError where TE is not within TR."""

    repetition: Number
    echo: Number

    def __post_init__(self) -> None:
        _refuse_below_zero(self, "the echo time", self.echo)
        _refuse_below_zero(self, "the time from echo to repetition", self.repetition - self.echo)


@dataclasses.dataclass(frozen=True)
class Flair:
    """A spin echo whose inversion, `inversion` ms before it, silences the fluid. ValueError where TI and TE are not within TR."""

    repetition: Number
    inversion: Number
    echo: Number

    def __post_init__(self) -> None:
        _refuse_below_zero(self, "the inversion time", self.inversion)
        _refuse_below_zero(self, "the echo time", self.echo)
        _refuse_below_zero(self, "the time from echo to repetition", self.repetition - self.inversion - self.echo)


@dataclasses.dataclass(frozen=True)
class Mprage:
    """Inversion, then `pulses` gradient echoes, `spacing` ms apart, whose middle is `inversion` ms later; again after `repetition` ms.

    `efficiency` is that of the inversion pulse, 0…1; `flip` is in degrees. ValueError where the train does not fit after the inversion and
    before the repetition, or the echo not between two pulses.
    """

    repetition: Number
    inversion: Number
    echo: Number
    flip: Number
    spacing: Number = 7.0
    pulses: Number = 160
    efficiency: Number = 0.96

    def __post_init__(self) -> None:
        _refuse_below_zero(self, "the echo time", self.echo)
        _refuse_below_zero(self, "the number of pulses", self.pulses)
        _refuse_below_zero(self, "the time from echo to next pulse", self.spacing - self.echo)
        _refuse_below_zero(self, "the delay from inversion to first pulse", self.delay)
        _refuse_below_zero(self, "the rest from last pulse to repetition", self.rest)

    @property
    def delay(self) -> Number:
        """ms from the inversion to the first pulse."""
        return self.inversion - self.pulses / 2 * self.spacing

    @property
    def rest(self) -> Number:
        """ms from the end of the train to the next inversion."""
        return self.repetition - self.delay - self.pulses * self.spacing


Sequence = Flash | SpinEcho | Flair | Mprage


def signal(tissue: Tissue, sequence: Sequence) -> Array:
    """The steady-state magnitude that `sequence` reads of `tissue`, relative to all of water's magnetisation; the tissue's shape."""
    t1, t2, t2_star, pd = (jnp.asarray(x) for x in tissue)
    match sequence:
        case Flash(repetition, echo, flip):
            recovery, angle = jnp.exp(-repetition / t1), jnp.deg2rad(flip)
            return pd * jnp.sin(angle) * (1 - recovery) / (1 - recovery * jnp.cos(angle)) * jnp.exp(-echo / t2_star)
        case SpinEcho(repetition, echo):
            return pd * (1 - 2 * jnp.exp(-(repetition - echo / 2) / t1) + jnp.exp(-repetition / t1)) * jnp.exp(-echo / t2)
        case Flair(repetition, inversion, echo):
            return jnp.abs(pd * (1 - 2 * jnp.exp(-inversion / t1) + jnp.exp(-repetition / t1))) * jnp.exp(-echo / t2)
        case Mprage():
            read = jnp.abs(_mprage(t1, sequence)) * jnp.sin(jnp.deg2rad(sequence.flip))
            return pd * read * jnp.exp(-sequence.echo / t2_star)


def ernst_angle(t1: Number, repetition: Number) -> Array:
    """The flip angle, in degrees, that makes the most of a spoiled gradient echo: cos α = e^(−TR/T1)."""
    return jnp.rad2deg(jnp.arccos(jnp.exp(-jnp.asarray(repetition) / t1)))


def null_time(t1: Number, repetition: Number) -> Array:
    """The inversion time, in ms, at which a FLAIR reads nothing of a tissue with this T1."""
    return t1 * jnp.log(2 / (1 + jnp.exp(-jnp.asarray(repetition) / t1)))


def _refuse_below_zero(sequence: object, what: str, value: Number) -> None:
    """ValueError where a timing cannot be; of traced ones nothing is known."""
    if not isinstance(value, jax.core.Tracer) and (least := np.min(value)) < 0:
        unit = "" if what.startswith("the number") else " ms"
        raise ValueError(f"{what} must not be below 0, got {least:g}{unit} in {sequence}: change its timings so that it fits")


def _mprage(t1: Array, s: Mprage) -> Array:
    """Longitudinal magnetisation, of 1 at rest, that the pulse in the middle of the train meets; negative before it has recovered."""
    half = s.pulses / 2
    e_spacing, e_delay, e_rest = (jnp.exp(-t / t1) for t in (s.spacing, s.delay, s.rest))
    damping = e_spacing * jnp.cos(jnp.deg2rad(s.flip))
    driven = (1 - e_spacing) / (1 - damping)  # where the pulses would bring it in the end

    def read(m: Array, pulses: Number) -> Array:
        return driven + (m - driven) * damping**pulses

    # One cycle is affine in the magnetisation before the inversion: m ↦ a + b m, whose fixed point is a / (1 − b).
    def cycle(m: Array) -> Array:
        return 1 + (read(1 + (-s.efficiency * m - 1) * e_delay, s.pulses) - 1) * e_rest

    a = cycle(jnp.zeros_like(t1))
    steady = a / (1 - (cycle(jnp.ones_like(t1)) - a))
    return read(1 + (-s.efficiency * steady - 1) * e_delay, half)


# ---------------------------------------------------------------------------------------------------------- images that exist


def gamma(image: Array, exponent: Array | float) -> Array:
    """max · (x / max)^γ: a monotone change of contrast of `image` (≥ 0, what is below counts as 0) that keeps 0 and the largest value."""
    top = image.max()
    return top * (jnp.maximum(image, 0) / jnp.where(top > 0, top, 1)) ** exponent


def change_contrast(image: Array, tissues: Array, means_from: Array, means_to: Array) -> Array:
    """`image` with the mean of every tissue moved, and what it varies by about its mean scaled along: its texture keeps its contrast.

        y = x · Σ_k P_k μ'_k / Σ_k P_k μ_k

    Args:
      image: `[X, Y, Z]`, ≥ 0.
      tissues: labels `[X, Y, Z]` of integers below K, or probabilities `[K, X, Y, Z]` that sum to one: with these, partial volume is kept.
      means_from: the tissues' means in the image, `[K]`; where one is zero, the new mean is put in its place as it is.
      means_to: the means wanted, `[K]`.
    """
    means_from, means_to = jnp.asarray(means_from), jnp.asarray(means_to)
    if jnp.issubdtype(tissues.dtype, jnp.integer):
        before, after = means_from[tissues], means_to[tissues]
    else:
        before, after = (jnp.tensordot(m, tissues, 1) for m in (means_from, means_to))
    return jnp.where(before > 0, image * after / jnp.where(before > 0, before, 1), after)
