"""Which expert of a mixture made what: gate weights by slice, where each one's query looks, and what each would have made alone.

    attention of E_i    N_s Att_n(i) at the patch of token n, summed over the scales [MoEDiff-SR, Eq. 2]: 1 where it looks evenly
    weight of E_i       G_i of the slice, or of the pixel where the gate looks at tokens                [MoEDiff-SR, Eq. 4]
    error of E_i        |x̂_i − x|, x̂_i being the volume that E_i makes of every slice, x a reference             [MoEDiff-SR, Table IV]

All are averaged over slice axes, as the output is. What experts make alone costs as much as the mixture did.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsr.evaluate.grids import resampled
from jaxsr.evaluate.montage import save_montage
from jaxsr.files import shown
from jaxsr.methods.base import Mixture
from jaxsr.upscale.batches import Note
from jaxsr.upscale.engine import Engine, Progress, sample_key, silent
from jaxsr.upscale.plan import Plan
from jaxsr.volume.geometry import Grid
from jaxsr.volume.intensity import Window
from jaxsr.volume.io import Volume, VolumeError, read_volume
from jaxsr.volume.slices import take_slices

DIGITS = 4  # of a weight, in a sidecar


class Explained(NamedTuple):
    """What experts did with one volume.

    Attributes:
      experts: their names.
      weights: by axis, of its slices `[n, K]`.
      attention, local: of each, and its weights, on the output's grid.
      alone: what each makes by itself, there.
      reference: the truth, there, `[X, Y, Z]`; None where none was named.
    """

    experts: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    attention: tuple[Volume, ...]
    local: tuple[Volume, ...]
    alone: tuple[Volume, ...]
    reference: np.ndarray | None

    @property
    def errors(self) -> tuple[Volume, ...]:
        """|x̂_i − x|; () without a reference."""
        if self.reference is None:
            return ()
        return tuple(replace(of, data=np.abs(of.data - self.reference)) for of in self.alone)

    @property
    def facts(self) -> dict[str, Any]:
        """For a sidecar: weights of every slice, from the first on."""
        return {"Experts": list(self.experts), "Gates": {axis: np.round(of, DIGITS).tolist() for axis, of in self.weights.items()}}


def read_reference(path: Path, grid: Grid) -> np.ndarray:
    """The truth in `path` on `grid`, float32 `[X, Y, Z]`, to be known before anything is upscaled.

    Raises:
      VolumeError: where it cannot be read, or lies elsewhere in the scanner.
    """
    reference = read_volume(path)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1)
    places = np.concatenate([corners, np.ones((8, 1))], 1) @ np.linalg.solve(reference.affine, grid.affine).T
    last = np.array(reference.data.shape) - 1
    if ((places[:, :3] < 0).all(0) | (places[:, :3] > last).all(0)).any():
        raise VolumeError(f"--reference {shown(path)} lies elsewhere in the scanner than the scan: name that one's truth, registered to it")
    return resampled(reference, grid, "cubic")


def other_units(reference: np.ndarray, output: np.ndarray) -> str | None:
    """A note where the truth's intensities are not the scan's, so that errors are of units first."""
    spans = [float(np.subtract(*np.percentile(data, (99.5, 0.5)))) for data in (reference, output)]
    if spans[1] > 0 and 0.5 <= spans[0] / spans[1] <= 2:
        return None
    return f"--reference spans {spans[0]:.4g}, the output {spans[1]:.4g}: errors are of these numbers, bring both to one scale first"


def explain(
    engine: Engine,
    method: Mixture,
    volume: Volume,
    output: Volume,
    plan: Plan,
    *,
    seed: int,
    reference: np.ndarray | None = None,
    progress: Progress = lambda done, total: None,
    note: Note = silent,
) -> Explained:
    """Of `volume`, of which `output` was made by `plan`; experts alone draw the noise of its first sample.

    Raises: as `engine.fuse`.
    """
    window, low = engine.prepared(volume, plan)
    attention, local = (np.zeros((len(method.experts), *low.shape), np.float32) for _ in range(2))
    weights = {}
    for axis in plan.axes:
        found = engine.explain(low, axis, note)
        weights[axis] = np.asarray(found.weights)
        for totals, maps in ((attention, found.attention), (local, found.local)):
            for total, of in zip(totals, np.moveaxis(np.asarray(maps), -1, 0), strict=True):
                take_slices(total, axis)[...] += of / np.float32(len(plan.axes))

    def alone(expert: int) -> np.ndarray:
        requests = {axis: request and request._replace(expert=expert) for axis, request in zip(plan.axes, plan.requests, strict=True)}
        report = lambda done: progress(expert * plan.slices + done, len(method.experts) * plan.slices)  # noqa: E731
        return window.inverse(engine.fuse(low, requests, sample_key(seed, 0), {}, report, note)[0])  # type: ignore[return-value]

    return Explained(
        method.experts,
        weights,
        tuple(replace(output, data=of) for of in attention),
        tuple(replace(output, data=of) for of in local),
        tuple(replace(output, data=alone(expert)) for expert in range(len(method.experts))),
        reference,
    )


def draw_experts(path: Path, explained: Explained, output: Volume, title: str) -> None:
    """What each expert makes alone, the mixture and, where there is one, the truth with everybody's errors [MoEDiff-SR, Table IV]."""
    means = _means(explained)
    volumes = {f"E{i + 1} {name}": of.data for i, (name, of) in enumerate(zip(explained.experts, explained.alone, strict=True))}
    captions = {name: f"mean weight {mean:.2f}" for name, mean in zip(volumes, means, strict=True)}
    save_montage(
        path, {**volumes, "mixture": output.data}, explained.reference, voxel_size=output.voxel_size, captions=captions, title=title
    )


def draw_attention(path: Path, explained: Explained, output: Volume, title: str) -> None:
    """Where each expert's query looks, black the least hundredth of places, white the most: cosines differ little, so it is nearly even."""
    volumes = {f"E{i + 1} {name}": of.data for i, (name, of) in enumerate(zip(explained.experts, explained.attention, strict=True))}
    ends = np.percentile(list(volumes.values()), (1, 99))
    least, most = float(ends[0]), float(max(ends[1], np.nextafter(np.float32(ends[0]), np.float32(np.inf))))
    captions = dict.fromkeys(volumes, f"{least:.3f} … {most:.3f} times even")
    window, shown_at = Window(least, most), output.data > np.percentile(output.data, 60)
    save_montage(path, volumes, voxel_size=output.voxel_size, window=window, foreground=shown_at, captions=captions, title=title)


def _means(explained: Explained) -> np.ndarray:
    """Mean weight of each expert over all slices."""
    return np.concatenate(list(explained.weights.values())).mean(0)
