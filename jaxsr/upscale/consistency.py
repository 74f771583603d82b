"""The data-consistency map: does the output, scanned as the input was, look like the input?

    z = (E|b H x̂ + n| − y) / σ        on the grid of the input y, of the output x̂

H is the linear part of the declared acquisition (point spread, slice profile, sampling), its voxels those of y; |· + n| has the mean of
a noisy magnitude, which in air is not zero; σ is the noise of y, as told or estimated. Where the air of y is not that of such noise it
was cleared, and |b H x̂| takes the place of the mean. Where the output is the coarser one, y is truncated in k-space to its voxels v', which
leaves σ √(Π v / v') of white noise, while the mean stays that of σ. Where the acquisition has a bias field, b is the one of its kind,
log b = Σ_k c_k φ_k(r) with cosines of degree 1 … 3, that fits best (least squares in the head); else b = 1. What differs from scan to scan
and cannot be known from y (motion, ghosts, the warp of gradients, contrast) is left out.

An output that is the truth leaves noise: z of mean 0 and standard deviation 1 in the head. Structure that is in x̂ but not in y stands out
as far as H lets it through; what H removes, the scan says nothing of, and neither does the map.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.config import to_dict
from jaxsr.physics.acquisition import linear_part
from jaxsr.physics.noise import mean_magnitude
from jaxsr.physics.protocol import Acquisition
from jaxsr.volume.foreground import foreground
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.io import Volume, VolumeError
from jaxsr.volume.noise import air_is_noise, cleared, estimate_noise

FAR = 3.0  # σ; of normal noise alone 0.27 % of the voxels lie further out
_DEGREE = 3  # of the bias field, as physics/fields.py draws it
_LOOKED_AT = 200_000  # voxels that decide it
_STEPS = 5  # of Gauss and Newton
_FINER = 0.99  # a voxel smaller than this times another is the finer one
_THICK = 1.25  # ratio above which the coarsest axis is the one across slices


class Consistency(NamedTuple):
    """What is asked for: the acquisition that the input is taken to come from, and its noise σ (None: estimated)."""

    acquisition: Acquisition
    sigma: float | None = None


class ConsistencyMap(NamedTuple):
    """`map`: z, a volume; `facts` for its sidecar; `sentence` for people."""

    map: Volume
    facts: dict[str, Any]
    sentence: str


def consistency_map(low: Volume, output: Volume, asked: Consistency) -> ConsistencyMap:
    """z of `output` against `low`, the input it was made from; axes parallel, the same field of view to half a voxel.

    Along axes where the output is the coarser one both are compared at its voxel size.

    Raises:
      VolumeError: where the grids do not fit, or no noise is found in the input.
    """
    measured, unmeasured, shrunk, notes = _comparable(low, output)
    acquisition = as_scanned(asked.acquisition, measured.voxel_size)
    head = foreground(measured.data) & ~unmeasured
    if not head.any():
        raise VolumeError("no head is found in the input to compare the output with")
    magnitude = bool(measured.data.min() >= 0)
    # Magnitudes that were averaged have lost Rayleigh's distribution in air, so σ is looked for in the scan itself.
    own_head = head if measured is low else foreground(low.data) & ~cleared(low.data)
    if asked.sigma is not None:
        sigma, source = asked.sigma, "given"
    else:
        sigma, source = estimate_noise(low.data, head=own_head, coils=acquisition.coils)
    noisy_air = magnitude and air_is_noise(low.data, sigma, head=own_head, coils=acquisition.coils)

    model = _degrade(output, measured.grid, acquisition, magnitude)
    bias = None
    if asked.acquisition.bias[1] > 0:
        floor = mean_magnitude(model, sigma, acquisition.coils) - model if noisy_air else 0.0
        bias = _fit_bias(model, measured.data - floor, head)
        model *= bias
    if noisy_air:
        model = mean_magnitude(model, sigma, acquisition.coils)
    model -= measured.data
    model /= np.float32(sigma * shrunk)
    model[unmeasured] = 0  # somebody's filling, no measurement
    z = model[head].astype(np.float64)
    rms, far = float(np.sqrt((z**2).mean())), float((np.abs(z) > FAR).mean())
    left_out = [name for name in ("motion", "ghosting") if getattr(asked.acquisition, name)]
    left_out += [name for name, off in (("warp", (0.0, 0.0)), ("gamma", (1.0, 1.0))) if getattr(asked.acquisition, name) != off]
    facts = {
        "Acquisition": to_dict(acquisition),
        "Sigma": float(f"{sigma:.6g}"),
        "SigmaFrom": source,
        "SigmaIs": {"given": "given", "air": "estimate", "tissue": "upper bound"}[source],
        "RmsInHead": round(rms, 4),
        "ShareBeyond3InHead": round(far, 6),
        "BiasFitted": None if bias is None else [round(float(v), 4) for v in (bias[head].min(), bias[head].max())],
        "NotModelled": left_out,
        "Notes": notes,
    }
    sentence = (
        f"degraded as by {acquisition.name}, the output differs from the input by {rms:.2f} times its noise "
        f"(rms in the head; 1 is noise alone, well below 1: the output repeats the scan's own noise), "
        f"and by more than {FAR:g} times in {far:.2%} of the voxels (noise alone: 0.27 %)"
    )
    if source == "tissue":
        sentence += "; the noise was found in tissue, which gives an upper bound: both numbers are lower bounds, --noise sets it"
    return ConsistencyMap(Volume(model, measured.affine, low.orientation, codes=low.codes), facts, sentence)


def as_scanned(declared: Acquisition, voxel_size: Sequence[float]) -> Acquisition:
    """`declared` without what is drawn, its voxels those of a scan. Slices lie across the scan's coarsest axis, if that is much coarser
    than the others, and are as thick a share of their distance as declared."""
    typical, sizes, gap = declared.typical, [float(v) for v in voxel_size], 0.0
    across = typical.slice_axis
    if across is not None:
        share = float(typical.voxel_size[across]) / typical.spacing[across]  # type: ignore[arg-type]
        coarsest = int(np.argmax(sizes))
        if sizes[coarsest] > _THICK * sorted(sizes)[1]:
            across = coarsest
        gap, sizes[across] = sizes[across] * (1 - share), sizes[across] * share
    partial = typical.partial_fourier
    changes = {
        "voxel_size": tuple(sizes),
        "gap": gap,
        "slice_axis": across,
        "partial_fourier": None if partial and partial.axis == across else partial,
        "blur": (sum(typical.blur) / 2,) * 2,
        **{"snr": None, "bias": (0.0, 0.0), "warp": (0.0, 0.0), "gamma": (1.0, 1.0), "motion": None, "ghosting": None},
    }
    return typical.model_copy(update=changes)


def _comparable(low: Volume, output: Volume) -> tuple[Volume, np.ndarray, float, list[str]]:
    """The input, at the output's voxel size along axes where that is larger; where it is filling; its noise there, in units of its own
    (white noise keeps its density in k-space, and a share of k-space is kept); and what to say of it."""
    unmeasured = cleared(low.data)
    pairs = zip(low.voxel_size, output.voxel_size, strict=True)
    sizes = tuple(own if other * _FINER <= own else other for own, other in pairs)
    if sizes == low.voxel_size:
        return low, unmeasured, 1.0, []
    grid = target_grid(low.grid, sizes)  # type: ignore[arg-type]
    said = " × ".join(f"{v:.3g}" for v in sizes)
    data = resample(low.data, low.grid, grid, "kspace")
    if low.data.min() >= 0:
        data = np.maximum(data, 0)
    unmeasured = resample(unmeasured.astype(np.float32), low.grid, grid, "linear") > 0.5
    shrunk = float(np.sqrt(np.prod(low.voxel_size) / np.prod(grid.voxel_size)))
    sentence = f"the output is coarser than the input along some axis: both were compared at {said} mm, where the noise is {shrunk:.3g} σ"
    return Volume(data, grid.affine), unmeasured, shrunk, [sentence]


def _degrade(output: Volume, grid: Grid, acquisition: Acquisition, magnitude: bool) -> np.ndarray:
    """H x̂, float32 `[X, Y, Z]` of `grid`. H keeps a field of view, so x̂ is brought to exactly that of `grid` first, at its own fineness."""
    sides = [n * v / w for n, v, w in zip(grid.shape, grid.voxel_size, output.voxel_size, strict=True)]
    sides = [max(n, round(side)) for n, side in zip(grid.shape, sides, strict=True)]
    size = tuple(n * v / m for n, v, m in zip(grid.shape, grid.voxel_size, sides, strict=True))
    fine = target_grid(grid, size)  # type: ignore[arg-type]
    try:
        data = resample(output.data, output.grid, fine)
    except ValueError as error:
        raise VolumeError(f"the output cannot be compared with the input: {error}") from None
    operator = linear_part(jax.random.key(0), fine.shape, tuple(round(v, 4) for v in size), acquisition)  # type: ignore[arg-type]
    if operator.target.shape != grid.shape:
        raise VolumeError(
            f"degraded, the output would have {operator.target.shape} voxels, the input has {grid.shape}: their grids do not fit"
        )
    image = operator.forward(jnp.asarray(data))
    return np.array(jnp.abs(image) if magnitude else image.real)


def _fit_bias(model: np.ndarray, measured: np.ndarray, head: np.ndarray) -> np.ndarray:
    """b, float32 `[X, Y, Z]`: the c that make Σ (b model − y)² over the head least, by Gauss and Newton."""
    index = np.flatnonzero(head)
    index = index[:: max(1, index.size // _LOOKED_AT)]
    places = np.unravel_index(index, head.shape)
    degrees = [k for k in itertools.product(range(_DEGREE + 1), repeat=3) if 0 < sum(k) <= _DEGREE and all(map(int.__lt__, k, head.shape))]
    cosines = [np.cos(np.pi * np.arange(_DEGREE + 1)[:, None] * (np.arange(n) + 0.5) / n) for n in head.shape]
    basis = np.stack([np.prod([c[k][p] for c, k, p in zip(cosines, degree, places, strict=True)], axis=0) for degree in degrees], 1)
    x, y = (image.ravel()[index].astype(np.float64) for image in (model, measured))
    found = np.zeros(len(degrees))
    for _ in range(_STEPS):
        seen = x * np.exp(basis @ found)
        found += np.linalg.lstsq(seen[:, None] * basis, y - seen, rcond=None)[0]
    weights = np.zeros((_DEGREE + 1,) * 3)
    for degree, value in zip(degrees, found, strict=True):
        weights[degree] = value
    return np.exp(np.einsum("ijk,ix,jy,kz->xyz", weights, *cosines, optimize="greedy")).astype(np.float32)
