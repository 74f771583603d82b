"""The numbers of an evaluation, kept subject by subject, summarised, and written as CSV and JSON.

Standard deviations are over subjects, with N − 1 (NaN for one). In JSON, NaN is null and an infinite value the string 'inf'.
"""

import csv
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsr.evaluate.metrics.registry import METRICS, PLAIN
from jaxsr.evaluate.statistics import Test, bootstrap_interval, paired_tests
from jaxsr.evaluate.written import COLUMNS
from jaxsr.files import write_together

CONVENTIONS = {
    "intensities": "compared as they are, in the reference's unit",
    "data_range": "{range} of the reference inside the mask, or inside its foreground where no mask is given",
    "foreground": "largest piece above half of Otsu's threshold of the reference, slightly smoothed, holes filled",
    "regions": "'image': every voxel; 'foreground' or 'mask': the voxels inside",
    "mse": "mean squared error",
    "rmse": "root of the mean squared error",
    "nrmse": "root of the mean squared error over the root of the mean square of the reference",
    "mae": "mean absolute error",
    "psnr": "10 log10(data_range^2 / mean squared error), dB",
    "ssim": "three-dimensional, Gaussian window of 11 voxels and sigma 1.5, population covariance, K1 0.01, K2 0.03; mean over the centres "
    "(of the region) whose window lies inside the volume; null where a side is shorter than 11 voxels",
    "resolution": "1 / frequency in mm where the Fourier shell correlation with the reference first falls under 1/2; inside a region, "
    "both images fade out over nine voxels at its edge",
    "coarsest_resolution": "the same of what lies within 25 degrees of an axis, for the worst of the three axes",
    "hfen": "norm of the Laplacian of Gaussian (sigma 1.5 voxels, 15 taps) of the error over that of the reference",
    "gradient_error": "root of the mean square of the gradient vector's error over that of the reference's gradient",
    "lpips": "version 0.1 with the weights that provenance.lpips names; mean over axial slices (of the region: by their share of it), the "
    "data range mapped to [-1, 1] from its lower to its upper end, nothing clipped",
    "dice": "2 |A & B| / (|A| + |B|), A the label's voxels in the output's map, B those in the reference's; null where neither has it",
    "volume_error": "|A| - |B|, ml",
    "relative_volume_error": "(|A| - |B|) / |B|: -1 where the output lacks the label, inf where the reference does, null where both do",
    "sd": "over subjects, N - 1",
    "low, high": "95 % BCa bootstrap interval of the mean over subjects, 9999 resamples, seed 0; null below 5 subjects",
    "p": "two-sided exact Wilcoxon signed-rank test of paired differences, zeros left out; null below 6 pairs",
    "p_holm": "Holm's correction over all methods, in one metric and region",
    "median_difference": "median over subjects of method - against",
    "non_finite": "NaN is null, an infinite value is the string 'inf'; n, mean, sd, low and high are of the finite values (of the infinite "
    "ones where there are no others), the median is of all but NaN",
}
OF_IMAGES = ("intensities", "data_range", "foreground", "regions")  # conventions that label maps have nothing of
OF_LABELS = "one a label, by its name or number; voxels: the reference's of that label"
_RANGES = {"robust": "99.9 % minus 0.1 % percentile", "full": "largest minus smallest value"}
_NUMBERS = re.compile(r"\[\n\s+([-+.\deE,\s]+?)\s+\]")
_LISTED = 8  # names in a sentence
_NEAR = 2  # folders upwards, up to which a path is written as relative


class Row(NamedTuple):
    """One method on one subject in one region; `values`: metric → value."""

    subject: str
    method: str
    region: str
    data_range: float | None  # None of label maps
    voxels: int
    values: Mapping[str, float]


class Summary(NamedTuple):
    """One metric of one method in one region over subjects; `low`, `high`: the 95 % interval of the mean.

    n, mean, sd and interval are of the finite values, as one NaN or inf would leave nothing of a mean (where all are infinite, so is the
    mean); the median is of all but NaN.
    """

    method: str
    region: str
    metric: str
    n: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


class Files(NamedTuple):
    """Where one subject's volumes are; `outputs`: method → path."""

    reference: Path
    outputs: Mapping[str, Path]
    low: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """What an evaluation found: rows, what was odd, which subjects failed and why, and the files written.

    Attributes:
      failures: subject → why it could not be compared; `left_out`: subject → why it was not meant to be.
      against: the method that others are tested against. data_range: of `jaxsr.evaluate.scores.Rules`.
      labels: region → label, where label maps were compared; data_range is None then.
      sources: subject → its volumes. curves: subject → method → Fourier shell correlation.
      protocol, provenance: as they are to stand in metrics.json.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    montages: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    against: str | None = None
    data_range: str | None = "robust"
    left_out: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Files] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Mapping[str, list[float]]]] = field(default_factory=dict)
    protocol: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def summary(self) -> list[Summary]:
        """Of every method, region and metric over subjects, in the order of the rows."""
        return [_summarise(*key, np.array(values)) for key, values in self._values.items()]

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], list[float]]:
        grouped: dict[tuple[str, str, str], list[float]] = {}
        for row in self.rows:
            for metric, value in row.values.items():
                grouped.setdefault((row.method, row.region, metric), []).append(value)
        return grouped

    @property
    def tests(self) -> list[Test]:
        """Every method against `against`; the mask or foreground first."""
        return self._tested[0]

    @property
    def all_notes(self) -> tuple[str, ...]:
        """`notes`, and what summaries and tests give cause to say."""
        return (*self.notes, *_incomplete(self._values), *_joined(self._tested[1], list(self.labels)))

    @cached_property
    def _tested(self) -> tuple[list[Test], list[str]]:
        numbers: dict[str, Any] = {}
        for row in sorted(self.rows, key=lambda row: row.region == "image"):
            for metric, value in row.values.items():
                numbers.setdefault(row.region, {}).setdefault(metric, {}).setdefault(row.method, {})[row.subject] = value
        several = len({row.subject for row in self.rows}) > 1
        return paired_tests(numbers, self.against) if self.against and several else ([], [])

    def table(self, region: str | None = None, *, interval: bool = False) -> list[dict[str, str]]:
        """Rows to print, column → text: a method and a region each (or one region's), mean ± sd over subjects, the plain value for one.

        `interval`: a second line in each cell, where there are several subjects.
        """
        lines: dict[tuple[str, str], dict[str, str]] = {}
        for s in self.summary:
            if region in (None, s.region):
                subjects = str(len(self._values[s.method, s.region, s.metric]))
                line = lines.setdefault((s.method, s.region), {"method": s.method, "region": s.region, "subjects": subjects})
                line[heading(s.metric)] = _text(s) + (_interval(s) if interval else "")
        return sorted(lines.values(), key=lambda line: line["region"] == "image")


def heading(name: str) -> str:
    """As in 'PSNR (dB)'; metrics in the images' own unit go without."""
    if name not in METRICS:
        return name
    metric = METRICS[name]
    return f"{metric.title} ({metric.unit})" if metric.unit and not metric.unit.startswith("intensity") else metric.title


def write_tables(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """metrics.csv, a line a row, and metrics.json, everything; apart from `provenance`, neither depends on how or when it was called."""

    def write_csv(path: Path) -> None:
        metrics = list(dict.fromkeys(m for row in comparison.rows for m in row.values))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, *metrics])
            writer.writerows([*row[:-1], *(row.values.get(m, "") for m in metrics)] for row in comparison.rows)

    def write_json(path: Path) -> None:
        text = json.dumps(_document(comparison, folder), indent=2, ensure_ascii=False, allow_nan=False)
        text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)  # a curve is not a page
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    table, document = folder / "metrics.csv", folder / "metrics.json"
    write_together({table: write_csv, document: write_json})
    return table, document


def _document(comparison: Comparison, folder: Path) -> dict[str, Any]:
    scored = {metric for row in comparison.rows for metric in row.values}
    told = {key: text for key, text in CONVENTIONS.items() if key not in METRICS or key in scored}
    if comparison.data_range is None:
        told = {"regions": OF_LABELS} | {key: text for key, text in told.items() if key not in OF_IMAGES}
    else:
        told["data_range"] = told["data_range"].format(range=_RANGES[comparison.data_range])
    rows = [{**row._asdict(), "values": {m: _json(v) for m, v in row.values.items()}} for row in comparison.rows]
    return {
        "conventions": told,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("jaxsr", "jax", "numpy", "nibabel", "scipy")},
        },
        **({"labels": dict(comparison.labels)} if comparison.labels else {}),
        "protocol": comparison.protocol,
        "provenance": dict(comparison.provenance),
        "summary": [{k: _json(v) for k, v in s._asdict().items()} for s in comparison.summary],
        "tests": [{k: _json(v) for k, v in t._asdict().items()} for t in comparison.tests],
        "rows": rows,
        "files": {subject: _places(files, folder) for subject, files in comparison.sources.items()},
        "curves": comparison.curves,
        "notes": list(comparison.all_notes),
        "failures": {**comparison.left_out, **comparison.failures},
    }


def _places(files: Files, folder: Path) -> dict[str, Any]:
    def place(path: Path | None) -> str | None:
        if path is None:
            return None
        relative = Path(os.path.relpath(path.resolve(), folder.resolve()))
        return relative.as_posix() if relative.parts[: _NEAR + 1].count("..") <= _NEAR else str(path.resolve())

    outputs = {method: place(path) for method, path in files.outputs.items()}
    return {"reference": place(files.reference), "low": place(files.low), "mask": place(files.mask), "outputs": outputs}


def _summarise(method: str, region: str, metric: str, values: np.ndarray) -> Summary:
    known = values[~np.isnan(values)]
    if not len(known):
        return Summary(method, region, metric, 0, *[float("nan")] * 5)
    finite = known[np.isfinite(known)]
    taken = finite if len(finite) else known
    with np.errstate(invalid="ignore"):  # inf - inf, where every output equals its reference
        sd = float(taken.std(ddof=1)) if len(taken) > 1 else float("nan")
        low, high = bootstrap_interval(tuple(taken.tolist()))
        return Summary(method, region, metric, len(taken), float(taken.mean()), sd, float(np.median(known)), low, high)


def _incomplete(values: Mapping[tuple[str, str, str], list[float]]) -> list[str]:
    """A sentence that says of which means some subjects are left out."""
    told: dict[str, list[str]] = {}
    for (method, region, metric), numbers in values.items():
        finite = int(np.isfinite(numbers).sum())
        if 0 < finite < len(numbers):
            told.setdefault(f"{len(numbers) - finite} of {len(numbers)} in {metric}, {region}", []).append(method)
    parts = [f"{what}: {', '.join(methods)}" for what, methods in told.items()]
    where = "; ".join([*parts[:_LISTED], *([f"{len(parts) - _LISTED} more in metrics.json"] if len(parts) > _LISTED else [])])
    return [f"values that are not finite are left out of means, deviations and intervals ({where})"] if told else []


def _joined(notes: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Notes of labels that say the same as one, of the first labels and the number of the others."""
    joined: dict[str, list[str]] = {}
    for note in notes:
        label = next((label for label in labels if note.startswith(f"{label}: ")), "")
        joined.setdefault(note.removeprefix(f"{label}: ") if label else note, []).append(label)
    return [f"{listed(of)}: {note}" if of[0] else note for note, of in joined.items()]


def listed(names: Sequence[str]) -> str:
    """As in 'a, b and 7 more'."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _text(s: Summary) -> str:
    if math.isnan(s.mean):
        return "–"
    return _number(s.metric, s.mean) + ("" if math.isnan(s.sd) else f" ± {_number(s.metric, s.sd)}")


def _interval(s: Summary) -> str:
    return "" if math.isnan(s.low) else f"\n{_number(s.metric, s.low)} … {_number(s.metric, s.high)}"


def _number(metric: str, value: float) -> str:
    return f"{value:{METRICS[metric].spec if metric in METRICS else PLAIN}}".rstrip(".")


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
