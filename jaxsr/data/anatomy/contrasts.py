"""What structures there are, and how bright each may be: by the ranges that are seen, or by signal equations with random settings.

Few tissues, many structures: a structure is a mixture of tissues (the thalamus is grey matter with much white matter in it), with a small
random offset of its own. Left and right are one structure, so they share every draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.physics import contrast as physics

TISSUES = ("background", "csf", "grey matter", "white matter", "skull", "scalp", "lesion")


class Contrast(NamedTuple):
    """Mean signal of each of `TISSUES`, `[low, high]` a tissue, to draw from."""

    background: tuple[float, float]
    csf: tuple[float, float]
    grey: tuple[float, float]
    white: tuple[float, float]
    skull: tuple[float, float]
    scalp: tuple[float, float]
    lesion: tuple[float, float]


CONTRASTS = {
    "T1w": Contrast((0.0, 0.02), (0.10, 0.30), (0.45, 0.65), (0.75, 0.95), (0.05, 0.15), (0.60, 1.00), (0.30, 0.55)),
    "T2w": Contrast((0.0, 0.02), (0.85, 1.00), (0.50, 0.65), (0.30, 0.45), (0.03, 0.12), (0.40, 0.80), (0.65, 0.90)),
    "PDw": Contrast((0.0, 0.02), (0.75, 0.95), (0.75, 0.90), (0.55, 0.70), (0.05, 0.15), (0.50, 0.90), (0.80, 1.00)),
}

# Of heads from label maps: the rest of the head too, and fluid-attenuated images. Muscle and vessels (without flow) by contrast.
KINDS = ("T1w", "T2w", "PDw", "FLAIR")
_FLAIR = {"FLAIR": Contrast((0.0, 0.02), (0.03, 0.12), (0.60, 0.75), (0.45, 0.58), (0.03, 0.12), (0.40, 0.80), (0.80, 1.00))}
_MUSCLE = {"T1w": (0.35, 0.50), "T2w": (0.12, 0.30), "PDw": (0.50, 0.75), "FLAIR": (0.20, 0.40)}
_VESSEL = {"T1w": (0.20, 0.90), "T2w": (0.05, 0.40), "PDw": (0.10, 0.60), "FLAIR": (0.05, 0.40)}
_TISSUES = ("background", "csf", "grey", "white", "bone", "fat", "lesion", "muscle", "vessel")  # columns of the mixtures below

# Structure → the tissues it is mixed of. The first seven are TISSUES: labels of both sources of heads are indices of one table.
_MIXTURES: dict[str, dict[str, float]] = {
    "background": {"background": 1},
    "csf": {"csf": 1},
    "grey matter": {"grey": 1},
    "white matter": {"white": 1},
    "skull": {"bone": 1},
    "scalp": {"fat": 1},
    "lesion": {"lesion": 1},
    "cerebellar cortex": {"grey": 0.85, "white": 0.15},
    "cerebellar white matter": {"white": 0.9, "grey": 0.1},
    "thalamus": {"grey": 0.5, "white": 0.5},
    "caudate": {"grey": 0.95, "white": 0.05},
    "putamen": {"grey": 0.8, "white": 0.2},
    "pallidum": {"grey": 0.25, "white": 0.75},
    "hippocampus": {"grey": 0.95, "csf": 0.05},
    "brainstem": {"white": 0.75, "grey": 0.25},
    "choroid plexus": {"csf": 0.5, "grey": 0.5},
    "nerve": {"white": 0.8, "grey": 0.2},
    "vessel": {"vessel": 1},
    "marrow": {"fat": 0.65, "muscle": 0.1, "bone": 0.25},
    "muscle": {"muscle": 1},
    "skin": {"muscle": 0.7, "fat": 0.2, "bone": 0.1},
    "mucosa": {"muscle": 0.5, "csf": 0.5},
    "eye": {"csf": 0.95, "muscle": 0.05},
}
STRUCTURES = tuple(_MIXTURES)
BRAIN = tuple(
    s for s in STRUCTURES if s not in ("background", "skull", "scalp", "nerve", "vessel", "marrow", "muscle", "skin", "mucosa", "eye")
)
MIXTURE = np.array([[mix.get(t, 0.0) for t in _TISSUES] for mix in _MIXTURES.values()], np.float32)  # [structures, tissues]


def shares(tissues: Sequence[str]) -> np.ndarray:
    """How much of each of `STRUCTURES` is none of `tissues` (csf, grey, white, …), and how much is each: `[structures, 1 + tissues]`.

    A lesion counts as the white matter that it lies in.

    Raises:
      ValueError: for a tissue that there is not.
    """
    known = [name for name in _TISSUES if name not in ("background", "lesion")]
    if unknown := [name for name in tissues if name not in known]:
        raise ValueError(f"unknown tissue {', '.join(unknown)}; known: {', '.join(known)}")
    of = {name: MIXTURE[:, i] for i, name in enumerate(_TISSUES)}
    of["white"] = of["white"] + of["lesion"]
    named = np.stack([of[name] for name in tissues], axis=-1)
    return np.concatenate([1 - named.sum(-1, keepdims=True), named], axis=-1)


# How much more a structure's signal varies within it than the brain's does: what is fibres, lobules and layers is not one tissue.
UNEVENNESS = np.array(
    [{"scalp": 4, "marrow": 6, "muscle": 2.5, "mucosa": 6, "skin": 3, "vessel": 3}.get(s, 1) for s in STRUCTURES], np.float32
)

OFFSET = 0.03  # standard deviation of a structure's own offset, of the brain's range of signals
SPREAD = 0.06  # of the logarithm of a tissue's parameters between people


def index_of(contrast: str, known: Sequence[str]) -> int:
    """The place of `contrast` among those `known`, -1 for 'random'; ValueError for one that is not."""
    if contrast != "random" and contrast not in known:
        raise ValueError(f"unknown contrast {contrast!r}; known: random, {', '.join(known)}")
    return -1 if contrast == "random" else list(known).index(contrast)


def draw_means(key: Array, kind: Array) -> Array:
    """Mean signal of each of `STRUCTURES` in a random image of the contrast `kind` (an index of `KINDS`), about 0…1; `[structures]`.

    One time in two from ranges, one time in two from the signal equations at 1.5, 3 or 7 T.
    """
    keys = jax.random.split(key, 4)
    tissues = jnp.where(jax.random.bernoulli(keys[0]), _from_ranges(keys[1], kind), _from_equations(keys[2], kind))
    brain = tissues[1:4]
    offset = OFFSET * (brain.max() - brain.min()) * jax.random.normal(keys[3], (len(STRUCTURES),))
    own = jnp.asarray([s not in TISSUES for s in STRUCTURES])
    return jnp.maximum(jnp.asarray(MIXTURE) @ tissues + jnp.where(own, offset, 0), 0)


def _from_ranges(key: Array, kind: Array) -> Array:
    """`[tissues]`, uniform in the ranges of the contrast."""
    ranges = CONTRASTS | _FLAIR
    table = np.array([[*ranges[k], _MUSCLE[k], _VESSEL[k]] for k in KINDS], np.float32)  # [kinds, tissues, 2]
    low, high = jnp.moveaxis(jnp.asarray(table)[kind], -1, 0)
    return low + (high - low) * jax.random.uniform(key, low.shape)


def _from_equations(key: Array, kind: Array) -> Array:
    """`[tissues]`, by a sequence of the contrast with random settings, of tissues that differ a little between people."""
    keys = iter(jax.random.split(key, 24))
    between = lambda low, high: jax.random.uniform(next(keys), minval=low, maxval=high)  # noqa: E731
    fields = list(physics.TISSUES)
    names = _TISSUES[1:]
    table = np.array([[physics.TISSUES[field][name] for name in names] for field in fields], np.float32)  # [fields, tissues, 4]
    parameters = jnp.asarray(table)[jax.random.randint(next(keys), (), 0, len(fields))]
    parameters *= jnp.exp(SPREAD * jax.random.normal(next(keys), parameters.shape))
    people = physics.Tissue(*parameters.T)

    mprage = physics.Mprage(between(1900.0, 2600.0), between(850.0, 1150.0), between(2.0, 4.0), between(6.0, 11.0))
    repetition = between(8000.0, 11000.0)
    inversion = physics.null_time(jnp.asarray(people.t1)[0], repetition) * between(0.93, 1.03)
    options = [
        physics.signal(people, mprage),
        physics.signal(people, physics.SpinEcho(between(3000.0, 7000.0), between(75.0, 115.0))),
        physics.signal(people, physics.SpinEcho(between(3500.0, 7000.0), between(10.0, 25.0))),
        physics.signal(people, physics.Flair(repetition, inversion, between(90.0, 130.0))),
    ]
    signals = jnp.stack(options)[kind]
    suppression = jnp.where(jax.random.bernoulli(next(keys), 0.5), 1.0, between(0.2, 1.0))  # of fat, as many protocols have it
    flow = between(0.1, 1.0)  # what moves on between excitation and echo
    signals = signals.at[names.index("fat")].multiply(suppression).at[names.index("vessel")].multiply(flow)
    # A picture is windowed to the brain; unsuppressed fat may stand out of that.
    brightest = signals[: names.index("bone")].max()
    signals = jnp.minimum(signals * between(0.8, 1.0) / brightest, 1.3)
    return jnp.concatenate([between(0.0, 0.02)[None], signals])
