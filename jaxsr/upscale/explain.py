"""Which expert of a mixture made what: gate weights by slice, where each one's query looks, and what each would have made alone.

    attention of E_i    N_s Att_n(i) at the patch of token n, summed over the scales [MoEDiff-SR, Eq. 2]: 1 where it looks evenly
    error of E_i        |x̂_i − x|, x̂_i being the volume that E_i makes of every slice, x a reference             [MoEDiff-SR, Table IV]

Both are averaged over slice axes, as the output is. What experts make alone costs as much as the mixture did.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsr.evaluate.montage import save_montage
from jaxsr.files import shown
from jaxsr.methods.base import Method, Mixture, Request
from jaxsr.upscale.engine import Engine, Note, silent
from jaxsr.volume.geometry import resample_oblique
from jaxsr.volume.intensity import Window
from jaxsr.volume.io import Volume, VolumeError, read_volume
from jaxsr.volume.slices import AXES

DIGITS = 4  # of a weight, in a sidecar


class Explained(NamedTuple):
    """What experts did with one volume.

    Attributes:
      experts: their names.
      weights: by axis, of its slices `[n, K]`.
      attention: of each, on the output's grid.
      alone: what each makes by itself, there.
      reference: the truth, there; None where none was named.
    """

    experts: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    attention: tuple[Volume, ...]
    alone: tuple[Volume, ...]
    reference: Volume | None

    @property
    def errors(self) -> tuple[Volume, ...]:
        """|x̂_i − x|; () without a reference."""
        if self.reference is None:
            return ()
        return tuple(replace(of, data=np.abs(of.data - self.reference.data)) for of in self.alone)

    @property
    def facts(self) -> dict[str, Any]:
        """For a sidecar: weights of every slice, from the first on."""
        return {"Experts": list(self.experts), "Gates": {axis: np.round(of, DIGITS).tolist() for axis, of in self.weights.items()}}


def check_explainable(method: Method, kind: str) -> None:
    """Raises VolumeError for a method that is no mixture."""
    if not isinstance(method, Mixture):
        raise VolumeError(f"--explain: a model of kind {kind} has no experts, a mixture (moediff) has: leave it out")


def explain(
    engine: Engine,
    method: Mixture,
    volume: Volume,
    output: Volume,
    request: Request,
    *,
    to_mm: float,
    axes: tuple[str, ...],
    seed: int,
    reference: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Note = silent,
) -> Explained:
    """Of `volume`, of which `output` was made with the same settings.

    Raises: as `engine.upscale`; VolumeError where the reference cannot be read, or does not lie where the output does.
    """
    truth = None if reference is None else _on_grid(read_volume(reference), output)
    prepared = engine.prepared(volume, to_mm, axes)
    found = engine.explain(prepared.low, prepared.plan.axes, note)
    count = len(method.experts)
    attention = np.zeros((count, *output.data.shape), np.float32)
    for axis, of in found.items():
        attention += np.moveaxis(np.moveaxis(np.asarray(of.attention), 0, AXES[axis]), -1, 0) / len(found)
    slices = prepared.plan.slices

    def alone(expert: int) -> Volume:
        report = lambda done, total: progress(expert * slices + done, count * slices)  # noqa: E731
        return engine.upscale(volume, request._replace(expert=expert), to_mm=to_mm, axes=axes, seed=seed, progress=report, note=note).volume

    return Explained(
        method.experts,
        {axis: np.asarray(of.weights) for axis, of in found.items()},
        tuple(replace(output, data=of) for of in attention),
        tuple(alone(expert) for expert in range(count)),
        truth,
    )


def draw_experts(path: Path, explained: Explained, output: Volume, title: str) -> None:
    """What each expert makes alone, the mixture and, where there is one, the truth with everybody's errors [MoEDiff-SR, Table IV]."""
    means = _means(explained)
    volumes = {f"E{i + 1} {name}": of.data for i, (name, of) in enumerate(zip(explained.experts, explained.alone, strict=True))}
    captions = {name: f"mean weight {mean:.2f}" for name, mean in zip(volumes, means, strict=True)}
    truth = None if explained.reference is None else explained.reference.data
    save_montage(path, {**volumes, "mixture": output.data}, truth, voxel_size=output.voxel_size, captions=captions, title=title)


def draw_attention(path: Path, explained: Explained, output: Volume, title: str) -> None:
    """Where each expert's query looks: black nowhere, grey evenly, white twice as much and above."""
    volumes = {f"E{i + 1} {name}": of.data for i, (name, of) in enumerate(zip(explained.experts, explained.attention, strict=True))}
    lit = max(float(np.percentile(of, 99)) for of in volumes.values())
    captions = dict.fromkeys(volumes, f"attention, 0 … {lit:.2f} times even")
    window, shown_at = Window(0.0, lit), output.data > np.percentile(output.data, 60)
    save_montage(path, volumes, voxel_size=output.voxel_size, window=window, foreground=shown_at, captions=captions, title=title)


def _means(explained: Explained) -> np.ndarray:
    """Mean weight of each expert over all slices."""
    return np.concatenate(list(explained.weights.values())).mean(0)


def _on_grid(reference: Volume, output: Volume) -> Volume:
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(output.data.shape) - 1)
    places = np.concatenate([corners, np.ones((8, 1))], 1) @ (np.linalg.solve(reference.affine, output.affine)).T
    if np.all((places[:, :3] < 0).all(0) | (places[:, :3] > np.array(reference.data.shape) - 1).all(0)):
        name = shown(reference.path) if reference.path else "the reference"
        raise VolumeError(f"--reference: {name} lies elsewhere in the scanner than the output: name the scan's own truth, registered to it")
    return replace(output, data=resample_oblique(reference.data, reference.grid, output.grid))
