"""The summary page of a prepared set: what is in it, what is not and why, and a picture of every scan."""

import json
from collections import Counter
from pathlib import Path

import jinja2

from jaxsr.data.records import Manifest, Shard
from jaxsr.files import write_text
from jaxsr.prepare.picture import SCALES, columns

WARNING = "For research only. Simulated acquisitions are synthetic; corrected and resampled volumes are not what the scanner measured."


def write_summary(path: Path, manifest: Manifest) -> Path:
    """Writes the page; its pictures lie beside it, in `pictures/`. Everything in it comes from its arguments: no time, no machine."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxsr.prepare", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("summary.html").render(
        manifest=manifest,
        warning=WARNING,
        settings=_flat(json.loads(manifest.settings)),
        splits=split_counts(manifest),
        acquired=_common(" × ".join(f"{v:.3g}" for v in shard.acquired) + " mm" for shard in manifest.shards),
        shapes=_common(" × ".join(map(str, shard.shape)) for shard in manifest.shards),
        columns=[SCALES.get(column, column) for column in columns(manifest.maps)],
    )
    return write_text(path, page)


def split_counts(manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """People, scans and slices of each split."""
    by: dict[str, list[Shard]] = {"train": [], "validation": [], "test": []}
    for shard in manifest.shards:
        by[shard.split].append(shard)
    return {split: (len({s.person for s in shards}), len(shards), sum(s.records for s in shards)) for split, shards in by.items()}


def _common(values: object) -> list[tuple[str, int]]:
    """The ten most common values and how often each is there."""
    return sorted(Counter(values).most_common(10), key=lambda item: (-item[1], item[0]))  # type: ignore[call-overload]


def _flat(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, "–" if value is None else str(value))]
    return rows
