"""The tables of jaxsr/weights/standard.md, of what `launch/standard.sh HEADS OUT evaluate fine` measured.

    python docs/make_standard_tables.py OUT/evaluation [MODEL]        a folder a protocol; MODEL: how the model is called there

Of each head, in its foreground: the best of the four interpolations in each of PSNR and SSIM, the model, and by how much it is better.
"""

import json
import sys
from pathlib import Path

PROTOCOLS = {
    "2mm": "1.5T, 2 mm",
    "3T": "3T, 1.5 mm",
    "thick-slice": "thick slices, 1 × 1 × 5 mm",
    "0.7mm": "2 mm to 0.7 mm, rendered heads",
}
METRICS = ("psnr", "ssim")


def values_of(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """subject → method → metric → value, in the foreground."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in json.loads((folder / "metrics.json").read_text())["rows"]:
        if row["region"] == "foreground":
            found.setdefault(row["subject"], {})[row["method"]] = {metric: row["values"][metric] for metric in METRICS}
    return found


def main(root: Path, model: str = "standard") -> None:
    for name, title in PROTOCOLS.items():
        if name == "0.7mm" and not (root / name).is_dir():
            continue  # a part of its own
        subjects = values_of(root / name)
        print(f"\n{title}\n\n| head | interpolation: PSNR (dB), SSIM | model: PSNR, SSIM | gain |\n| --- | --- | --- | --- |")
        gains = []
        for subject, methods in subjects.items():
            own = methods.pop(model)
            best = {metric: max(of[metric] for of in methods.values()) for metric in METRICS}
            gain = {metric: own[metric] - best[metric] for metric in METRICS}
            gains.append(gain)
            cells = [f"{of['psnr']:.2f}, {of['ssim']:.4f}" for of in (best, own)]
            print(f"| {subject.removeprefix('sub-')} | {cells[0]} | {cells[1]} | {gain['psnr']:+.2f} dB, {gain['ssim']:+.4f} |")
        mean = {metric: sum(gain[metric] for gain in gains) / len(gains) for metric in METRICS}
        print(f"| **mean of {len(gains)}** | | | **{mean['psnr']:+.2f} dB, {mean['ssim']:+.4f}** |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
