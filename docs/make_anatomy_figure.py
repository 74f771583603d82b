"""Draws docs/anatomy.png, 16 random heads: `python docs/make_anatomy_figure.py FOLDER OTHER_FOLDER`, two folders of label maps.

docs/anatomy.md says which maps the picture was made of.
"""

import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np

from jaxsr.data.anatomy import CONTRASTS, KINDS, read_label_map, render, render_labels
from jaxsr.data.anatomy.labels import FIELD_OF_VIEW
from jaxsr.data.subjects import template_grid
from jaxsr.data.synthetic import find_label_maps

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = Path(__file__).with_name("anatomy.png")
SIDES = (192, 240, 208)  # the field of view at 1 mm, to which pictures of the smaller template are padded


def heads(folders: list[Path]):  # type: ignore[no-untyped-def]
    """Sixteen names and images `[X, Y, Z]` at 1 mm: four of the template, ten of the first folder's maps, two of the second's."""
    for i in range(4):
        contrast = list(CONTRASTS)[i % 3]
        yield f"template, {contrast}", np.asarray(render(jax.random.key(i), template_grid_shape(), 1.0, contrast).image)
    for place, (folder, count) in enumerate(zip(folders, (10, 2), strict=True), start=1):
        maps = find_label_maps(folder)[0]
        for i in range(count):
            contrast, path = KINDS[i % 4], maps[(2 * i + 1) % len(maps)]
            shape = (round(FIELD_OF_VIEW[0]), round(FIELD_OF_VIEW[1]), round(FIELD_OF_VIEW[2]))
            head = render_labels(jax.random.key(100 * place + i), read_label_map(path), shape, 1.0, contrast)
            yield f"{path.name.split('.')[0]}, {contrast}", np.asarray(head.image)


def template_grid_shape() -> tuple[int, int, int]:
    grid = template_grid()
    x, y, z = (round(n * v) for n, v in zip(grid.shape, grid.voxel_size, strict=True))
    return (x, y, z)


def views(image: np.ndarray) -> np.ndarray:
    """A sagittal, a coronal and an axial slice beside one another, 0…1."""
    ends = [(max(0, (n - m) // 2), max(0, n - m - (n - m) // 2)) for n, m in zip(SIDES, image.shape, strict=True)]
    image = np.pad(image, ends)[: SIDES[0], : SIDES[1], : SIDES[2]]
    slices = [image[86].T[::-1], image[:, 110].T[::-1], image[:, :, 112].T[::-1]]
    tall = max(s.shape[0] for s in slices)
    slices = [np.pad(s, ((tall - s.shape[0], 0), (0, 4))) for s in slices]
    return np.concatenate(slices, 1) / np.percentile(image, 99.7)


if __name__ == "__main__":
    figure, axes = plt.subplots(8, 2, figsize=(12.6, 19.6), facecolor="black")
    for axis, (name, image) in zip(axes.ravel(), heads([Path(p) for p in sys.argv[1:3]]), strict=True):
        print(name, flush=True)
        axis.imshow(views(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, color="white", fontsize=8, pad=2)
        axis.axis("off")
    figure.subplots_adjust(0, 0.002, 1, 0.985, 0.01, 0.09)
    figure.savefig(PICTURE, dpi=100, facecolor="black")
