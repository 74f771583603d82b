"""Posterior samples of a volume: their mean, and their standard deviation, voxel by voxel.

    m_k = m_{k−1} + (x_k − m_{k−1}) / k        M_k = M_{k−1} + (x_k − m_{k−1}) (x_k − m_k)        s² = M_K / (K − 1)
                                                                                [Welford 1962, Technometrics 4:419]

Sample k has noise keyed by (seed, k, axis, slice): it is the same volume however many are drawn, and the program that makes it is the same.
A sample is what one run gives, the mean over the axes. Only sums are held, in float64, and the sample at hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxsr.methods.base import Request
from jaxsr.upscale.batches import Note
from jaxsr.upscale.cuts import Maps
from jaxsr.upscale.engine import Engine, Progress, Upscaled, silent
from jaxsr.upscale.inputs import Sizes
from jaxsr.volume.io import Volume
from jaxsr.volume.slices import AXES

Each = Callable[[int, Upscaled], None]


class Samples(NamedTuple):
    """`mean`: as one run gives it, its volume the mean of all, its metrics the samples' means. `std`: None of a single sample.

    `same`: why all samples are one, where the method does not sample; then one was drawn.
    """

    mean: Upscaled
    std: Volume | None
    same: str = ""


class Moments:
    """Mean and standard deviation of volumes that are seen one by one, in float64: the formulas above, a plane at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = np.empty(0)

    def add(self, data: np.ndarray) -> None:
        """One more `[X, Y, Z]`."""
        self.count += 1
        if self.count == 1:
            self._mean, self._squares = data.astype(np.float64), np.zeros(data.shape)
            return
        for mean, squares, x in zip(self._mean, self._squares, data, strict=True):
            apart = x - mean
            mean += apart / self.count
            squares += apart * (x - mean)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (of a population that these are samples of), float32 `[X, Y, Z]`; no more can be added."""
        mean = self._mean.astype(np.float32)
        self._mean = np.empty(0)
        self._squares /= max(self.count - 1, 1)
        np.sqrt(self._squares, out=self._squares)
        std, self._squares = self._squares.astype(np.float32), np.empty(0)
        return mean, std


def draw(
    engine: Engine,
    volume: Volume,
    request: Request,
    samples: int,
    *,
    sampling: bool = True,
    to_mm: float | None = None,
    from_mm: Sizes | None = None,
    maps: Maps = {},  # noqa: B006
    axes: Sequence[str] = tuple(AXES),
    seed: int = 0,
    each: Each = lambda sample, result: None,
    progress: Progress = lambda done, total: None,
    note: Note = silent,
) -> Samples:
    """`samples` results of `engine.upscale`, of which the first is what it gives by itself.

    Args:
      sampling: whether the method does; of one that does not a single sample is drawn.
      each: is given every sample as it comes.

    Raises: as `engine.upscale`.
    """

    def one(sample: int, count: int) -> Upscaled:
        def report(done: int, total: int) -> None:
            progress(sample * total + done, count * total)

        result = engine.upscale(
            volume, request, to_mm=to_mm, from_mm=from_mm, maps=maps, axes=axes, seed=seed, sample=sample, progress=report, note=note
        )
        each(sample, result)
        return result

    if samples == 1 or not sampling:
        only = one(0, 1)
        if samples == 1:
            return Samples(only, None)
        still = replace(only.volume, data=np.zeros_like(only.volume.data))
        return Samples(only, still, "the method does not sample: all samples would be this one, and the standard deviation is 0")
    moments = Moments()
    metrics: list[dict[str, float]] = []
    compilations = 0
    for sample in range(samples):
        result = one(sample, samples)
        moments.add(result.volume.data)
        metrics.append(result.metrics)
        compilations += result.compilations
        last = result._replace(volume=replace(result.volume, data=np.empty((0, 0, 0), np.float32)))
        del result
    mean, std = moments.finish()
    together = {name: float(np.mean([each_[name] for each_ in metrics])) for name in metrics[0]}
    mean_result = last._replace(volume=replace(last.volume, data=mean), metrics=together, compilations=compilations)
    return Samples(mean_result, replace(mean_result.volume, data=std))
