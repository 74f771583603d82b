"""Writes docs/physics.png: an embedded head under each named acquisition, and under each degradation alone and exaggerated.

`python docs/make_physics_figure.py`, a minute on two cores.
"""

import io
import zlib
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from jaxsr.data.acquired import simulate
from jaxsr.data.subjects import AnatomySubjects
from jaxsr.physics.acquisition import Acquisition, describe_draw, named_acquisition
from jaxsr.volume.io import Volume

PICTURE = Path(__file__).with_name("physics.png")
NAMES = ("3T", "1.5T", "64mT", "thick-slice")
SEED = 1
COARSE = [3, 3, 1]
CLOSE = {  # name: settings, of which a part is shown
    "truth": {},
    "k-space box\n3 × 3 mm": {"voxel_size": COARSE},
    "ellipse\n3 × 3 mm": {"voxel_size": COARSE, "window": "ellipse"},
    "Hamming window\n3 × 3 mm": {"voxel_size": COARSE, "window": "hamming"},
    "partial Fourier 9/16\nzero-filled": {"partial_fourier": {"fraction": 0.5625, "axis": 0}},
    "point spread\nFWHM 4 mm": {"blur": 4},
    "sinc slices of 6 mm\n2 mm between them": {"voxel_size": [1, 1, 6], "gap": 2, "slice_axis": 2, "profile": "sinc"},
}
WHOLE = {
    "truth": {},
    "bias field\nσ of its logarithm 0.4": {"bias": 0.4},
    "contrast\nγ = 0.4": {"gamma": 0.4},
    "motion: 8 jumps\n5° and 5 mm (σ)": {"motion": {"jumps": 8, "rotation": 5, "translation": 5}},
    "ghosts of 20 %\nevery 3rd line": {"ghosting": {"every": 3, "intensity": 0.2}},
    "Rician noise\nSNR 5": {"snr": 5},
    "non-central χ noise\n8 coils, SNR 5": {"snr": 5, "coils": 8},
}
MARGIN, BETWEEN, CAPTION, TITLE, WIDTH = 0.1, 0.06, 0.4, 0.36, 11.5  # inches
PART = ((112, 96), (72, 72))  # mm: corner and sides of what is shown close


def key_of(name: str) -> jax.Array:
    return jax.random.key(zlib.crc32(f"{name} {SEED}".encode()))


def show(axes: plt.Axes, volume: Volume, axis: int, top: float, close: bool) -> None:
    """The middle slice across `axis`, each voxel as large as it is."""
    sides = [n * v for a, (n, v) in enumerate(zip(volume.data.shape, volume.voxel_size, strict=True)) if a != axis]
    middle = np.take(volume.data, volume.data.shape[axis] // 2, axis).T
    axes.imshow(middle, cmap="gray", vmin=0, vmax=top, origin="lower", extent=(0, sides[0], 0, sides[1]), interpolation="nearest")
    if close:
        (x, y), (width, height) = PART
        axes.set(xlim=(x, x + width), ylim=(y, y + height))
    axes.set_axis_off()


def caption(name: str) -> str:
    drawn = describe_draw(key_of(name), named_acquisition(name))
    size = " × ".join(f"{v:.3g}" for v in drawn["voxel_size"])
    gap = f" + {drawn['gap']:.2g}" if drawn.get("gap") else ""
    return f"{name}\n{size}{gap} mm, SNR {drawn['snr']:.0f}"


def alone(head: Volume, settings: dict, name: str) -> Volume:
    return simulate(head, Acquisition(**{"voxel_size": [1, 1, 1], **settings}), key_of(name))


def main() -> None:
    head = AnatomySubjects(1, "test", voxel_size=1.0, acquisition=named_acquisition("1.5T"), contrast="T1w").truth(0)
    x, y, z = (n - n % k for n, k in zip(head.data.shape, (3, 3, 8), strict=True))  # whole voxels of 3 mm, whole slices of 8 mm
    head = Volume(np.asarray(head.data[:x, :y, -z:]), head.affine)
    named = {"truth\n1 × 1 × 1 mm": head, **{caption(name): simulate(head, named_acquisition(name), key_of(name)) for name in NAMES}}
    close = {name: alone(head, settings, name) for name, settings in CLOSE.items()}
    whole = {name: alone(head, settings, name) for name, settings in WHOLE.items()}
    rows = [  # a heading, whether captions, what, the axis that slices lie across, height over width
        ("Named acquisitions, each on its acquired grid", True, named, 2, y / x),
        ("", False, named, 1, z / x),
        ("Each degradation alone, exaggerated", True, close, 2, PART[1][1] / PART[1][0]),
        ("", True, whole, 2, y / x),
    ]
    sides = [(WIDTH - 2 * MARGIN + BETWEEN) / len(volumes) - BETWEEN for _, _, volumes, _, _ in rows]
    heights = [
        TITLE * bool(heading) + CAPTION * captions + side * aspect + BETWEEN
        for (heading, captions, _, _, aspect), side in zip(rows, sides, strict=True)
    ]
    total = sum(heights) + MARGIN
    figure = plt.figure(figsize=(WIDTH, total), facecolor="white")
    at, top = total, float(np.percentile(head.data, 99.7))
    for (heading, captions, volumes, axis, aspect), side in zip(rows, sides, strict=True):
        if heading:
            at -= TITLE
            figure.text(0.5, (at + 0.08) / total, heading, fontsize=11, fontweight="bold", ha="center")
        at -= CAPTION * captions + side * aspect
        for column, (name, volume) in enumerate(volumes.items()):
            left = MARGIN + column * (side + BETWEEN)
            axes = figure.add_axes((left / WIDTH, at / total, side / WIDTH, side * aspect / total))
            show(axes, volume, 1 if "slices" in name else axis, top, close=volumes is close)
            if captions:
                axes.set_title(name, fontsize=8.5, linespacing=1.2, pad=3)
        at -= BETWEEN
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, facecolor="white")
    Image.open(drawn).convert("L").save(PICTURE, optimize=True)  # a third of the bytes of a picture in colour


if __name__ == "__main__":
    main()
