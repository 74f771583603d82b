"""Volume in, volume out [teacher paper, Algorithm 2].

    x̂ = 1/|A| Σ_{a ∈ A} stack_d method(slice_{a,d}(y)),        A ⊆ {sagittal, coronal, axial}

The volume is brought to the target grid by interpolation, in the intensity window of the input; slices of each axis are padded (or
resized) to sides that the method takes, upscaled in batches of one size, so that each shape compiles once, and added to one float64 sum.
Noise is keyed by (seed, sample, axis, slice): the result depends neither on batch size nor on devices, so a batch that does not fit into
memory is done again in smaller ones. So slices of a mixture of experts that go to one of them each are grouped by it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from jaxsr.data.pairs import slice_frame
from jaxsr.methods.base import MAP_CHANNELS, Condition, Explanation, Method, Mixture, Request, Variables
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


class Prepared(NamedTuple):
    """A volume as its slices are upscaled: `low` `[X, Y, Z]` on the grid `plan.work`, −1…1 in `window`."""

    plan: Plan
    window: Window
    low: np.ndarray


class _Work(NamedTuple):
    """What is done with slices: a program for each, and each shape of slices.

    Attributes:
      task: 'upscale'; of a mixture also 'route' and 'explain'.
    """

    task: Literal["upscale", "route", "explain"]
    request: Request | None = None


class _InFlight(NamedTuple):
    """A batch that the device works on: the place of its first slice, how many slices are no fillers, and what will come back."""

    start: int
    length: int
    output: Any


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
        self._programs: dict[tuple[tuple[int, int], _Work, tuple[str, ...]], Compiled] = {}  # of the present batch size

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

    def prepared(
        self,
        volume: Volume,
        to_mm: float | Grid | None,
        axes: Sequence[str],
        request: Request | None = None,
        from_mm: Sizes | None = None,
    ) -> Prepared:
        """What `upscale` does with `volume` before any slice is upscaled. Raises: as `make_plan`."""
        plan = self.plan(volume, to_mm, axes, request, from_mm)
        window = fit_window(volume.data)
        return Prepared(plan, window, window.forward(resample(volume.data, volume.grid, plan.work, self._interpolation)))

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
        plan, window, low = self.prepared(volume, to_mm, axes, request, from_mm)
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
            for indices, output in self._upscaled(cuts, slice_map, jax.random.fold_in(key, AXES[axis]), request, note):
                sums[indices] += slice_map.inverse(output.image[..., 0])
                for name, values in output.metrics.items():
                    metrics.setdefault(name, []).append(values)
                done += len(indices)
                progress(done)
        total /= len(requests)
        return total.astype(np.float32), {name: float(np.concatenate(values).mean()) for name, values in metrics.items()}

    def explain(self, low: np.ndarray, axes: Sequence[str], note: Note = silent) -> dict[str, Explanation]:
        """By axis, why the slices of `low`, as `fuse` takes it, are upscaled as they are: weights `[n, K]`, attention `[n, H, W, K]`.

        Raises:
          ValueError: for a method that is no mixture.
        """
        if not isinstance(self._method, Mixture):
            raise ValueError("only a mixture of experts says which of them made what")
        return {axis: self._explained(low, axis, note) for axis in axes}

    def _explained(self, low: np.ndarray, axis: str, note: Note) -> Explanation:
        slice_map, cuts = map_of(self._method, low.shape, AXES[axis], self._slice_map), {"low": _cut("low", low, AXES[axis])}
        found = [output for _, output in self._slices(_Work("explain"), cuts, _all(cuts), slice_map, jax.random.key(0), note)]
        weights, attention = (np.concatenate([getattr(output, name) for output in found]) for name in Explanation._fields)
        maps = [slice_map.inverse(attention[..., expert]) for expert in range(attention.shape[-1])]
        return Explanation(weights, np.stack(maps, axis=-1))  # type: ignore[arg-type]

    def _upscaled(self, cuts: Cuts, slice_map: SliceMap, key: jax.Array, request: Request, note: Note) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields indices of slices and their `UpscaleOutput`; slices that go to one expert each are grouped by it."""
        if request.experts == "all" or request.expert is not None or not isinstance(self._method, Mixture):
            yield from self._slices(_Work("upscale", request), cuts, _all(cuts), slice_map, key, note)
            return
        routes = np.concatenate([expert for _, expert in self._slices(_Work("route"), cuts, _all(cuts), slice_map, key, note)])
        for expert in np.unique(routes).tolist():
            alone = _Work("upscale", request._replace(expert=expert))
            yield from self._slices(alone, cuts, np.flatnonzero(routes == expert), slice_map, key, note)

    def _slices(
        self, work: _Work, cuts: Cuts, order: np.ndarray, slice_map: SliceMap, key: jax.Array, note: Note
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields indices and what `work` made of those slices, in the `order` of their indices, one batch behind the device, which so never
        waits for the host.

        That memory is short may show when a batch is given to the device, or only when it is asked for: either way it is done again in
        smaller ones, and what was yielded is not.
        """
        start, pending = 0, None
        while start < len(order) or pending:
            following = None
            if start < len(order):
                try:
                    following = self._dispatch(work, cuts, order[start:], start, slice_map, key, note)
                    start += following.length
                except Exception as error:  # JAX's own name for its runtime errors changes
                    self._shrink(error, note)
            if pending:
                try:
                    done = jax.tree.map(lambda leaf, length=pending.length: np.asarray(leaf)[:length], pending.output)
                except Exception as error:
                    self._shrink(error, note)
                    start, pending = pending.start, None
                    continue
                yield order[pending.start : pending.start + pending.length], done
            pending = following

    def _dispatch(
        self, work: _Work, cuts: Cuts, order: np.ndarray, start: int, slice_map: SliceMap, key: jax.Array, note: Note
    ) -> _InFlight:
        program = self._program(slice_map.shape, work, tuple(cuts), note)
        indices = order[: self.batch_size]
        condition = {}
        for name, channels in cuts.items():
            outside = -1.0 if name in ("low", "reference") else 0.0
            condition[name] = np.full((self.batch_size, *slice_map.shape, len(channels)), outside, np.float32)
            for channel, part in enumerate(channels):
                condition[name][: len(indices), ..., channel] = slice_map.forward(_picked(part, indices), outside)
        index = np.zeros(self.batch_size, np.int32)
        index[: len(indices)] = indices
        key = jax.device_put(key, self._everywhere)
        return _InFlight(start, len(indices), program(self._variables, *jax.device_put((condition, index), self._by_batch), key))

    def _program(self, sides: tuple[int, int], work: _Work, names: tuple[str, ...], note: Note) -> Compiled:
        """The compiled program for slices of `sides`; with 'auto', of no more slices than the compiler says fit into what is free."""
        while (sides, work, names) not in self._programs:
            program = self._compile(sides, work, names)
            free, needed = free_memory(self._mesh.devices.flat), program_memory(program)
            if self._auto and free and needed and self.batch_size > self._devices:
                needed -= sum(leaf.nbytes for leaf in jax.tree.leaves(self._variables))  # which lie there already
                if needed > FILL * free:
                    self._go_on_with(self.batch_size >> math.ceil(math.log2(needed / (FILL * free))), note)
                    continue
            self._programs[sides, work, names] = program
        return self._programs[sides, work, names]

    def _compile(self, sides: tuple[int, int], work: _Work, names: tuple[str, ...] = ("low",)) -> Compiled:
        def upscale(variables: Variables, condition: dict[str, jax.Array], index: jax.Array, key: jax.Array) -> Any:
            if work.request is None:
                return getattr(self._method, work.task)(variables, Condition(**condition))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
            return self._method.upscale(variables, Condition(**condition), keys, work.request)

        self.compilations += 1
        shardings = (self._everywhere, self._by_batch, self._by_batch, self._everywhere)
        program = jax.jit(upscale, in_shardings=shardings, out_shardings=self._by_batch)
        condition = {name: jax.ShapeDtypeStruct((self.batch_size, *sides, MAP_CHANNELS[name]), np.float32) for name in names}
        index = jax.ShapeDtypeStruct((self.batch_size,), np.int32)
        with jax.set_mesh(self._mesh):  # which a mixture's experts are laid over
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


def _all(cuts: Cuts) -> np.ndarray:
    """Indices of all slices."""
    return np.arange(len(cuts["low"][0]))


def _picked(part: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Slices by ascending `indices`; neighbours as a view."""
    first, last = int(indices[0]), int(indices[-1])
    return part[first : last + 1] if last - first == len(indices) - 1 else part[indices]


def first_batch_size() -> int:
    """Slices at a time that 'auto' starts with: enough to keep the device busy."""
    return 8 if jax.default_backend() == "cpu" else 64
