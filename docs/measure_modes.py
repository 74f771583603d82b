"""How many sampling steps: the middles of heads that no training has seen, degraded to 1.5T, upscaled in 1, 2, 4, … steps.

    python docs/measure_modes.py MODEL LABELS OUT.json       an exported model, or a run; label maps

Two heads rendered from label maps of the splits `validation` and `test`, and the T1 template that comes with nilearn. PSNR, SSIM and HFEN
say how near the truth it is; GMSD and VIF go with how like it looks; LPIPS, which goes with what people prefer, takes published weights
and is not measured. The table goes to standard output, means over heads.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from measure_lesions import held_out_maps

from jaxsr.data.acquired import simulate
from jaxsr.data.anatomy import template_t1
from jaxsr.data.synthetic import LabelSubjects
from jaxsr.evaluate.metrics.edges import gmsd, hfen
from jaxsr.evaluate.metrics.pixel import psnr
from jaxsr.evaluate.metrics.ssim import ssim
from jaxsr.evaluate.metrics.vif import vif
from jaxsr.physics.acquisition import named_acquisition
from jaxsr.runtime.cpu import choose_convolutions
from jaxsr.upscale.files import make_engine
from jaxsr.upscale.model import load_model
from jaxsr.volume.geometry import resample
from jaxsr.volume.io import Volume

STEPS = (1, 2, 4, 8, 16)
BOX = (88, 96, 80)
EDGE = 8  # voxels at its faces that do not count: what lies beyond the box is not known there
SEED = 0  # of what is drawn in several steps


def heads(root: Path) -> dict[str, Volume]:
    """The middle of each."""
    subjects = LabelSubjects(held_out_maps(root), root, 2, "test", voxel_size=1.0, acquisition=named_acquisition("1.5T"), seed=5)
    whole = {f"rendered {i + 1}": subjects.truth(i) for i in range(2)} | {"MNI T1 template": template_t1()}
    middles = {}
    for name, volume in whole.items():
        start = [(n - side) // 2 for n, side in zip(volume.data.shape, BOX, strict=True)]
        inner = tuple(slice(a, a + side) for a, side in zip(start, BOX, strict=True))
        middles[name] = Volume(np.ascontiguousarray(volume.data[inner]), volume.affine)
    return middles


def measured(image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """By the name of the metric, of `[X, Y, Z]` both; PSNR and SSIM in the foreground."""
    inner = tuple(slice(EDGE, -EDGE) for _ in range(3))
    x, y = image[inner], truth[inner]
    span = float(np.percentile(truth, 99.9) - np.percentile(truth, 0.1))
    mask = y > y.min() + 0.1 * span
    values = {
        "psnr": psnr(x, y, data_range=span, mask=mask),
        "ssim": ssim(x, y, data_range=span, mask=mask),
        "hfen": hfen(x, y),
        "gmsd": gmsd(x, y, data_range=span),
        "vif": vif(x, y, data_range=span),
    }
    return {name: float(value) for name, value in values.items()}


def main(model_path: Path, root: Path, out: Path) -> None:
    choose_convolutions()
    model = load_model(model_path)
    engine = make_engine(model, batch_size=8)
    rows = []
    for name, truth in heads(root).items():
        low = simulate(truth, named_acquisition("1.5T").typical, jax.random.key(0))
        made = {"tricubic": resample(low.data, low.grid, truth.grid), "zero-filled": resample(low.data, low.grid, truth.grid, "kspace")}
        for steps in STEPS:
            request = model.method.default_request._replace(steps=steps)
            made[f"{steps} steps"] = engine.upscale(low, request, to_mm=truth.grid, seed=SEED).volume.data
        rows += [{"head": name, "method": method, **measured(image, truth.data)} for method, image in made.items()]
        print(f"{name}: done", flush=True)
    out.write_text(json.dumps({"model": model.sha256, "step": model.step, "rows": rows}, indent=1))
    print("\n| | PSNR (dB) | SSIM | HFEN | GMSD | VIF |\n| --- | --- | --- | --- | --- | --- |")
    for method in dict.fromkeys(row["method"] for row in rows):
        mean = {key: np.mean([row[key] for row in rows if row["method"] == method]) for key in ("psnr", "ssim", "hfen", "gmsd", "vif")}
        print(f"| {method} | {mean['psnr']:.2f} | {mean['ssim']:.4f} | {mean['hfen']:.3f} | {mean['gmsd']:.4f} | {mean['vif']:.3f} |")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
