"""From a file of somebody else's names to our arrays: every tensor is used once, or left out under a prefix that says so, or reported."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from jaxsr.files import shown
from jaxsr.weights.file import WeightsError
from jaxsr.weights.pytorch import from_torch

SHOWN = 5  # of what is wrong


class Tensor(Protocol):
    """What has a shape and becomes an array when it is asked to: an array, or one that still lies in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __array__(self) -> np.ndarray: ...


class Piece(NamedTuple):
    """Where one of our arrays lies in a tensor of theirs that holds more than that, or in another order of axes.

    Attributes:
      name: of the tensor.
      part, of: it is number `part` of `of` equal parts along the first axis.
      turned: a kernel lies as PyTorch's layers have it; else as ours.
    """

    name: str
    part: int = 0
    of: int = 1
    turned: bool = True


class Taken(NamedTuple):
    """Attributes:
    arrays: float32, by our names.
    left: how many tensors were left out, by the prefix that allows it.
    """

    arrays: dict[str, np.ndarray]
    left: dict[str, int]


def take(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str | Piece],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    leave: Iterable[str] = (),
    way_out: str = "give the published state dictionary of this network",
) -> Taken:
    """The `tensors` under our names, kernels turned from PyTorch's order of axes to ours. None is read before all are known to fit.

    Args:
      names: ours, as in `stem/kernel` → theirs. Only those whose last part is `kernel` are turned.
      shapes: of ours, one for every name.
      what: as in 'torchvision weights', for the error.
      leave: beginnings of the names of tensors that are not ours to use.
      way_out: for the error.

    Raises:
      WeightsError: where a tensor is missing, unknown, or of a shape that does not fit, naming the first few.
    """
    pieces = {ours: Piece(theirs) if isinstance(theirs, str) else theirs for ours, theirs in names.items()}
    used = Counter(piece.name for piece in pieces.values())
    assert all(used[piece.name] == piece.of for piece in pieces.values()), "a tensor is used twice, or not whole"
    assert len(set(pieces.values())) == len(pieces)

    left: Counter[str] = Counter()
    wrong = [f"{name} is missing" for name in used.keys() - tensors.keys()]
    for name in tensors.keys() - used.keys():
        if (prefix := next((prefix for prefix in leave if name.startswith(prefix)), None)) is None:
            wrong.append(f"{shown(name)} is unknown")
        else:
            left[prefix] += 1
    for ours, piece in pieces.items():
        if piece.name in tensors and (found := tuple(tensors[piece.name].shape)) not in (fitting := _theirs(ours, piece, shapes[ours])):
            wrong.append(f"{piece.name} has shape {list(found)}, expected {' or '.join(str(list(shape)) for shape in fitting)}")
    if wrong:
        wrong = sorted(set(wrong))
        listed = ", ".join(wrong[:SHOWN]) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        raise WeightsError(f"the {what} ({listed}): {way_out}")
    return Taken({ours: _read(ours, piece, tensors[piece.name], shapes[ours]) for ours, piece in pieces.items()}, dict(left))


def _theirs(ours: str, piece: Piece, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a tensor of theirs that fit ours: a 1 × 1 convolution may be a linear layer, and the other way round."""
    fitting = [shape]
    if _turned(ours, piece):
        *pixels, before, after = shape
        fitting = [(after, before, *pixels)]
        if pixels in ([], [1, 1]):
            fitting.append((after, before) if pixels else (after, before, 1, 1))
    return [(whole[0] * piece.of, *whole[1:]) for whole in fitting]


def _read(ours: str, piece: Piece, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(tensor)
    if piece.of > 1:
        array = np.split(array, piece.of)[piece.part]
    turned = from_torch(ours, array, shape) if piece.turned else array
    return np.array(turned, np.float32, order="C")  # a copy, so that nothing keeps what was read


def _turned(ours: str, piece: Piece) -> bool:
    return piece.turned and ours.rpartition("/")[2] == "kernel"
