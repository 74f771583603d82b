"""Whether segmentations agree, label by label: Dice coefficient and volume error.

    Dice = 2 |A ∩ B| / (|A| + |B|)   [Dice, Ecology 26:297, 1945],      volume error = |A| − |B|   in ml, or over |B|

A is a label's voxels in the image's segmentation, B those in the reference's. Both are label maps on one grid, `[X, Y, Z]`, or a batch of
them, `[B, H, W, C]` or `[B, X, Y, Z, C]`; values are whole numbers below 2²⁴. A result has one value a label, `[L]` or `[B, L]`. Voxels are
counted in whole numbers, so nothing is rounded before the division. Masks have no place here: a label is one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import checked, expanded, spacing


def dice(a: ArrayLike, b: ArrayLike, *, labels: Sequence[int]) -> Array:
    """Dice coefficient of each of `labels`: 1 for equal, 0 for disjoint regions, NaN where neither map has it (as in MONAI)."""
    in_a, in_b, both = _overlap(a, b, labels)
    return 2 * both / (in_a + in_b)


def volume_error(a: ArrayLike, b: ArrayLike, *, labels: Sequence[int], voxel_size: ArrayLike) -> Array:
    """Volume of each of `labels` in `a` less that in `b`, ml; positive where `a` has more. `voxel_size`: mm along each axis, or one number.

    In slices a "volume" takes the third side from `voxel_size`, so three numbers are given there too.
    """
    in_a, in_b, _ = _overlap(a, b, labels)
    return (in_a - in_b) * (float(spacing(voxel_size, 3).prod()) / 1000)


def relative_volume_error(a: ArrayLike, b: ArrayLike, *, labels: Sequence[int]) -> Array:
    """The volume error over the reference's volume: −1 where `a` lacks the label, infinite where `b` does, NaN where both do."""
    in_a, in_b, _ = _overlap(a, b, labels)
    return (in_a - in_b) / in_b


def _overlap(a: ArrayLike, b: ArrayLike, labels: Sequence[int]) -> tuple[Array, Array, Array]:
    a, b, _, like_input = checked(a, b, None)
    known, place = np.unique(np.asarray(labels, np.float32), return_inverse=True)
    in_a, in_b, both = (counts[:, place] for counts in _counts(a, b, known))
    return like_input(in_a), like_input(in_b), like_input(both)


@jax.jit
def _counts(a: Array, b: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Voxels of each label, which rise, in `a`, in `b` and in both, `[B, L]`, int32. Each voxel is looked at once, whatever L is."""
    a, b = expanded(a, b)
    none = len(labels)

    def place(values: Array) -> Array:
        found = jnp.searchsorted(labels, values.ravel()).clip(0, none - 1)
        return jnp.where(labels[found] == values.ravel(), found, none)

    def histogram(places: Array) -> Array:
        return jnp.zeros(none, jnp.int32).at[places].add(1, mode="drop")

    def count(images: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        in_a, in_b = map(place, images)
        return histogram(in_a), histogram(in_b), histogram(jnp.where(in_a == in_b, in_a, none))

    return jax.lax.map(count, (a, b))
