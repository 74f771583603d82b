"""The teacher's outputs over a training set, made once and read by the student's training: `jaxsr distill`.

    output      O = O_7T, the image that sampling in S steps ends with                         [H, W]
    mean_map    F̄ = 1/K Σ_k F_k                                                                 [H, W]
    spread      1/K Σ_k (F_k − F̄)², mean over pixels                                            scalar
    low         y, as the set has it                                                            [H, W]

F_k are the decoded x̂_0 of sampling steps 1 … S − 1 (every m-th of them): the "feature maps" of [teacher paper §II-B, Eq. 9]; K = 199 for
S = 200. Mean and spread are updated as sampling goes along, by Welford's rule, so that memory does not depend on K:

    F̄ ← F̄ + (F − F̄) / k,        M ← M + (F − F̄_before)(F − F̄_after),        spread = M / K.

O is the slice's own sample, before any fusion over axes. The teacher is guided by the maps that the set has, and the student never sees
them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pairs import made_of
from jaxsr.data.records import Distillation
from jaxsr.diffusion.sampling import Observer
from jaxsr.files import shown
from jaxsr.methods.base import Method, Request, Sampler
from jaxsr.methods.condition import MAP_CHANNELS, Condition, context_of, passes_of, told_to
from jaxsr.precompute.plan import MakerSettings, Plan, make_plan, source_set
from jaxsr.upscale.model import Model


class DistillSettings(MakerSettings):
    """Attributes:
    teacher: SHA-256 of its trained parameters.
    frozen: of the networks that it was trained with, by name.
    steps, eta: S and η of its sampling.
    every: m.
    guided: maps of the target's scanner that it is shown.
    flat: further ones, which it is told are flat, whatever the set has.
    """

    teacher: str
    frozen: tuple[tuple[str, str], ...] = ()
    steps: int
    eta: float
    every: int = 1
    guided: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()


class Distilled(NamedTuple):
    output: Array  # [B, H, W, 1]
    mean_map: Array  # [B, H, W, 1]
    spread: Array  # [B]


def maps_seen(steps: int, every: int) -> int:
    """K: how many of the S − 1 images before the last are looked at."""
    return len(range(0, steps - 1, every))


def distill_slices(sampler: Sampler, keys: Array, request: Request, every: int = 1) -> Distilled:
    """What the student learns from of slices that `sampler` samples, by `keys` `[B]`; at least two sampling steps."""
    if request.steps < 2:
        raise ValueError(f"a teacher must sample in at least 2 steps to have images on the way, got {request.steps}")
    shape = jax.eval_shape(sampler.decode, jax.ShapeDtypeStruct((keys.shape[0], *sampler.shape), jnp.float32))
    zeros = jnp.zeros(shape.shape, jnp.float32)

    def see(known: tuple[Array, Array, Array], i: Array, x0: Array) -> tuple[Array, Array, Array]:
        def update(known: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            k, mean, total = known
            image = sampler.decode(x0).astype(jnp.float32)
            after = mean + (image - mean) / (k + 1)
            return k + 1, after, total + ((image - mean) * (image - after)).mean((1, 2, 3))

        wanted = (i < request.steps - 1) & (i % every == 0)
        return jax.lax.cond(wanted, update, lambda known: known, known)  # type: ignore[no-any-return]

    start = (jnp.zeros(()), zeros, jnp.zeros(keys.shape[0]))
    samples, image = sampler.draw(keys, request, Observer(start, see))
    k, mean, total = samples.watched
    return Distilled(image, mean, total / k)


class TeacherMaker:
    """The maker of a distilled set: `model` is a teacher, or whatever samples slices (`sampler`)."""

    def __init__(self, model: Model, guided: tuple[str, ...]):
        self._method, self.params = model.method, model.variables
        self.multiple, self.crop = model.method.multiple, model.experiment.data.crop
        self.reads = ("low", *guided)  # of the set

    def make(self, params: dict[str, Any], maps: dict[str, Array], keys: Array, settings: DistillSettings) -> dict[str, Array]:
        flat = {name: jnp.zeros((*maps["low"].shape[:-1], MAP_CHANNELS[name])) for name in settings.flat}
        sampler = self._method.sampler(params, Condition(**maps, **flat))  # type: ignore[attr-defined]
        made = distill_slices(sampler, keys, Request(settings.steps, settings.eta), settings.every)
        return {"output": made.output[..., 0], "mean_map": made.mean_map[..., 0], "spread": made.spread}

    def facts(self, source: str, settings: DistillSettings, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        names = ("teacher", "frozen", "steps", "eta", "every", "guided", "flat", "crop", "copies")
        about = {name: getattr(settings, name) for name in names}
        return {"distillation": Distillation(source=source, **about)}


def check_teacher(method: Method, name: str, steps: int) -> None:
    """Raises ConfigError where the method called `name` cannot teach a student by sampling in `steps`."""
    if not hasattr(method, "sampler"):
        why = "goes to its image in stages" if hasattr(method, "pixel") else "does not sample"
        raise ConfigError(f"{name} {why}, and a student learns from images on the way of one sampling: name a teacher or an sr3")
    if context_of(method) or told_to(method) or passes_of(method) > 1:
        raise ConfigError(f"{name} is told more of a scan than slices of a prepared set say: name a teacher or an sr3 without that")
    if not 2 <= steps <= method.most_steps:
        raise ConfigError(f"{name} cannot sample in {steps} steps: choose --steps in 2…{method.most_steps}, those of its schedule")


def plan_distillation(
    source: Path,
    out: Path,
    model: Model,
    *,
    steps: int | None = None,
    eta: float | None = None,
    crop: int | None = None,
    flat: Sequence[str] = (),
    **how: Any,
) -> Plan:
    """What is to be made of the prepared set `source` by the teacher `model`, into `out`.

    Args:
      steps, eta: None: 200, or as many as its schedule has; the teacher's own.
      crop: None: that of the teacher's training.
      flat: of bias and gradient, what the target does not show, whatever maps the set has.
      how: further settings, of `DistillSettings`; slices are not varied unless it says so.

    Raises:
      VolumeError: where `source` is no prepared set.
      ConfigError: as `make_plan`, `check_teacher`; where the model is not guided by what `flat` names, or the set has other voxels than it
        was trained on.
    """
    records, prepared = source_set(source)
    method, trained = model.method, model.experiment.data.voxel_size
    steps = steps or min(200, method.most_steps)
    check_teacher(method, f"{model.name} of kind {model.experiment.method.kind}", steps)
    if abs(records.manifest.voxel_size / trained - 1) > 0.01:
        raise ConfigError(
            f"{shown(records.folder)} has voxels of {records.manifest.voxel_size:g} mm, and {model.name} was trained on {trained:g} mm: "
            f"prepare the set with --voxel-size {trained:g}, or train another teacher"
        )
    takes = tuple(getattr(model.experiment.method, "maps", ()))
    if unknown := [name for name in flat if name not in {made_of(of) for of in takes}]:
        raise ConfigError(
            f"--flat names {' and '.join(unknown)}, and {model.name} is guided by {' and '.join(takes) or 'no maps'}: leave it out"
        )
    told_flat = tuple(name for name in takes if made_of(name) in flat)
    guided = tuple(name for name in takes if name in records.manifest.maps and name not in told_flat)
    chosen = {
        "prepared": prepared,
        "splits": ("train",),
        "crop": crop or model.experiment.data.crop,
        "keep": ("low",),
        "augment": AugmentConfig(flip=False),
        "teacher": model.sha256,
        "frozen": tuple(sorted(model.frozen.items())),
        "steps": steps,
        "eta": method.default_request.eta if eta is None else eta,
        "guided": guided,
        "flat": told_flat,
        **how,
    }
    return make_plan(records, out, TeacherMaker(model, guided), DistillSettings.model_validate(chosen))
