"""A rendered head: the image, its labels, and what it may come with. Both sources of heads, template and label maps, return it."""

from typing import NamedTuple

from jax import Array

MAPS = ("reference", "bias", "gradient", "mask")


class Head(NamedTuple):
    """A rendered subject on its grid, and what it was asked to come with, None otherwise.

    Attributes:
      image: signal, `[X, Y, Z]` float32, about 0…1. No bias field is in it, and gradients have not moved it.
      labels: likeliest tissue of each voxel (of its mean log-odds), `[X, Y, Z]` uint8, an index of `TISSUES`, or of `STRUCTURES`, which
        begin with them, of a head from a label map.
      reference: the same head in another contrast, with a texture of its own, `[X, Y, Z]` float32.
      bias: logarithm of a bias field for the target, `[X, Y, Z]` float32.
      gradient: displacement in mm by the nonlinearity of the target's gradients, along right, anterior, superior, `[X, Y, Z, 3]` float32.
      mask: false where skull or face were taken off; image and reference are exactly 0 there, and labels background, `[X, Y, Z]` bool.
    """

    image: Array
    labels: Array
    reference: Array | None = None
    bias: Array | None = None
    gradient: Array | None = None
    mask: Array | None = None


def check_maps(maps: tuple[str, ...]) -> tuple[str, ...]:
    """`maps` in the order of `MAPS`; ValueError for one that there is not."""
    if unknown := sorted(set(maps) - set(MAPS)):
        raise ValueError(f"unknown maps {unknown}; known: {', '.join(MAPS)}")
    return tuple(m for m in MAPS if m in maps)
