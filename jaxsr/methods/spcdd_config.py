"""SPCDD as a config; the recipe is `jaxsr.methods.spcdd`, whose symbols these settings name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction, Weighting
from jaxsr.losses.adversarial import Kind
from jaxsr.losses.intensity import CONTRAST_WINDOW
from jaxsr.methods.autoencoder import LatentsConfig
from jaxsr.methods.base import ScheduleConfig, check_sampling
from jaxsr.methods.spcdd_networks import SpcddNetworks
from jaxsr.models.discriminator import least_side

if TYPE_CHECKING:
    from jaxsr.methods.spcdd import Spcdd


class SpcddLosses(Strict):
    """Weights λ_i of the recipe's losses, each a mean over slices; what is 0 is not computed.

    Attributes:
      denoising: of what the network predicts, where it is sampled.
      reconstruction: mean |x̂ − x|.
      gradient: mean |∇x̂ − ∇x|.
      histogram: distance of the distributions of intensities.
      contrast: mean difference of local standard deviations.
      structure: 1 − Dice of the extractor's masks of x̂ and of x, or of y where x is not known.
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
    alpha, beta: α, of outputs, and β, of features, in Algorithm 1.
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
        return least_side(self.layers)


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
    """The recipe of `jaxsr.methods.spcdd`.

    Attributes:
      autoencoder: of the latents that `unet` works in; null in pixels.
      schedule: null: one evaluation.
      weighting: of the denoising loss: none, or min_snr with `gamma`.
      loss: of what is predicted: 'l1', as published, or 'l2'.
      residual_std, bound: in pixels, as of SR3: see `jaxsr.methods.pixels`.
      histogram: 'soft', by bins, or 'sorted', the exact distance.
      x0_loss_weight: w' of losses on x̂_0, where it is sampled: 'snr', min(1, SNR), or 'none', 1.
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
        for name, config in (("anatomy", self.prior), ("autoencoder", self.autoencoder), ("teacher", self.distill)):
            if getattr(self.weights, name) and config is None:
                key = {"anatomy": "prior", "teacher": "distill"}.get(name, name)
                raise ValueError(f"weights.{name} names one, and {key} is null: make both null, or give its sizes")
        if (self.losses.adversarial > 0) != (self.discriminator is not None):
            raise ValueError("losses.adversarial is what a discriminator says: give discriminator and a weight, or null and 0")
        if self.discriminator and self.schedule and self.prediction == "eps":
            raise ValueError("a discriminator sees x̂_0 from pure noise, which prediction 'eps' cannot tell: use 'x0' or 'v'")
        if self.distill and (self.distill.teacher.unet is None) != (self.unet is None):
            raise ValueError("distill.teacher works in pixels and its student in latents, or the other way round: give both one space")
        if self.distill and self.distill.beta and self.unet and self.distill.teacher.unet:
            levels = [len(unet.multipliers) for unet in (self.unet, self.distill.teacher.unet)]
            if levels[0] != levels[1]:
                raise ValueError(f"middles of UNets of {levels[0]} and {levels[1]} levels differ in size: set distill.beta to 0")
        return self

    @model_validator(mode="after")
    def _does_something(self) -> "SpcddConfig":
        """Neither nothing at all, nor settings of a sampling that there is not."""
        learnt = [*self.losses.of_images, *["denoising"] * (self.schedule is not None and self.losses.denoising > 0)]
        taught = self.distill is not None and self.distill.alpha + self.distill.beta > 0
        if not (learnt or taught or self.discriminator):
            raise ValueError("losses and distill are all 0 or null, and nothing would be learnt: give one of them a weight")
        of_sampling = ("prediction", "weighting", "gamma", "loss", "x0_loss_weight", "sampling_steps", "eta")
        odd = [name for name in of_sampling if getattr(self, name) != type(self).model_fields[name].default]
        if self.schedule is None and odd:
            raise ValueError(f"{' and '.join(odd)} say how it is sampled, and schedule is null, so it is evaluated once: leave them out")
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
        """ValueError of the `Experiment` around it, where slices are too small or do not suit the teacher, or have no halves."""
        crop = experiment.data.crop
        if self.discriminator and crop < self.discriminator.least:
            raise ValueError(f"data.crop must be at least {self.discriminator.least} for the discriminator, got {crop}")
        if self.losses.contrast and crop < CONTRAST_WINDOW:
            raise ValueError(f"data.crop must be at least {CONTRAST_WINDOW} for losses.contrast, got {crop}")
        factor = self.autoencoder.multiple if self.autoencoder else 1
        if self.distill and crop % (factor * self.distill.teacher.multiple):
            raise ValueError(f"data.crop must be a multiple of {factor * self.distill.teacher.multiple} for the teacher, got {crop}")
        halves = experiment.data.paired < 1 or experiment.data.unpaired
        if self.discriminator and halves and experiment.train.batch_size % 2:
            raise ValueError(f"train.batch_size must be even, as half of it has pairs, got {experiment.train.batch_size}")

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Spcdd":
        from jaxsr.methods.spcdd import Spcdd

        return Spcdd(self, dtype)
