"""Tables and pictures of SPCDD's toy study, `launch/spcdd.sh`: `python docs/make_spcdd_tables.py OUT`.

Prints, of each training, the mean over heads, and over seeds its mean ± standard deviation (N − 1). Draws OUT/curves.png, the training
losses of the paper's Fig. 1, and OUT/histograms.png, the distributions of intensities of its Fig. 2, of the first head and seed.
"""

import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxsr.files import write_whole
from jaxsr.volume.foreground import foreground
from jaxsr.volume.io import read_volume

METRICS = {
    "psnr": ("PSNR (dB)", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "histogram_match": ("histogram match", ".4f"),
    "local_contrast_error": ("local contrast error", ".4f"),
    "gradient_error": ("gradient error", ".4f"),
}
TISSUES = {"1": "CSF", "2": "grey matter", "3": "white matter"}
TABLES = {
    "One evaluation [Table 1, §5.2, §5.3]": ("tricubic", "kspace", "neither", "prior", "intensity", "both", "losses"),
    "Sampled, ten steps": ("small-neither", "small-prior", "small-intensity", "small-both"),
    "Distilled [§5.4]": ("both", "student", "alone", "small-both", "small-student", "small-alone"),
    "Few pairs [§3.5]": ("both", "all-game", "0.25", "0.25-game", "0.05", "0.05-game"),
}
CURVES = ("neither", "prior", "intensity", "both")
_SEED = re.compile(r"(.+)-(\d+)$")

Values = dict[str, dict[str, dict[str, list[float]]]]  # training → seed → metric → values of heads


def read(path: Path, region: str | None, metrics: Mapping[str, str]) -> Values:
    """Rows of a metrics.csv: of `region`, or (None) of every label, as metrics of their own."""
    found: Values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in csv.DictReader(path.open(encoding="utf-8")):
        if region is not None and row["region"] != region:
            continue
        training, seed = match.groups() if (match := _SEED.match(row["method"])) else (row["method"], "")
        for name in metrics:
            value = row.get("dice") if region is None else row[name]
            if value and (region is not None or row["region"] == name):
                found[training][seed][name].append(float(value))
    return found


def cell(seeds: Mapping[str, Mapping[str, Sequence[float]]], metric: str, spec: str) -> str:
    """Mean over heads, then mean ± deviation over seeds."""
    means = [np.mean(of[metric]) for of in seeds.values() if of.get(metric)]
    if not means:
        return ""
    return f"{np.mean(means):{spec}}" + (f" ± {np.std(means, ddof=1):{spec}}" if len(means) > 1 else "")


def table(rows: Sequence[str], images: Values, labels: Values) -> str:
    titles = [title for title, _ in METRICS.values()] + [f"Dice, {name}" for name in TISSUES.values()]
    lines = [f"| | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
    for name in rows:
        cells = [cell(images.get(name, {}), metric, spec) for metric, (_, spec) in METRICS.items()]
        cells += [cell(labels.get(name, {}), label, ".3f") for label in TISSUES]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs(path: Path) -> str:
    """Latency and memory of teachers and students [§5.4]."""
    lines = ["| | parameters | multiply-adds of 64 × 64 | seconds a volume of 96³ | memory of 8 slices |", "| --- " * 5 + "|"]
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        count, time, memory = line["count"], line["upscale"]["seconds_per_volume"], line["compile"]["device_bytes"]
        work = f"{count['parameters']:,} | {count['multiply_adds'] / 1e6:.0f} M"
        lines.append(f"| {line['config']} | {work} | {time:.2f} | {memory / 2**20:.0f} MiB |")
    return "\n".join(lines)


def draw_curves(out: Path) -> None:
    """Fig. 1: L1 over training, every seed a line."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, name in enumerate(CURVES):
        for j, run in enumerate(sorted(out.glob(f"runs/{name}-*"))):
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            steps, losses = zip(*((line["step"], line["reconstruction"]) for line in lines if "reconstruction" in line), strict=True)
            axis.semilogy(steps, losses, color=f"C{i}", alpha=0.8, label=None if j else name)
    axis.set(xlabel="step", ylabel="mean absolute error of a batch", title="Training loss (SPCDD, Fig. 1), a line a seed")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    write_whole(out / "curves.png", lambda part: figure.savefig(part, dpi=110, format="png"))


def draw_histograms(out: Path) -> None:
    """Fig. 2: intensities of one head's foreground."""
    truth = next(iter(sorted((out / "middle" / "high").glob("*.nii.gz"))))
    target = read_volume(truth).data
    inside = foreground(target)
    edges = np.linspace(0, np.percentile(target[inside], 99.9), 129)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    shown = {"target": target}
    for name in CURVES:
        if runs := sorted(out.glob(f"upscaled/{name}-*")):
            shown[name] = read_volume(runs[0] / truth.name).data
    for i, (name, data) in enumerate(shown.items()):
        style = {"color": "black", "linewidth": 2} if name == "target" else {"color": f"C{i - 1}"}
        axis.stairs(np.histogram(data[inside], edges, density=True)[0], edges, label=name, **style)
    axis.set(xlabel="intensity", ylabel="density", title="Intensities of a head (SPCDD, Fig. 2)")
    axis.grid(alpha=0.3)
    axis.legend()
    write_whole(out / "histograms.png", lambda part: figure.savefig(part, dpi=110, format="png"))


def main(out: Path) -> None:
    images = read(out / "images" / "metrics.csv", "foreground", {name: name for name in METRICS})
    labels = read(out / "labels" / "metrics.csv", None, TISSUES)
    for title, rows in TABLES.items():
        print(f"### {title}\n\n{table(rows, images, labels)}\n")
    for name in ("anatomy", "judge", "anatomy-self"):
        dice = [f"{tissue} {cell(labels.get(f'truth-{name}', {}), label, '.3f')}" for label, tissue in TISSUES.items()]
        print(f"Dice of {name} on the truth: {', '.join(dice)}\n")
    if (out / "cost.jsonl").exists():
        print(costs(out / "cost.jsonl"))
    draw_curves(out)
    draw_histograms(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}\nname the folder of launch/spcdd.sh")
    main(Path(sys.argv[1]))
