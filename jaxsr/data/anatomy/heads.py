"""Endless synthetic heads from the tissue maps that ship with nilearn, in the manner of SynthSR [survey §V-A2].

    x = Σ_k μ_k · P_k(A r + u(r)) · texture          tissue means μ, hardened tissue maps P, affine A, smooth displacement u

The maps are the MNI ICBM 152 averages of grey and white matter and of the brain, 1 mm; CSF is what they leave of the brain, skull and scalp
are shells around it. Averages are blurred, so a map is only a *tendency*: noise is added to its log-odds before they are hardened, which
folds and roughens every surface differently, and hardening happens on a grid twice as fine as the target, so that the truth has edges up
to its own Nyquist frequency and partial volume at them. Everything is a function of a key.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.data.anatomy.companions import draw_gradient, draw_log_bias, draw_state, kept
from jaxsr.data.anatomy.contrasts import CONTRASTS, index_of
from jaxsr.data.anatomy.deformation import Variation, centred_points, random_affine, smooth_noise, trilinear
from jaxsr.data.anatomy.head import Head, check_maps
from jaxsr.data.anatomy.template import tissue_maps

FOLDS = ((3.0, 0.2), (6.0, 0.6), (12.0, 1.0))  # mm, weight: surfaces wander over centimetres and are smooth at millimetres, as cortex is


def render(
    key: Array,
    shape: tuple[int, int, int],
    voxel_size: float,
    contrast: str = "random",
    variation: Variation = Variation(),
    maps: tuple[str, ...] = (),
) -> Head:
    """A random head on a grid of `shape` and `voxel_size` mm centred on the template's field of view; a pure function of `key`.

    Args:
      contrast: a key of `CONTRASTS`, or 'random': one of them drawn, its tissue means drawn from their ranges in any case.
      maps: of `MAPS`, those that the head is to come with. They change neither image nor labels.

    Raises:
      ValueError: for an unknown contrast or map.
    """
    kind = index_of(contrast, list(CONTRASTS))
    tissues = tissue_maps()
    arrays = jnp.asarray(tissues.logits), jnp.asarray(tissues.distance)
    return _render(key, kind, *arrays, tuple(shape), float(voxel_size), tissues.spacing, variation, check_maps(maps))


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _render(
    key: Array,
    kind: Array,
    logits: Array,
    distance: Array,
    shape: tuple[int, int, int],
    voxel_size: float,
    spacing: float,
    variation: Variation,
    maps: tuple[str, ...],
) -> Head:
    # A head's draws are known by their place in this list: new ones go to its end.
    names = ("affine", "warp", "folding", "lesion", "contrast", "means", "texture", "state", "kept", "reference", "bias", "gradient")
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}

    # Log-odds of this head, on a working grid about as fine as the maps, or as twice the target where that is coarser.
    extent = np.array(shape) * voxel_size
    x, y, z = (int(np.ceil(e / max(spacing, voxel_size / 2))) for e in extent)
    working = (x, y, z)
    points = centred_points(working, extent / np.array(working))  # [3, x, y, z], mm from the centre
    points = points + smooth_noise(keys["warp"], (3, *working), extent, variation.warp_spacing) * variation.warp
    points = jnp.einsum("ij,jxyz->ixyz", random_affine(keys["affine"], variation), points)
    index = points / spacing + (jnp.array(logits.shape[1:]).reshape(3, 1, 1, 1) - 1) / 2
    warped = trilinear(logits, index)  # [K - 1, x, y, z]
    folds: Array = sum(
        weight * smooth_noise(jax.random.fold_in(keys["folding"], i), warped.shape, extent, scale)
        for i, (scale, weight) in enumerate(FOLDS)
    )  # type: ignore[assignment]
    warped = warped + variation.folding * folds
    warped = jnp.concatenate([warped, _lesions(keys["lesion"], warped[3], points, variation.lesions)[None]])

    first = jnp.where(jnp.asarray(kind) < 0, jax.random.randint(keys["contrast"], (), 0, len(CONTRASTS)), kind)
    means = [_draw_means(keys["means"], first)]
    if "reference" in maps:
        other, draws = jax.random.split(keys["reference"])
        means.append(_draw_means(draws, (first + jax.random.randint(other, (), 1, len(CONTRASTS))) % len(CONTRASTS)))
    images, labels = _harden(warped, jnp.stack(means), shape)
    textured = []
    for i, image in enumerate(images):
        fine, coarse = (jax.random.fold_in(keys["texture"], 2 * i + j) if i + j else keys["texture"] for j in (0, 1))
        texture = smooth_noise(fine, shape, extent, 2.0 * voxel_size) + smooth_noise(coarse, shape, extent, 20.0)
        textured.append(jnp.maximum(image * (1 + variation.texture * texture), 0))

    keep = None
    if variation.stripped or variation.defaced:
        away = jax.image.resize(trilinear(distance[None], index)[0], shape, "linear")
        there = jnp.stack([jax.image.resize(p, shape, "linear") for p in points])
        keep = kept(keys["kept"], draw_state(keys["state"], variation), away, there)
        textured, labels = [jnp.where(keep, x, 0) for x in textured], jnp.where(keep, labels, 0)
    elif "mask" in maps:
        keep = jnp.ones(shape, bool)
    return Head(
        textured[0],
        labels,
        reference=textured[1] if "reference" in maps else None,
        bias=draw_log_bias(keys["bias"], labels > 0, variation) if "bias" in maps else None,
        gradient=draw_gradient(keys["gradient"], shape, voxel_size, variation) if "gradient" in maps else None,
        mask=keep if "mask" in maps else None,
    )


def _draw_means(key: Array, kind: Array) -> Array:
    """Of each of `TISSUES`, in the ranges of the contrast; `[K]`."""
    low, high = jnp.moveaxis(jnp.asarray(list(CONTRASTS.values()))[kind], -1, 0)
    return low + (high - low) * jax.random.uniform(key, low.shape)


def _harden(logits: Array, means: Array, shape: tuple[int, int, int], fine: int = 2, sharpness: float = 6.0) -> tuple[Array, Array]:
    """Signals `[C, X, Y, Z]` and labels on `shape` from log-odds `[K, x, y, z]` on a coarser grid and `means` `[C, K]`.

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
        of = means[:, :, None, None, None]
        signal = other = jnp.broadcast_to(of[:, 0], (len(means), *best.shape))
        for tissue in range(1, len(odds)):
            wins, places = odds[tissue] > best, odds[tissue] > second
            other = jnp.where(wins, signal, jnp.where(places, of[:, tissue], other))
            second = jnp.where(wins, best, jnp.where(places, odds[tissue], second))
            signal = jnp.where(wins, of[:, tissue], signal)
            best = jnp.where(wins, odds[tissue], best)
        signal = other + (signal - other) * jax.nn.sigmoid(sharpness * (best - second))
        signal = signal.reshape(-1, fine, shape[1], fine, shape[2], fine).mean((1, 3, 5))
        mean = jnp.einsum("ksyz,s,by->kbz", near, band.mean(0), columns.reshape(shape[1], fine, -1).mean(1), optimize=[(0, 1), (0, 1)])
        mean = jnp.einsum("kbz,cz->kbc", mean, depths.reshape(shape[2], fine, -1).mean(1))
        return signal, mean.argmax(0).astype(jnp.uint8)

    signals, labels = jax.lax.map(slice_of, (jnp.asarray(first), bands))
    return jnp.moveaxis(signals, 1, 0), labels


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
