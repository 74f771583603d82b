"""One subject's volumes as numbers: metrics by name, in the regions that are asked for, at one data range.

Intensities are compared as they are: nothing is rescaled, matched or clipped. The data range is that of the reference inside its mask or,
without one, inside its foreground (`jaxsr.volume.foreground`), robustly: the 99.9 % minus the 0.1 % percentile; or 'full', largest minus
smallest. It is the same for all methods and regions of a subject, and stands in every row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.evaluate.lpips_weights import NAME, LpipsWeights, check_lpips
from jaxsr.evaluate.metrics.registry import METRICS, Metric
from jaxsr.evaluate.metrics.resolution import fourier_shell_correlation
from jaxsr.evaluate.tables import Row
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume

DataRange = Literal["robust", "full"]

KNOWN = tuple(name for name, metric in METRICS.items() if metric.operands == "images")  # of two images; others need more than a reference
DEFAULT = ("psnr", "ssim", "rmse", "mae", "resolution", "coarsest_resolution", "hfen")
CURVE = 128  # values of a stored curve, at most


class Rules(NamedTuple):
    """How volumes are scored.

    Attributes:
      metrics: names in KNOWN, the first being the one that counts most.
      regions: 'inside', the mask or foreground, and 'image', the whole.
      lpips: what 'lpips' among the metrics is computed with.
    """

    metrics: tuple[str, ...] = DEFAULT
    regions: tuple[str, ...] = ("image", "inside")
    data_range: DataRange = "robust"
    lpips: LpipsWeights | None = None


RULES = Rules()


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if each is known and there once. Raises ValueError that says which is not."""
    unknown = [name for name in names if name not in KNOWN]
    if unknown or not names:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown)) or 'none'}; known: {', '.join(KNOWN)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)} names a metric twice")
    return tuple(names)


def score(
    reference: Volume, candidates: Mapping[str, Volume], region: np.ndarray, region_name: str, subject: str, rules: Rules
) -> tuple[list[Row], dict[str, dict[str, list[float]]]]:
    """A row for each candidate (method → volume) and region; and where resolution is scored, method → Fourier shell correlation there.

    A metric is NaN where a side is shorter than it needs. Volumes are on the reference's grid, and go to the device once each.
    """
    check_lpips(rules.metrics, rules.lpips, "the list of metrics")
    window = window_of(reference.data, region, rules.data_range)
    data_range = window.high - window.low
    truth, inside = jnp.asarray(reference.data), jnp.asarray(region)
    places = {"image": ("image", None, reference.data.size), "inside": (region_name, inside, int(region.sum()))}
    curved = "inside" if "inside" in rules.regions else "image"
    rows, curves = [], {}
    for method, candidate in candidates.items():
        ours = jnp.asarray(candidate.data)
        for key in rules.regions:
            name, mask, voxels = places[key]
            values: dict[str, float] = {}
            for metric in rules.metrics:
                if metric == "resolution" and key == curved and min(truth.shape) >= METRICS[metric].least:
                    shells = fourier_shell_correlation(ours, truth, voxel_size=np.array(reference.voxel_size), mask=mask)
                    values[metric] = float(shells.resolution)
                    curves[method] = _curve(np.asarray(shells.frequency), np.asarray(shells.correlation))
                elif metric == NAME and rules.lpips:
                    values[metric] = rules.lpips.value(ours, truth, mask, window)
                else:
                    values[metric] = _value(METRICS[metric], ours, truth, mask, data_range, reference.voxel_size)
            rows.append(Row(subject, method, name, data_range, voxels, values))
    return rows, curves


def window_of(data: np.ndarray, region: np.ndarray, kind: DataRange) -> Window:
    """The intensities between which R of PSNR, SSIM and others lies, and which LPIPS maps to [−1, 1]."""
    assert kind in get_args(DataRange)
    return Window(float(data[region].min()), float(data[region].max())) if kind == "full" else fit_window(data, mask=region)


def _value(metric: Metric, x: Array, y: Array, mask: Array | None, data_range: float, voxel_size: tuple[float, float, float]) -> float:
    if min(x.shape) < metric.least:
        return float("nan")
    known = {"data_range": data_range, "voxel_size": voxel_size}
    how: dict[str, Any] = {name: known[name] for name in metric.needs}
    return float(metric.function(x, y, mask=mask, **how))  # type: ignore[arg-type]


def _curve(frequency: np.ndarray, correlation: np.ndarray) -> dict[str, list[float]]:
    """Every k-th shell, so that CURVE values are enough."""
    step = -(-len(frequency) // CURVE)
    return {
        "frequency": [float(f"{v:.5g}") for v in frequency[::step]],
        "correlation": [float(f"{v:.4f}") for v in correlation[::step]],
    }
