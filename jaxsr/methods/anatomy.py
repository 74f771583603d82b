"""The anatomy extractor's training, before it tells a denoiser what is where [SPCDD §3.3; its losses are rulings, as the paper names none].

    weak     mean cross-entropy(A(y), p) + 1 − Dice(m, p)                          p: tissues of each pixel, known from a label map
    self     C(m, y) + λ_s S(m, y) + λ_c mean (T m − A(T y'))² + λ_o O(μ)          nothing is known but the slice

    C = mean_{pixels} Σ_k m_k² (y − μ_k)²,   μ_k = Σ m_k² y / Σ m_k²               fuzzy c-means [Bezdek 1981, with exponent 2]
    S = mean |∇m| exp(−|∇y| / s)                                                   masks change where the slice does
    T a random affine map of the plane, y' the slice in another contrast           whatever it looks like, it is the same anatomy
    O = mean max(0, margin − (μ_{k+1} − μ_k))                                      which class is which: from dark to bright

Soft clusters have no names. O gives them those of T1-weighted images, where background, fluid, grey and white matter follow one another
from dark to bright; so `self` is for those. What it cannot know is that skin and fat, as bright as white matter, are none: within the
brain its masks are tissue, outside they are brightness.

It is shown slices of both resolutions: a denoiser is told of the low one, and judged by what is seen in the high one.
As a method of its own it answers with the template of what it is shown.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.data.anatomy import STRUCTURES, shares, structure_names
from jaxsr.losses.overlap import cross_entropies, dice_errors
from jaxsr.methods.autoencoder import interleave
from jaxsr.methods.base import LossOutput, Part, Request, UpscaleOutput, Variables
from jaxsr.methods.condition import Batch, Condition
from jaxsr.models.anatomy import AnatomyExtractor, class_means, masks_of, template

PLACES = 256  # that a label may have


class AnatomyNetworkConfig(Strict):
    """Attributes of `jaxsr.models.anatomy.AnatomyExtractor`; 185,412 parameters if nothing is said.

    Attributes:
      tissues: of the masks, after the first one, which is all else.
    """

    tissues: tuple[str, ...] = ("csf", "grey", "white")
    width: int = Field(16, ge=1)
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = Field(1, ge=1)
    groups: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> "AnatomyNetworkConfig":
        if not self.tissues or len(set(self.tissues)) < len(self.tissues):
            raise ValueError(f"tissues names none, or one of them twice: {', '.join(self.tissues)}")
        shares(self.tissues)
        if not self.multipliers or min(self.multipliers) < 1 or self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, and multipliers at least 1, got {self.width} and {self.groups}")
        return self

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    def build(self, dtype: jnp.dtype = jnp.float32) -> AnatomyExtractor:
        return AnatomyExtractor(1 + len(self.tissues), self.width, self.multipliers, self.blocks, self.groups, dtype)


class ClusteringConfig(Strict):
    """Of training without labels.

    Attributes:
      smoothness, consistency, order: λ_s, λ_c and λ_o above.
      edge: s above, of the window, from -1 to 1.
      margin: how far apart the means of classes that follow one another should at least lie; the default is four of them, evenly over the
        window: with less, two classes may share a tissue.
      gamma: the other contrast is y to the power of 1/gamma … gamma, of the window's range.
      rotation: degrees that T turns by at most, either way.
      scale: T stretches by at most this factor, and shrinks as much.
    """

    smoothness: float = Field(0.05, ge=0)
    consistency: float = Field(0.3, ge=0)
    order: float = Field(2.0, ge=0)
    edge: float = Field(0.1, gt=0)
    margin: float = Field(0.5, ge=0)
    gamma: float = Field(1.5, ge=1)
    rotation: float = Field(15.0, ge=0, le=180)
    scale: float = Field(1.1, ge=1)


class AnatomyWeights(Strict):
    """Attributes:
    anatomy: what training starts from: a run directory or an exported file.
    """

    anatomy: Path | None = None


class AnatomyConfig(Strict):
    """The recipe above.

    Attributes:
      supervision: 'weak', by labels, or 'self'.
      numbering: of the labels of a prepared set: 'jaxsr', of heads that `jaxsr generate` rendered, or 'freesurfer', of label maps with
        FreeSurfer's numbers (aseg), below 256; a number that is not known is no tissue. Null where heads are rendered in training.
      dice: weight of the second term of 'weak'.
      clustering: of 'self'.
    """

    kind: Literal["anatomy"] = "anatomy"
    network: AnatomyNetworkConfig = AnatomyNetworkConfig()
    supervision: Literal["weak", "self"] = "weak"
    numbering: Literal["jaxsr", "freesurfer"] | None = None
    dice: float = Field(1.0, ge=0)
    clustering: ClusteringConfig = ClusteringConfig()
    weights: AnatomyWeights = AnatomyWeights()

    @property
    def multiple(self) -> int:
        return self.network.multiple

    @property
    def maps(self) -> tuple[str, ...]:
        """What training slices must have beside high and low."""
        return ("labels",) if self.supervision == "weak" else ()

    def check(self, experiment: Any) -> None:
        """ValueError of the `Experiment` around it, where nobody says what labels mean, or clusters would get wrong names."""
        data = experiment.data
        if "labels" in data.maps and (data.manifest is None) != (self.numbering is None):
            raise ValueError(
                "method.numbering says whose numbers the labels of data.manifest are, jaxsr or freesurfer: give it with a prepared set, "
                "and only then, as heads that are rendered in training have their own"
            )
        rendered = data.manifest is None and data.volumes is None
        if self.supervision == "self" and rendered and data.contrast != "T1w":
            raise ValueError(f"method.supervision self names classes by T1w brightness: data.contrast must be T1w, not {data.contrast}")

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Anatomy":
        return Anatomy(self, dtype)


class Anatomy:
    """The recipe of the equations above; a frozen config in, pure functions out. Parameters are the network's."""

    def __init__(self, config: AnatomyConfig, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.network = config.network.build(dtype)
        self.tissues = ("background", *config.network.tissues)
        self.multiple = config.multiple
        self.default_request = Request(steps=1)
        self.most_steps = 1

    def init(self, key: Array, batch: Batch) -> Variables:
        return {"params": self.network.init(key, batch.low)["params"], "stats": {}}

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        y = interleave(batch.low, batch.high)
        logits = self._logits(variables, y)
        masks, metrics = masks_of(logits), dict[str, Array]()
        known = None if batch.labels is None else probabilities(batch.labels, self.config.network.tissues, self.config.numbering or "jaxsr")
        if known is not None:
            known = interleave(known, known)
            overlap = hard_dice(masks, known)
            metrics |= {f"dice_{name}": overlap[1 + i] for i, name in enumerate(self.config.network.tissues)}
        if self.config.supervision == "weak":
            assert known is not None
            terms = {"cross_entropy": cross_entropies(logits, known).mean(), "dice": self.config.dice * dice_errors(masks, known).mean()}
        else:
            terms = self._clustering(variables, y, masks, interleave(keys, jax.vmap(jax.random.fold_in, (0, None))(keys, 1)))
        return LossOutput(sum(terms.values()), terms | metrics, variables["stats"])  # type: ignore[arg-type]

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        return UpscaleOutput(template(condition.low, self.segment(variables, condition)), {})

    def segment(self, variables: Variables, condition: Condition) -> Array:
        return masks_of(self._logits(variables, condition.low))

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        return {}

    def precomputed(self, size: int) -> None:
        return None

    def parts(self, size: int) -> dict[str, Part]:
        image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        return {"extractor": Part(self.network.apply, jax.eval_shape(self.network.init, jax.random.key(0), image), (image,))}

    def _logits(self, variables: Variables, y: Array) -> Array:
        return jnp.asarray(self.network.apply({"params": variables["params"]}, y))

    def _clustering(self, variables: Variables, y: Array, masks: Array, keys: Array) -> dict[str, Array]:
        config = self.config.clustering
        errors, means = fuzzy_errors(y, masks)
        terms = {"clustering": errors.mean(), "smoothness": config.smoothness * uneven(masks, y, config.edge).mean()}
        if config.order:
            terms["order"] = config.order * jnp.maximum(config.margin - jnp.diff(means, axis=-1), 0).mean()
        if config.consistency:
            points, gamma = jax.vmap(self._draw, (0, None))(keys, (y.shape[1], y.shape[2]))
            other = 2 * jnp.clip((y + 1) / 2, 0) ** gamma[:, None, None, None] - 1
            again = masks_of(self._logits(variables, sampled(other, points)))
            moved = jax.lax.stop_gradient(sampled(masks, points))
            inside = ((points >= 0) & (points <= jnp.array(y.shape[1:3]) - 1)).all(-1, keepdims=True)
            terms["consistency"] = config.consistency * (inside * jnp.square(again - moved)).mean()
        return terms

    def _draw(self, key: Array, sides: tuple[int, int]) -> tuple[Array, Array]:
        """Where T takes each pixel from, `[H, W, 2]`, and the exponent of the other contrast."""
        config, keys = self.config.clustering, jax.random.split(key, 4)
        angle = jnp.deg2rad(config.rotation) * jax.random.uniform(keys[0], minval=-1)
        stretch = config.scale ** jax.random.uniform(keys[1], (2,), minval=-1)
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) * stretch
        flipped = jnp.where(jax.random.bernoulli(keys[2], shape=(2,)), 1, -1)
        centre = (jnp.array(sides) - 1) / 2
        pixels = jnp.stack(jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in sides), indexing="ij"), -1) - centre
        return pixels * flipped @ turn.T + centre, config.gamma ** jax.random.uniform(keys[3], minval=-1)


def probabilities(labels: Array, tissues: tuple[str, ...], numbering: Literal["jaxsr", "freesurfer"] = "jaxsr") -> Array:
    """p `[B, H, W, 1 + tissues]` of `labels` `[B, H, W]`: a thalamus is half of each matter. `numbering`: see `AnatomyConfig`."""
    names = dict(enumerate(STRUCTURES)) if numbering == "jaxsr" else structure_names()
    known = shares(tissues)
    table = np.zeros((PLACES, 1 + len(tissues)), np.float32)
    table[:, 0] = 1
    for number, name in names.items():
        if number < PLACES:
            table[number] = known[STRUCTURES.index(name)]
    return jnp.asarray(table)[labels]


def hard_dice(masks: Array, known: Array) -> Array:
    """Dice coefficient of each class, `[K]`, of all pixels where it is the likeliest; 1 where it is nowhere."""
    found, true = (jax.nn.one_hot(x.argmax(-1), x.shape[-1]) for x in (masks, known))
    both, sizes = (found * true).sum((0, 1, 2)), (found + true).sum((0, 1, 2))
    return jnp.where(sizes > 0, 2 * both / jnp.maximum(sizes, 1), 1)


def fuzzy_errors(y: Array, masks: Array) -> tuple[Array, Array]:
    """C of each slice, `[B]`, and μ `[B, K]`."""
    squares = jnp.square(masks)
    means = class_means(y, squares)
    return (squares * jnp.square(y - means[:, None, None])).sum(-1).mean((1, 2)), means


def uneven(masks: Array, y: Array, edge: float) -> Array:
    """S of each slice, `[B]`: of neighbours down the rows and along the columns."""
    total = jnp.zeros(len(y))
    for axis in (1, 2):
        change = jnp.abs(jnp.diff(masks, axis=axis)).mean(-1, keepdims=True)
        total += (change * jnp.exp(-jnp.abs(jnp.diff(y, axis=axis)) / edge)).mean((1, 2, 3))
    return total / 2


def sampled(x: Array, points: Array) -> Array:
    """`x` `[B, H, W, C]` at `points` `[B, h, w, 2]`, in pixels, linear between them and constant beyond the border."""

    def one(channel: Array, at: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(channel, [at[..., 0], at[..., 1]], order=1, mode="nearest")

    return jax.vmap(jax.vmap(one, (-1, None), -1))(x, points)
