"""Cuts the middle out of synthetic heads, and says where which expert of a mixture should be best: `python docs/make_regions.py HEADS OUT`.

HEADS is what `jaxsr generate` wrote. OUT/high and, where there are such, OUT/plain and OUT/labels have the middle of the heads, BOX voxels:
a CPU is long about whole ones. With labels there are masks on that grid, too, OUT/REGION/NAME.nii.gz:

    junction    grey or white matter within a voxel of the other
    white       the rest of the white matter
    cortex      the rest of the grey matter: of the cerebellum and the deep nuclei too
"""

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure

from jaxsr.data.anatomy import TISSUES
from jaxsr.volume.io import Volume, read_volume, write_volume

BOX = (160, 192, 32)
GREY, WHITE = (TISSUES.index(tissue) for tissue in ("grey matter", "white matter"))


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Masks `[X, Y, Z]` of a label map."""
    near = generate_binary_structure(3, 1)
    grey, white = labels == GREY, labels == WHITE
    junction = grey & binary_dilation(white, near) | white & binary_dilation(grey, near)
    return {"white": white & ~junction, "cortex": grey & ~junction, "junction": junction}


def middle(volume: Volume) -> Volume:
    """The middle of `volume`, at most BOX voxels, where it is in the scanner."""
    sides = np.minimum(BOX, volume.data.shape)
    first = (np.array(volume.data.shape) - sides) // 2
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return Volume(volume.data[tuple(slice(f, f + n) for f, n in zip(first, sides, strict=True))], affine)


def main(heads: Path, out: Path) -> None:
    for path in sorted(heads.glob("*/*.nii.gz")):
        if path.parent.name not in ("high", "plain", "labels"):
            continue
        cut = middle(read_volume(path))
        write_volume(out / path.parent.name / path.name, cut, description="jaxsr: synthetic")
        for name, mask in (regions(np.rint(cut.data)) if path.parent.name == "labels" else {}).items():
            write_volume(out / name / path.name, Volume(mask.astype(np.float32), cut.affine), description=f"jaxsr: {name}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not list(Path(sys.argv[1]).glob("high/*.nii.gz")):
        sys.exit(f"{__doc__}\nname a folder of heads, and another")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
