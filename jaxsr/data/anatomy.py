"""Endless synthetic heads from the tissue maps that ship with nilearn, in the manner of SynthSR [survey §V-A2].

    x = Σ_k μ_k · P_k(A r + u(r)) · texture          tissue means μ, hardened tissue maps P, affine A, smooth displacement u

The maps are the MNI ICBM 152 averages of grey and white matter and of the brain, 1 mm; CSF is what they leave of the brain, skull and scalp
are shells around it. Averages are blurred, so a map is only a *tendency*: noise is added to its log-odds before they are hardened, which
folds and roughens every surface differently, and hardening happens on a grid twice as fine as the target, so that the truth has edges up
to its own Nyquist frequency and partial volume at them. Everything is a function of a key.
"""

import dataclasses
import functools
from importlib import resources
from typing import NamedTuple

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from jax import Array
from scipy import ndimage, special

from jaxsr.volume.io import Volume

TISSUES = ("background", "csf", "grey matter", "white matter", "skull", "scalp", "lesion")
MAP_SPACING = 1.5  # mm: the averages hold nothing finer, and warping is the expensive part


FOLDS = ((3.0, 0.2), (6.0, 0.6), (12.0, 1.0))  # mm, weight: surfaces wander over centimetres and are smooth at millimetres, as cortex is


class Contrast(NamedTuple):
    """Mean signal of each of `TISSUES`, `[low, high]` a tissue, to draw from."""

    background: tuple[float, float]
    csf: tuple[float, float]
    grey: tuple[float, float]
    white: tuple[float, float]
    skull: tuple[float, float]
    scalp: tuple[float, float]
    lesion: tuple[float, float]


CONTRASTS = {
    "T1w": Contrast((0.0, 0.02), (0.10, 0.30), (0.45, 0.65), (0.75, 0.95), (0.05, 0.15), (0.60, 1.00), (0.30, 0.55)),
    "T2w": Contrast((0.0, 0.02), (0.85, 1.00), (0.50, 0.65), (0.30, 0.45), (0.03, 0.12), (0.40, 0.80), (0.65, 0.90)),
    "PDw": Contrast((0.0, 0.02), (0.75, 0.95), (0.75, 0.90), (0.55, 0.70), (0.05, 0.15), (0.50, 0.90), (0.80, 1.00)),
}


class Head(NamedTuple):
    """A rendered subject on its grid.

    Attributes:
      image: signal, `[X, Y, Z]` float32, about 0…1.
      labels: likeliest tissue of each voxel (of its mean log-odds), `[X, Y, Z]` uint8, an index of `TISSUES`.
    """

    image: Array
    labels: Array


@dataclasses.dataclass(frozen=True, eq=False)
class TissueMaps:
    """`logits` `[K, X, Y, Z]` float32 log-probabilities on a grid of `spacing` mm whose first voxel is centred at `origin` (mm)."""

    logits: np.ndarray
    origin: np.ndarray
    spacing: float

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

    # Shells at a distance from the brain, with the soft edge that the averages have; the template ends at the neck, and so do they.
    distance = spacing * ndimage.distance_transform_edt(~brain).astype(np.float32)
    distance += 4.5 * np.maximum(0, 8 - np.arange(brain.shape[2]))
    within = lambda limit: special.expit((limit - distance) / 0.8)  # noqa: E731
    csf = np.where(brain, inside - grey - white, within(2.5))
    skull, scalp = (np.where(brain, 0, within(outer) - within(inner)) for inner, outer in ((2.5, 7.5), (7.5, 13.0)))

    tissues = np.stack([csf, grey, white, skull, scalp])
    tissues = np.concatenate([1 - tissues.sum(0, keepdims=True), tissues])
    first = template["gm"].affine[:3, 3] + (spacing - 1) / 2
    return TissueMaps(np.log(np.clip(tissues, 1e-4, 1)).astype(np.float32), first, spacing)


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


# ------------------------------------------------------------------------------------------------------------------ rendering


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much heads differ from the template; all are standard deviations of normal draws unless said otherwise.

    Attributes:
      rotation: degrees about each axis.
      scaling: of each axis, relative.
      shear: of each pair of axes.
      warp: mm of smooth displacement, at control points `warp_spacing` mm apart.
      folding: of the noise added to the log-odds at each of three scales, in nats: how much surfaces fold and roughen.
      texture: of the multiplicative signal variation within tissues at each of two scales.
      lesions: the largest number of white-matter lesions (drawn uniformly from 0).
    """

    rotation: float = 8.0
    scaling: float = 0.06
    shear: float = 0.04
    warp: float = 3.0
    warp_spacing: float = 30.0
    folding: float = 1.0
    texture: float = 0.02
    lesions: int = 6


def render(
    key: Array, shape: tuple[int, int, int], voxel_size: float, contrast: str = "random", variation: Variation = Variation()
) -> Head:
    """A random head on a grid of `shape` and `voxel_size` mm centred on the template's field of view; a pure function of `key`.

    Args:
      contrast: a key of `CONTRASTS`, or 'random': one of them drawn, its tissue means drawn from their ranges in any case.

    Raises:
      ValueError: for an unknown contrast.
    """
    if contrast != "random" and contrast not in CONTRASTS:
        raise ValueError(f"unknown contrast {contrast!r}; known: random, {', '.join(CONTRASTS)}")
    table = jnp.asarray([CONTRASTS[name] for name in (CONTRASTS if contrast == "random" else [contrast])])  # [contrasts, K, 2]
    maps = tissue_maps()
    return _render(key, jnp.asarray(maps.logits), table, tuple(shape), float(voxel_size), maps.spacing, variation)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _render(
    key: Array, logits: Array, table: Array, shape: tuple[int, int, int], voxel_size: float, spacing: float, variation: Variation
) -> Head:
    keys = {
        name: jax.random.fold_in(key, i) for i, name in enumerate(("affine", "warp", "folding", "lesion", "contrast", "means", "texture"))
    }

    # Log-odds of this head, on a working grid about as fine as the maps, or as twice the target where that is coarser.
    extent = np.array(shape) * voxel_size
    x, y, z = (int(np.ceil(e / max(spacing, voxel_size / 2))) for e in extent)
    working = (x, y, z)
    points = _centred_points(working, extent / np.array(working))  # [3, x, y, z], mm from the centre
    points = points + _smooth_noise(keys["warp"], (3, *working), extent, variation.warp_spacing) * variation.warp
    points = jnp.einsum("ij,jxyz->ixyz", _random_affine(keys["affine"], variation), points)
    index = points / spacing + (jnp.array(logits.shape[1:]).reshape(3, 1, 1, 1) - 1) / 2
    warped = _trilinear(logits, index)  # [K - 1, x, y, z]
    folds: Array = sum(
        weight * _smooth_noise(jax.random.fold_in(keys["folding"], i), warped.shape, extent, scale)
        for i, (scale, weight) in enumerate(FOLDS)
    )  # type: ignore[assignment]
    warped = warped + variation.folding * folds
    warped = jnp.concatenate([warped, _lesions(keys["lesion"], warped[3], points, variation.lesions)[None]])

    which = jax.random.randint(keys["contrast"], (), 0, len(table))
    low, high = table[which, :, 0], table[which, :, 1]
    means = low + (high - low) * jax.random.uniform(keys["means"], low.shape)
    image, labels = _harden(warped, means, shape)
    texture = _smooth_noise(keys["texture"], shape, extent, 2.0 * voxel_size) + _smooth_noise(
        jax.random.fold_in(keys["texture"], 1), shape, extent, 20.0
    )
    return Head(jnp.maximum(image * (1 + variation.texture * texture), 0), labels)


def _harden(logits: Array, means: Array, shape: tuple[int, int, int], fine: int = 2, sharpness: float = 6.0) -> tuple[Array, Array]:
    """Signal and labels on `shape` from log-odds `[K, x, y, z]` on a coarser grid.

    Log-odds are interpolated to a grid `fine` times finer than `shape`, where the most likely tissue wins against the runner-up by a steep
    sigmoid, and the signal is averaged over each voxel. One slice of the target at a time: the fine grid never exists whole.
    """
    rows, columns, depths = (_cubic_matrix(n, fine * m) for n, m in zip(logits.shape[1:], shape, strict=True))
    rows = rows.reshape(shape[0], fine, -1)
    first, support = _support(rows)
    bands = jnp.asarray(np.stack([r[:, f : f + support] for r, f in zip(rows, first, strict=True)]))  # [X, fine, support]

    def slice_of(args: tuple[Array, Array]) -> tuple[Array, Array]:
        start, band = args
        near = jax.lax.dynamic_slice_in_dim(logits, start, support, axis=1)
        odds = jnp.einsum("ksyz,as,by->kabz", near, band, columns, optimize=[(0, 1), (0, 1)])
        odds = jnp.einsum("kabz,cz->kabc", odds, depths)
        best, second = odds[0], jnp.full_like(odds[0], -jnp.inf)
        signal, other = jnp.full_like(best, means[0]), jnp.full_like(best, means[0])
        for tissue in range(1, len(odds)):
            wins, places = odds[tissue] > best, odds[tissue] > second
            other = jnp.where(wins, signal, jnp.where(places, means[tissue], other))
            second = jnp.where(wins, best, jnp.where(places, odds[tissue], second))
            signal = jnp.where(wins, means[tissue], signal)
            best = jnp.where(wins, odds[tissue], best)
        signal = other + (signal - other) * jax.nn.sigmoid(sharpness * (best - second))
        signal = signal.reshape(fine, shape[1], fine, shape[2], fine).mean((0, 2, 4))
        mean = jnp.einsum("ksyz,s,by->kbz", near, band.mean(0), columns.reshape(shape[1], fine, -1).mean(1), optimize=[(0, 1), (0, 1)])
        mean = jnp.einsum("kbz,cz->kbc", mean, depths.reshape(shape[2], fine, -1).mean(1))
        return signal, mean.argmax(0).astype(jnp.uint8)

    return jax.lax.map(slice_of, (jnp.asarray(first), bands))


def _support(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """First coarse plane that each slice of the target reads, `[X]`, and how many planes any of them reads."""
    touched = (rows != 0).any(1)
    first, last = touched.argmax(1), touched.shape[1] - 1 - touched[:, ::-1].argmax(1)
    support = int((last - first).max()) + 1
    return np.minimum(first, rows.shape[2] - support), support


def _lesions(key: Array, white: Array, points: Array, most: int) -> Array:
    """Log-odds `[x, y, z]` of up to `most` round lesions of 2…5 mm radius where they fall in white matter; as low as maps go elsewhere."""
    keys = jax.random.split(key, 3)
    centres = jax.random.uniform(keys[0], (most, 3), minval=-55.0, maxval=55.0)
    radii = jax.random.uniform(keys[1], (most,), minval=2.0, maxval=5.0)
    present = jnp.arange(most) < jax.random.randint(keys[2], (), 0, most + 1)

    def add(odds: Array, lesion: tuple[Array, Array, Array]) -> tuple[Array, None]:
        centre, radius, here = lesion
        depth = radius - jnp.sqrt(((points - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) + 1e-6)  # mm inside the lesion
        # One nat above white matter at most: deep inside too, a lesion stays where white matter is about the likeliest.
        return jnp.where(here, jnp.maximum(odds, white + jnp.minimum(2.0 * depth, 1.0)), odds), None

    return jax.lax.scan(add, jnp.full_like(white, jnp.log(1e-4)), (centres, radii, present))[0]


def _random_affine(key: Array, variation: Variation) -> Array:
    """Rotation · scaling · shear, `[3, 3]`."""
    angle, scale, shear = jax.random.normal(key, (3, 3)) * jnp.array(
        [[np.deg2rad(variation.rotation)], [variation.scaling], [variation.shear]]
    )
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(angle), jnp.sin(angle)
    about_x = jnp.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = jnp.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = jnp.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    upper = jnp.array([[1, shear[0], shear[1]], [0, 1, shear[2]], [0, 0, 1]])
    return about_x @ about_y @ about_z @ jnp.diag(jnp.exp(scale)) @ upper


def _smooth_noise(key: Array, shape: tuple[int, ...], extent: np.ndarray, scale: float) -> Array:
    """Normal noise on the last three axes of `shape`, smooth at `scale` mm and of unit variance."""
    control = tuple(int(np.ceil(e / scale)) + 1 for e in extent)
    noise = jax.random.normal(key, (*shape[:-3], *control))
    for axis, (n, m) in enumerate(zip(control, shape[-3:], strict=True), start=len(shape) - 3):
        matrix = _bspline_matrix(n, m)
        matrix /= np.sqrt((matrix**2).sum(1, keepdims=True))
        noise = jnp.moveaxis(jnp.tensordot(noise, jnp.asarray(matrix), ((axis,), (1,))), -1, axis)
    return noise


def _bspline_matrix(n: int, m: int) -> np.ndarray:
    """Cubic B-splines of `n` control points at `m` equidistant positions, float32 `[m, n]`, rows sum to one: smooth, not interpolating."""
    distance = np.abs(((np.arange(m) + 0.5) * n / m - 0.5)[:, None] - np.arange(n))
    matrix = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _cubic_matrix(n: int, m: int) -> np.ndarray:
    """Cubic (Catmull-Rom) interpolation of `n` voxels at the centres of `m` over the same field of view, float32 `[m, n]`."""
    position = (np.arange(m) + 0.5) * n / m - 0.5
    base = np.floor(position).astype(int)
    t = position - base
    weights = (((2 - t) * t - 1) * t / 2, ((3 * t - 5) * t**2 + 2) / 2, ((4 - 3 * t) * t + 1) * t / 2, (t - 1) * t**2 / 2)
    matrix = np.zeros((m, n), np.float32)
    for step, weight in zip((-1, 0, 1, 2), weights, strict=True):
        np.add.at(matrix, (np.arange(m), np.clip(base + step, 0, n - 1)), weight)
    return matrix


def _centred_points(shape: tuple[int, int, int], spacing: np.ndarray) -> Array:
    """Positions of voxel centres from the centre of the grid, mm, `[3, X, Y, Z]`."""
    axes = [jnp.asarray((np.arange(n) - (n - 1) / 2) * d, jnp.float32) for n, d in zip(shape, spacing, strict=True)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"))


def _trilinear(maps: Array, index: Array) -> Array:
    """`maps` `[K, X, Y, Z]` at voxel positions `index` `[3, x, y, z]`; beyond the edge, the edge."""
    last = jnp.array(maps.shape[1:]).reshape(3, 1, 1, 1) - 1
    below = jnp.clip(jnp.floor(index), 0, last - 1)
    weight = jnp.clip(index - below, 0, 1)
    base = below.astype(jnp.int32)
    voxels = maps.reshape(len(maps), -1).T  # [voxels, K]: one gather brings every tissue
    stride = (maps.shape[2] * maps.shape[3], maps.shape[3], 1)
    result = jnp.zeros((*index.shape[1:], len(maps)), maps.dtype)
    for corner in np.ndindex(2, 2, 2):
        share = jnp.prod(jnp.stack([weight[a] if c else 1 - weight[a] for a, c in enumerate(corner)]), 0)
        result += share[..., None] * voxels[sum((base[a] + c) * stride[a] for a, c in enumerate(corner))]
    return jnp.moveaxis(result, -1, 0)
