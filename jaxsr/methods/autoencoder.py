"""The autoencoder that latent diffusion works in, E_1 and D [teacher paper §II-A, Eq. 1; Rombach et al. 2022; Kingma & Welling 2014].

    L = mean (x − D(z))² + w · KL(q(z | x) ‖ N(0, I)) / |x|,      z ~ q(z | x) = E_1(x)          w: `kl_weight`; |x|: numbers in an image

The first term is Eq. 1. The paper gives the second no weight. The original (`ldm`) sums both over a slice and weighs the divergence by
1e-6; here both are divided by |x|, which keeps that balance and makes the loss independent of an image's size. (A sum of divergences beside
a *mean* of squares, as some codes have it, weighs them |x| times more, 196,608 at 256² × 3, and would draw the latents' deviation towards
1, for which the paper's scale of 0.2 is not made.) Eq. 1 is all of the paper's reconstruction loss; the original's has a perceptual and
an adversarial term.

As a method of its own it reconstructs whatever it is shown: `upscale` is D(mode of E_1(y)), which says what diffusion in these latents
can reach at best. Grey slices are repeated over the network's channels, and its answer is averaged over them.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.losses.pixels import mean_squared_error, squared_errors
from jaxsr.methods.base import LossOutput, Part, Request, UpscaleOutput, Variables
from jaxsr.methods.condition import Batch, Condition
from jaxsr.models.autoencoder import Decoder, Encoder, Gaussian

WINDOW = 2.0  # −1…1
LOW = 1  # the purpose of the keys that low-resolution slices are encoded with


def check_sizes(width: int, multipliers: tuple[int, ...], groups: int) -> None:
    """Raises ValueError, for a config, where there is no level, or groups do not divide the channels."""
    if not multipliers or min(multipliers) < 1:
        raise ValueError("there must be a multiplier, and every multiplier must be at least 1")
    if width % groups:
        raise ValueError(f"width must be a multiple of groups, got width {width} and groups {groups}")


class AutoencoderNetworkConfig(Strict):
    """Attributes of `jaxsr.models.autoencoder.Encoder` and `Decoder`; the defaults are Stable Diffusion's, 83,653,863 parameters.

    Attributes:
      channels: of the image. 3 is published, and what pretrained weights have; 1 spares the first and last layer a little.
      remat: computes activations again for the gradient instead of keeping them: a third more work, a fraction of the memory.
    """

    channels: int = Field(3, ge=1)
    width: int = Field(128, ge=1)
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = Field(2, ge=1)
    latent: int = Field(4, ge=1)
    groups: int = Field(32, ge=1)
    remat: bool = False

    @model_validator(mode="after")
    def _norms_divide(self) -> "AutoencoderNetworkConfig":
        check_sizes(self.width, self.multipliers, self.groups)
        return self


class LatentsConfig(Strict):
    """The autoencoder's recipe, as it stands in a method that works in its latents.

    Attributes:
      kl_weight: w above; Stable Diffusion's 1e-6.
      latent_scale: latents are multiplied by this before diffusion, which wants a deviation of about 1. 0.2 is the paper's; Stable
        Diffusion's weights were made for 0.18215. It has no part in training the autoencoder.
      images: what is learnt to be reconstructed: 'high', the targets, as published, since they are what the teacher diffuses; or 'both',
        each slice's low-resolution side too (twice the work), for a teacher that is shown its latents and nothing else of it.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    network: AutoencoderNetworkConfig = AutoencoderNetworkConfig()
    kl_weight: float = Field(1e-6, ge=0)
    latent_scale: float = Field(0.2, gt=0)
    images: Literal["high", "both"] = "high"

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this: one halving between levels."""
        return 2 ** (len(self.network.multipliers) - 1)

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Autoencoder":
        return Autoencoder(self, dtype)


class AutoencoderWeights(Strict):
    """Attributes:
    autoencoder: what training starts from: a run directory, an exported file, or what `jaxsr weights import` made.
    """

    autoencoder: Path | None = None


class AutoencoderConfig(LatentsConfig):
    """The autoencoder's recipe, as a method of its own."""

    weights: AutoencoderWeights = AutoencoderWeights()


class Autoencoder:
    """The recipe of the equations above; a frozen config in, pure functions out. Parameters are `{"encoder": …, "decoder": …}`."""

    def __init__(self, config: LatentsConfig, dtype: jnp.dtype = jnp.float32):
        self.config = config
        shared = {name: getattr(config.network, name) for name in ("width", "multipliers", "blocks", "groups", "remat")}
        self.encoder = Encoder(**shared, latent=config.network.latent, dtype=dtype)
        self.decoder = Decoder(**shared, channels=config.network.channels, dtype=dtype)
        self.multiple = config.multiple
        self.default_request = Request(steps=1)
        self.most_steps = 1

    def init(self, key: Array, batch: Batch) -> Variables:
        image = self._to_channels(batch.high)
        keys = jax.random.split(key)
        encoder = self.encoder.init(keys[0], image)
        latents = jax.eval_shape(self.encoder.apply, encoder, image).mode
        decoder = self.decoder.init(keys[1], jnp.zeros(latents.shape, latents.dtype))
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}, "stats": {}}

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        image = batch.high
        if self.config.images == "both":
            image = interleave(batch.high, batch.low)
            keys = interleave(keys, jax.vmap(jax.random.fold_in, (0, None))(keys, LOW))
        image = self._to_channels(image)

        posterior = self._encoded(variables, image)
        latents = posterior.sample(keys)
        output = self._decoded(variables, latents)
        error = mean_squared_error(output, image)  # Eq. 1
        kl = posterior.kl().mean()
        metrics = {
            "reconstruction": error,
            "psnr": psnr(to_grey(output), to_grey(image)),
            "kl": kl / latents[0].size,  # nats a latent number
            "latent_std": latents.std(),
            "latent_std_scaled": self.config.latent_scale * latents.std(),
        }
        return LossOutput(error + self.config.kl_weight * kl / image[0].size, metrics, variables["stats"])

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        return UpscaleOutput(self.decode(variables, self.encode(variables, condition.low)), {})

    def posterior(self, variables: Variables, image: Array) -> Gaussian:
        """q(z | x) of grey slices `[B, H, W, 1]`, as it is: not scaled."""
        return self._encoded(variables, self._to_channels(image))

    def encode(self, variables: Variables, image: Array, keys: Array | None = None) -> Array:
        """Grey slices `[B, H, W, 1]` → latents `[B, H / f, W / f, z]` times `latent_scale`: drawn with `keys` `[B]`, or their mode."""
        posterior = self.posterior(variables, image)
        return self.config.latent_scale * (posterior.mode if keys is None else posterior.sample(keys))

    def decode(self, variables: Variables, latents: Array) -> Array:
        """Latents times `latent_scale` → grey slices `[B, H, W, 1]`, the mean over the network's channels."""
        return to_grey(self._decoded(variables, latents / self.config.latent_scale))

    def errors(self, variables: Variables, latents: Array, image: Array) -> Array:
        """Eq. 1 of each slice, `[B]`, in float32: of the decoded latents times `latent_scale`, in all of the network's channels."""
        return squared_errors(self._decoded(variables, latents / self.config.latent_scale), self._to_channels(image))

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        return {}

    def precomputed(self, size: int) -> None:
        return None

    def parts(self, size: int) -> dict[str, Part]:
        image = jax.ShapeDtypeStruct((1, size, size, self.config.network.channels), jnp.float32)
        latents, encoder = jax.eval_shape(self.encoder.init_with_output, jax.random.key(0), image)
        decoder = jax.eval_shape(self.decoder.init, jax.random.key(0), latents.mode)
        return {
            "encoder": Part(self.encoder.apply, encoder, (image,)),
            "decoder": Part(self.decoder.apply, decoder, (latents.mode,)),
        }

    def _encoded(self, variables: Variables, image: Array) -> Gaussian:
        return Gaussian(*self.encoder.apply({"params": variables["params"]["encoder"]}, image))

    def _decoded(self, variables: Variables, latents: Array) -> Array:
        return jnp.asarray(self.decoder.apply({"params": variables["params"]["decoder"]}, latents))

    def _to_channels(self, image: Array) -> Array:
        return jnp.repeat(image, self.config.network.channels, axis=-1)


def to_grey(image: Array) -> Array:
    """`[B, H, W, C]` → `[B, H, W, 1]`: the mean over the channels."""
    return image.mean(-1, keepdims=True)


def psnr(output: Array, target: Array) -> Array:
    """Of a batch, dB, in the window −1…1."""
    return psnr_of(mean_squared_error(output, target))


def psnr_of(error: Array) -> Array:
    """Of a mean squared error in the window −1…1, dB; kept finite where nothing is lost."""
    return 10 * jnp.log10(WINDOW**2 / jnp.maximum(error, 1e-12))


def interleave(a: Array, b: Array) -> Array:
    """a_0, b_0, a_1, b_1, …: on a mesh every device keeps what it has."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
