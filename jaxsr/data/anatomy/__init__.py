"""Endless synthetic heads: from the tissue maps that ship with nilearn (`render`), or from label maps in a folder (`render_labels`)."""

from jaxsr.data.anatomy.contrasts import CONTRASTS, KINDS, STRUCTURES, TISSUES, Contrast, shares
from jaxsr.data.anatomy.deformation import Variation
from jaxsr.data.anatomy.head import MAPS, Head
from jaxsr.data.anatomy.heads import render
from jaxsr.data.anatomy.label_heads import render_labels
from jaxsr.data.anatomy.labels import LabelMap, read_label_map, structure_names
from jaxsr.data.anatomy.template import TissueMaps, template_t1, tissue_maps

__all__ = [
    "CONTRASTS",
    "KINDS",
    "MAPS",
    "STRUCTURES",
    "TISSUES",
    "Contrast",
    "Head",
    "LabelMap",
    "TissueMaps",
    "Variation",
    "read_label_map",
    "render",
    "render_labels",
    "shares",
    "structure_names",
    "template_t1",
    "tissue_maps",
]
