"""The tissue maps that ship with nilearn: MNI ICBM 152 averages of grey matter, white matter and T1, 1 mm; no network, nothing to download.

CSF is what grey and white matter leave of the brain, skull and scalp are shells around it.
"""

import dataclasses
import functools
from importlib import resources
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage, special

from jaxsr.volume.io import Volume

MAP_SPACING = 1.5  # mm: the averages hold nothing finer, and warping is the expensive part


@dataclasses.dataclass(frozen=True, eq=False)
class TissueMaps:
    """`logits` `[K, X, Y, Z]` float32 log-probabilities on a grid of `spacing` mm whose first voxel is centred at `origin` (mm).

    `distance` `[X, Y, Z]` float32 is that from the brain's surface in mm, negative inside.
    """

    logits: np.ndarray
    origin: np.ndarray
    spacing: float
    distance: np.ndarray

    @property
    def extent(self) -> np.ndarray:
        """Field of view in mm, `[3]`."""
        return np.array(self.logits.shape[1:]) * self.spacing


@functools.cache
def tissue_maps(spacing: float = MAP_SPACING) -> TissueMaps:
    """The embedded tissue maps (without the lesion, which is drawn per subject), from nilearn's files, no network."""
    template = {name: _template(name) for name in ("gm", "wm", "t1")}
    coarse = lambda x: ndimage.zoom(ndimage.gaussian_filter(x, 0.4), 1 / spacing, order=1, grid_mode=True, mode="nearest")  # noqa: E731
    grey, white, inside = (coarse(x) for x in (template["gm"].data, template["wm"].data, (template["t1"].data > 0).astype(np.float32)))
    brain = ndimage.binary_fill_holes(inside > 0.5)

    outside, depth = (spacing * ndimage.distance_transform_edt(x).astype(np.float32) for x in (~brain, brain))
    signed = np.where(brain, spacing / 2 - depth, outside - spacing / 2)

    # Shells at a distance from the brain, with the soft edge that the averages have; the template ends at the neck, and so do they.
    distance = outside + 4.5 * np.maximum(0, 8 - np.arange(brain.shape[2]))
    within = lambda limit: special.expit((limit - distance) / 0.8)  # noqa: E731
    csf = np.where(brain, inside - grey - white, within(2.5))
    skull, scalp = (np.where(brain, 0, within(outer) - within(inner)) for inner, outer in ((2.5, 7.5), (7.5, 13.0)))

    tissues = np.stack([csf, grey, white, skull, scalp])
    tissues = np.concatenate([1 - tissues.sum(0, keepdims=True), tissues])
    first = template["gm"].affine[:3, 3] + (spacing - 1) / 2
    return TissueMaps(np.log(np.clip(tissues, 1e-4, 1)).astype(np.float32), first, spacing, signed)


def template_t1() -> Volume:
    """The MNI ICBM 152 T1 average, brain only, 1 mm: an illustration, not held out, as the tissue maps come from the same people."""
    template = _template("t1")
    return Volume(template.data, template.affine)


class _Template(NamedTuple):
    data: np.ndarray  # float32 [197, 233, 189], 0…1
    affine: np.ndarray


def _template(name: str) -> _Template:
    path = resources.files("nilearn.datasets") / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    with resources.as_file(path) as file:
        image = nib.Nifti1Image.from_filename(file)
        return _Template(np.asarray(image.dataobj, np.float32) / 255, image.affine)
