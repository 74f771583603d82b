"""SPCDD as a config; the recipe is `jaxsr.methods.spcdd`, whose symbols these settings name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction, Weighting
from jaxsr.losses.adversarial import Kind
from jaxsr.methods.autoencoder import LatentsConfig
from jaxsr.methods.base import ScheduleConfig, check_sampling
from jaxsr.methods.spcdd_networks import SpcddNetworks

if TYPE_CHECKING:
    from jaxsr.methods.spcdd import Spcdd


class SpcddLosses(Strict):
    """Weights of the losses above; what is 0 is not computed.

    Attributes:
      denoising: of what the network predicts, where it is sampled.
      reconstruction: mean |x̂ − x|.
      gradient: mean |∇x̂ − ∇x|.
      histogram: distance of the distributions of intensities.
      contrast: mean difference of local standard deviations.
      structure: 1 − Dice of the extractor's masks of x̂ and of x.
      adversarial: of the generator; the discriminator's own has weight 1.
    """

    denoising: float = Field(1.0, ge=0)
    reconstruction: float = Field(1.0, ge=0)
    gradient: float = Field(0.0, ge=0)
    histogram: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)
    structure: float = Field(0.0, ge=0)
    adversarial: float = Field(0.0, ge=0)

    @property
    def of_images(self) -> dict[str, float]:
        """Those that compare images, as far as they count."""
        weights = dict(self)
        return {name: weights[name] for name in weights if name not in ("denoising", "adversarial") and weights[name]}


class DistillConfig(Strict):
    """Attributes:
    teacher: its networks, as its run has them; `weights.teacher` names that run.
    alpha, beta: α and β above.
    """

    teacher: SpcddNetworks = SpcddNetworks()
    alpha: float = Field(0.5, ge=0)
    beta: float = Field(0.5, ge=0)


class DiscriminatorConfig(Strict):
    """Attributes of `jaxsr.models.discriminator.PatchDiscriminator`, and of its game.

    Attributes:
      loss: 'hinge' or 'nonsaturating'.
      r1: γ of the penalty on its gradient at real slices; 0 is none. The norm is over all of a slice's pixels.
    """

    width: int = Field(64, ge=1)
    layers: int = Field(3, ge=1)
    spectral: bool = True
    loss: Kind = "hinge"
    r1: float = Field(0.0, ge=0)

    @property
    def least(self) -> int:
        """Pixels on a side for one logit."""
        return 3 * 2**self.layers


class SpcddWeights(Strict):
    """Where networks that were trained elsewhere are: run directories or exported files.

    Attributes:
      autoencoder: E and D; needed in latents.
      anatomy: the extractor, as it stays or, with prior.train, starts.
      teacher: whom distillation follows, with all that it has.
    """

    autoencoder: Path | None = None
    anatomy: Path | None = None
    teacher: Path | None = None


class SpcddConfig(SpcddNetworks):
    """The recipe above.

    Attributes:
      autoencoder: of the latents that `unet` works in; null in pixels.
      schedule: null: one evaluation.
      weighting: of the denoising loss: none, or min_snr with `gamma`.
      loss: of what is predicted: 'l1', as published, or 'l2'.
      residual_std, bound: in pixels, as of SR3: see `jaxsr.methods.pixels`.
      histogram: 'soft', by bins, or 'sorted', the exact distance.
      x0_loss_weight: w' above where it is sampled: 'snr', or 'none' for 1.
      distill: null: no teacher.
      discriminator: null: none.
      sampling_steps, eta: the default of `upscale`, where it is sampled.
    """

    kind: Literal["spcdd"] = "spcdd"
    autoencoder: LatentsConfig | None = None
    schedule: ScheduleConfig | None = None
    prediction: Prediction = "x0"
    weighting: Weighting = "none"
    gamma: float = Field(5.0, gt=0)
    loss: Literal["l1", "l2"] = "l1"
    residual_std: float | None = Field(None, gt=0)
    bound: float | None = Field(1.5, gt=0)
    losses: SpcddLosses = SpcddLosses()
    histogram: Literal["soft", "sorted"] = "soft"
    x0_loss_weight: Literal["snr", "none"] = "snr"
    distill: DistillConfig | None = None
    discriminator: DiscriminatorConfig | None = None
    sampling_steps: int = 20
    eta: float = Field(0.0, ge=0, le=1)
    weights: SpcddWeights = SpcddWeights()

    @model_validator(mode="after")
    def _goes_together(self) -> "SpcddConfig":
        if self.schedule:
            check_sampling(self.schedule, self.prediction, sampling_steps=self.sampling_steps)
        if (self.autoencoder is None) != (self.unet is None):
            raise ValueError("unet works in an autoencoder's latents, and plain in pixels: give autoencoder with unet, and only then")
        if self.unet and (self.schedule is None or self.residual_std):
            raise ValueError("in latents it is sampled, and of the latents themselves: give schedule, and leave residual_std null")
        if self.losses.structure and self.prior is None:
            raise ValueError("losses.structure compares what the extractor sees, and prior is null: give it, or set structure to 0")
        if self.weights.anatomy and self.prior is None:
            raise ValueError("weights.anatomy names an extractor, and prior is null: make both null, or give its sizes")
        if (self.losses.adversarial > 0) != (self.discriminator is not None):
            raise ValueError("losses.adversarial is what a discriminator says: give discriminator and a weight, or null and 0")
        if self.discriminator and self.schedule and self.prediction == "eps":
            raise ValueError("a discriminator sees x̂_0 from pure noise, which prediction 'eps' cannot tell: use 'x0' or 'v'")
        if self.distill and (self.distill.teacher.unet is None) != (self.unet is None):
            raise ValueError("distill.teacher works in pixels and its student in latents, or the other way round: give both one space")
        return self

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this: of the denoiser, times the autoencoder's factor, and of the extractor."""
        factor = self.autoencoder.multiple if self.autoencoder else 1
        return factor * SpcddNetworks.multiple.fget(self)  # type: ignore[attr-defined]

    @property
    def players(self) -> tuple[str, ...]:
        return ("discriminator",) if self.discriminator else ()

    @property
    def unpaired(self) -> bool:
        """Whether slices without a pair teach it anything."""
        return self.discriminator is not None

    def check(self, experiment: Any) -> None:
        """ValueError of the `Experiment` around it, where slices are too small for a discriminator."""
        if self.discriminator and experiment.data.crop < self.discriminator.least:
            raise ValueError(f"data.crop must be at least {self.discriminator.least} for the discriminator, got {experiment.data.crop}")

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Spcdd":
        from jaxsr.methods.spcdd import Spcdd

        return Spcdd(self, dtype)
