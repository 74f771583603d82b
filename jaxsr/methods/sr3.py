"""SR3: conditional diffusion in pixel space [Saharia et al. 2021; the baseline of teacher paper §IV-B].

    train      ‖ε − ε_θ(√ᾱ x_0 + √(1 − ᾱ) ε, y, √ᾱ)‖₁,  √ᾱ uniform between the neighbours of a uniform t      [SR3, Eqs. 6–7, Alg. 1]
    sample     from pure noise by posterior steps, x̂_0 kept in range at each                                   [SR3, Eqs. 8–11, Alg. 2]

The published recipe diffuses the target x_0 itself. With `residual_std` s, what is diffused is (target − y) / s: the low-resolution
image already holds nearly everything, and a small network need not learn to copy it. `prediction` x0 or v then make a few sampling
steps, even one, useful, where ε-prediction from nearly pure noise is ill-conditioned. With `context` the condition is a slab: the slice and
its neighbours, which show what lies through it. With `fused` training sees cubes, and compares what `upscale` makes of them, the mean over
slices across three axes, as the teacher's paper averages them; that training should know of it is ours. With `passes` the network is shown
that mean too, and says better: it conditions itself on its own estimate, as Chen, Zhang & Hinton 2023 (Analog Bits, §3.2) do from step to
step, only that the estimate here is of the whole volume, so that slices across each axis learn what those across the others made.
"""

import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.data.pairs import steps_beside
from jaxsr.diffusion.process import Prediction, add_noise, target
from jaxsr.diffusion.sampling import draw_noise
from jaxsr.diffusion.schedule import Level, continuous_level
from jaxsr.losses.cubes import over_axes, slabs
from jaxsr.losses.pixels import ERRORS
from jaxsr.methods.base import LossOutput, Part, Request, Sampler, ScheduleConfig, UpscaleOutput, Variables, check_sampling
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.pixels import PixelNetworkConfig, Pixels
from jaxsr.models.sr3 import Sr3UNet

# Of what a scan's quality has: the logarithm is 0 of a typical scan. Trained weights go by these numbers, whatever `TYPICAL` becomes.
TOLD_AS_ONE = (1.6, 1.6, 1.6, 0.035, 1.0)
EASY = 0.05  # of the variance of a residual that `residual_std` stands for: slices that lack less than that hardly count


class Sr3NetworkConfig(PixelNetworkConfig):
    """The published network for one channel, 97,804,033 parameters, if nothing is said."""

    dropout: float = Field(0.2, ge=0, lt=1)


class Sr3Weights(Strict):
    """`sr3`: what training starts from: a run directory, an exported file, or `standard`, the model that comes with jaxsr."""

    sr3: Path | None = None


class Sr3Config(Strict):
    """SR3's recipe.

    Attributes:
      residual_std: null diffuses the target (published); a number s diffuses (target − condition) / s.
      loss: 'l1' (published) or 'l2', averaged over pixels, on what `prediction` names.
      relative: a slice's loss is divided by the mean square of its x_0, plus `EASY`: what counts is the share of a residual that is left,
        as decibels count it, so that slices that lack little count as much as those that lack more. Of a residual only.
      relative_to: 'slice', or 'head': it is by the mean square of what the slice's head lacks where there is tissue, as decibels of a
        whole head count it: within a head, slices that lack more count more, and those with much air less.
      context: slices of the low-resolution volume on either side that the network is shown beside the one that it upscales; 0: published.
      scale_conditioning: the network is told how much coarser than the target's the scan's voxels are, along rows, columns and through the
        slice: one network for many scans need not find out from each what k-space it lacks.
      quality_conditioning: the network is told how sharp and how noisy the scan is, which a few voxels do not say and which it takes for
        granted else: how much of what it sees is noise, and how much there may be where the scan sees nothing.
      shrink: the network is shown √ᾱ x_t, what x_t says of x_0 by itself if that is of unit variance, in place of x_t: from pure noise it
        then sees the condition alone.
      terminal: share of the training slices that are seen at t = T, from where one sampling step goes all the way; the others at any t.
      fused: training is on cubes (`jaxsr.data.cubes`), and of those that are seen at t = T it is the mean over the slices across three axes
        that is compared with the truth, as that is what `upscale` makes: what two of three can see, they learn to say half as loud again.
      passes: times that `upscale` goes over a volume: in the second the network is shown the mean that the first made, in one sampling
        step, as a residual. No gradient goes through the first.
      first_pass: share of cubes that are trained on the first of two passes.
      axes_conditioning: the network is told over how many axes the mean is taken: 3, or 1 where a scan has slices of square pixels across
        one axis only, which has to say all by itself. A volume of stacks of slices that holds no cube is trained on for 1.
      single_axis: share of other cubes that are too; half as many are for 2.
      pixels: mm, finest and coarsest that the network is meant for (`jaxsr.upscale.plan`); null: those of the target, whatever they are.
      bound: x̂_0 is kept within ± this while sampling (1 is the published sampler); null leaves it free.
      sampling_steps, eta: the default of `upscale`; 2000 and 1 are the published sampler.
      sharp_steps: sampling steps of `upscale --mode sharp`; null: there are no modes.
    """

    kind: Literal["sr3"] = "sr3"
    weights: Sr3Weights = Sr3Weights()
    network: Sr3NetworkConfig = Sr3NetworkConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = "eps"
    loss: Literal["l1", "l2"] = "l1"
    relative: bool = False
    relative_to: Literal["slice", "head"] = "slice"
    residual_std: float | None = Field(None, gt=0)
    context: int = Field(0, ge=0, le=8)
    scale_conditioning: bool = False
    quality_conditioning: bool = False
    shrink: bool = False
    terminal: float = Field(0.0, ge=0, le=1)
    fused: bool = False
    passes: int = Field(1, ge=1, le=2)
    first_pass: float = Field(0.3, ge=0, le=1)
    axes_conditioning: bool = False
    single_axis: float = Field(0.0, ge=0, le=0.6)
    pixels: tuple[float, float] | None = None
    bound: float | None = Field(1.5, gt=0)
    sampling_steps: int = 100
    sharp_steps: int | None = None
    eta: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _samples(self) -> "Sr3Config":
        check_sampling(self.schedule, self.prediction, sampling_steps=self.sampling_steps)
        if self.relative and not (self.residual_std and self.loss == "l2"):
            raise ValueError("relative is of the squares of a residual: give residual_std and loss l2, or leave it out")
        if self.relative_to == "head" and not self.relative:
            raise ValueError("relative_to says of what the loss is a share: set relative=true, or leave it out")
        if self.fused and not self.terminal:
            raise ValueError("fused is of what is seen at t = T: give a share of that, terminal, above 0")
        if (self.passes > 1 or self.axes_conditioning) and not self.fused:
            raise ValueError("passes and axes_conditioning are of the mean over three axes: set fused=true, or leave them out")
        if self.passes > 1 and not self.residual_std:
            raise ValueError("passes show the network what it makes of a residual: give residual_std, or passes 1")
        if beside := [key for key in ("axes_conditioning", "quality_conditioning") if getattr(self, key) and not self.scale_conditioning]:
            raise ValueError(f"{beside[0]} is told beside the scale: set scale_conditioning=true, or leave it out")
        if self.single_axis and not self.axes_conditioning:
            raise ValueError(
                "single_axis is of a network that is told over how many axes the mean is: set axes_conditioning=true, or single_axis 0"
            )
        if self.sharp_steps:
            check_sampling(self.schedule, self.prediction, sharp_steps=self.sharp_steps)
        if self.pixels and not 0 < self.pixels[0] <= self.pixels[1]:
            raise ValueError(f"pixels are the finest and the coarsest, above 0, got {list(self.pixels)}")
        return self

    @property
    def multiple(self) -> int:
        return self.network.multiple

    def check(self, experiment: Any) -> None:
        """ValueError of the `Experiment` around it, where what it is trained on are no whole cubes."""
        if not self.fused:
            return
        data, train, slices = experiment.data, experiment.train, 3 * experiment.data.crop
        of = f"{slices} slices to a cube of data.crop voxels a side, for method.fused"
        if train.batch_size % slices or train.accumulate > 1:
            raise ValueError(
                f"train.batch_size must be a multiple of {of}, and train.accumulate 1; got {train.batch_size}, {train.accumulate}"
            )
        if data.draws % (slices * data.window):
            raise ValueError(f"data.draws must be a multiple of {slices * data.window}: data.window times {of}; got {data.draws}")
        if varied := [name for name in ("rotation", "scale", "elastic") if getattr(data.augment, name, 0)]:
            raise ValueError(f"data.augment: slices of a cube stay as they lie, for method.fused: set {' and '.join(varied)} to 0")
        if data.maps:
            raise ValueError(f"data.maps: cubes have none, for method.fused: set it to [], got {list(data.maps)}")

    def build(self, dtype: jnp.dtype = jnp.float32) -> "Sr3":
        return Sr3(self, dtype)


class Sr3:
    """The recipe of the equations above; a frozen config in, pure functions out."""

    def __init__(self, config: Sr3Config, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.schedule = config.schedule.build()
        self.network = Sr3UNet(**dict(config.network), scale_conditioning=config.scale_conditioning, dtype=dtype)
        self.pixels = Pixels(config.residual_std, config.bound)
        self.multiple, self.context, self.pixel_range = config.multiple, config.context, config.pixels
        self.scale_conditioning, self.axes_conditioning, self.passes = config.scale_conditioning, config.axes_conditioning, config.passes
        self.quality_conditioning = config.quality_conditioning
        self.default_request = Request(config.sampling_steps, config.eta)
        self.most_steps = config.schedule.steps

    def init(self, key: Array, batch: Batch) -> Variables:
        level = jnp.ones(batch.low.shape[0])
        shown = jnp.zeros((*batch.low.shape[:3], self._shown_channels))
        return {"params": self.network.init(key, batch.low, shown, level, scale=self._ones_told(batch.low.shape[0]))["params"], "stats": {}}

    def loss(self, variables: Variables, batch: Batch, keys: Array, progress: Array) -> LossOutput:
        names = ("time", "between", "noise", "dropout", "axes", "first")
        draw = {name: jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i, name in enumerate(names)}
        x0 = self.pixels.diffused(batch.high, batch.low)
        t, last = self._times(draw["time"], x0.shape[1])
        level = continuous_level(self.schedule, t, jax.vmap(jax.random.uniform)(draw["between"]))

        noise = draw_noise(draw["noise"], 0, x0.shape[1:])
        condition, axes = batch.condition, self._axes(draw["axes"], batch)
        if axes is not None:
            condition = condition._replace(axes=axes)
        if self.config.passes > 1:
            condition = condition._replace(estimate=self._estimate(variables, condition, draw["first"], draw["noise"]))
        shown, told = self._shown(condition), self._told(condition)
        output = self._denoise(variables, shown, told, add_noise(x0, noise, level), level, dropout=draw["dropout"])
        misses = output.astype(jnp.float32) - target(self.config.prediction, x0, noise, level)
        if self.config.fused:
            misses = jnp.where(last[:, None, None, None], over_axes(misses, axes), misses)
        errors = ERRORS[self.config.loss](misses, jnp.zeros_like(misses))
        if self.config.relative:
            errors = errors / (self._lacking(batch, x0) + EASY)
        return LossOutput(errors.mean(), {}, variables["stats"])

    def _lacking(self, batch: Batch, x0: Array) -> Array:
        """The mean square of x_0, `[B]`: over the slice, air and all, or over the tissue of its head."""
        if self.config.relative_to == "slice":
            return jnp.mean(jnp.square(x0), axis=(1, 2, 3))
        assert batch.lacks is not None
        assert self.config.residual_std
        return jnp.square(batch.lacks / self.config.residual_std)

    def upscale(self, variables: Variables, condition: Condition, keys: Array, request: Request) -> UpscaleOutput:
        samples, image = self.sampler(variables, condition).draw(keys, request)
        return UpscaleOutput(image, {"clipped": samples.clipped})

    def sampler(self, variables: Variables, condition: Condition) -> Sampler:
        denoise = functools.partial(self._denoise, variables, self._shown(condition), self._told(condition))
        return self.pixels.sampler(self.schedule, self.config.prediction, denoise, condition.low)

    def frozen(self, batch: Batch | None = None) -> dict[str, Any]:
        return {}

    def precomputed(self, size: int) -> None:
        return None

    def parts(self, size: int) -> dict[str, Part]:
        image, level = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
        shown, told = jax.ShapeDtypeStruct((1, size, size, self._shown_channels), jnp.float32), self._ones_told(1)
        variables = jax.eval_shape(functools.partial(self.network.init, scale=told), jax.random.key(0), image, shown, level)
        return {"denoiser": Part(functools.partial(self.network.apply, scale=told), variables, (image, shown, level))}

    def _times(self, keys: Array, side: int) -> tuple[Array, Array]:
        """t of training slices, int `[B]` in 1 … T, and which of them are seen at T since `terminal` says so, of a cube all or none; of the
        others any t is alike likely."""
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.schedule.steps + 1))(keys)
        last = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), self.config.terminal))(keys)
        if self.config.fused:
            last = _of_cubes(last, side)
        return jnp.where(last, self.schedule.steps, t), last

    def _axes(self, keys: Array, batch: Batch) -> Array | None:
        """Over how many axes the mean is taken that training slices are for, `[B]`; None: all three, and nobody is told."""
        if not self.config.axes_conditioning:
            return None
        assert batch.axes is not None
        side, share = batch.low.shape[1], self.config.single_axis
        chance = _of_cubes(jax.vmap(jax.random.uniform)(keys), side)
        third = jnp.arange(chance.shape[0]) // side % 3 == 2  # which has no part in a mean over two
        two = jnp.minimum(batch.axes, jnp.where(third, 1, 2))
        return jnp.where(chance < share, 1.0, jnp.where(chance < 1.5 * share, two, batch.axes))

    def _estimate(self, variables: Variables, condition: Condition, keys: Array, noise: Array) -> Array:
        """What a pass before made of training cubes, as `Condition.estimate` has it; of a share of them there was none."""
        slab = self._slab(condition)
        first = self.sampler(jax.lax.stop_gradient(variables), condition._replace(estimate=slab))
        made = over_axes(first.draw(noise, Request(1))[1], condition.axes)
        # Beyond the cube the volume goes on, its estimate does not: there the outermost slice's residual stands for those beyond.
        made = slab + slabs(made - condition.low, steps_beside(self.config.context))
        begins = _of_cubes(jax.vmap(lambda key: jax.random.bernoulli(key, self.config.first_pass))(keys), slab.shape[1])
        return jnp.where(begins[:, None, None, None], slab, made)

    @property
    def _shown_channels(self) -> int:
        """Of `_shown`: a slab, and one more where there are two passes."""
        return (1 + 2 * self.config.context) * self.config.passes

    def _ones_told(self, count: int) -> Array | None:
        """As `_told` of so many slices, to initialise the network."""
        return jnp.ones((count, 3 + self.axes_conditioning + 5 * self.quality_conditioning)) if self.scale_conditioning else None

    def _slab(self, condition: Condition) -> Array:
        """What the network sees of the low-resolution volume, `[B, H, W, 1 + 2 context]`."""
        if not self.config.context:
            return condition.low
        assert condition.beside is not None
        return jnp.concatenate([condition.low, condition.beside], axis=-1)

    def _shown(self, condition: Condition) -> Array:
        """That, and in units of x_0 what the pass before made of it."""
        slab = self._slab(condition)
        if self.config.passes == 1:
            return slab
        assert condition.estimate is not None
        return jnp.concatenate([slab, self.pixels.diffused(condition.estimate, slab)], axis=-1)

    def _told(self, condition: Condition) -> Array | None:
        """The scale, how much more than the mean over three axes tells a slice has to say by itself, the quality: above 0, `[B, 3…9]`."""
        if not self.scale_conditioning:
            return None
        assert condition.scale is not None
        told = [condition.scale]
        if self.axes_conditioning:
            assert condition.axes is not None
            told.append(3 / condition.axes[:, None])
        if self.quality_conditioning:
            assert condition.quality is not None
            told.append(condition.quality / jnp.array(TOLD_AS_ONE))
        return jnp.concatenate(told, axis=-1)

    def _denoise(
        self, variables: Variables, shown: Array, told: Array | None, x_t: Array, level: Level, dropout: Array | None = None
    ) -> Array:
        """What the network says of `x_t`; with `dropout` (keys `[B]`, training) each slice has masks of its own."""
        params = {"params": variables["params"]}
        if self.config.shrink:
            x_t = x_t * level.signal[:, None, None, None]
        if dropout is None or not self.config.network.dropout:
            return jnp.asarray(self.network.apply(params, x_t, shown, level.signal, scale=told))

        def one(x_t: Array, shown: Array, signal: Array, told: Array | None, key: Array) -> Array:
            of = None if told is None else told[None]
            output = self.network.apply(params, x_t[None], shown[None], signal[None], scale=of, train=True, rngs={"dropout": key})
            return jnp.asarray(output)[0]

        return jax.vmap(one)(x_t, shown, level.signal, told, dropout)


def _of_cubes(x: Array, side: int) -> Array:
    """What the first slice of each cube of `side` voxels has, for all its slices: `[3 side K, ...]`."""
    return jnp.repeat(x[:: 3 * side], 3 * side, axis=0)
