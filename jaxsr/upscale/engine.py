"""Volume in, volume out [teacher paper, Algorithm 2].

    x̂ = 1/|A| Σ_{a ∈ A} stack_d method(slice_{a,d}(y)),        A ⊆ {sagittal, coronal, axial}

The volume is brought to the target grid by interpolation, in the intensity window of the input; slices of each axis are padded (or
resized) to sides that the method takes, upscaled in batches of one size, so that each shape compiles once, and added to one float64 sum.
Noise is keyed by (seed, sample, axis, slice): the result depends neither on batch size nor on devices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsr.methods.base import Condition, Method, Request, UpscaleOutput, Variables
from jaxsr.runtime.mesh import batch_sharding, replicated
from jaxsr.upscale.inputs import serving_axes
from jaxsr.volume.geometry import Kind, resample, target_grid
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume
from jaxsr.volume.slices import AXES, SliceMap, make_map, take_slices

BUCKET = 16  # sides are padded to multiples of at least this, so that heads of about one size share their compiled programs

Progress = Callable[[int, int], None]  # slices done, slices in all


class Plan(NamedTuple):
    """What will be done with a volume.

    Attributes:
      axes: slice axes that serve, by name.
      shapes: padded sides `(H, W)` of each.
      slices: how many in all.
      compilations: distinct shapes.
      left_out: a sentence for each axis that does not serve.
    """

    axes: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    slices: int
    compilations: int
    left_out: tuple[str, ...]


class Upscaled(NamedTuple):
    """The result, in the units of the input, and facts for its sidecar."""

    volume: Volume
    window: Window
    metrics: dict[str, float]
    plan: Plan
    compilations: int


class Engine:
    """A method with its weights on a mesh, ready for volumes; compiled programs are kept from one volume to the next.

    Args:
      batch_size: slices at a time; rounded up to a multiple of the devices.
      slice_map: 'pad' keeps voxels, 'resize' brings every slice to 256².
      interpolation: that brings a volume to the target grid, as in the method's training.
    """

    def __init__(
        self,
        method: Method,
        variables: Variables,
        mesh: Mesh,
        *,
        batch_size: int,
        slice_map: Literal["pad", "resize"] = "pad",
        interpolation: Kind = "cubic",
    ):
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // devices) * devices
        self._method, self._slice_map, self._interpolation = method, slice_map, interpolation
        self._batch_sharding = batch_sharding(mesh)
        self._variables = jax.device_put(variables, replicated(mesh))
        self._program = jax.jit(self._upscale_batch, static_argnums=(4,), out_shardings=self._batch_sharding)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return int(self._program._cache_size())  # type: ignore[attr-defined]

    def plan(self, volume: Volume, to_mm: float | None, axes: Sequence[str]) -> Plan:
        """What `upscale` would do, without doing it. Raises VolumeError where no axis of `axes` serves."""
        grid = target_grid(volume.grid, to_mm) if to_mm else volume.grid
        serving, left_out = serving_axes(volume.data.shape, axes)
        maps = [self._map(grid.shape, AXES[a]) for a in serving]
        shapes = tuple(m.shape for m in maps)
        return Plan(serving, shapes, sum(grid.shape[AXES[a]] for a in serving), len(set(shapes)), left_out)

    def upscale(
        self,
        volume: Volume,
        request: Request,
        *,
        to_mm: float | None = None,
        axes: Sequence[str] = tuple(AXES),
        seed: int = 0,
        sample: int = 0,
        progress: Progress = lambda done, total: None,
    ) -> Upscaled:
        """`volume` at `to_mm` (None: on its own grid), in its own units and orientation; its field of view keeps its centre.

        Raises:
          VolumeError: where no axis of `axes` serves.
        """
        before = self.compilations
        plan = self.plan(volume, to_mm, axes)
        window = fit_window(volume.data)
        grid = target_grid(volume.grid, to_mm) if to_mm else volume.grid
        low = window.forward(resample(volume.data, volume.grid, grid, self._interpolation))
        key = jax.random.fold_in(jax.random.key(seed), sample)
        image, metrics = self.fuse(low, plan.axes, key, request, lambda done: progress(done, plan.slices))
        result = replace(volume, data=window.inverse(image), affine=grid.affine)
        return Upscaled(result, window, metrics, plan, self.compilations - before)

    def fuse(
        self, low: np.ndarray, axes: Sequence[str], key: jax.Array, request: Request, progress: Callable[[int], None] = lambda done: None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The mean over `axes` of the stacked slices, float32 `[X, Y, Z]`, summed in float64; and the metrics' means over all slices.

        Args:
          low: `[X, Y, Z]` on the target grid, in the window -1…1.
        """
        total = np.zeros(low.shape, np.float64)
        metrics: dict[str, list[np.ndarray]] = {}
        done = 0
        for axis in axes:
            sums = take_slices(total, axis)
            slice_map = self._map(low.shape, AXES[axis])
            for start, images, facts in self._slices(take_slices(low, axis), slice_map, jax.random.fold_in(key, AXES[axis]), request):
                sums[start : start + len(images)] += images
                for name, values in facts.items():
                    metrics.setdefault(name, []).append(values)
                done += len(images)
                progress(done)
        total /= len(axes)
        return total.astype(np.float32), {name: float(np.concatenate(values).mean()) for name, values in metrics.items()}

    def _slices(
        self, slices: np.ndarray, slice_map: SliceMap, key: jax.Array, request: Request
    ) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """Yields (first slice, images [n, H, W], metrics [n]), one batch behind the device, which so never waits for the host."""
        pending = None
        for start in range(0, len(slices), self.batch_size):
            part = slices[start : start + self.batch_size]
            low = np.full((self.batch_size, *slice_map.shape, 1), -1.0, np.float32)
            low[: len(part), ..., 0] = slice_map.forward(part)
            index = jnp.arange(start, start + self.batch_size)
            dispatched = self._program(self._variables, jax.device_put(low, self._batch_sharding), key, index, request)
            if pending:
                yield self._fetch(slice_map, *pending)
            pending = (start, len(part), dispatched)
        if pending:
            yield self._fetch(slice_map, *pending)

    def _fetch(
        self, slice_map: SliceMap, start: int, count: int, dispatched: UpscaleOutput
    ) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        images, metrics = dispatched
        return start, slice_map.inverse(np.asarray(images)[:count, ..., 0]), {name: np.asarray(v)[:count] for name, v in metrics.items()}

    def _upscale_batch(self, variables: Variables, low: jax.Array, key: jax.Array, index: jax.Array, request: Request) -> UpscaleOutput:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        return self._method.upscale(variables, Condition(low), keys, request)

    def _map(self, shape: tuple[int, ...], axis: int) -> SliceMap:
        height, width = (n for a, n in enumerate(shape) if a != axis)
        multiple = int(np.lcm(self._method.multiple, BUCKET)) if self._slice_map == "pad" else self._method.multiple
        return make_map(self._slice_map, (height, width), multiple)
