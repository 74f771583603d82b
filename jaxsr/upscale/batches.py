"""Slices in batches on the devices of one process: a program for each shape, smaller batches where memory is short.

A batch has as many slices as the program was compiled for; the last of an axis is filled up. Of a volume it is known how many slices come,
and the program is compiled for a number that leaves few fillers: 260 slices are 5 batches of 52, not 4 of 64 and one of 4.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from jaxsr.methods.base import Method, Request, Variables
from jaxsr.methods.condition import Condition, shape_of
from jaxsr.runtime.memory import OutOfMemory, free_memory, is_out_of_memory, program_memory
from jaxsr.runtime.mesh import MeshError, batch_sharding, replicated
from jaxsr.upscale.cuts import Cuts, Told, picked
from jaxsr.volume.slices import SliceMap

NEAR = 1.25  # a batch size that costs up to so many times the best one's is no reason to compile again: heads of one shape share a program
FILL = 0.8  # of the memory that is free may be meant for a batch: allocators need room to move

BatchSize = int | Literal["auto"]
Note = Callable[[str], None]


class Work(NamedTuple):
    """What is done with slices: a program for each, and each shape of slices.

    Attributes:
      task: 'upscale'; of a mixture also 'route' and 'explain', of what sees tissues 'segment'.
    """

    task: Literal["upscale", "route", "explain", "segment"]
    request: Request | None = None


class ProgramKey(NamedTuple):
    """What a program is for: the sides of its slices, what is done with them, the names of their maps."""

    sides: tuple[int, int]
    work: Work
    names: tuple[str, ...]


class _InFlight(NamedTuple):
    """A batch that the device works on: the place of its first slice, how many slices are no fillers, and are in all, and what will come
    back."""

    start: int
    length: int
    size: int
    output: Any


class Batches:
    """A method with its weights on a mesh, ready for slices; compiled programs are kept.

    Args:
      mesh: of devices of this process: volumes are divided over processes, not slices.
      batch_size: slices at a time, at most, rounded up to a multiple of the devices. A number is kept; 'auto' starts with
        `first_batch_size` and goes down where memory is short.

    Attributes:
      size: slices at a time now, at most.
      compilations: programs compiled so far.
      compile_seconds: that they took, tracing included.

    Raises:
      MeshError: where the mesh has devices of other processes.
    """

    def __init__(self, method: Method, variables: Variables, mesh: Mesh, batch_size: BatchSize):
        if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
            raise MeshError("the engine needs a mesh of this process's own devices: make_mesh(devices=jax.local_devices())")
        self._devices = mesh.shape["data"] * mesh.shape["fsdp"]
        self._auto = batch_size == "auto"
        self.size = self._whole(first_batch_size() if batch_size == "auto" else batch_size)
        self.compilations, self.compile_seconds = 0, 0.0
        self._tried = self.size  # slices of the last batch that was given to the devices
        self._method, self._mesh, self._by_batch, self._everywhere = method, mesh, batch_sharding(mesh), replicated(mesh)
        self._variables = jax.device_put(variables, self._everywhere)
        self._programs: dict[tuple[ProgramKey, int], Compiled] = {}  # by their batch size; none is larger than the present one

    def run(
        self,
        work: Work,
        cuts: Cuts,
        order: np.ndarray,
        slice_map: SliceMap,
        key: jax.Array,
        note: Note,
        counts: Sequence[int] = (),
        told: Told = {},  # noqa: B006
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields indices and what `work` made of those slices, in the `order` of their indices (ascending), one batch behind the device,
        which so never waits for the host.

        Args:
          counts: how many slices each run of a volume with this program has, which batches are to fit; (): batches are as large as may be.
          told: `scale`, `quality` and `axes` of a condition, each that of all slices.

        Raises:
          OutOfMemory: where a batch does not fit and must not, or cannot, be smaller.

        That memory is short may show when a batch is given to the device, or only when it is asked for: either way it is done again in
        smaller ones, and what was yielded is not.
        """
        start, pending = 0, None
        while start < len(order) or pending:
            following = None
            if start < len(order):
                try:
                    following = self._dispatch(work, cuts, order[start:], start, slice_map, key, note, counts, told)
                    start += following.length
                except Exception as error:  # JAX's own name for its runtime errors changes
                    self._shrink(error, self._tried, note)
            if pending:
                try:
                    done = jax.tree.map(lambda leaf, length=pending.length: np.asarray(leaf)[:length], pending.output)
                except Exception as error:
                    self._shrink(error, pending.size, note)
                    start, pending = pending.start, None
                    continue
                yield order[pending.start : pending.start + pending.length], done
            pending = following

    def _dispatch(
        self,
        work: Work,
        cuts: Cuts,
        order: np.ndarray,
        start: int,
        slice_map: SliceMap,
        key: jax.Array,
        note: Note,
        counts: Sequence[int],
        told: Told,
    ) -> _InFlight:
        names = (*cuts, *told)
        program, size = self._program(ProgramKey(slice_map.shape, work, names), note, tuple(counts))
        indices, self._tried = order[:size], size
        condition = {}
        for name, channels in cuts.items():
            outside = -1.0 if name in ("low", "reference", "beside", "estimate") else 0.0
            condition[name] = np.full((size, *slice_map.shape, len(channels)), outside, np.float32)
            for channel, part in enumerate(channels):
                condition[name][: len(indices), ..., channel] = slice_map.forward(picked(part, indices), outside)
        condition |= {name: np.repeat(np.asarray(of, np.float32)[None], size, axis=0) for name, of in told.items()}
        index = np.zeros(size, np.int32)
        index[: len(indices)] = indices
        key = jax.device_put(key, self._everywhere)
        return _InFlight(start, len(indices), size, program(self._variables, *jax.device_put((condition, index), self._by_batch), key))

    def _program(self, key: ProgramKey, note: Note, counts: tuple[int, ...]) -> tuple[Compiled, int]:
        """The compiled program and its batch size; with 'auto', of no more slices than the compiler says fit into what is free."""
        while (key, size := self._fitting(key, counts)) not in self._programs:
            start, self._tried = time.perf_counter(), size
            program = self._compile(key, size)
            self.compile_seconds += time.perf_counter() - start
            free, needed = free_memory(self._mesh.devices.flat), program_memory(program)
            if self._auto and free and needed and size > self._devices:
                needed -= sum(leaf.nbytes for leaf in jax.tree.leaves(self._variables))  # which lie there already
                if needed > FILL * free:
                    self._go_on_with(size, min(int(size * FILL * free / needed), size // 2), note)
                    continue
            self._programs[key, size] = program
        return self._programs[key, size], size

    def _fitting(self, key: ProgramKey, counts: tuple[int, ...]) -> int:
        """The batch size for runs of `counts` slices: one that there is a program of, where that is nearly as good as the best."""
        if not counts:
            return self.size
        best = fitting_size(counts, self.size, self._devices)
        compiled = [size for of, size in self._programs if of == key]
        near = [size for size in compiled if cost(counts, size, self.size) <= NEAR * cost(counts, best, self.size)]
        return min(near, key=lambda size: cost(counts, size, self.size), default=best)

    def _compile(self, key: ProgramKey, size: int) -> Compiled:
        sides, work, names = key

        def upscale(variables: Variables, condition: dict[str, jax.Array], index: jax.Array, key: jax.Array) -> Any:
            if work.request is None:
                return getattr(self._method, work.task)(variables, Condition(**condition))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
            return self._method.upscale(variables, Condition(**condition), keys, work.request)

        self.compilations += 1
        shardings = (self._everywhere, self._by_batch, self._by_batch, self._everywhere)
        program = jax.jit(upscale, in_shardings=shardings, out_shardings=self._by_batch)
        condition = {name: jax.ShapeDtypeStruct(shape_of(self._method, name, (size, *sides)), np.float32) for name in names}
        index = jax.ShapeDtypeStruct((size,), np.int32)
        with jax.set_mesh(self._mesh):  # which a mixture's experts are laid over
            return program.lower(self._variables, condition, index, jax.eval_shape(jax.random.key, 0)).compile()

    def alone(self) -> Iterator[tuple[ProgramKey, int, Callable[[], Any]]]:
        """Of each program that is compiled: what it is for, its batch size, and a call of it on slices that lie on the devices already."""
        for (of, size), program in self._programs.items():
            sides, _, names = of
            condition = {name: np.ones(shape_of(self._method, name, (size, *sides)), np.float32) for name in names}
            index, key = np.zeros(size, np.int32), jax.device_put(jax.random.key(0), self._everywhere)
            yield of, size, functools.partial(program, self._variables, *jax.device_put((condition, index), self._by_batch), key)

    def _shrink(self, error: Exception, size: int, note: Note) -> None:
        """Makes batches smaller after `error` with `size` slices, or raises: `error` itself where it is not about memory."""
        if not is_out_of_memory(error):
            raise error
        said = next(iter(str(error).splitlines()), "")
        if not self._auto:
            raise OutOfMemory(f"out of memory with {size} slices at a time: try --batch-size auto ({said})") from error
        if size == self._devices:
            raise OutOfMemory(
                f"out of memory with one slice at a time on a device: try a larger --to-mm, --precision bf16 or another --device ({said})"
            ) from error
        self._go_on_with(size, size // 2, note)

    def _go_on_with(self, before: int, batch_size: int, note: Note) -> None:
        self.size = max(batch_size // self._devices, 1) * self._devices
        self._programs.clear()
        note(f"{before} slices at a time do not fit into memory: going on with {self.size}")

    def _whole(self, batch_size: int) -> int:
        """Rounded up to a multiple of the devices."""
        return -(-batch_size // self._devices) * self._devices


def cost(counts: Sequence[int], size: int, most: int) -> float:
    """Of runs of `counts` slices in batches of `size`: slices that are computed, fillers included, and for each batch what a sixteenth of
    `most` slices takes, as small batches do not fill a device."""
    return sum(-(-count // size) for count in counts) * (size + most / 16)


@functools.lru_cache(maxsize=256)  # it is asked for with every batch
def fitting_size(counts: tuple[int, ...], most: int, devices: int = 1) -> int:
    """Slices at a time, at most `most` and a multiple of the devices as that is, for runs of `counts` slices to cost the least."""
    return min(range(most, 0, -devices), key=lambda size: cost(counts, size, most))


def first_batch_size() -> int:
    """Slices at a time that 'auto' starts with: enough to keep the device busy."""
    return 8 if jax.default_backend() == "cpu" else 64
