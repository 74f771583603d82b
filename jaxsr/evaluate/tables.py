"""The numbers of an evaluation, kept subject by subject, summarised, and written as CSV and JSON.

Standard deviations are over subjects, with N − 1 (NaN for one). In JSON, NaN is null and an infinite value the string 'inf'.
"""

import csv
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsr.files import write_together

UNITS = {"rmse": "RMSE", "mae": "MAE", "psnr": "PSNR (dB)", "ssim": "SSIM"}
CONVENTIONS = {
    "intensities": "compared as they are, in the reference's unit",
    "data_range": "99.9 % minus 0.1 % percentile of the reference inside the mask, or inside its foreground where no mask is given",
    "foreground": "largest piece above half of Otsu's threshold of the reference, slightly smoothed, holes filled",
    "regions": "'image': every voxel; 'foreground' or 'mask': the voxels inside",
    "psnr": "10 log10(data_range^2 / mean squared error), dB",
    "ssim": "three-dimensional, Gaussian window of 11 voxels and sigma 1.5, population covariance, K1 0.01, K2 0.03; mean over the centres "
    "(of the region) whose window lies inside the volume; null where a side is shorter than 11 voxels",
    "sd": "over subjects, N - 1",
    "non_finite": "NaN is null, an infinite value is the string 'inf'",
}


class Row(NamedTuple):
    """One method on one subject in one region; `values`: metric → value."""

    subject: str
    method: str
    region: str
    data_range: float
    voxels: int
    values: Mapping[str, float]


class Summary(NamedTuple):
    """One metric of one method in one region over subjects."""

    method: str
    region: str
    metric: str
    n: int
    mean: float
    sd: float
    median: float


@dataclass(frozen=True)
class Comparison:
    """What an evaluation found: rows, what was odd, which subjects failed and why, and the files written."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    montages: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def summary(self) -> list[Summary]:
        """Mean, standard deviation and median over subjects, in the order of the rows."""
        grouped: dict[tuple[str, str, str], list[float]] = {}
        for row in self.rows:
            for metric, value in row.values.items():
                grouped.setdefault((row.method, row.region, metric), []).append(value)
        return [_summarise(*key, np.array(values)) for key, values in grouped.items()]

    def table(self, region: str | None = None) -> list[dict[str, str]]:
        """Rows to print, column → text: a method and a region each (or one region's), mean ± sd over subjects, the plain value for one."""
        lines: dict[tuple[str, str], dict[str, str]] = {}
        for s in self.summary:
            if region in (None, s.region):
                line = lines.setdefault((s.method, s.region), {"method": s.method, "region": s.region, "subjects": str(s.n)})
                line[UNITS.get(s.metric, s.metric)] = _text(s)
        return sorted(lines.values(), key=lambda line: line["region"] == "image")


def write_tables(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """metrics.csv, a line a row, and metrics.json, everything; neither depends on how or when the command was called."""

    def write_csv(path: Path) -> None:
        metrics = list(dict.fromkeys(m for row in comparison.rows for m in row.values))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*Row._fields[:-1], *metrics])
            writer.writerows([*row[:-1], *(row.values.get(m, "") for m in metrics)] for row in comparison.rows)

    def write_json(path: Path) -> None:
        path.write_text(json.dumps(_document(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")

    table, document = folder / "metrics.csv", folder / "metrics.json"
    write_together({table: write_csv, document: write_json})
    return table, document


def _document(comparison: Comparison) -> dict[str, Any]:
    rows = [{**row._asdict(), "values": {m: _json(v) for m, v in row.values.items()}} for row in comparison.rows]
    summary = [{k: _json(v) for k, v in s._asdict().items()} for s in comparison.summary]
    return {
        "conventions": CONVENTIONS,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("jaxsr", "jax", "numpy", "nibabel", "scipy")},
        },
        "summary": summary,
        "rows": rows,
        "notes": list(comparison.notes),
        "failures": dict(comparison.failures),
    }


def _summarise(method: str, region: str, metric: str, values: np.ndarray) -> Summary:
    with np.errstate(invalid="ignore"):  # inf - inf, where every output equals its reference
        sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        return Summary(method, region, metric, len(values), float(values.mean()), sd, float(np.median(values)))


def _text(s: Summary) -> str:
    spec = {"psnr": ".2f", "ssim": ".4f"}.get(s.metric, ".4g")
    if math.isnan(s.mean):
        return "–"
    return f"{s.mean:{spec}}" + ("" if math.isnan(s.sd) else f" ± {s.sd:{spec}}")


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
