"""The teacher's encoders, frozen: from a crop's two images to all that denoising sees of them.

    latents = mean and log-variance of E_1(high),    low_latents = mode of E_1(low),    pooled, tokens = E_2(low)

Computed as `jaxsr.methods.teacher` computes them in training.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsr.files import shown
from jaxsr.methods.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderNetworkConfig
from jaxsr.models.clip import VisionTransformer, clip_image
from jaxsr.upscale.model import ModelError, is_model, load_model
from jaxsr.weights.file import digest
from jaxsr.weights.imported import read_weights


class Encoders(NamedTuple):
    """Attributes:
    params: of `autoencoder` (its encoder alone) and, where there is one, `image_encoder`.
    sha256: of all of their parameters, as checkpoints record them.
    side: pixels of the square that the image encoder sees.
    crop: side of the squares that the autoencoder was trained on, where it says so.
    """

    autoencoder: Autoencoder
    image_encoder: VisionTransformer | None
    params: dict[str, Any]
    sha256: dict[str, str]
    side: int
    crop: int | None

    def encode(self, params: dict[str, Any], high: Array, low: Array, tokens: bool) -> dict[str, Array]:
        """Crops `[B, H, W, 1]` in −1…1 → what a record has, float32; `tokens`: all of the image encoder's too."""
        variables = {"params": {"encoder": params["autoencoder"]}}
        made = {
            "latents": self.autoencoder.posterior(variables, high).moments,
            "low_latents": self.autoencoder.posterior(variables, low).mode,
        }
        if self.image_encoder:
            seen: Any = self.image_encoder.apply({"params": params["image_encoder"]}, clip_image(low, self.side))
            made |= {"pooled": seen.pooled, **({"tokens": seen.tokens} if tokens else {})}
        return made


def load_encoders(autoencoder: Path, image_encoder: Path | None = None, precision: Literal["f32", "bf16"] = "f32") -> Encoders:
    """The encoder of `autoencoder`, a run directory, an exported file or imported weights, and of imported weights of CLIP.

    Raises:
      ModelError: where a run is not one of an autoencoder; CheckpointError, WeightsError: where there is nothing that can be read.
    """
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    crop = None
    if not autoencoder.exists():
        raise ModelError(
            f"{shown(autoencoder)} is not there: name a run directory, an exported file or one made by `jaxsr weights import autoencoder`; "
            "`jaxsr train configs/autoencoder.yaml` trains one"
        )
    if is_model(autoencoder):
        model = load_model(autoencoder)
        if not isinstance(config := model.experiment.method, AutoencoderConfig):
            raise ModelError(f"{shown(autoencoder)} holds a model of kind {config.kind}, expected autoencoder: name another with --encode")
        found, crop = model.variables["params"], model.experiment.data.crop
    else:
        weights = read_weights(autoencoder, "autoencoder")
        config, found = AutoencoderConfig(network=AutoencoderNetworkConfig(**weights.sizes)), weights.variables["params"]
    params, sums = {"autoencoder": found["encoder"]}, {"autoencoder": digest(found)}
    network, side = None, 0
    if image_encoder:
        weights = read_weights(image_encoder, "clip")
        sizes = dict(weights.sizes)
        side = sizes.pop("side")
        network = VisionTransformer(**sizes, dtype=dtype)
        params["image_encoder"], sums["image_encoder"] = weights.variables["params"], digest(weights.variables["params"])
    return Encoders(config.build(dtype), network, params, sums, side, crop)
