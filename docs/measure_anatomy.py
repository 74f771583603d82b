"""How an anatomy extractor does on heads whose tissues are known: `python docs/measure_anatomy.py RUN CONTRAST [LABELS [SPLIT]]`.

Heads of CONTRAST (T1w, T2w, PDw) are rendered, of the embedded anatomy or from the label maps in LABELS, of those in SPLIT (test if not
named), and acquired as RUN's were. Prints Dice of each tissue over the axial slices of COUNT heads, of what was acquired and of the truth.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.data.splits import Split
from jaxsr.methods.anatomy import hard_dice, probabilities
from jaxsr.methods.condition import Condition
from jaxsr.train.build import build_subjects
from jaxsr.upscale.model import load_model

COUNT, AT_A_TIME = 3, 16


def main(run: Path, contrast: str, labels: Path | None = None, split: Split = "test") -> None:
    model = load_model(run)
    tissues = model.method.tissues[1:]
    asked = {"contrast": contrast, "maps": ("labels",), "subjects": COUNT, "labels": labels, "manifest": None, "volumes": None}
    subjects = build_subjects(model.experiment.data.model_copy(update=asked), split, 0, print)
    segment = jax.jit(lambda low: model.method.segment(model.variables, Condition(low)))
    for name in ("low", "high"):
        masks, known = [], []
        for person in range(COUNT):
            pair = subjects.load(person)
            pad = [(0, -side % model.method.multiple) for side in pair.low.shape[:2]]
            shown = np.moveaxis(np.pad(getattr(pair, name), [*pad, (0, 0)], constant_values=-1), 2, 0)[..., None]
            whose = np.moveaxis(np.pad(pair.labels, [*pad, (0, 0)]), 2, 0)
            for first in range(0, len(shown) - AT_A_TIME + 1, AT_A_TIME):
                slices = slice(first, first + AT_A_TIME)
                masks.append(np.asarray(segment(jnp.asarray(shown[slices], jnp.float32))).argmax(-1).astype(np.uint8))
                known.append(np.asarray(probabilities(jnp.asarray(whose[slices]), tissues)).argmax(-1).astype(np.uint8))
        classes = range(1 + len(tissues))
        dice = hard_dice(*(np.stack([np.concatenate(x) == k for k in classes], -1) for x in (masks, known)))  # type: ignore[arg-type]
        print(f"{contrast}, {name}: " + ", ".join(f"{tissue} {dice[1 + i]:.3f}" for i, tissue in enumerate(tissues)))


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(f"{__doc__}\nname a run and a contrast")
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:4]), *sys.argv[4:5])  # type: ignore[arg-type]
