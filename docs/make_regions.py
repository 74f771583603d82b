"""Writes where each expert of a mixture should be at its best, from label maps: `python docs/make_regions.py LABELS OUT`.

LABELS is a folder of those that `jaxsr generate --with labels` wrote. OUT/REGION/NAME.nii.gz are masks:

    junction    grey or white matter within a voxel of the other
    white       the rest of the white matter
    cortex      the rest of the grey matter
"""

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure

from jaxsr.data.anatomy import TISSUES
from jaxsr.volume.io import Volume, read_volume, write_volume

GREY, WHITE = (TISSUES.index(tissue) for tissue in ("grey matter", "white matter"))


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Masks `[X, Y, Z]` of a label map."""
    near = generate_binary_structure(3, 1)
    grey, white = labels == GREY, labels == WHITE
    junction = grey & binary_dilation(white, near) | white & binary_dilation(grey, near)
    return {"white": white & ~junction, "cortex": grey & ~junction, "junction": junction}


def main(folder: Path, out: Path) -> None:
    for path in sorted(folder.glob("*.nii.gz")):
        volume = read_volume(path)
        for name, mask in regions(np.rint(volume.data)).items():
            write_volume(out / name / path.name, Volume(mask.astype(np.float32), volume.affine), description=f"jaxsr: {name}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not list(Path(sys.argv[1]).glob("*.nii.gz")):
        sys.exit(f"{__doc__}\nname a folder of label maps, and another")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
