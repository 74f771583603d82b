"""Which way the axes of an array run through the head, and turning them to RAS+ without resampling.

An affine A maps voxel indices to scanner millimetres, x right, y anterior, z superior. Its linear part has the polar factorisation
A = R P with R the nearest rotation (or reflection); the entry |R_ij| is the cosine between world axis i and voxel axis j. The array is
in RAS+ when the pairing of axes with the largest sum of cosines is the identity and every paired cosine is positive.

Where two pairings are equally good (an axis at 45°) the one that moves fewest axes wins, so that turning to RAS+ twice is turning once.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np

Codes = tuple[str, str, str]

_NEGATIVE, _POSITIVE = "LPI", "RAS"
_TIE = 1e-5  # cosines stored as float32 are not closer than this


class Turn(NamedTuple):
    """RAS+ axis i is file axis `order[i]`, reversed where `flip[i]`."""

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]


def turn_of(affine: np.ndarray) -> Turn:
    """The turn that brings an array with this (regular) `affine [4, 4]` to RAS+ of the nearest axes."""
    rotation = nearest_rotation(affine)
    best = max(_score(rotation, order) for order in permutations(range(3)))
    order = next(order for order in permutations(range(3)) if _score(rotation, order) > best - _TIE)
    flip = tuple(bool(rotation[i, order[i]] < 0) for i in range(3))
    return Turn(order, flip)  # type: ignore[arg-type]


def codes_of(turn: Turn) -> Codes:
    """What each file axis points to, as in ('L', 'P', 'S')."""
    codes = [""] * 3
    for i, (axis, flip) in enumerate(zip(*turn, strict=True)):
        codes[axis] = (_NEGATIVE if flip else _POSITIVE)[i]
    return (codes[0], codes[1], codes[2])


def turn_from(codes: Codes) -> Turn:
    """The inverse of `codes_of`. Raises ValueError unless the three codes name three different axes."""
    axes = ["RLAPSI".find(code) // 2 if len(code) == 1 else -1 for code in codes]
    if sorted(axes) != [0, 1, 2]:
        raise ValueError(
            f"orientation {codes!r} must name left-right, posterior-anterior and inferior-superior once each, as in ('R', 'A', 'S')"
        )
    order = tuple(axes.index(i) for i in range(3))
    return Turn(order, tuple(codes[axis] in _NEGATIVE for axis in order))  # type: ignore[arg-type]


def to_ras(data: np.ndarray, affine: np.ndarray, turn: Turn) -> tuple[np.ndarray, np.ndarray]:
    """A view of `data` with its axes in RAS+ order and direction, and the affine that keeps every voxel where it was."""
    return data.transpose(turn.order)[_steps(turn.flip)], affine @ _index_map(turn, data.shape)


def from_ras(data: np.ndarray, affine: np.ndarray, turn: Turn) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `to_ras`: data and affine as a file with this turn holds them."""
    turned = data[_steps(turn.flip)].transpose(np.argsort(turn.order))
    return turned, affine @ np.linalg.inv(_index_map(turn, turned.shape))


def nearest_rotation(affine: np.ndarray) -> np.ndarray:
    """The orthogonal matrix `[3, 3]` nearest to the directions of the voxel axes (polar factor, voxel sizes taken out first)."""
    linear = affine[:3, :3]
    u, _, vt = np.linalg.svd(linear / np.linalg.norm(linear, axis=0))
    return u @ vt


def _score(rotation: np.ndarray, order: tuple[int, ...]) -> float:
    return sum(abs(rotation[i, axis]) for i, axis in enumerate(order))


def _steps(flip: tuple[bool, bool, bool]) -> tuple[slice, slice, slice]:
    return tuple(slice(None, None, -1 if f else 1) for f in flip)  # type: ignore[return-value]


def _index_map(turn: Turn, shape: tuple[int, ...]) -> np.ndarray:
    """`[4, 4]`: RAS+ index → file index, a signed permutation, so its inverse is exact."""
    index = np.zeros((4, 4))
    index[3, 3] = 1
    for i, (axis, flip) in enumerate(zip(*turn, strict=True)):
        index[axis, i] = -1 if flip else 1
        index[axis, 3] = shape[axis] - 1 if flip else 0
    return index
