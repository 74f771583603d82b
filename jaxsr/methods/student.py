"""The student: a small network that goes from low to high resolution in N stages, taught by the teacher [teacher paper §II-B, Fig. 3].

    train      mean (ε − ε_θ(x_t, √ᾱ_t; I⁽ⁿ⁻¹⁾, n))²                    x_t: I⁽ⁿ⁾ with noise                     [Eq. 8]
               + λ mean w 1/K Σ_k r_n (x̂_0 − F_k)²                      x̂_0: what x_t and ε_θ say of I⁽ⁿ⁾         [Eq. 9]
    sample     stage after stage, each one's output the condition of the next, from y

at a stage n that is drawn for every slice: the mean over stages is the sum of Eq. 9 over N. I⁽ⁿ⁾ is the teacher's output, blurred
(`jaxsr.methods.stages`); F_1 … F_K are its denoised images on the way there, K = 199 of 200 sampling steps. Only their mean F̄ and one
number are needed of them, since

    1/K Σ_k (x̂_0 − F_k)² = (x̂_0 − F̄)² + 1/K Σ_k (F_k − F̄)²,

the same value and gradient at 1/K of the memory. w = min(1, SNR), as x̂_0 has 1/SNR times the squared error of ε̂.

It works in pixel space, on SR3's network: no encoder, no b, no g. Which stage it is at is one more term of the noise level's embedding. In
use, voxel sizes say which stages are run; all of them, and the sampling steps of each, are one compiled program.
"""

import functools
from typing import Any, Literal, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction, add_noise, target, to_x0, x0_loss_weight
from jaxsr.diffusion.sampling import Samples, draw_noise
from jaxsr.diffusion.schedule import Level, continuous_level
from jaxsr.losses.pixels import squared_errors
from jaxsr.methods.base import LossOutput, Part, Precomputed, Request, ScheduleConfig, UpscaleOutput, Variables, check_sampling
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.pixels import PixelNetworkConfig, Pixels
from jaxsr.methods.stages import Stages, StagesConfig
from jaxsr.models.sr3 import Sr3UNet
from jaxsr.nn.convolution import DENSE


class StudentNetworkConfig(PixelNetworkConfig):
    """The network of the paper's text, 271,420,673 parameters, if nothing is said; that of its Table IV has 3 blocks, and attention at 4,
    8, 16 and 32: 363,834,305."""

    multipliers: tuple[int, ...] = (1, 2, 2, 4, 4, 8, 8, 16)
    attention_at: tuple[int, ...] = (16,)


class StagedConfig(Strict):
    """A network in pixel space that goes from stage to stage.

    Attributes:
      stage_conditioning: the network is told the stage.
      curriculum: 'progressive' opens stage n after (n − 1)/N of the run, and goes on to draw from all that are open; 'uniform' opens all.
      rollout: the probability that a training slice's condition is the student's own output of the stage before, as it will be in use, in
        place of I⁽ⁿ⁻¹⁾; each training step then samples once, in `rollout_steps`.
      lambda_distill: λ of Eq. 9.
      x0_loss_weight: w above: 'snr', or 'none' for 1.
      residual_std: null diffuses I⁽ⁿ⁾ (published); a number s diffuses (I⁽ⁿ⁾ − condition) / s.
      bound: x̂_0 is kept within ± this while sampling; null leaves it free.
      sampling_steps, eta: of every stage, the default of `upscale`.
    """

    network: StudentNetworkConfig = StudentNetworkConfig()
    stages: StagesConfig = StagesConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = "eps"
    stage_conditioning: bool = True
    curriculum: Literal["progressive", "uniform"] = "progressive"
    rollout: float = Field(0.0, ge=0, le=1)
    rollout_steps: int = Field(2, ge=1)
    lambda_distill: float = Field(1.0, ge=0)
    x0_loss_weight: Literal["snr", "none"] = "snr"
    residual_std: float | None = Field(None, gt=0)
    bound: float | None = Field(1.5, gt=0)
    sampling_steps: int = 10
    eta: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _samples(self) -> Self:
        check_sampling(self.schedule, self.prediction, sampling_steps=self.sampling_steps, rollout_steps=self.rollout_steps)
        return self

    @property
    def multiple(self) -> int:
        return self.network.multiple

    @property
    def by_progress(self) -> bool:
        """Whether training depends on how long it is to last."""
        return self.curriculum == "progressive"

    @property
    def pixel(self) -> float:
        """mm of the pixels that it works on."""
        return self.stages.high_mm

    @property
    def between_mm(self) -> tuple[float, float]:
        """Finest and coarsest voxels that it goes between."""
        return self.stages.high_mm, self.stages.low_mm


class StudentConfig(StagedConfig):
    """The student's recipe."""

    kind: Literal["student"] = "student"

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Student":
        return Student(self, dtype)


class Task(NamedTuple):
    """What a training slice is to be brought to.

    Attributes:
      stage: n, int `[B]`.
      condition: the image before, `[B, H, W, 1]`.
      x0: what is diffused of I⁽ⁿ⁾, `[B, H, W, 1]`.
      noise: for that.
    """

    stage: Array
    condition: Array
    x0: Array
    noise: Array


def purposes(keys: Array) -> dict[str, Array]:
    """Keys of slices, one for each thing that training draws."""
    names = ("stage", "time", "between", "noise", "rollout", "own")
    return {name: jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i, name in enumerate(names)}


class Student:
    """The recipe of the equations above; a frozen config in, pure functions out. Parameters are those of `network`, and `stage`, a vector
    for each stage, zero at the start."""

    def __init__(self, config: StagedConfig, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.schedule = config.schedule.build()
        self.network = Sr3UNet(**dict(config.network), dtype=dtype)
        self.pixels = Pixels(config.residual_std, config.bound)
        self.stages = Stages(config.stages)
        self.multiple = config.multiple
        self.default_request = Request(config.sampling_steps, config.eta)
        self.most_steps = config.schedule.steps
        self.pixel = config.pixel

    def init(self, key: Array, batch: Batch) -> Variables:
        level = jnp.ones(batch.low.shape[0])
        params = {"network": self.network.init(key, batch.low, batch.low, level)["params"]}
        if self.config.stage_conditioning:
            table = jnp.zeros((self.stages.count, self.config.network.width))
            params["stage"] = nn.LogicallyPartitioned(table, (None, DENSE[1]))
        return {"params": params, "stats": {}}

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        return {}

    def precomputed(self, size: int) -> Precomputed:
        image = (size, size, 1)
        return Precomputed("distilled", {"low": image, "output": image, "mean_map": image, "spread": ()}, required=True)

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        config = self.config
        draw = purposes(keys)
        task = self.task(variables, batch, draw, progress)
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.schedule.steps + 1))(draw["time"])
        level = continuous_level(self.schedule, t, jax.vmap(jax.random.uniform)(draw["between"]))
        x_t = add_noise(task.x0, task.noise, level)
        output = self.denoise(variables["params"], task.condition, task.stage, x_t, level)
        denoising = squared_errors(output, target(config.prediction, task.x0, task.noise, level))  # Eq. 8
        distillation = self.distillation(batch, task, to_x0(config.prediction, output.astype(jnp.float32), x_t, level), level)
        loss = denoising.mean() + config.lambda_distill * distillation.mean()
        return LossOutput(loss, {"denoising": denoising.mean(), "distillation": distillation.mean()}, variables["stats"])

    def task(self, variables: Variables, batch: Batch, draw: dict[str, Array], progress: Array) -> "Task":
        """What each slice of the batch is trained at: one stage, to be reached from the one before or, by chance, from what the student
        itself makes of that one's condition."""
        assert batch.output is not None
        stage = self.draw_stages(draw["stage"], progress)
        condition = self.stages.condition(batch.output, batch.low, stage)
        if self.config.rollout:
            rolled = jax.vmap(lambda key: jax.random.bernoulli(key, self.config.rollout))(draw["rollout"]) & (stage > 1)
            own = self._own(variables, batch, stage - 1, draw["own"])
            condition = jnp.where(rolled[:, None, None, None], own, condition)
        x0 = self.pixels.diffused(self.stages.target(batch.output, stage), condition)
        return Task(stage, condition, x0, draw_noise(draw["noise"], 0, x0.shape[1:]))

    def distillation(self, batch: Batch, task: "Task", x0: Array, level: Level) -> Array:
        """Eq. 9 of the estimates `x0` `[B, H, W, 1]`, `[B]`."""
        assert batch.mean_map is not None
        assert batch.spread is not None
        distance = squared_errors(self.pixels.image(x0, task.condition), batch.mean_map) + batch.spread  # 1/K Σ_k (x̂_0 − F_k)²
        weight = x0_loss_weight(level) if self.config.x0_loss_weight == "snr" else 1.0
        return self.stages.ratio(task.stage) * weight * distance

    def draw_stages(self, keys: Array, progress: Array) -> Array:
        """Of training slices, int `[B]` in 1 … N, alike likely among those that are open at `progress`, 0 … 1 of the run."""
        count = self.stages.count
        opened = jnp.int32(count)
        if self.config.curriculum == "progressive":
            opened = jnp.clip(jnp.floor(progress * count).astype(jnp.int32) + 1, 1, count)
        return jax.vmap(lambda key: jax.random.randint(key, (), 1, opened + 1))(keys)

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        return self._run(variables, condition, keys, request, keep=False)[0]

    def path(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> tuple[UpscaleOutput, Array]:
        """What `upscale` gives, and the outputs of all stages that were run, `[n, B, H, W, 1]`."""
        output, images = self._run(variables, condition, keys, request, keep=True)
        return output, jnp.zeros((0, *condition.low.shape)) if images is None else images

    def _run(
        self, variables: Variables, condition: Condition, keys: Array, request: Request, keep: bool
    ) -> tuple[UpscaleOutput, Array | None]:
        """`keep`: the outputs of all stages too, which take their memory.

        Stages are those between `from_mm` and `to_mm` of the request. Noise is keyed by the stage's own number, so that stages 1 – 4, and
        then 5 – 20 of what came out, are stages 1 – 20.
        """
        stages = self.config.stages.between(request.from_mm, request.to_mm)
        if not stages:
            return UpscaleOutput(condition.low, {"clipped": jnp.zeros(len(keys))}), None

        def run(image: Array, stage: Array) -> tuple[Array, tuple[Array, Array | None]]:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, stage)
            samples, image = self.draw(variables, image, jnp.broadcast_to(stage, keys.shape), own, request)
            return image, (samples.clipped, image if keep else None)

        image, (clipped, images) = jax.lax.scan(run, condition.low, jnp.arange(stages.start, stages.stop))
        return UpscaleOutput(image, {"clipped": clipped.mean(0)}), images

    def idle(self, request: Request) -> bool:
        """Whether there is no stage to run."""
        return not self.config.stages.between(request.from_mm, request.to_mm)

    def parts(self, size: int) -> dict[str, Part]:
        def shape(*dimensions: int) -> Any:
            return jax.ShapeDtypeStruct((1, *dimensions), jnp.float32)

        image = shape(size, size, 1)
        params = jax.eval_shape(self.init, jax.random.key(0), Batch(image, image))["params"]
        parts = {"denoiser": Part(self.network.apply, {"params": params["network"]}, (image, image, shape()))}
        if "stage" in params:
            look = lambda variables, stage: jnp.asarray(nn.meta.unbox(variables)["params"]["stage"])[stage]  # noqa: E731
            parts["stage embedding"] = Part(look, {"params": {"stage": params["stage"]}}, (jax.ShapeDtypeStruct((1,), jnp.int32),))
        return parts

    def _own(self, variables: Variables, batch: Batch, stage: Array, keys: Array) -> Array:
        """What the student makes of the ideal condition at `stage`, which is 0 where nobody asks; no gradient."""
        assert batch.output is not None
        stage = jnp.maximum(stage, 1)
        fixed = jax.lax.stop_gradient(variables)
        condition = self.stages.condition(batch.output, batch.low, stage)
        request = Request(self.config.rollout_steps, self.config.eta)
        return jax.lax.stop_gradient(self.draw(fixed, condition, stage, keys, request)[1])

    def draw(self, variables: Variables, condition: Array, stage: Array, keys: Array, request: Request) -> tuple[Samples, Array]:
        """One stage, int `[B]`: what is diffused, and the image."""
        denoise = functools.partial(self.denoise, variables["params"], condition, stage)
        return self.pixels.sampler(self.schedule, self.config.prediction, denoise, condition).draw(keys, request)

    def denoise(self, params: Any, condition: Array, stage: Array, x_t: Array, level: Level) -> Array:
        """What the network says of `x_t` at `stage`, int `[B]`."""
        extra = jnp.asarray(params["stage"])[stage - 1] if self.config.stage_conditioning else None
        return jnp.asarray(self.network.apply({"params": params["network"]}, x_t, condition, level.signal, extra))
