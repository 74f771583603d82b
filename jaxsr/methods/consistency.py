"""A student of one step a stage: consistency distillation of one of several [Song et al. 2023, Alg. 2; Song & Dhariwal 2023].

    f_θ(x_t, t) = x̂_0 of the network                                        x itself at t = 0, as v is predicted: sigma = 0 there
    x_s = signal_s x̂_0^φ + sigma_s ε̂^φ                                      one DDIM step of the student φ from t to s, times of a grid
    loss = mean ( f_θ(x_t, t) − sg f_θ(x_s, s) )²  + λ · Eq. 9              sg: no gradient

φ is frozen; θ starts as φ, on a set such as φ learnt from. What f says anywhere on one of φ's paths is then where that path ends, so one
evaluation a stage draws what φ draws in many steps. The target is θ itself, without an average [Song & Dhariwal 2023, §3.2]: with one, in
as few steps as are taken here, nothing would be propagated along the path.

More than one step is another thing than DDIM, since f is no mean: from the image that one ends with, noise anew, and on [Song et al. 2023,
Alg. 1], at every so many-th time of the grid.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction, add_noise, eps_from_x0, to_x0
from jaxsr.diffusion.sampling import Samples, draw_noise, sampling_times
from jaxsr.diffusion.schedule import Level, level_at
from jaxsr.losses.pixels import squared_errors
from jaxsr.methods.base import LossOutput, Request, Variables
from jaxsr.methods.condition import Batch
from jaxsr.methods.student import StagedConfig, Student, Task, purposes


class ConsistencyWeights(Strict):
    """`student`: the run directory or exported file of φ; needed to train."""

    student: Path | None = None


class ConsistencyConfig(StagedConfig):
    """The recipe of a one-step student; what is not said here is as for a student, and must be as φ has it.

    Attributes:
      grid: times at which φ's paths are looked at, as many as the DDIM steps that are distilled into one.
      sampling_steps: at most `grid`. eta means nothing: all noise is drawn anew.
    """

    kind: Literal["consistency"] = "consistency"
    weights: ConsistencyWeights = ConsistencyWeights()
    grid: int = Field(20, ge=2)
    prediction: Prediction = "v"
    curriculum: Literal["progressive", "uniform"] = "uniform"
    rollout_steps: int = Field(1, ge=1)
    lambda_distill: float = Field(0.0, ge=0)
    sampling_steps: int = 1

    @model_validator(mode="after")
    def _has_a_boundary(self) -> "ConsistencyConfig":
        if self.prediction != "v":
            raise ValueError(
                f"prediction must be 'v', got {self.prediction!r}: of 'x0' the answer without noise is not the image itself, and 'eps' has "
                "none in pure noise; distil a student of 'v'"
            )
        if self.grid > self.schedule.steps:
            raise ValueError(f"grid must be at most {self.schedule.steps} (the schedule's steps), got {self.grid}")
        for name in ("sampling_steps", "rollout_steps"):
            if getattr(self, name) > self.grid:
                raise ValueError(f"{name} must be at most {self.grid} (grid: no other times are learnt), got {getattr(self, name)}")
        if self.eta:
            raise ValueError(f"eta must be 0, got {self.eta:g}: between steps all noise is drawn anew")
        return self

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Consistency":
        return Consistency(self, dtype)


class Consistency(Student):
    """Upscales as a student does; parameters have the same names and shapes."""

    config: ConsistencyConfig
    one_step_draws = True  # where one of others estimates the middle of all that is plausible

    def __init__(self, config: ConsistencyConfig, dtype: jnp.dtype = jnp.float32):
        super().__init__(config, dtype)
        self.times = np.append(sampling_times(config.schedule.steps, config.grid, "trailing"), 0)  # falling, `[grid + 1]`
        self.most_steps = config.grid

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        """φ, which only the loss needs."""
        if batch is None or batch.output is None:
            return {}
        image = jnp.zeros((1, self.multiple, self.multiple, 1))
        return {"student": jax.eval_shape(lambda key: self.init(key, Batch(image, image))["params"], jax.random.key(0))}

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        draw = purposes(keys)
        task = self.task(variables, batch, draw, progress)
        i = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.config.grid))(draw["time"])
        level, after = (level_at(self.schedule, jnp.asarray(self.times)[at]) for at in (i, i + 1))
        x_t = add_noise(task.x0, task.noise, level)
        x_s = self.follow(variables["frozen"]["student"], task, x_t, level, after)
        x0 = self.end(variables["params"], task.condition, task.stage, x_t, level)
        answer = jax.lax.stop_gradient(self.end(variables["params"], task.condition, task.stage, x_s, after))
        consistency = squared_errors(x0, answer)
        distillation = self.distillation(batch, task, x0, level)
        loss = consistency.mean() + self.config.lambda_distill * distillation.mean()
        return LossOutput(loss, {"consistency": consistency.mean(), "distillation": distillation.mean()}, variables["stats"])

    def end(self, params: Any, condition: Array, stage: Array, x_t: Array, level: Level) -> Array:
        """f(x_t, t), `[B, H, W, 1]`."""
        output = self.denoise(params, condition, stage, x_t, level)
        return to_x0(self.config.prediction, output.astype(jnp.float32), x_t, level)

    def follow(self, params: Any, task: Task, x_t: Array, level: Level, after: Level) -> Array:
        """x_s, one DDIM step from `x_t` at `level` to the level `after`, x̂_0 kept in range as in sampling."""
        x0 = self.end(params, task.condition, task.stage, x_t, level)
        if bounds := self.pixels.bounds(task.condition):
            x0 = bounds(x0)
        return add_noise(x0, eps_from_x0(x0, x_t, level), after)

    def draw(self, variables: Variables, condition: Array, stage: Array, keys: Array, request: Request) -> tuple[Samples, Array]:
        """One stage, int `[B]`, by Alg. 1: what is diffused, and the image, `[B, H, W, 1]`."""
        bounds = self.pixels.bounds(condition) or (lambda x0: x0)
        times = jnp.asarray(self.times[np.arange(request.steps) * self.config.grid // request.steps])

        def step(x0: Array, i: Array) -> tuple[Array, Array]:
            level = level_at(self.schedule, jnp.broadcast_to(times[i], keys.shape))
            noise = draw_noise(keys, i, condition.shape[1:])
            x_t = jnp.where(i == 0, noise, add_noise(x0, noise, level))
            free = self.end(variables["params"], condition, stage, x_t, level)
            x0 = bounds(free)
            return x0, jnp.mean(x0 != free, axis=(1, 2, 3), dtype=jnp.float32)

        x0, clipped = jax.lax.scan(step, jnp.zeros(condition.shape, jnp.float32), jnp.arange(request.steps))
        return Samples(x0, clipped.mean(0)), self.pixels.image(x0, condition)
