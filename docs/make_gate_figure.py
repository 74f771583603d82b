"""Draws how the gates of mixtures learn [MoEDiff-SR, Fig. 3]: `python docs/make_gate_figure.py PICTURE NAME=RUN…`.

Of each run the first term of its gating loss (Eq. 16), over slices that have one, the entropy of its gate, the weight of each expert, and
how near each expert comes to z_0 (Eq. 14's cosines): running means over a tenth of the run. Prints what they are over its last fifth.
"""

import itertools
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxsr.files import write_whole

EXPERTS = {"smooth": "-", "cortex": "--", "junction": ":"}
COLOURS = itertools.cycle(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"))
PANELS = {
    "gating loss, first term (Eq. 16)": ["supervised"],
    "entropy of the gate (nats)": ["gate_entropy"],
    "weight of E1 (line), E2 (dashes), E3 (dots)": [f"gate_{name}" for name in EXPERTS],
    "cosine of ẑ_0 and z_0, E1, E2, E3": [f"similarity_{name}" for name in EXPERTS],
}


def curves(run: Path) -> dict[str, np.ndarray]:
    """By name, what was logged; `step` among them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "supervised" in line]
    return {name: np.array([line[name] for line in lines]) for name in ("step", *(name for names in PANELS.values() for name in names))}


def smooth(values: np.ndarray) -> np.ndarray:
    """Running means over a tenth of them, over fewer at the ends."""
    window = np.ones(max(len(values) // 10, 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def main(picture: Path, runs: dict[str, Path]) -> None:
    found = {name: curves(run) for name, run in runs.items()}
    colours = {name: next(COLOURS) for name in runs}
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
        for label, of in found.items():
            for name in names:
                style = EXPERTS.get(name.rpartition("_")[2], "-")
                axis.plot(of["step"], smooth(of[name]), style, color=colours[label], label=label if name == names[0] else None)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    write_whole(picture, lambda part: figure.savefig(part, dpi=110, format="png"))
    print("| run | gating loss | entropy | weights of E1, E2, E3 | cosines of E1, E2, E3 |\n| --- | --- | --- | --- | --- |")
    for label, of in found.items():
        late = {name: values[of["step"] > 0.8 * of["step"][-1]].mean() for name, values in of.items()}
        triples = [", ".join(f"{late[f'{kind}_{name}']:.3f}" for name in EXPERTS) for kind in ("gate", "similarity")]
        print(f"| {label} | {late['supervised']:.4f} | {late['gate_entropy']:.3f} | {triples[0]} | {triples[1]} |")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in word for word in sys.argv[2:]):
        sys.exit(f"{__doc__}\nname a picture, and runs of mixtures")
    main(Path(sys.argv[1]), {name: Path(run) for name, _, run in (word.partition("=") for word in sys.argv[2:])})
