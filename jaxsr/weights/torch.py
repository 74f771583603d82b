"""How arrays lie in PyTorch's files and how they lie in ours; no value changes.

    a convolution    OIHW → HWIO        a linear layer    OI → IO        all else    as it is

A linear layer over pixels is a 1 × 1 convolution, and some networks that are the same have the one here and the other there.
"""

from collections.abc import Mapping

import numpy as np

Names = Mapping[str, str]  # our paths, as in `stem/kernel` → names in a file


def from_torch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of PyTorch's as ours, whose `shape` tells whether a linear layer is a 1 × 1 convolution here, or the other way round.

    Raises:
      ValueError: where it does not become that shape.
    """
    ours = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    turned = array if ours is None else array.transpose(ours)
    if turned.shape != shape and _without_pixels(turned.shape) != _without_pixels(shape):
        raise ValueError(f"an array {list(array.shape)} of PyTorch does not become {list(shape)}")
    return turned.reshape(shape)


def to_torch(array: np.ndarray, *, linear: bool = False) -> np.ndarray:
    """An array of ours as PyTorch's; `linear`: a 1 × 1 convolution of ours is a linear layer there."""
    if linear and array.ndim == 4:
        array = array[0, 0]
    theirs = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return array if theirs is None else array.transpose(theirs)


def _without_pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if shape[:2] == (1, 1) and len(shape) == 4 else shape


def layer(ours: str, theirs: str, *, bias: bool = True) -> dict[str, str]:
    """Names of a convolution or linear layer."""
    return {f"{ours}/kernel": f"{theirs}.weight"} | ({f"{ours}/bias": f"{theirs}.bias"} if bias else {})


def norm(ours: str, theirs: str) -> dict[str, str]:
    """Names of a normalisation."""
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}
