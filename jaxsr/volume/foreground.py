"""Where the head is: the region metrics are averaged over when no mask is given.

Otsu's threshold [Otsu, IEEE Trans. SMC 9:62, 1979] separates air from tissue in the slightly smoothed volume; half of it is used, since
air is far below and cerebrospinal fluid or bone only just. The largest connected piece with its holes filled (ventricles, sinuses) is the
head. Where one constant surrounds a single piece and lies among its values (a skull-stripped volume after a z-score), a threshold would
cut through tissue: the piece is taken as it is.
"""

import numpy as np
from scipy import ndimage

CUT_OUT = 0.2  # share of the voxels with one exact value
AMONG = 5  # per cent of the piece that is darker than its surround
ONE_PIECE = 0.95  # share of the rest in its largest piece


def foreground(data: np.ndarray) -> np.ndarray:
    """The head in `data [X, Y, Z]`, boolean `[X, Y, Z]`. Everything, where air and tissue cannot be told apart."""
    surround = _corner_value(data)
    inside = data != surround
    if inside.mean() < 1 - CUT_OUT and inside.any() and np.percentile(data[inside], AMONG) < surround:
        piece = _largest_piece(inside)
        if piece.sum() >= ONE_PIECE * inside.sum():
            return _without_holes(piece)
    smooth = ndimage.gaussian_filter(np.asarray(data, np.float32), 1.0)
    sample = smooth[::2, ::2, ::2]
    low, high = np.percentile(sample, (0.1, 99.5))
    if not low < high:
        return np.ones(data.shape, bool)
    return _without_holes(_largest_piece(smooth > (low + _otsu(np.clip(sample, low, high))) / 2))


def _corner_value(data: np.ndarray) -> float:
    """What most corners hold: the filling, where there is one."""
    values, counts = np.unique(data[tuple(slice(None, None, max(n - 1, 1)) for n in data.shape)], return_counts=True)
    return float(values[np.argmax(counts)])


def _otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that maximises the variance between the two classes."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, sum_above = counts.sum() - below, (counts * centres).sum() - sum_below
    between = below * above * (sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)) ** 2
    return float(edges[1:-1][np.argmax(between)])


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces, n = ndimage.label(mask)
    if n == 0:
        return np.ones(mask.shape, bool)
    return pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Filled in every slice of the three axes, so that sinuses which open to the outside somewhere are closed where they look closed."""
    filled = mask.copy()
    for axis in range(3):
        for one, out in zip(np.moveaxis(mask, axis, 0), np.moveaxis(filled, axis, 0), strict=True):
            pieces, n = ndimage.label(~one)
            edge = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
            inside = np.ones(n + 1, bool)
            inside[edge] = inside[0] = False
            out |= inside[pieces]
    return filled
