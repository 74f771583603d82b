"""LPIPS as a column: its weights, read once from the file that --lpips-weights names, and one volume's value.

The data range is the window whose width is R (`jaxsr.evaluate.scores.window_of`); volumes are cut into axial slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax import Array

from jaxsr.data.records import file_sha256
from jaxsr.evaluate.metrics.perceptual import lpips
from jaxsr.models.perceptual import LEAST_SIDE
from jaxsr.volume.intensity import Window
from jaxsr.weights.perceptual import Perceptual, read_perceptual

NAME = "lpips"
OPTION = "--lpips-weights"


@dataclass(frozen=True, eq=False)
class LpipsWeights:
    """`weights` on the device; `file`, the name, and `sha256` of the file that they are from."""

    weights: Perceptual
    file: str
    sha256: str

    @property
    def facts(self) -> dict[str, str]:
        """For metrics.json."""
        return {"file": self.file, "net": self.weights.net, "sha256": self.sha256}

    def value(self, x: Array, y: Array, mask: Array | None, window: Window) -> float:
        """Of volumes `[X, Y, Z]`; NaN where a side of the axial slices is shorter than the network needs, whatever their number."""
        if min(x.shape[:2]) < LEAST_SIDE[self.weights.net]:
            return float("nan")
        return float(lpips(x, y, self.weights, data_range=window, mask=mask))


def read_lpips(path: Path) -> LpipsWeights:
    """Raises WeightsError as `read_perceptual`."""
    weights = read_perceptual(path)
    return LpipsWeights(weights._replace(variables=jax.device_put(weights.variables)), path.name, file_sha256(path))


def check_lpips(metrics: Sequence[str], given: object, where: str) -> None:
    """Raises ValueError where metrics, named in `where`, and weights, `given` or None, are not both there or both absent."""
    if NAME in metrics and given is None:
        raise ValueError(f"{where} names lpips, which needs its published weights: give their file with {OPTION}, or leave lpips out")
    if NAME not in metrics and given is not None:
        raise ValueError(f"{where} does not name lpips, so {OPTION} is given in vain: name it there, or leave the option out")
