"""How arrays lie in PyTorch's files and how they lie in ours; no value changes.

    a convolution's kernel    OIHW → HWIO        a linear layer's    OI → IO        all else    as it is

A linear layer over pixels is a 1 × 1 convolution; networks that are the same have the one here and the other there.
"""

import numpy as np

_FROM = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO = {4: (3, 2, 0, 1), 2: (1, 0)}


def layer(ours: str, theirs: str, *, bias: bool = True) -> dict[str, str]:
    """Names of a convolution or linear layer, ours → theirs, as in `stem/kernel` → `conv_in.weight`."""
    return {f"{ours}/kernel": f"{theirs}.weight"} | ({f"{ours}/bias": f"{theirs}.bias"} if bias else {})


def norm(ours: str, theirs: str) -> dict[str, str]:
    """Names of a normalisation, ours → theirs."""
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def from_torch(ours: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Their `array` as our parameter of the name `ours`, whose `shape` tells whether it is a linear layer or a 1 × 1 convolution here.

    Raises:
      ValueError: where it does not become that shape.
    """
    turned = array.transpose(_FROM[array.ndim]) if _is_kernel(ours) and array.ndim in _FROM else array
    if turned.shape != shape and not (_is_kernel(ours) and _linear(turned.shape) == _linear(shape)):
        raise ValueError(f"{ours}: PyTorch's array {list(array.shape)} does not become {list(shape)}")
    return turned.reshape(shape)


def to_torch(ours: str, array: np.ndarray, *, linear: bool = False) -> np.ndarray:
    """Our parameter of the name `ours` as theirs; `linear`: a 1 × 1 convolution here is a linear layer there."""
    if not _is_kernel(ours):
        return array
    array = array.reshape(_linear(array.shape)) if linear else array
    return array.transpose(_TO[array.ndim])


def _is_kernel(ours: str) -> bool:
    return ours.rpartition("/")[2] == "kernel"


def _linear(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a 1 × 1 convolution, the shape as a linear layer."""
    return shape[2:] if len(shape) == 4 and shape[:2] == (1, 1) else shape
