"""Draws what the model that comes along makes of 0.055 T: `python docs/make_ulf_figure.py HEADS PICTURE [MODEL]`.

HEADS holds the folder ulf_055T_3T_pair: T1w and T2w stacks of one patient at 0.055 T, slices of 10 mm, and at 3 T [Liu et al. 2021, Nat.
Commun. 12:7238, Figure 6B; CC0]. The two were not registered, and their voxel sizes are not in the files: nothing is scored. Of each stack
the second slice is shown: as it is, as the model makes it of the voxels, of what the scan resolves (`--from-mm found`), and at 3 T.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxsr.files import write_whole
from jaxsr.runtime.cpu import choose_convolutions
from jaxsr.upscale.files import make_engine
from jaxsr.upscale.model import load_model
from jaxsr.volume.geometry import Grid, resample
from jaxsr.volume.io import Volume, read_volume
from jaxsr.volume.resolution import resolved_mm
from jaxsr.weights.standard import SHIPPED

SLICE, TO_MM, SIDE = 1, 1.0, 170.0  # of four; mm; mm that are shown about the head's middle


def axial(volume: Volume) -> np.ndarray:
    """The slice, front upwards, right of the patient on the left, on pixels of half a millimetre."""
    shape = (int(SIDE / 0.5),) * 2
    middle = volume.affine @ [*(np.argwhere(volume.data > 0.2 * np.percentile(volume.data, 99)).mean(0)), 1.0]
    depth = (volume.affine @ [0, 0, round((SLICE + 0.5) * volume.data.shape[2] / 4 - 0.5), 1.0])[2]
    affine = np.diag([0.5, 0.5, 1.0, 1.0])
    affine[:3, 3] = [middle[0] - SIDE / 2, middle[1] - SIDE / 2, depth]
    return np.rot90(resample(volume.data, volume.grid, Grid((*shape, 1), affine), "linear")[::-1, :, 0])


def main(heads: Path, picture: Path, source: Path = SHIPPED) -> None:
    model = load_model(source)
    engine = make_engine(model, batch_size=8)
    request = model.method.default_request._replace(to_mm=TO_MM)
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    for row, contrast in zip(axes, ("T1w", "T2w"), strict=True):
        scan, field = (read_volume(heads / "ulf_055T_3T_pair" / f"F6B_{of}_{contrast}.nii.gz") for of in ("0p055T", "3T"))
        found = resolved_mm(scan.data, scan.voxel_size)
        made = {
            f"{contrast}, 0.055 T, voxels of {sizes(scan.voxel_size)}": scan,
            f"{TO_MM:g} mm, by its voxels": engine.upscale(scan, request, to_mm=TO_MM, axes=("axial",)).volume,
            f"{TO_MM:g} mm, of {sizes(found)}": engine.upscale(scan, request, to_mm=TO_MM, axes=("axial",), from_mm=found).volume,
            "3 T": field,
        }
        for axis, (title, volume) in zip(row, made.items(), strict=True):
            image = axial(volume)
            axis.imshow(image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.7))
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    write_whole(picture, lambda path: figure.savefig(path, dpi=110, format="png"))


def sizes(of: tuple[float, float, float]) -> str:
    return " × ".join(f"{mm:.2g}" for mm in of) + " mm"


if __name__ == "__main__":
    choose_convolutions()
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(Path, sys.argv[3:]))
