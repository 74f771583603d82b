"""The teacher's encoders, frozen: from a crop's two images to all that denoising sees of them.

    latents = mean and log-variance of E_1(high),    low_latents = mode of E_1(low),    pooled, tokens = E_2(low)

Computed as `jaxsr.methods.teacher` computes them in training.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsr.config import ConfigError
from jaxsr.data.records import Encoding
from jaxsr.files import shown
from jaxsr.methods.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderNetworkConfig
from jaxsr.models.clip import VisionTransformer, clip_image
from jaxsr.precompute.plan import MakerSettings, Plan, make_plan, source_set
from jaxsr.upscale.model import ModelError, is_model, load_model, read_experiment
from jaxsr.weights.file import digest
from jaxsr.weights.imported import read_weights


class EncodeSettings(MakerSettings):
    """Attributes:
    autoencoder, image_encoder: SHA-256 of their parameters.
    tokens: of the image encoder: pooled, or patches: all of them too.
    """

    autoencoder: str
    image_encoder: str | None = None
    tokens: Literal["pooled", "patches"] = "pooled"


class Encoders(NamedTuple):
    """The maker of an encoded set.

    Attributes:
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

    @property
    def multiple(self) -> int:
        return self.autoencoder.multiple

    @property
    def reads(self) -> tuple[str, ...]:
        return ("high", "low")

    def make(self, params: dict[str, Any], maps: dict[str, Array], keys: Array, settings: EncodeSettings) -> dict[str, Array]:
        """Crops `[B, H, W, 1]` in −1…1 → what a record has, float32."""
        variables = {"params": {"encoder": params["autoencoder"]}}
        made = {
            "latents": self.autoencoder.posterior(variables, maps["high"]).moments,
            "low_latents": self.autoencoder.posterior(variables, maps["low"]).mode,
        }
        if self.image_encoder:
            seen: Any = self.image_encoder.apply({"params": params["image_encoder"]}, clip_image(maps["low"], self.side))
            made |= {"pooled": seen.pooled, **({"tokens": seen.tokens} if settings.tokens == "patches" else {})}
        return made

    def facts(self, source: str, settings: EncodeSettings, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        about = {name: getattr(settings, name) for name in ("autoencoder", "image_encoder", "crop", "copies", "augment")}
        return {"encoding": Encoding(source=source, **about, **shapes)}  # type: ignore[arg-type]


def plan_encoding(source: Path, out: Path, encoders: Encoders, *, crop: int | None = None, keep: tuple[str, ...] = (), **how: Any) -> Plan:
    """What is to be encoded of the prepared set `source`, into `out`.

    Args:
      crop: None: that of the autoencoder's training.
      keep: of high and low, images that records have too; other maps of the set they have anyway.
      how: further settings, of `EncodeSettings`.

    Raises:
      VolumeError: where `source` is no prepared set; ConfigError: as `make_plan`.
    """
    records, prepared = source_set(source)
    kept = tuple(name for name in records.manifest.maps if name not in ("high", "low") or name in keep)
    chosen = {"prepared": prepared, "crop": crop or encoders.crop or 256, "keep": kept, **encoders.sha256, **how}
    return make_plan(records, out, encoders, EncodeSettings.model_validate(chosen))


def load_encoders(autoencoder: Path, image_encoder: Path | None = None, precision: Literal["f32", "bf16"] = "f32") -> Encoders:
    """The encoder of `autoencoder`, a run directory, an exported file or imported weights, and of imported weights of CLIP.

    Raises:
      ConfigError: where a run is not one of an autoencoder.
      ModelError, CheckpointError, WeightsError: where there is nothing that can be read.
    """
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    crop = None
    if not autoencoder.exists():
        raise ModelError(
            f"{shown(autoencoder)} is not there: name a run directory, an exported file or one made by `jaxsr weights import autoencoder`; "
            "`jaxsr train configs/autoencoder.yaml` trains one"
        )
    if is_model(autoencoder):
        experiment = read_experiment(autoencoder)
        if not isinstance(config := experiment.method, AutoencoderConfig):
            raise ConfigError(f"{shown(autoencoder)} holds a model of kind {config.kind}, expected autoencoder: name another with --encode")
        found, crop = load_model(autoencoder).variables["params"], experiment.data.crop
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
