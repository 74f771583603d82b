"""Volume in, volume out [teacher paper, Algorithm 2].

    x̂ = 1/|A| Σ_{a ∈ A} stack_d method(slice_{a,d}(y)),        A ⊆ {sagittal, coronal, axial}

A method of several passes goes over y again, with the same noise, and is shown slices of x̂ beside those of y.

The volume is brought to the target grid by interpolation, in the intensity window of the input; slices of each axis are padded (or
resized) to sides that the method takes, upscaled in batches of one size, so that each shape compiles once, and added to one float64 sum.
Noise is keyed by (seed, sample, axis, slice): the result depends neither on batch size nor on devices, so a batch that does not fit into
memory is done again in smaller ones. So slices of a mixture of experts that go to one of them each are grouped by it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxsr.data.pairs import scale_of, told_quality
from jaxsr.methods.base import Explanation, Method, Mixture, Request, Segmenter, Variables
from jaxsr.methods.condition import context_of, passes_of, told_to
from jaxsr.upscale.batches import Batches, BatchSize, Note, ProgramKey, Work
from jaxsr.upscale.cuts import Cuts, Maps, Told, beside_across, check_shapes, cut_across, indices_of
from jaxsr.upscale.inputs import Sizes, resolving
from jaxsr.upscale.plan import Plan, in_pass, make_plan, map_of
from jaxsr.volume.geometry import Grid, Kind, resample, target_grid
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume
from jaxsr.volume.quality import Quality, quality_of
from jaxsr.volume.slices import AXES, SliceMap, SliceMapKind, take_slices

Progress = Callable[[int, int], None]  # slices done, slices in all


def sample_key(seed: int, sample: int) -> jax.Array:
    """Of the noise of a volume's sample, from 0."""
    return jax.random.fold_in(jax.random.key(seed), sample)


def silent(text: str) -> None:
    """A `Note` that nobody reads."""


class Upscaled(NamedTuple):
    """The result, in the units of the input, and facts for its sidecar; `quality`: of the scan, where the method was told."""

    volume: Volume
    window: Window
    metrics: dict[str, float]
    plan: Plan
    compilations: int
    quality: Quality | None = None


class Engine:
    """A method with its weights on a mesh, ready for volumes; compiled programs are kept from one volume to the next.

    Args:
      mesh, batch_size: as of `Batches`.
      slice_map: 'pad' keeps voxels, 'resize' brings every slice to 256².
      interpolation: that brings a volume to the target grid, as in the method's training.

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
        self._batches = Batches(method, variables, mesh, batch_size)
        self._method, self._slice_map, self._interpolation = method, slice_map, interpolation

    @property
    def batch_size(self) -> int:
        """Slices at a time now, at most."""
        return self._batches.size

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._batches.compilations

    @property
    def compile_seconds(self) -> float:
        """That those took, tracing included."""
        return self._batches.compile_seconds

    def alone(self) -> Iterator[tuple[ProgramKey, int, Callable[[], Any]]]:
        """As `Batches.alone`: what devices do, without the host."""
        return self._batches.alone()

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

    def prepared(self, volume: Volume, plan: Plan) -> tuple[Window, np.ndarray]:
        """The intensity window of `volume`, and in it, at −1…1, the volume on the grid that `plan` works on, float32 `[X, Y, Z]`."""
        window = fit_window(volume.data)
        return window, self._interpolated(volume, window, plan)

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
        of most methods. `from_mm` is what the volume resolves, where that is more than its voxel size.

        Raises:
          NothingToDo, VolumeError: as `make_plan`.
          OutOfMemory: where a batch does not fit and must not, or cannot, be smaller.
        """
        before = self.compilations
        plan = self.plan(volume, to_mm, axes, request, from_mm)
        window, resolves, quality = fit_window(volume.data), resolving(volume.voxel_size, from_mm), None
        if "quality" in told_to(self._method):
            quality = quality_of(_acquired(volume, resolves), window)
        low = self._interpolated(volume, window, plan)
        key = sample_key(seed, sample)
        wanted = dict(zip(plan.axes, plan.requests, strict=True))
        told = {axis: self._told(AXES[axis], plan, resolves, quality) for axis in plan.axes}
        image, metrics = self.fuse(low, wanted, key, maps, lambda done: progress(done, plan.passes * plan.slices), note, told)
        if plan.work is not plan.grid:
            image = resample(image, plan.work, plan.grid)
        result = replace(volume, data=window.inverse(image), affine=plan.grid.affine)
        return Upscaled(result, window, metrics, plan, self.compilations - before, quality)

    def _interpolated(self, volume: Volume, window: Window, plan: Plan) -> np.ndarray:
        return window.forward(resample(volume.data, volume.grid, plan.work, self._interpolation))

    def _told(self, axis: int, plan: Plan, resolves: Sizes, quality: Quality | None) -> Told:
        """What the method is told of the scan, of slices across `axis`."""
        told = {"scale": scale_of(resolves, plan.work, axis)} if "scale" in told_to(self._method) else {}
        return told if quality is None else told | {"quality": told_quality(quality, axis)}

    def fuse(
        self,
        low: np.ndarray,
        requests: Mapping[str, Request | None],
        key: jax.Array,
        maps: Maps = {},  # noqa: B006
        progress: Callable[[int], None] = lambda done: None,
        note: Note = silent,
        told: Mapping[str, Told] = {},
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The mean over axes of the stacked slices, float32 `[X, Y, Z]`, summed in float64; and the metrics' means over all slices of the
        last pass.

        Args:
          low: `[X, Y, Z]` on the target grid, in the window -1…1.
          requests: axis → what is asked for along it; None: its slices are those of `low`.
          maps: on that grid.
          told: axis → `scale` and `quality` of a condition, of its slices, for a method that takes them.

        Raises:
          ValueError: for a map of another name or shape, or without what the method is to be told.
        """
        check_shapes(maps, low.shape)
        for name in told_to(self._method):
            if name != "axes" and not all(name in told.get(axis, {}) for axis in requests):
                raise ValueError(f"the method is told more of the scan: give the {name} of every axis")
        passes, estimate = passes_of(self._method), low
        slices = sum(low.shape[AXES[axis]] for axis, request in requests.items() if request)
        for number in range(passes):
            asked = {axis: request and in_pass(request, number, passes) for axis, request in requests.items()}
            report = lambda done, before=number * slices: progress(before + done)  # noqa: E731
            estimate, metrics = self._one_pass(low, estimate, asked, key, maps, report, note, told)
        return estimate, metrics

    def _one_pass(
        self,
        low: np.ndarray,
        estimate: np.ndarray,
        requests: Mapping[str, Request | None],
        key: jax.Array,
        maps: Maps,
        progress: Callable[[int], None],
        note: Note,
        told: Mapping[str, Told],
    ) -> tuple[np.ndarray, dict[str, float]]:
        """One pass of `fuse`, with the noise of all of them; `estimate`, of the pass before (`low` in the first), is overwritten."""
        total = np.zeros(low.shape, np.float64)
        programs = {
            axis: (map_of(self._method, low.shape, AXES[axis], self._slice_map), request) for axis, request in requests.items() if request
        }
        metrics: dict[str, list[np.ndarray]] = {}
        context, done = context_of(self._method), 0
        for axis, request in requests.items():
            if request is None:
                total += low
                continue
            sums = take_slices(total, axis)
            slice_map, _ = programs[axis]
            counts = [low.shape[AXES[a]] for a, (of, asked) in programs.items() if (of.shape, asked) == (slice_map.shape, request)]
            cuts: dict[str, Any] = {name: cut_across(name, data, AXES[axis]) for name, data in {"low": low, **maps}.items()}
            if context:
                cuts["beside"] = beside_across(low, axis, context)
            if passes_of(self._method) > 1:
                cuts["estimate"] = [take_slices(estimate, axis), *beside_across(estimate, axis, context)]
            known = dict(told.get(axis, {}))
            if "axes" in told_to(self._method):
                known["axes"] = np.asarray(len(requests), np.float32)
            of = (slice_map, jax.random.fold_in(key, AXES[axis]), request)
            for indices, output in self._upscaled(cuts, *of, note, counts, known):
                sums[indices] += slice_map.inverse(output.image[..., 0])
                for name, values in output.metrics.items():
                    metrics.setdefault(name, []).append(values)
                done += len(indices)
                progress(done)
        total /= len(requests)
        mean = np.empty_like(low, np.float32) if estimate is low else estimate  # which nobody looks at any more
        mean[...] = total
        return mean, {name: float(np.concatenate(values).mean()) for name, values in metrics.items()}

    def explain(self, low: np.ndarray, axis: str, note: Note = silent) -> Explanation:
        """Why the slices of `low`, as `fuse` takes it, across `axis` are upscaled as they are: weights `[n, K]`, attention and
        local weights `[n, H, W, K]`.

        Raises:
          ValueError: for a method that is no mixture.
        """
        if not isinstance(self._method, Mixture):
            raise ValueError("only a mixture of experts says which of them made what")
        slice_map, cuts = map_of(self._method, low.shape, AXES[axis], self._slice_map), {"low": cut_across("low", low, AXES[axis])}
        shape, experts = cuts["low"][0].shape, len(self._method.experts)
        explanation = Explanation(*(np.empty(of, np.float32) for of in ((shape[0], experts), (*shape, experts), (*shape, experts))))  # type: ignore[arg-type]
        for indices, found in self._batches.run(Work("explain"), cuts, indices_of(cuts), slice_map, jax.random.key(0), note):
            explanation.weights[indices] = found.weights
            for expert in range(experts):
                for whole, part in ((explanation.attention, found.attention), (explanation.local, found.local)):
                    whole[indices, ..., expert] = slice_map.inverse(part[..., expert])
        return explanation

    def segment(
        self, low: np.ndarray, axes: Sequence[str], progress: Callable[[int], None] = lambda done: None, note: Note = silent
    ) -> np.ndarray:
        """How likely each voxel of `low`, as `fuse` takes it, is each of `tissues_of` the method: the mean over `axes` of what it sees in
        their slices, float32 `[K, X, Y, Z]`.

        Raises:
          ValueError: for a method that sees none.
        """
        tissues = tissues_of(self._method)
        if not tissues:
            raise ValueError("only a method with an anatomy extractor says what tissue is where")
        total, done = np.zeros((len(tissues), *low.shape), np.float32), 0
        for axis in axes:
            slice_map, cuts = map_of(self._method, low.shape, AXES[axis], self._slice_map), {"low": cut_across("low", low, AXES[axis])}
            sums = [take_slices(mask, axis) for mask in total]
            counts = [len(cuts["low"][0])]
            for indices, masks in self._batches.run(Work("segment"), cuts, indices_of(cuts), slice_map, jax.random.key(0), note, counts):
                for tissue, of in enumerate(sums):
                    of[indices] += slice_map.inverse(masks[..., tissue])
                done += len(indices)
                progress(done)
        total /= len(axes)
        return total

    def _upscaled(
        self, cuts: Cuts, slice_map: SliceMap, key: jax.Array, request: Request, note: Note, counts: Sequence[int], told: Told
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields indices of slices and their `UpscaleOutput`; slices that go to one expert each are grouped by it, and how many those are
        differs from volume to volume."""
        if len(ways(self._method, request)) == 1:
            yield from self._batches.run(Work("upscale", request), cuts, indices_of(cuts), slice_map, key, note, counts, told)
            return
        routes = np.concatenate([expert for _, expert in self._batches.run(Work("route"), cuts, indices_of(cuts), slice_map, key, note)])
        for expert, alone in enumerate(ways(self._method, request)):
            yield from self._batches.run(Work("upscale", alone), cuts, np.flatnonzero(routes == expert), slice_map, key, note)


def _acquired(volume: Volume, resolves: Sizes) -> np.ndarray:
    """What was interpolated to `volume`, if it resolves no more than that; it has no values below its lowest."""
    grid = target_grid(volume.grid, resolves)
    if grid.shape == volume.grid.shape:
        return volume.data
    return np.maximum(resample(volume.data, volume.grid, grid, "kspace"), volume.data.min())


def tissues_of(method: Method) -> tuple[str, ...]:
    """Names of what it tells apart in a slice, the first of all that is none; () where it does not."""
    return method.tissues if isinstance(method, Segmenter) else ()


def ways(method: Method, request: Request) -> list[Request]:
    """What may be asked for of a slice: `request`, or, where slices go to one expert each, each of the experts alone."""
    if request.routing == "all" or request.expert is not None or not isinstance(method, Mixture):
        return [request]
    return [request._replace(expert=expert) for expert in range(len(method.experts))]


def programs_each(method: Method, request: Request, explain: bool = False) -> int:
    """Programs that are compiled for slices of one shape, at most: where there are several ways, one says which; explaining takes one, and
    each expert alone."""
    count = len(ways(method, request))
    several = count + (count > 1)
    if not (explain and isinstance(method, Mixture)):
        return several
    return several + 1 + len(method.experts) * (count == 1)
