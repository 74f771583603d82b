"""The teacher's networks as configs; the recipe that joins them is `jaxsr.methods.teacher`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from jaxsr.config import Strict
from jaxsr.models.clip import SIDE

GUIDES = ("bias", "gradient")  # b enters on the way down, g, whatever it is told as, on the way up


class UNetConfig(Strict):
    """Attributes of `jaxsr.models.unet.LatentUNet`; the defaults are Stable Diffusion v1's, with 8 channels in 859,532,484 parameters."""

    width: int = Field(320, ge=2, multiple_of=2)
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = Field(2, ge=1)
    attention_at: tuple[int, ...] = (1, 2, 4)
    heads: int = Field(8, ge=1)
    depth: int = Field(1, ge=1)
    context_width: int = Field(768, ge=1)
    groups: int = Field(32, ge=1)
    remat: bool = False

    @model_validator(mode="after")
    def _divides(self) -> "UNetConfig":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError("there must be a multiplier, and every multiplier must be at least 1")
        if self.width % self.groups or self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of groups and of heads, got width {self.width}, groups {self.groups}, heads {self.heads}"
            )
        levels = {2**i for i in range(len(self.multipliers))}
        if not set(self.attention_at) <= levels:
            raise ValueError(
                f"attention_at names levels that this network lacks: {sorted(set(self.attention_at) - levels)}; it has {sorted(levels)}"
            )
        return self


class ImageEncoderConfig(Strict):
    """E_2: attributes of `jaxsr.models.clip.VisionTransformer`; the defaults are CLIP's ViT-L/14.

    ViT-B/32 is patch 32, width 768, layers 12, heads 12, projection 512.

    Attributes:
      side: pixels of the square that it sees.
      context: 'pooled', one token, as in Zero-1-to-3; or 'patches', all tokens.
      train: it is trained with the UNet; else its weights come from `weights.image_encoder` and stay as they are.
    """

    patch: int = Field(14, ge=1)
    width: int = Field(1024, ge=1)
    layers: int = Field(24, ge=1)
    heads: int = Field(16, ge=1)
    projection: int = Field(768, ge=1)
    side: int = Field(SIDE, ge=1)
    remat: bool = False
    context: Literal["pooled", "patches"] = "pooled"
    train: bool = False

    @property
    def patches(self) -> int:
        return (self.side // self.patch) ** 2

    @model_validator(mode="after")
    def _divides(self) -> "ImageEncoderConfig":
        if self.side % self.patch or self.width % self.heads:
            raise ValueError(
                f"side must be a multiple of patch, and width of heads, got {self.side}, {self.patch}, {self.width} and {self.heads}"
            )
        return self


class GuidanceConfig(Strict):
    """Which maps guide, by pyramids of their own: see `jaxsr.models.guidance.GuidancePyramid`.

    Attributes:
      bias: b, the logarithm of the target's bias field.
      gradient: g, its gradient nonlinearity. true or displacement: as displacement u, mm along a slice's rows, columns and through it;
        log_jacobian: as log det(1 + ∇u), how much space is stretched and signal thinned, without where it went.
      width: of the pyramids at the latents' resolution.
      groups: of their normalisations.
      dropout: the probability that a map is left out of a training slice, each by itself.
    """

    bias: bool = True
    gradient: bool | Literal["displacement", "log_jacobian"] = True
    width: int = Field(64, ge=1)
    groups: int = Field(32, ge=1)
    dropout: float = Field(0.25, ge=0, lt=1)

    @property
    def guides(self) -> dict[str, str]:
        """Those of `GUIDES` that guide, and the map of a condition that each is told as."""
        told = {"bias": "bias", "gradient": "jacobian" if self.gradient == "log_jacobian" else "gradient"}
        return {name: told[name] for name in GUIDES if getattr(self, name)}

    @property
    def maps(self) -> tuple[str, ...]:
        return tuple(self.guides.values())

    @field_validator("gradient")
    @classmethod
    def _displacement_is_true(cls, gradient: bool | str) -> bool | str:
        """One name for one thing: a run whose config says true goes on with one that says displacement."""
        return True if gradient == "displacement" else gradient

    @model_validator(mode="after")
    def _guides(self) -> "GuidanceConfig":
        if not self.maps:
            raise ValueError("guidance by no map: leave it out with guidance: null")
        if self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, got {self.width} and {self.groups}")
        return self


class TeacherWeights(Strict):
    """Where networks that were trained elsewhere are: run directories, exported files, or what `jaxsr weights import` made.

    Attributes:
      autoencoder: E_1 and D; there is no training without.
      image_encoder: E_2, as it stays or, where it is trained, starts; of a run or an exported file, that of its teacher.
      unet: what U starts from; of a teacher's, its guidance and layers to context and condition come too, where the config has the same.
    """

    autoencoder: Path | None = None
    image_encoder: Path | None = None
    unet: Path | None = None
