"""The path of resolutions along which the student goes [teacher paper §II-B, Fig. 3, Eq. 7, §IV-D].

    I⁽ⁿ⁾ = O * G(0, σ_n),      n = 1 … N,      I⁽⁰⁾ = y,      I⁽ᴺ⁾ = O                                              [Eq. 7]
    r_n = (N − n) / (N − 1)

O is the teacher's output and y the low-resolution slice. Two blurs:

    paper      σ_n = k r_n pixels
    matched    σ_n = √(v_n² − v_HR²) / 2.355 mm,      1/v_n = 1/v_LR + (n/N) (1/v_HR − 1/v_LR)

With the paper's, stage 1 is blurrier than the input that it starts from; with the other, stage n is as sharp as a scan of voxels v_n, so
that an input of any voxel size in between enters where it belongs. Of both the last is not blurred.

    stage(v) = round(N (1/v − 1/v_LR) / (1/v_HR − 1/v_LR)), kept within 0 … N

is where voxels v enter or leave: with N = 20 from 2.0 to 0.7 mm, 1.5 mm is stage 4, so 1.5T → 3T is stages 1–4 and 3T → 7T 5–20, as
published.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.physics.blur import FWHM_PER_SIGMA, blur_slices, discrete_gaussian

REACH = 4.0  # of a kernel, in the largest σ


class StagesConfig(Strict):
    """Attributes:
    count: N.
    blur: see above.
    k: pixels, of `paper`.
    low_mm, high_mm: v_LR and v_HR; the student works on pixels of v_HR.
    """

    count: int = Field(20, ge=2)
    blur: Literal["paper", "matched"] = "matched"
    k: float = Field(2.0, gt=0)
    low_mm: float = Field(2.0, gt=0)
    high_mm: float = Field(0.7, gt=0)

    @model_validator(mode="after")
    def _gets_finer(self) -> "StagesConfig":
        if self.low_mm <= self.high_mm:
            raise ValueError(f"low_mm must be above high_mm: stages lead from low to high resolution, got {self.low_mm} and {self.high_mm}")
        return self

    def ratios(self) -> np.ndarray:
        """r_n of n = 1 … N, float32 `[N]`."""
        return np.linspace(1, 0, self.count, dtype=np.float32)

    def sizes(self) -> np.ndarray:
        """v_n in mm of n = 0 … N, `[N + 1]`: what `matched` blurs to."""
        return 1 / np.linspace(1 / self.low_mm, 1 / self.high_mm, self.count + 1)

    def sigmas(self) -> np.ndarray:
        """σ_n in pixels of n = 1 … N, `[N]`."""
        if self.blur == "paper":
            return self.k * np.linspace(1, 0, self.count)
        squares = np.append(self.sizes()[1:-1] ** 2 - self.high_mm**2, 0)
        return np.sqrt(squares) / (FWHM_PER_SIGMA * self.high_mm)

    def stage_of(self, mm: float) -> int:
        """Where voxels of `mm` enter, or leave."""
        return int(np.clip(np.rint(self.position(mm)), 0, self.count))

    def position(self, mm: float) -> float:
        """As `stage_of`, in between and beyond."""
        return self.count * (1 / mm - 1 / self.low_mm) / (1 / self.high_mm - 1 / self.low_mm)

    def between(self, from_mm: float | None, to_mm: float | None) -> range:
        """Stages to run, empty where there are none; None: from the first, to the last."""
        first = 0 if from_mm is None else self.stage_of(from_mm)
        last = self.count if to_mm is None else self.stage_of(to_mm)
        return range(first + 1, last + 1)


class Stages:
    """The targets of `config`, for slices in one batch at different stages."""

    def __init__(self, config: StagesConfig):
        self.count = config.count
        sigmas = config.sigmas()
        self._kernels = discrete_gaussian(sigmas, max(int(np.ceil(REACH * sigmas.max())), 1))
        self._ratios = config.ratios()

    def target(self, output: Array, stage: Array) -> Array:
        """I⁽ⁿ⁾ [Eq. 7]: `output`, O `[B, H, W, 1]`, at stages n = 1 … N, int `[B]`; at N it is O, to the bit."""
        return blur_slices(output, jnp.asarray(self._kernels)[stage - 1])

    def condition(self, output: Array, low: Array, stage: Array) -> Array:
        """I⁽ⁿ⁻¹⁾, which is `low`, y, at the first stage."""
        before = self.target(output, jnp.maximum(stage - 1, 1))
        return jnp.where(stage[:, None, None, None] > 1, before, low)

    def ratio(self, stage: Array) -> Array:
        """r_n, float32 `[B]`."""
        return jnp.asarray(self._ratios)[stage - 1]
