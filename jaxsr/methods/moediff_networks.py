"""The networks of MoEDiff-SR as configs; the recipe that joins them is `jaxsr.methods.moediff`."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.methods.base import ScheduleConfig
from jaxsr.models.experts import EXPERTS


class TokenEncoderConfig(Strict):
    """E_2 and what is made of its tokens: attributes of `jaxsr.models.gate.TokenEncoder`. The paper gives neither width, depth nor heads.

    Attributes:
      patches: sides in pixels, the largest first.
      condition: channels that the tokens are projected to, beside z_t.
    """

    patches: tuple[int, ...] = (64, 32, 16)
    width: int = Field(384, ge=1)
    depth: int = Field(6, ge=1)
    heads: int = Field(6, ge=1)
    window: int = Field(4, ge=1)
    condition: int = Field(256, ge=1)
    remat: bool = False

    @model_validator(mode="after")
    def _divides(self) -> "TokenEncoderConfig":
        if not self.patches or list(self.patches) != sorted(set(self.patches), reverse=True) or self.patches[-1] < 1:
            raise ValueError(f"patches must fall, from at least one on, got {list(self.patches)}")
        if wrong := [patch for patch in self.patches if self.patches[0] % patch]:
            raise ValueError(f"every patch must divide the largest, {self.patches[0]}: {wrong} do not")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and heads {self.heads}")
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("patches", "width", "depth", "heads", "window", "remat")}


class ExpertConfig(Strict):
    """One expert: attributes of its network in `jaxsr.models.experts`, and its noise schedule [Eq. 5].

    Attributes:
      width: features, at every resolution; the paper gives none. The latents' own channels, or more, where noise is predicted.
      groups: of every normalisation.
    """

    width: int = Field(512, ge=2, multiple_of=2)
    groups: int = Field(32, ge=1)
    remat: bool = False
    schedule: ScheduleConfig

    @model_validator(mode="after")
    def _norms_divide(self) -> "ExpertConfig":
        if self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, got width {self.width} and groups {self.groups}")
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("width", "groups", "remat")}


def published_schedule(steps: int) -> ScheduleConfig:
    """Betas from 1e-4 to 2e-2 over `steps` steps, not rescaled: less signal is left at the end the more there are [ruling]."""
    return ScheduleConfig(kind="linear", steps=steps, beta_start=1e-4, beta_end=2e-2, rescale=False)


class ExpertsConfig(Strict):
    """E_1 centrum semiovale, E_2 sulcal and gyral cortex, E_3 the junction of grey and white matter [§II-C, §III-C]."""

    smooth: ExpertConfig = ExpertConfig(schedule=published_schedule(500))
    cortex: ExpertConfig = ExpertConfig(schedule=published_schedule(2000))
    junction: ExpertConfig = ExpertConfig(schedule=published_schedule(1000))


class MoediffWeights(Strict):
    """Where networks that were trained elsewhere are.

    Attributes:
      vqvae: the run directory or exported file of kind vqvae, in whose latents experts work; there is no training without.
      perceptual: VGG-16, as `jaxsr weights import` makes it; needed in training where there is a perceptual loss.
    """

    vqvae: Path | None = None
    perceptual: Path | None = None


NAMES = tuple(ExpertsConfig.model_fields)  # smooth, cortex, junction
NETWORKS = dict(zip(NAMES, EXPERTS, strict=True))
