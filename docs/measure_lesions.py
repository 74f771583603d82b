"""What becomes of lesions: heads rendered with and without them, degraded, upscaled.

    python docs/measure_lesions.py MODEL LABELS OUT.json [HEADS]      an exported model, or a run; label maps; heads of each acquisition (3)

A head is rendered twice from a label map that no training has seen (the split `validation` or `test`), with lesions and with none: all else
is the same. Both are acquired with the same noise. With L and N the two outputs, and T_L and T_N the two truths:

    kept      Σ (L − N)(T_L − T_N) / Σ (T_L − T_N)²        over each lesion: 1 where it is as bright or dark as in truth, 0 where it is gone
    sharp     ‖(L − N) − (T_L − T_N)‖ / ‖T_L − T_N‖        around it, two voxels and more: 0 where it comes out as it is
    invented  the share of voxels of white matter in N, where there is no lesion, that lie as far from its mean as half of a lesion does,
              towards the lesion's side, more than a tenth of a millilitre of them together; and the same of the truth and of interpolation

A table goes to standard output.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import ndimage

from jaxsr.data.acquired import simulate
from jaxsr.data.anatomy import Head
from jaxsr.data.anatomy.contrasts import STRUCTURES
from jaxsr.data.anatomy.label_heads import VARIATION
from jaxsr.data.subjects import split_by_subject
from jaxsr.data.synthetic import LabelSubjects, find_label_maps
from jaxsr.physics.acquisition import Acquisition, named_acquisition
from jaxsr.runtime.cpu import choose_convolutions
from jaxsr.upscale.files import make_engine
from jaxsr.upscale.model import load_model
from jaxsr.volume.geometry import Grid, resample
from jaxsr.volume.io import Volume

ACQUISITIONS = ("1.5T", "3T", "thick-slice")
BOUNDS = (0, 60, 200, np.inf)  # mm³: lesions of less than 5 mm across, of less than 7 mm, and larger ones
NAMES = ("under 60 mm³", "60 to 200 mm³", "over 200 mm³")
SIDE = 5.0  # σ of the truth's white matter: lesions that stand out less are not looked at
BOX = (112, 128, 96)
LEAST = 100  # mm³ of an invented one


def held_out_maps(root: Path) -> list[Path]:
    """Label maps of the splits that training does not see."""
    found, _ = find_label_maps(root)
    return [path for split in ("validation", "test") for path in split_by_subject(found, root, split)]  # type: ignore[arg-type]


def rendered(paths: list[Path], root: Path, lesions: int, count: int) -> list[Head]:
    variation = dataclasses.replace(VARIATION, lesions=lesions, stripped=0.0, defaced=0.0)
    subjects = LabelSubjects(paths, root, count, "test", voxel_size=1.0, acquisition=named_acquisition("1.5T"), seed=5, variation=variation)
    return [subjects.head(i) for i in range(count)]


def middle(tissue: np.ndarray) -> tuple[slice, ...]:
    """A box of `BOX` voxels about the middle of `tissue`: lesions lie there, and a whole head would take eight times as long."""
    centre = np.argwhere(tissue).mean(0)
    return tuple(slice(start, start + side) for start, side in zip(np.rint(centre - np.array(BOX) / 2).astype(int), BOX, strict=True))


def measure(
    outputs: dict[str, np.ndarray], plain: dict[str, np.ndarray], ill: np.ndarray, well: np.ndarray, lesion: np.ndarray
) -> list[dict]:
    """Of each lesion, by method: what is kept of it and how sharp.

    Args:
      outputs, plain: of the head with lesions, and without, by method.
      ill, well: the truths.
      lesion: where there are any.
    """
    places, _count = ndimage.label(lesion)
    change, rows = ill - well, []
    for number, box in enumerate(ndimage.find_objects(places), 1):
        wide = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in box)
        here = places[wide] == number
        around = ndimage.binary_dilation(here, iterations=2)
        if here.sum() < 4 or not (change[wide][here] ** 2).sum():
            continue
        row: dict[str, Any] = {"mm3": int(here.sum())}
        for name, output in outputs.items():
            made, true = (output - plain[name])[wide], change[wide]
            row[name] = {
                "kept": float((made * true)[here].sum() / (true**2)[here].sum()),
                "sharp": float(np.linalg.norm((made - true)[around]) / np.linalg.norm(true[around])),
            }
        rows.append(row)
    return rows


def invented(image: np.ndarray, truth: np.ndarray, white: np.ndarray, step: float) -> int:
    """How many places of white matter, `LEAST` mm³ or more, look like a lesion that is not there.

    `step`: a lesion's signal less white matter's.
    """
    far = (image - np.median(truth[white])) / step > 0.5
    places, _count = ndimage.label(far & white)
    return int((np.bincount(places.ravel())[1:] >= LEAST).sum())


def main(model_path: Path, root: Path, out: Path, count: int = 3) -> None:
    choose_convolutions()
    paths = held_out_maps(root)
    ill_heads, well_heads = (rendered(paths, root, lesions, count) for lesions in (12, 0))
    model = load_model(model_path)
    engine = make_engine(model, batch_size=8)
    modes = {"faithful": model.method.default_request.steps, "sharp": getattr(model.experiment.method, "sharp_steps", None)}
    rows: list[dict[str, Any]] = []
    for index, (ill_head, well_head) in enumerate(zip(ill_heads, well_heads, strict=True)):
        tissue = np.asarray(well_head.labels) == STRUCTURES.index("white matter")
        inner = middle(tissue)
        ill, well = (np.ascontiguousarray(np.asarray(head.image)[inner]) for head in (ill_head, well_head))
        lesion = np.asarray(ill_head.labels)[inner] == STRUCTURES.index("lesion")
        white, grid = ndimage.binary_erosion(tissue, iterations=2)[inner], Grid(BOX, np.eye(4))
        step = float(np.median(ill[lesion]) - np.median(well[white])) if lesion.any() else 0.0
        if abs(step) < SIDE * well[white].std():
            print(f"head {index}: its lesions hardly differ from white matter, and are not looked at")
            continue
        for name in ACQUISITIONS:
            acquisition: Acquisition = named_acquisition(name).typical
            made: dict[str, dict[str, np.ndarray]] = {}
            for kind, image in (("ill", ill), ("well", well)):
                low = simulate(Volume(image, grid.affine), acquisition, jax.random.key(index))
                shown = {
                    "tricubic": resample(low.data, low.grid, grid),
                    "zero-filled": resample(low.data, low.grid, grid, "kspace"),
                }
                for mode, steps in modes.items():
                    if steps:
                        request = model.method.default_request._replace(steps=steps)
                        shown[mode] = engine.upscale(low, request, to_mm=grid).volume.data
                made[kind] = shown
            measured = measure(made["ill"], made["well"], ill, well, lesion)
            looks = {of: invented(image, well, white, step) for of, image in {"truth": well, **made["well"]}.items()}
            rows.append({"head": index, "acquisition": name, "lesions": measured, "invented": looks})
            print(f"head {index}, {name}: {len(measured)} lesions; invented {looks}", flush=True)
    out.write_text(json.dumps({"model": model.sha256, "step": model.step, "rows": rows}, indent=1))
    print_tables(rows)


def print_tables(rows: list[dict[str, Any]]) -> None:
    for name in ACQUISITIONS:
        lesions = [lesion for row in rows if row["acquisition"] == name for lesion in row["lesions"]]
        methods = [key for key in (lesions[0] if lesions else {}) if key != "mm3"]
        print(f"\n{name}: kept, and in brackets sharp, medians over lesions; then how many were invented")
        print(f"{'method':14}" + "".join(f"{size:>24}" for size in NAMES) + f"{'invented':>12}")
        for method in ("truth", *methods):
            cells = []
            for low, high in itertools.pairwise(BOUNDS):
                of = [lesion[method] for lesion in lesions if method in lesion and low <= lesion["mm3"] < high]
                cells.append(
                    f"{np.median([x['kept'] for x in of]):.2f} ({np.median([x['sharp'] for x in of]):.2f}), n {len(of)}" if of else ""
                )
            count = sum(row["invented"][method] for row in rows if row["acquisition"] == name)
            print(f"{method:14}" + "".join(f"{cell:>24}" for cell in cells) + f"{count:>12}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:5]))
