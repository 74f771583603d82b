"""What methods are given: a `Condition` of slices to upscale, a `Batch` of slices to learn from, and which parts of them a method takes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct


class Condition(NamedTuple):
    """What a method is given of a slice, on the target grid.

    Attributes:
      low: the low-resolution image, `[B, H, W, 1]`, its intensity window at -1…1.
      reference: a second contrast of the same slice, `[B, H, W, 1]`.
      bias: logarithm of the target's bias field, `[B, H, W, 1]`.
      gradient: displacement u by the target's gradient nonlinearity, mm along rows, columns and through the slice, `[B, H, W, 3]`.
      jacobian: log det(1 + ∇u) of it, `[B, H, W, 1]`.
      beside: slices of `low` on either side, for a method with `context` k: at −k … −1, 1 … k, `[B, H, W, 2 k]`; the outermost slice stands
        for those beyond it.
      scale: how many times coarser than the target's the scan's voxels are, along rows, columns and through the slice, at least 1,
        `[B, 3]`, for a method with `scale_conditioning`.
      quality: how sharp the scan is along rows, columns and through the slice, how noisy, and 1 where that was found in its air, 2 where in
        tissue, whose structure counts as noise (`jaxsr.volume.quality`), `[B, 5]`, for a method with `quality_conditioning`.
      axes: over how many axes the mean is taken that the slice is for, 1 to 3, `[B]`, for a method with `axes_conditioning`.
      estimate: what the pass before made of the volume, that mean, at the slice and then at those of `beside`, `[B, H, W, 1 + 2 k]`, for a
        method with `passes`; in the first pass it is `low` and `beside`.
    """

    low: Array
    reference: Array | None = None
    bias: Array | None = None
    gradient: Array | None = None
    jacobian: Array | None = None
    beside: Array | None = None
    scale: Array | None = None
    axes: Array | None = None
    estimate: Array | None = None
    quality: Array | None = None


# Of the maps of a condition, and of a batch.
MAP_CHANNELS: Mapping[str, int] = {"low": 1, "reference": 1, "bias": 1, "gradient": 3, "jacobian": 1}

# What a condition says of a slice in numbers, so many each; () is one.
TOLD: Mapping[str, tuple[int, ...]] = {"scale": (3,), "quality": (5,), "axes": ()}

# What makes the usual values of those of the target's scanner about one: a bias field is some tenths in its logarithm, a displacement some
# millimetres, and the stretching that goes with it some hundredths.
UNIT: Mapping[str, float] = {"bias": 0.2, "gradient": 2.0, "jacobian": 0.05}


def channels_of(method: Any, name: str) -> int:
    """Of the map `name` of a condition as `method` takes it."""
    slabs = {"beside": 2 * context_of(method), "estimate": 1 + 2 * context_of(method)}
    return slabs[name] if name in slabs else MAP_CHANNELS[name]


def context_of(method: Any) -> int:
    """Slices on either side that the method, or its config, looks at beside the one that it upscales."""
    return getattr(method, "context", 0)


def told_to(method: Any) -> tuple[str, ...]:
    """What the method, or its config, is told of a scan in numbers: names of a condition, those of `TOLD` that it takes."""
    return tuple(name for name in TOLD if getattr(method, f"{name}_conditioning", False))


def passes_of(method: Any) -> int:
    """How many times the method, or its config, goes over a volume."""
    return int(getattr(method, "passes", 1))


def takes_cubes(method: Any) -> bool:
    """Whether the method, or its config, is trained on whole cubes (`jaxsr.data.cubes`)."""
    return bool(getattr(method, "fused", False))


def weighs_heads(method: Any) -> bool:
    """Whether a method of this config is trained on slices that tell how much their heads lack."""
    return getattr(method, "relative_to", None) == "head"


def abstract_condition(method: Any, shape: tuple[int, int, int], names: Sequence[str] = ("low",)) -> Condition:
    """Of slices of `shape` (B, H, W): those maps, and of what else a condition has what `method` takes."""
    seen = {"beside": context_of(method), "estimate": passes_of(method) > 1}
    taken = {*names, *told_to(method), *(name for name, takes in seen.items() if takes)}
    return Condition(**{name: ShapeDtypeStruct(shape_of(method, name, shape), jnp.float32) for name in sorted(taken)})  # type: ignore[arg-type]


def shape_of(method: Any, name: str, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Of what is called `name` in a condition of slices of `shape` (B, H, W)."""
    return (shape[0], *TOLD[name]) if name in TOLD else (*shape, channels_of(method, name))


class Batch(NamedTuple):
    """Training slices: a `Condition` and its answer.

    Of a set that networks made (`jaxsr.data.records`) they have only what `Method.precomputed` asks for: `high` and `low` may be None
    then, in no other batch.

    Attributes:
      high: the target, `[B, H, W, 1]`, in the window of `low`.
      latents: mean and log-variance of the target's latents, `[B, h, w, 2 z]`.
      low_latents: the mode of those of `low`, `[B, h, w, z]`, not scaled.
      pooled, tokens: what the image encoder sees in `low`, `[B, D]` and `[B, 1 + P, width]`.
      output: the teacher's, O_7T, `[B, H, W, 1]`.
      mean_map: F̄, the mean of its denoised images on the way there, `[B, H, W, 1]`.
      spread: the mean squared distance of those from it, `[B]`.
      beside, scale, quality: of a condition, for a method with `context`, and with `scale_conditioning` and `quality_conditioning`.
      axes: across how many axes there are slices of the same voxels in the batch, 3 or 1, `[B]`, for a method with `axes_conditioning`.
      labels: tissue of each pixel, `[B, H, W]` uint8.
      mask: pixels that count, `[B, H, W, 1]` bool.
      lacks: the root of the mean square of what `low` lacks of `high` in the head that the slice is of, `[B]`, for those that weigh by it.
      paired: what each slice counts in losses that compare it with its pair, `[B]`, of mean one: 0 for those without. None: all are pairs.
    """

    high: Array
    low: Array
    reference: Array | None = None
    bias: Array | None = None
    gradient: Array | None = None
    jacobian: Array | None = None
    beside: Array | None = None
    labels: Array | None = None
    mask: Array | None = None
    latents: Array | None = None
    low_latents: Array | None = None
    pooled: Array | None = None
    tokens: Array | None = None
    output: Array | None = None
    mean_map: Array | None = None
    spread: Array | None = None
    lacks: Array | None = None
    paired: Array | None = None
    scale: Array | None = None
    axes: Array | None = None
    quality: Array | None = None

    @property
    def size(self) -> int:
        """Slices in it."""
        return int(next(x for x in self if x is not None).shape[0])

    @property
    def condition(self) -> Condition:
        return Condition(**{name: getattr(self, name) for name in Condition._fields if name in self._fields})
