"""SPCDD's networks as configs, and put together: a denoiser that is told an anatomy prior and modulated by the slice [SPCDD §3.3].

    x̃ = concat(y, a),  ĩ = h(y)                      a: the template of the slice's own masks (`jaxsr.models.anatomy`)
    output, Φ = f(concat(z_t, x̃), t; ĩ)              Φ: features that are distilled

In pixels f is the plain network of the paper's Table 1, and Φ its last hidden layer. In latents f is the teacher's UNet, Φ the
features of its middle; y and a are told as latents, E(y) and E(a), and masks as their means over each latent pixel.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.methods.anatomy import AnatomyNetworkConfig
from jaxsr.methods.autoencoder import Autoencoder
from jaxsr.methods.base import Part
from jaxsr.methods.teacher_networks import UNetConfig
from jaxsr.models.anatomy import masks_of, template
from jaxsr.models.modulation import IntensityBranch
from jaxsr.models.plain import PlainNetwork
from jaxsr.models.unet import LatentUNet

NETWORKS = ("network", "intensity", "anatomy")  # parameters of all that denoises


class PlainConfig(Strict):
    """Attributes of `jaxsr.models.plain.PlainNetwork`: the paper's [2, 64, 64, 1] if nothing is said."""

    width: int = Field(64, ge=2, multiple_of=2)


class PriorConfig(Strict):
    """The anatomy prior.

    Attributes:
      told: what of it the denoiser is shown: the 'template' of one channel, as published, the 'masks', or 'both'.
      train: the extractor is trained with the denoiser, from `weights.anatomy` if that is named; else it comes from there and stays.
    """

    network: AnatomyNetworkConfig = AnatomyNetworkConfig()
    told: Literal["template", "masks", "both"] = "template"
    train: bool = False


class IntensityConfig(Strict):
    """Attributes of `jaxsr.models.modulation.IntensityBranch`."""

    base: int = Field(16, ge=1)
    groups: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> "IntensityConfig":
        if self.base % self.groups:
            raise ValueError(f"base must be a multiple of groups, got {self.base} and {self.groups}")
        return self


class SpcddNetworks(Strict):
    """Attributes:
    plain: the denoiser in pixels, or null.
    unet: the denoiser in latents, or null.
    prior: null leaves it out, and so does intensity.
    """

    plain: PlainConfig | None = PlainConfig()
    unet: UNetConfig | None = None
    prior: PriorConfig | None = PriorConfig()
    intensity: IntensityConfig | None = IntensityConfig()

    @model_validator(mode="after")
    def _one_denoiser(self) -> "SpcddNetworks":
        if (self.plain is None) == (self.unet is None):
            raise ValueError("one denoiser, please: plain (in pixels) or unet (in latents), and the other null")
        return self

    @property
    def features(self) -> int:
        """Of Φ."""
        return self.plain.width if self.plain else self.unet.width * self.unet.multipliers[-1]  # type: ignore[union-attr]

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this, but for an autoencoder's own factor."""
        levels = len(self.unet.multipliers) if self.unet else 1
        return math.lcm(2 ** (levels - 1), self.prior.network.multiple if self.prior else 1)


class Shown(NamedTuple):
    """What the denoiser is shown of a slice beside z_t and t: nothing of it changes from one sampling step to the next."""

    beside: Array  # x̃ [B, h, w, C]
    modulation: tuple[Array, ...] | None  # ĩ


class Guided:
    """The networks of `config`; parameters are those of `network`, and as far as the config has them `intensity` and `anatomy`.

    Args:
      autoencoder: in whose latents it works; None: in pixels.
      sampled: f is told z_t and t; else it is evaluated once, of x̃ alone.
    """

    def __init__(self, config: SpcddNetworks, autoencoder: Autoencoder | None, sampled: bool, dtype: jnp.dtype):
        self.config, self.autoencoder, self.sampled = config, autoencoder, sampled
        self.channels = autoencoder.config.network.latent if autoencoder else 1
        self.factor = autoencoder.multiple if autoencoder else 1
        self.anatomy = config.prior.network.build(dtype) if config.prior else None
        self.network: LatentUNet | PlainNetwork
        if config.unet:
            self.network = LatentUNet(**dict(config.unet), channels=self.channels, dtype=dtype)
            features = tuple(config.unet.width * m for m in config.unet.multipliers)
        else:
            self.network = PlainNetwork(config.features, sampled, dtype)
            features = (config.features,)
        intensity = config.intensity
        self.intensity = IntensityBranch(features, self.factor, intensity.base, intensity.groups, dtype) if intensity else None

    def init(self, key: Array, low: Array) -> dict[str, Any]:
        """Parameters of all of it, the extractor too, whether it will be trained or not."""
        keys = jax.random.split(key, 3)
        params: dict[str, Any] = {}
        modulation = None
        if self.anatomy:
            params["anatomy"] = self.anatomy.init(keys[0], low)["params"]
        if self.intensity:
            params["intensity"] = self.intensity.init(keys[1], low)["params"]
            shapes = jax.eval_shape(self.intensity.apply, {"params": params["intensity"]}, low)
            zeros = tuple(jnp.zeros(x.shape, x.dtype) for x in shapes)
            modulation = zeros if self.config.unet else zeros[0]
        size, height, width = low.shape[:3]
        x = jnp.zeros((size, height // self.factor, width // self.factor, self.inputs))
        params["network"] = self.network.init(keys[2], x, jnp.zeros(size), modulation=modulation)["params"]
        return params

    @property
    def inputs(self) -> int:
        """Channels of f's input."""
        told = self.config.prior.told if self.config.prior else ""
        classes = 1 + len(self.config.prior.network.tissues) if self.config.prior else 0
        images = int(self.sampled) + 1 + (told in ("template", "both"))
        return images * self.channels + (classes if told in ("masks", "both") else 0)

    def masks(self, params: Any, image: Array) -> Array:
        """What tissue the extractor takes each pixel of a slice for, `[B, H, W, K]`."""
        assert self.anatomy
        return masks_of(jnp.asarray(self.anatomy.apply({"params": params["anatomy"]}, image)))

    def show(self, params: Any, autoencoder: Any, low: Array) -> Shown:
        """`params`: of all of it; `autoencoder`: the variables of that, {} in pixels."""
        beside = [self._told(autoencoder, low)]
        if prior := self.config.prior:
            masks = self.masks(params, low)
            if prior.told != "masks":
                beside.append(self._told(autoencoder, template(low, masks)))
            if prior.told != "template":
                beside.append(means_of_blocks(masks, self.factor))
        modulation = None
        if self.intensity:
            modulation = tuple(self.intensity.apply({"params": params["intensity"]}, low))  # type: ignore[arg-type]
        return Shown(jnp.concatenate(beside, axis=-1), modulation)

    def denoise(self, params: Any, shown: Shown, z_t: Array | None, time: Array | None) -> tuple[Array, Array]:
        """f and Φ of `z_t` `[B, h, w, c]` at `time` `[B]`, both None where it is evaluated once."""
        x = shown.beside if z_t is None else jnp.concatenate([z_t, shown.beside], axis=-1)
        variables = {"params": params["network"]}
        if isinstance(self.network, PlainNetwork):
            modulation = shown.modulation[0] if shown.modulation else None
            return self.network.apply(variables, x, time, modulation)  # type: ignore[return-value]
        output, sown = self.network.apply(variables, x, time, modulation=shown.modulation, mutable=["features"])
        return output, sown["features"]["middle"][0].astype(jnp.float32)  # type: ignore[return-value]

    def parts(self, size: int) -> dict[str, Part]:
        def shape(*dimensions: int) -> Any:
            return jax.ShapeDtypeStruct((1, *dimensions), jnp.float32)

        image, side = shape(size, size, 1), size // self.factor
        params = jax.eval_shape(self.init, jax.random.key(0), image)
        modulation = jax.eval_shape(self.intensity.apply, {"params": params["intensity"]}, image) if self.intensity else None
        if isinstance(self.network, PlainNetwork) and modulation is not None:
            modulation = modulation[0]  # type: ignore[index]
        apply = lambda variables, x, time, modulation: self.network.apply(variables, x, time, modulation=modulation)  # noqa: E731
        found = {"denoiser": Part(apply, {"params": params["network"]}, (shape(side, side, self.inputs), shape(), modulation))}
        if self.intensity:
            found["intensity branch"] = Part(self.intensity.apply, {"params": params["intensity"]}, (image,))
        if self.anatomy:
            found["anatomy extractor"] = Part(self.anatomy.apply, {"params": params["anatomy"]}, (image,))
        return found

    def _told(self, autoencoder: Any, image: Array) -> Array:
        return self.autoencoder.posterior(autoencoder, image).mode if self.autoencoder else image


def means_of_blocks(x: Array, factor: int) -> Array:
    """`[B, H, W, C]` → `[B, H / factor, W / factor, C]`."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))
