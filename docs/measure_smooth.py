"""Heads that are smoother than their voxels, and how right in size is what a model changes of a scan (jaxsr/weights/standard.md).

    python docs/measure_smooth.py MODEL HEADS LABELS OUT.json        an exported model, or a run; folders of heads of about isotropic
                                                                     voxels, 0.7 mm and more are kept, and of label maps

Heads are those in HEADS, two rendered from label maps of the splits `validation` and `test`, and the T1 template that comes with nilearn,
each as it is and after a Gaussian of 0.6 voxels. Of a cube of 80³ voxels in the middle of each, acquired at 1.5T, 3T, thick-slice:

    gain     dB over the interpolation that the model starts from, where there is tissue
    factor   <D, T> / <D, D> with D what the model changes and T what it ought to: by what D should be multiplied; of the k-space up to 0.7
             and to 1 of the scan's Nyquist frequency, to 1.2, to 1.5 and beyond

The table of gains goes to standard output, means over heads.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure_lesions import held_out_maps
from scipy import ndimage

from jaxsr.data.acquired import simulate
from jaxsr.data.anatomy import template_t1
from jaxsr.data.pairs import coarser, slice_frame, told_quality
from jaxsr.data.synthetic import LabelSubjects
from jaxsr.methods.condition import told_to
from jaxsr.physics.acquisition import named_acquisition
from jaxsr.runtime.cpu import choose_convolutions
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.files import make_engine
from jaxsr.upscale.model import Model, load_model
from jaxsr.volume.geometry import resample, target_grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, read_volume
from jaxsr.volume.quality import Quality, quality_of
from jaxsr.volume.slices import AXES

SIDE, MARGIN, SIGMA = 80, 6, 0.6
FINEST = 0.7  # mm
TISSUE = -0.8  # of the window: brighter counts
BANDS = (0.0, 0.7, 1.0, 1.2, 1.5, np.inf)
ACQUISITIONS = ("1.5T", "3T", "thick-slice")


def heads(folder: Path, labels: Path) -> dict[str, Volume]:
    rendered = LabelSubjects(held_out_maps(labels), labels, 2, "test", voxel_size=1.0, acquisition=named_acquisition("1.5T"), seed=5)
    found = {path.name.partition(".")[0]: not_finer(read_volume(path)) for path in sorted(folder.iterdir())}
    return found | {"template": template_t1()} | {f"rendered {i + 1}": rendered.truth(i) for i in range(2)}


def not_finer(volume: Volume) -> Volume:
    """`volume`, brought to voxels of `FINEST` along axes that are finer, as training does."""
    x, y, z = (max(mm, FINEST) for mm in volume.voxel_size)
    grid = target_grid(volume.grid, (x, y, z))
    return volume if grid.shape == volume.grid.shape else Volume(resample(volume.data, volume.grid, grid), grid.affine)


def middle(data: np.ndarray) -> np.ndarray:
    if min(data.shape) < SIDE:
        raise SystemExit(f"a head of {data.shape} voxels holds no cube of {SIDE}: leave it out of HEADS")
    return np.ascontiguousarray(data[tuple(slice((n - SIDE) // 2, (n + SIDE) // 2) for n in data.shape)], np.float32)


def upscaled(engine: Engine, model: Model, quality: Quality, low: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """`low`, a cube of a scan of `quality` on the grid of the truth, whose voxels are `ratio` times finer."""
    facts = {axis: {"scale": ratio[slice_frame(i)], "quality": told_quality(quality, i)} for axis, i in AXES.items()}
    told = {axis: {name: of for name, of in known.items() if name in told_to(model.method)} for axis, known in facts.items()}
    return engine.fuse(low, dict.fromkeys(AXES, model.method.default_request), jax.random.key(0), told=told)[0]


def factors(low: np.ndarray, made: np.ndarray, truth: np.ndarray, ratio: np.ndarray) -> list[float | None]:
    """Of each band; None of one that there is not."""
    window = np.hanning(SIDE)
    weights = window[:, None, None] * window[None, :, None] * window
    changed, lacking = (np.fft.fftn((of - low) * weights) for of in (made, truth))
    at = np.stack(np.meshgrid(*[np.abs(np.fft.fftfreq(SIDE))] * 3, indexing="ij"))
    beyond = np.max(2 * at * ratio[:, None, None, None], axis=0)
    inside = [(beyond >= least) & (beyond < most) for least, most in itertools.pairwise(BANDS)]
    parts = [(changed[of], lacking[of]) for of in inside]
    return [round(float(np.vdot(d, t).real / np.vdot(d, d).real), 2) if d.size else None for d, t in parts]


def measured(engine: Engine, model: Model, truth: Volume, acquisition: str) -> dict[str, Any]:
    scan = simulate(truth, named_acquisition(acquisition).typical, jax.random.key(0))
    window, ratio = fit_window(scan.data), coarser(scan.voxel_size, truth.grid)
    low = middle(window.forward(resample(scan.data, scan.grid, truth.grid, model.experiment.data.interpolation)))
    wanted = middle(window.forward(truth.data))
    made = upscaled(engine, model, quality_of(scan.data, window), low.copy(), ratio)
    inner = (slice(MARGIN, -MARGIN),) * 3
    tissue = wanted[inner] > TISSUE
    before, after = (float(np.mean((of - wanted)[inner][tissue] ** 2)) for of in (low, made))
    return {"gain": round(10 * np.log10(before / after), 3), "factors": factors(low, made, wanted, ratio)}


def main(path: Path, folder: Path, labels: Path, out: Path) -> None:
    choose_convolutions()
    engine, rows = make_engine(model := load_model(path), batch_size=8), []
    for name, head in heads(folder, labels).items():
        for sigma in (0.0, SIGMA):
            truth = Volume(ndimage.gaussian_filter(np.maximum(head.data, 0).astype(np.float32), sigma), head.affine)
            for acquisition in ACQUISITIONS:
                rows.append({"head": name, "smoothed": sigma, "acquisition": acquisition, **measured(engine, model, truth, acquisition)})
                print(f"{name:24s}{sigma:4.1f} {acquisition:12s}{rows[-1]['gain']:6.2f} dB   {rows[-1]['factors']}", flush=True)
    out.write_text(json.dumps({"model": model.sha256, "step": model.step, "rows": rows}, indent=1))
    print(f"\n| | {' | '.join(ACQUISITIONS)} |\n| --- |{' --- |' * len(ACQUISITIONS)}")
    for made, sigma in itertools.product((False, True), (0.0, SIGMA)):
        of = [row for row in rows if row["head"].startswith("rendered") == made and row["smoothed"] == sigma]
        means = [np.mean([row["gain"] for row in of if row["acquisition"] == acquisition]) for acquisition in ACQUISITIONS]
        label = f"{'rendered' if made else 'real'}{', smoothed' if sigma else ''}"
        print(f"| {label} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
