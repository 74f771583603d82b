"""Volume in, volume out [teacher paper, Algorithm 2].

    x̂ = 1/|A| Σ_{a ∈ A} stack_d method(slice_{a,d}(y)),        A ⊆ {sagittal, coronal, axial}

The volume is brought to the target grid by interpolation, in the intensity window of the input; slices of each axis are padded (or
resized) to sides that the method takes, upscaled in batches of one size, so that each shape compiles once, and added to one float64 sum.
Noise is keyed by (seed, sample, axis, slice): the result depends neither on batch size nor on devices, so a batch that does not fit into
memory is done again in smaller ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from jaxsr.data.pairs import slice_frame
from jaxsr.methods.base import MAP_CHANNELS, Condition, Method, Request, UpscaleOutput, Variables
from jaxsr.runtime.memory import OutOfMemory, free_memory, is_out_of_memory, program_memory
from jaxsr.runtime.mesh import MeshError, batch_sharding, replicated
from jaxsr.upscale.plan import Plan, Sizes, make_plan, map_of
from jaxsr.volume.geometry import Grid, Kind, resample
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume
from jaxsr.volume.slices import AXES, SliceMap, SliceMapKind, take_slices

FILL = 0.8  # of the memory that is free may be meant for a batch: allocators need room to move

BatchSize = int | Literal["auto"]
Progress = Callable[[int, int], None]  # slices done, slices in all
Note = Callable[[str], None]
# Of a `Condition` beside `low`, on the target grid: `[X, Y, Z]`; gradient `[X, Y, Z, 3]`, along the grid's axes.
Maps = Mapping[str, np.ndarray]
Cuts = Mapping[str, Sequence[np.ndarray]]  # of `low` and maps: slices across one axis, `[n, H, W]` each, one a channel


def silent(text: str) -> None:
    """A `Note` that nobody reads."""


class Upscaled(NamedTuple):
    """The result, in the units of the input, and facts for its sidecar."""

    volume: Volume
    window: Window
    metrics: dict[str, float]
    plan: Plan
    compilations: int


class _InFlight(NamedTuple):
    """A batch that the device works on: its first slice, how many slices are no fillers, and what will come back."""

    start: int
    length: int
    output: UpscaleOutput


class Engine:
    """A method with its weights on a mesh, ready for volumes; compiled programs are kept from one volume to the next.

    Args:
      mesh: of devices of this process: volumes are divided over processes, not slices.
      batch_size: slices at a time, rounded up to a multiple of the devices. A number is kept; 'auto' starts with `first_batch_size` and
        goes down where memory is short.
      slice_map: 'pad' keeps voxels, 'resize' brings every slice to 256².
      interpolation: that brings a volume to the target grid, as in the method's training.

    Attributes:
      batch_size: slices at a time now.
      compilations: programs compiled so far.

    Raises:
      MeshError: where the mesh has devices of other processes.
    """

    def __init__(
        self,
        method: Method,
        variables: Variables,
        mesh: Mesh,
        *,
        batch_size: BatchSize,
        slice_map: SliceMapKind = "pad",
        interpolation: Kind = "cubic",
    ):
        if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
            raise MeshError("the engine needs a mesh of this process's own devices: make_mesh(devices=jax.local_devices())")
        self._devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self._auto = batch_size == "auto"
        self.batch_size = self._whole(first_batch_size() if batch_size == "auto" else batch_size)
        self.compilations = 0
        self._method, self._slice_map, self._interpolation = method, slice_map, interpolation
        self._mesh, self._by_batch, self._everywhere = mesh, batch_sharding(mesh), replicated(mesh)
        self._variables = jax.device_put(variables, self._everywhere)
        self._programs: dict[tuple[tuple[int, int], Request, tuple[str, ...]], Compiled] = {}  # of the present batch size

    def plan(
        self,
        volume: Volume,
        to_mm: float | Grid | None,
        axes: Sequence[str],
        request: Request | None = None,
        from_mm: Sizes | None = None,
    ) -> Plan:
        """What `upscale` would do, without doing it. Raises: as `make_plan`."""
        return make_plan(self._method, volume.grid, to_mm, axes, self._slice_map, request, from_mm)

    def upscale(
        self,
        volume: Volume,
        request: Request,
        *,
        to_mm: float | Grid | None = None,
        from_mm: Sizes | None = None,
        maps: Maps = {},  # noqa: B006
        axes: Sequence[str] = tuple(AXES),
        seed: int = 0,
        sample: int = 0,
        progress: Progress = lambda done, total: None,
        note: Note = silent,
    ) -> Upscaled:
        """`volume` at `to_mm` (None: on its own grid), in its own units and orientation; its field of view keeps its centre.

        A grid in place of `to_mm` is the output's, its axes parallel to those of the volume; `maps` lie on the plan's `work`, which is that
        of most methods. `from_mm` is what the volume resolves, where that is not its voxel size.

        Raises:
          NothingToDo, VolumeError: as `make_plan`.
          OutOfMemory: where a batch does not fit and must not, or cannot, be smaller.
        """
        before = self.compilations
        plan = self.plan(volume, to_mm, axes, request, from_mm)
        window = fit_window(volume.data)
        low = window.forward(resample(volume.data, volume.grid, plan.work, self._interpolation))
        key = jax.random.fold_in(jax.random.key(seed), sample)
        wanted = dict(zip(plan.axes, plan.requests, strict=True))
        image, metrics = self.fuse(low, wanted, key, maps, lambda done: progress(done, plan.slices), note)
        if plan.work is not plan.grid:
            image = resample(image, plan.work, plan.grid)
        result = replace(volume, data=window.inverse(image), affine=plan.grid.affine)
        return Upscaled(result, window, metrics, plan, self.compilations - before)

    def fuse(
        self,
        low: np.ndarray,
        requests: Mapping[str, Request | None],
        key: jax.Array,
        maps: Maps = {},  # noqa: B006
        progress: Callable[[int], None] = lambda done: None,
        note: Note = silent,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The mean over axes of the stacked slices, float32 `[X, Y, Z]`, summed in float64; and the metrics' means over all slices.

        Args:
          low: `[X, Y, Z]` on the target grid, in the window -1…1.
          requests: axis → what is asked for along it; None: its slices are those of `low`.
          maps: on that grid.

        Raises:
          ValueError: for a map of another name or shape.
        """
        _check_shapes(maps, low.shape)
        total = np.zeros(low.shape, np.float64)
        metrics: dict[str, list[np.ndarray]] = {}
        done = 0
        for axis, request in requests.items():
            if request is None:
                total += low
                continue
            sums = take_slices(total, axis)
            slice_map = map_of(self._method, low.shape, AXES[axis], self._slice_map)
            cuts = {name: _cut(name, data, AXES[axis]) for name, data in {"low": low, **maps}.items()}
            for start, images, facts in self._slices(cuts, slice_map, jax.random.fold_in(key, AXES[axis]), request, note):
                sums[start : start + len(images)] += images
                for name, values in facts.items():
                    metrics.setdefault(name, []).append(values)
                done += len(images)
                progress(done)
        total /= len(requests)
        return total.astype(np.float32), {name: float(np.concatenate(values).mean()) for name, values in metrics.items()}

    def _slices(
        self, slices: Cuts, slice_map: SliceMap, key: jax.Array, request: Request, note: Note
    ) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """Yields (first slice, images [n, H, W], metrics [n]), one batch behind the device, which so never waits for the host.

        That memory is short may show when a batch is given to the device, or only when it is asked for: either way it is done again in
        smaller ones, and what was yielded is not.
        """
        start, pending, count = 0, None, len(slices["low"][0])
        while start < count or pending:
            following = None
            if start < count:
                try:
                    following = self._dispatch(slices, start, slice_map, key, request, note)
                    start += following.length
                except Exception as error:  # JAX's own name for its runtime errors changes
                    self._shrink(error, note)
            if pending:
                try:
                    done = self._fetch(slice_map, pending)
                except Exception as error:
                    self._shrink(error, note)
                    start, pending = pending.start, None
                    continue
                yield done
            pending = following

    def _dispatch(self, slices: Cuts, start: int, slice_map: SliceMap, key: jax.Array, request: Request, note: Note) -> _InFlight:
        program = self._program(slice_map.shape, request, tuple(slices), note)
        stop = min(start + self.batch_size, len(slices["low"][0]))
        condition = {}
        for name, channels in slices.items():
            outside = -1.0 if name in ("low", "reference") else 0.0
            condition[name] = np.full((self.batch_size, *slice_map.shape, len(channels)), outside, np.float32)
            for channel, part in enumerate(channels):
                condition[name][: stop - start, ..., channel] = slice_map.forward(part[start:stop], outside)
        index = np.arange(start, start + self.batch_size, dtype=np.int32)
        key = jax.device_put(key, self._everywhere)
        return _InFlight(start, stop - start, program(self._variables, *jax.device_put((condition, index), self._by_batch), key))

    def _fetch(self, slice_map: SliceMap, batch: _InFlight) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        images, metrics = np.asarray(batch.output.image), batch.output.metrics
        facts = {name: np.asarray(values)[: batch.length] for name, values in metrics.items()}
        return batch.start, slice_map.inverse(images[: batch.length, ..., 0]), facts

    def _program(self, sides: tuple[int, int], request: Request, names: tuple[str, ...], note: Note) -> Compiled:
        """The compiled program for slices of `sides`; with 'auto', of no more slices than the compiler says fit into what is free."""
        while (sides, request, names) not in self._programs:
            program = self._compile(sides, request, names)
            free, needed = free_memory(self._mesh.devices.flat), program_memory(program)
            if self._auto and free and needed and self.batch_size > self._devices:
                needed -= sum(leaf.nbytes for leaf in jax.tree.leaves(self._variables))  # which lie there already
                if needed > FILL * free:
                    self._go_on_with(self.batch_size >> math.ceil(math.log2(needed / (FILL * free))), note)
                    continue
            self._programs[sides, request, names] = program
        return self._programs[sides, request, names]

    def _compile(self, sides: tuple[int, int], request: Request, names: tuple[str, ...] = ("low",)) -> Compiled:
        def upscale(variables: Variables, condition: dict[str, jax.Array], index: jax.Array, key: jax.Array) -> UpscaleOutput:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
            return self._method.upscale(variables, Condition(**condition), keys, request)

        self.compilations += 1
        shardings = (self._everywhere, self._by_batch, self._by_batch, self._everywhere)
        program = jax.jit(upscale, in_shardings=shardings, out_shardings=self._by_batch)
        condition = {name: jax.ShapeDtypeStruct((self.batch_size, *sides, MAP_CHANNELS[name]), np.float32) for name in names}
        index = jax.ShapeDtypeStruct((self.batch_size,), np.int32)
        return program.lower(self._variables, condition, index, jax.eval_shape(jax.random.key, 0)).compile()

    def _shrink(self, error: Exception, note: Note) -> None:
        """Makes the batch smaller after `error`, or raises: `error` itself where it is not about memory."""
        if not is_out_of_memory(error):
            raise error
        said = next(iter(str(error).splitlines()), "")
        if not self._auto:
            raise OutOfMemory(f"out of memory with {self.batch_size} slices at a time: try --batch-size auto ({said})") from error
        if self.batch_size == self._devices:
            raise OutOfMemory(
                f"out of memory with one slice at a time on a device: try a larger --to-mm, --precision bf16 or another --device ({said})"
            ) from error
        self._go_on_with(self.batch_size // 2, note)

    def _go_on_with(self, batch_size: int, note: Note) -> None:
        before, self.batch_size = self.batch_size, max(batch_size // self._devices, 1) * self._devices
        self._programs.clear()
        note(f"{before} slices at a time do not fit into memory: going on with {self.batch_size}")

    def _whole(self, batch_size: int) -> int:
        """Rounded up to a multiple of the devices."""
        return -(-batch_size // self._devices) * self._devices


def _check_shapes(maps: Maps, shape: tuple[int, ...]) -> None:
    """Raises ValueError for maps that a condition has not, or that do not lie on a volume of `shape`."""
    for name, data in maps.items():
        if name == "low" or name not in MAP_CHANNELS:
            raise ValueError(f"a condition has no map {name!r} beside the volume: it takes {', '.join(Condition._fields[1:])}")
        expected = shape if MAP_CHANNELS[name] == 1 else (*shape, MAP_CHANNELS[name])
        if data.shape != expected:
            raise ValueError(f"the map {name!r} has shape {data.shape}, expected {expected}")


def _cut(name: str, data: np.ndarray, axis: int) -> list[np.ndarray]:
    """The slices of a map across `axis`, views `[n, H, W]`, one a channel: of a vector along rows, along columns and through them."""
    if MAP_CHANNELS[name] == 1:
        return [take_slices(data, axis)]
    return [take_slices(data[..., component], axis) for component in slice_frame(axis)]


def first_batch_size() -> int:
    """Slices at a time that 'auto' starts with: enough to keep the device busy."""
    return 8 if jax.default_backend() == "cpu" else 64
