"""The mixture of experts as a config; the recipe is `jaxsr.methods.moediff`, whose equations and symbols these settings name."""

import math
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction, Weighting
from jaxsr.losses.spectra import Form
from jaxsr.methods.base import check_sampling
from jaxsr.methods.mixture import CEILING
from jaxsr.methods.moediff_networks import NAMES, ExpertsConfig, MoediffWeights, TokenEncoderConfig
from jaxsr.methods.vqvae import QuantisedConfig

if TYPE_CHECKING:
    from jaxsr.methods.moediff import Moediff


class MoediffConfig(Strict):
    """The recipe of the mixture.

    Attributes:
      vqvae: the autoencoder in whose latents it works; its maps, of the target, are what training slices come with.
      gate: a weight for each slice and expert, as published, or one for each of the latents' pixels: 'token'.
      gamma: γ of Eq. 4.
      literal: the product of Eq. 4 as printed, which sums to about 1/K, in place of weights that sum to one; in losses alone, as Eq. 9's
        sum of latents would be a third of one.
      weighting: of the diffusion loss: none (Eq. 7), or min_snr with `min_snr_gamma`.
      levels: of training. 'own', as published: each expert's t, and its noise, are drawn apart. 'matched': the t of one of them is, drawn
        for each slice, and of the others the step nearest to its noise, with the same ε. Eq. 14 then compares experts at one level. Where
        another's schedule has no such level, as E_1's has none without signal, each keeps its own t, and the slice supervises no gate.
      task: the weight of the task losses; 1 as published.
      x0_loss_weight: w' of losses on ẑ_0: 'snr', or 'none' for 1.
      perceptual: Φ of Eq. 10: VGG-16 of the latents, projected to three channels, of the decoded slice, or none.
      fourier, stft: of Eqs. 11 and 12: 'printed', squared errors of latents once more [Parseval], or 'magnitude'.
      stft_windows: of Eq. 12, in pixels of the latents.
      temperature_floor: below it T of Eq. 14 does not fall.
      diversity: the weight of Eq. 16's second term, which drives experts apart; 1 as published.
      gating_ceiling: above it w_g of Eq. 17 does not rise; the paper names none.
      warmup: share of the run in which the gate is uniform.
      routing: of `upscale`: 'all' experts, weighed by the gate, or 'top1', of each slice the one of highest weight.
      sampling_steps, eta: the default of `upscale`.
    """

    kind: Literal["moediff"] = "moediff"
    vqvae: QuantisedConfig = QuantisedConfig()
    encoder: TokenEncoderConfig = TokenEncoderConfig()
    experts: ExpertsConfig = ExpertsConfig()
    prediction: Prediction = "eps"
    weighting: Weighting = "none"
    min_snr_gamma: float = Field(5.0, gt=0)
    levels: Literal["own", "matched"] = "own"
    gate: Literal["slice", "token"] = "slice"
    gamma: float = Field(0.1, ge=0)
    literal: bool = False
    task: float = Field(1.0, ge=0)
    x0_loss_weight: Literal["snr", "none"] = "snr"
    perceptual: Literal["vgg_latent", "vgg_image", "none"] = "vgg_latent"
    fourier: Form = "printed"
    stft: Form = "printed"
    stft_windows: tuple[int, ...] = (8, 16, 32)
    temperature_floor: float = Field(1e-3, gt=0)
    diversity: float = Field(1.0, ge=0)
    gating_ceiling: float = Field(CEILING, gt=0)
    warmup: float = Field(0.2, ge=0, le=1)
    routing: Literal["all", "top1"] = "all"
    sampling_steps: int = 50
    eta: float = Field(0.0, ge=0, le=1)
    weights: MoediffWeights = MoediffWeights()

    @model_validator(mode="after")
    def _goes_together(self) -> "MoediffConfig":
        for _, expert in self.experts:
            check_sampling(expert.schedule, self.prediction, sampling_steps=self.sampling_steps)
            if self.prediction == "eps" and expert.width < self.vqvae.network.embedding:
                raise ValueError(
                    f"an expert of width {expert.width} cannot answer the noise of {self.vqvae.network.embedding} channels, as its last "
                    "layer is linear: make it as wide, or prediction v"
                )
        if not self.stft_windows or any(window < 2 or window % 2 for window in self.stft_windows):
            raise ValueError(f"stft_windows are even, from 2 on, at least one of them, got {list(self.stft_windows)}")
        if self.perceptual == "none" and self.weights.perceptual:
            raise ValueError("weights.perceptual names a network, and perceptual is none: make the first null, or the second vgg_latent")
        return self

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this: of the largest patch, and of two halvings of the latents."""
        return math.lcm(self.encoder.patches[0], 4 * self.vqvae.multiple)

    @property
    def maps(self) -> tuple[str, ...]:
        """What training slices must have beside high and low."""
        return self.vqvae.maps

    @property
    def guided_by(self) -> tuple[str, ...]:
        """What upscaling takes beside the scan."""
        return ()

    @property
    def by_progress(self) -> bool:
        """Whether training depends on how long it is to last."""
        return self.warmup > 0

    def check(self, experiment: Any) -> None:
        """ValueError of the `Experiment` around it, where slices are smaller than Eq. 12's windows, or experts cannot lie on the mesh."""
        least = max(self.stft_windows) * self.vqvae.multiple
        if experiment.data.crop < least:
            raise ValueError(f"data.crop must be at least {least} for the largest of method.stft_windows, got {experiment.data.crop}")
        if experiment.mesh.expert not in (-1, 1, len(NAMES)):
            raise ValueError(f"mesh.expert must be 1, or {len(NAMES)} for a device to each expert, got {experiment.mesh.expert}")

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Moediff":
        from jaxsr.methods.moediff import Moediff

        return Moediff(self, dtype)
