"""Heads rendered from label maps, in the manner of SynthSR [Billot 2021], at a target voxel size and with edges as sharp as that allows.

    x = Σ_k μ_k · H_k(A r + u(r)) · texture        means μ of structures, which share them left and right; affine A, smooth displacement u

H is a majority vote. The map, one of whose voxels is one structure, is softened by a narrow binomial kernel into scores P_k; scores are
carried to a working grid by trilinear and to one twice as fine by cubic interpolation, where the structure with the highest score wins
against the runner-up by a steep sigmoid. So surfaces are smooth between the map's voxels, without stairs, and the average over a target
voxel has partial volume at its edges and content up to its Nyquist frequency.

A few planes of the target at a time, a tile at a time in them, and one structure after another of the few that meet there: what is held is
the scores of the map, a byte for each structure of each voxel, and a dozen planes of the working grid.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.data.anatomy.companions import draw_gradient, draw_log_bias, draw_state, kept
from jaxsr.data.anatomy.contrasts import KINDS, STRUCTURES, UNEVENNESS, draw_means, index_of
from jaxsr.data.anatomy.deformation import Variation, centred_points, random_affine, smooth_noise, smooth_noise_factors, trilinear
from jaxsr.data.anatomy.head import Head, check_maps
from jaxsr.data.anatomy.labels import COARSE, LabelMap

VARIATION = Variation(warp=2.5, warp_spacing=40.0, stripped=0.25, defaced=0.15)
KERNEL = (1, 3, 1)  # over 5: variance 0.4 voxels², enough to smooth stairs, and a sheet of one voxel still wins
FULL = sum(KERNEL) ** 3  # the score of a voxel amid its own kind
SHARPNESS = 14.0  # of the contest: an edge is about a seventh of the map's voxel wide
TILE, THICKNESS = 24, 8  # voxels of the working grid: what is decided at a time
LEAST = 0.1  # a score that is nowhere in a tile higher than this decides nothing there
STREAKS = 14.0  # mm: between the sheets of fat that part muscles

_WHITE, _LESION = STRUCTURES.index("white matter"), STRUCTURES.index("lesion")
_FAT, _MUSCLE = STRUCTURES.index("scalp"), STRUCTURES.index("muscle")
# Cubic (Catmull-Rom) weights of five neighbours at a quarter of a voxel before and after the middle one.
_QUARTERS = np.array([[-3, 29, 111, -9, 0], [0, -9, 111, 29, -3]], np.float32) / 128


def render_labels(
    key: Array,
    label_map: LabelMap,
    shape: tuple[int, int, int],
    voxel_size: float,
    contrast: str = "random",
    variation: Variation = VARIATION,
    maps: tuple[str, ...] = (),
) -> Head:
    """A random head with this label map's anatomy, on a grid of `shape` and `voxel_size` mm about its centre; a pure function of `key`.

    Args:
      contrast: one of `KINDS`, or 'random': one of them drawn; tissue means are random in any case.
      maps: of `MAPS`, those that the head is to come with. They change neither image nor labels.

    Raises:
      ValueError: for an unknown contrast or map.
    """
    kind = index_of(contrast, KINDS)
    arrays = tuple(jnp.asarray(x) for x in (label_map.structures, label_map.distance, label_map.sites))
    return _render(key, kind, *arrays, tuple(shape), float(voxel_size), label_map.spacing, variation, check_maps(maps))


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8, 9))
def _render(
    key: Array,
    kind: Array,
    structures: Array,
    distance: Array,
    sites: Array,
    shape: tuple[int, int, int],
    voxel_size: float,
    spacing: tuple[float, float, float],
    variation: Variation,
    maps: tuple[str, ...],
) -> Head:
    names = ("affine", "mirror", "warp", "wrinkles", "streaks", "lesions", "kind", "means", "texture", "state", "kept", "reference")
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate((*names, "bias", "gradient"))}

    first, second = draw_kinds(keys["kind"], kind)
    means = jnp.stack([draw_means(keys["means"], first), draw_means(keys["reference"], second)][: 1 + ("reference" in maps)])
    state = draw_state(keys["state"], variation)

    # The working grid is about as fine as the map; the contest is held on one twice as fine, or on it where the target is coarser.
    per_voxel = max(1, round(voxel_size / max(spacing)))
    working = (shape[0] * per_voxel, shape[1] * per_voxel, shape[2] * per_voxel)
    extent = np.array(shape) * voxel_size
    scores_of_map = _soften(structures)
    affine = random_affine(keys["affine"], variation)
    affine = jnp.where(jax.random.bernoulli(keys["mirror"]), affine * jnp.array([[-1.0], [1.0], [1.0]]), affine)
    warp, wrinkles, streaks = (
        smooth_noise_factors(keys[name], (*lead, *working), extent, scale)
        for name, lead, scale in (("warp", (3,), variation.warp_spacing), ("wrinkles", (3,), 10.0), ("streaks", (1,), STREAKS))
    )
    lesions = _draw_lesions(keys["lesions"], sites, variation.lesions)
    here = centred_points((1, *working[1:]), extent / np.array(working))  # [3, 1, y, z]
    middle = (jnp.array(structures.shape).reshape(3, 1, 1, 1) - 1) / 2

    def plane(i: Array) -> _Plane:
        """Plane `i` of the working grid."""
        points = here.at[0].set((i - (working[0] - 1) / 2) * (extent[0] / working[0]))
        points = points + variation.warp * _plane_of(warp, i) + variation.wrinkling * _plane_of(wrinkles, i)
        points = jnp.einsum("ij,jxyz->ixyz", affine, points)
        index = points / jnp.array(spacing).reshape(3, 1, 1, 1) + middle
        away = trilinear(distance[None], index / COARSE)[0, 0]
        scores = _moved(_read(scores_of_map, index[:, 0]), points[:, 0], lesions, _plane_of(streaks, i)[0, 0])
        return _Plane(jnp.moveaxis(scores, -1, 0), points[:, 0], away)

    table = jnp.concatenate([means, jnp.asarray(UNEVENNESS)[None]])
    rim = 2 if per_voxel == 1 else 0  # cubic interpolation reads two planes behind and two ahead
    thickness = per_voxel * max(1, THICKNESS // per_voxel)

    def block(start: Array) -> tuple[Array, Array, Array]:
        """Signals and unevenness `[x, C + 1, Y, Z]`, labels and what is kept `[x, Y, Z]`, of some planes of the target."""
        planes = jax.lax.map(plane, jnp.clip(start - rim + jnp.arange(thickness + 2 * rim), 0, working[0] - 1))
        signals, labels = _contest(planes.scores, table, rim, per_voxel)
        own = slice(rim, rim + thickness)
        points = jnp.stack([_places(p, per_voxel).mean(0) for p in jnp.moveaxis(planes.points[own], 1, 0)])
        away = _places(planes.away[own], per_voxel).mean(0)
        keep = kept(keys["kept"], state, away, points)
        return signals, jnp.where(keep, labels, 0).astype(jnp.uint8), keep

    blocks = jax.lax.map(block, jnp.arange(0, working[0], thickness))
    signals, labels, keep = (x.reshape(-1, *x.shape[2:])[: shape[0]] for x in blocks)

    images = []
    for i in range(len(means)):
        fine, coarse = (jax.random.fold_in(keys["texture"], 2 * i + j) for j in (0, 1))
        texture = smooth_noise(fine, shape, extent, 2.0 * voxel_size) + smooth_noise(coarse, shape, extent, 20.0)
        image = signals[:, i] * (1 + variation.texture * signals[:, -1] * texture)
        images.append(jnp.where(keep, jnp.maximum(image, 0), 0))
    return Head(
        images[0],
        labels,
        reference=images[1] if "reference" in maps else None,
        bias=draw_log_bias(keys["bias"], labels > 0, variation) if "bias" in maps else None,
        gradient=draw_gradient(keys["gradient"], shape, voxel_size, variation) if "gradient" in maps else None,
        mask=keep if "mask" in maps else None,
    )


class _Plane(NamedTuple):
    """Of one plane of the working grid: scores `[K, y, z]`, where it reads in the map `[3, y, z]`, mm from the brain `[y, z]`."""

    scores: Array
    points: Array
    away: Array


def draw_kinds(key: Array, kind: Array | int) -> tuple[Array, Array]:
    """An index of `KINDS`, `kind` itself unless it is negative, and another."""
    one, other = jax.random.split(key)
    first = jnp.where(jnp.asarray(kind) < 0, jax.random.randint(one, (), 0, len(KINDS)), kind)
    return first, (first + jax.random.randint(other, (), 1, len(KINDS))) % len(KINDS)


def _soften(structures: Array) -> Array:
    """Scores 0…`FULL` of every structure, `[X, Y, Z, K]` uint8, of a map `[X, Y, Z]`: how much of it is around each voxel."""
    padded = jnp.pad(structures, 1, mode="edge")

    def plane(i: Array) -> Array:
        slab = jax.lax.dynamic_slice_in_dim(padded, i, 3, 0)
        x = (slab[..., None] == jnp.arange(len(STRUCTURES), dtype=jnp.uint8)).astype(jnp.uint8)
        before, middle, after = KERNEL
        x = before * x[0] + middle * x[1] + after * x[2]
        x = before * x[:-2] + middle * x[1:-1] + after * x[2:]
        return before * x[:, :-2] + middle * x[:, 1:-1] + after * x[:, 2:]

    return jax.lax.map(plane, jnp.arange(len(structures)))


def _read(scores: Array, index: Array) -> Array:
    """`scores` `[X, Y, Z, K]` at voxel positions `index` `[3, y, z]`, trilinear, 0…1, `[y, z, K]`; beyond the edge, the edge."""
    last = jnp.array(scores.shape[:3]).reshape(3, 1, 1) - 1
    below = jnp.clip(jnp.floor(index), 0, last - 1)
    weight = jnp.clip(index - below, 0, 1)
    base = below.astype(jnp.int32)
    result: Array = jnp.zeros((*index.shape[1:], scores.shape[3]), jnp.float32)
    for corner in np.ndindex(2, 2, 2):
        share = jnp.prod(jnp.stack([weight[a] if c else 1 - weight[a] for a, c in enumerate(corner)]), 0)
        x, y, z = (base[a] + c for a, c in enumerate(corner))
        result += share[..., None] * scores[x, y, z].astype(jnp.float32)
    return jax.lax.optimization_barrier(result / FULL)  # fused with what follows, it would be read once for each of its uses


def _plane_of(factors: tuple[Array, list[Array]], i: Array) -> Array:
    """Plane `i` `[…, 1, y, z]` of what the factors of `smooth_noise_factors` multiply out to."""
    noise, (across, *within) = factors
    noise = jnp.tensordot(noise, across[i], ((-3,), (0,)))  # [..., n', n'']
    noise = jnp.einsum("...yz,by,cz->...bc", noise, *within, optimize=[(0, 1), (0, 1)])
    return noise[..., None, :, :]


def _draw_lesions(key: Array, sites: Array, most: int) -> tuple[Array, Array]:
    """Centres `[most, 3]` and radii `[most]` in mm, those of absent ones far below zero."""
    keys = jax.random.split(key, 3)
    centres = sites[jax.random.randint(keys[0], (most,), 0, len(sites))]
    radii = jax.random.uniform(keys[1], (most,), minval=1.5, maxval=5.0)
    return centres, jnp.where(jnp.arange(most) < jax.random.randint(keys[2], (), 0, most + 1), radii, -1e3)


def _moved(scores: Array, points: Array, lesions: tuple[Array, Array], noise: Array) -> Array:
    """`scores` `[y, z, K]` with white matter within lesions made lesion and sheets of muscle fat; `noise` `[y, z]` roughens them."""
    depth = jnp.full(noise.shape, -1e3)
    for centre, radius in zip(*lesions, strict=True):
        depth = jnp.maximum(depth, radius - jnp.sqrt(((points - centre[:, None, None]) ** 2).sum(0) + 1e-6))
    ill = scores[..., _WHITE] * jax.nn.sigmoid(4 * (depth + 0.7 * noise))
    fat = scores[..., _MUSCLE] * jax.nn.sigmoid(30 * (0.1 - jnp.abs(noise)))
    lesion, white, fatty, muscle = (jax.nn.one_hot(k, len(STRUCTURES)) for k in (_LESION, _WHITE, _FAT, _MUSCLE))
    return jax.lax.optimization_barrier(scores + (lesion - white) * ill[..., None] + (fatty - muscle) * fat[..., None])


def _contest(scores: Array, table: Array, rim: int, per_voxel: int) -> tuple[Array, Array]:
    """What `table` `[C, K]` has of the winners, averaged over the voxels of some target planes, `[x, C, Y, Z]`, and labels `[x, Y, Z]`.

    A tile at a time: few structures meet in it, and only those enter.

    Args:
      scores: of working planes `[planes, K, y, z]`, with a rim of so many planes on either side.
      per_voxel: of the working grid's voxels in one of the target's, along each axis; where it is one, the contest is on a finer grid.
    """
    tile = per_voxel * -(-TILE // per_voxel)
    planes, _, *sides = scores.shape
    down, across = (-(-n // tile) for n in sides)
    ends = [(rim, rim + count * tile - n) for count, n in zip((down, across), sides, strict=True)]
    padded = jnp.pad(scores, [(0, 0), (0, 0), *ends], mode="edge")
    highest = functools.reduce(jnp.maximum, padded)  # [K, y, z]

    def contestant(near: Array, k: Array) -> Array:
        """Scores at all places within the voxels, `[places, x, Y, Z]`."""
        own = jax.lax.dynamic_index_in_dim(near, k, 1, keepdims=False)
        return _eighths(own) if per_voxel == 1 else _places(own, per_voxel)

    def tile_at(corner: Array) -> tuple[Array, Array]:
        size = (tile + 2 * rim,) * 2
        near = jax.lax.dynamic_slice(padded, (0, 0, *corner), (planes, len(STRUCTURES), *size))
        enters = jax.lax.dynamic_slice(highest, (0, *corner), (len(STRUCTURES), *size)).max((1, 2)) > LEAST
        order = jnp.argsort(~enters).astype(jnp.int32)

        def enter(turn: Array, standing: tuple[Array, ...]) -> tuple[Array, ...]:
            k, (best, second, signal, other, most, label) = order[turn], standing
            own, of = contestant(near, k), table[:, k].reshape(-1, 1, 1, 1, 1)
            wins, places, mean = own > best, own > second, own.mean(0)
            other = jnp.where(wins, signal, jnp.where(places, of, other))
            second = jnp.where(wins, best, jnp.where(places, own, second))
            label, most = jnp.where(mean > most, k, label), jnp.maximum(mean, most)
            return jnp.maximum(best, own), second, jnp.where(wins, of, signal), other, most, label

        best = contestant(near, order[0])
        signal = jnp.broadcast_to(table[:, order[0]].reshape(-1, 1, 1, 1, 1), (len(table), *best.shape))
        standing = (best, jnp.full_like(best, -1.0), signal, signal, best.mean(0), jnp.full(best.shape[1:], order[0]))
        best, second, signal, other, _, label = jax.lax.fori_loop(1, enters.sum(), enter, standing)
        signal = other + (signal - other) * jax.nn.sigmoid(SHARPNESS * (best - second))
        return jnp.moveaxis(signal.mean(1), 0, 1), label.astype(jnp.uint8)

    corners = tile * jnp.stack(jnp.meshgrid(jnp.arange(down), jnp.arange(across), indexing="ij"), -1).reshape(-1, 2)
    shape = tuple(n // per_voxel for n in sides)

    def laid(tiles: Array) -> Array:
        """`[tiles, …, y, z]` side by side, `[…, Y, Z]`."""
        tiles = tiles.reshape(down, across, *tiles.shape[1:])
        tiles = jnp.moveaxis(tiles, (0, 1), (-4, -2))
        return tiles.reshape(*tiles.shape[:-4], down * tiles.shape[-3], across * tiles.shape[-1])[..., : shape[0], : shape[1]]

    signals, labels = jax.lax.map(tile_at, corners)
    return laid(signals), laid(labels)


def _places(x: Array, per_voxel: int) -> Array:
    """`[x, y, z]` of the working grid by place within the target's voxels, `[places, X, Y, Z]`."""
    blocks = x.reshape(*(n for side in x.shape for n in (side // per_voxel, per_voxel)))
    return blocks.transpose(1, 3, 5, 0, 2, 4).reshape(-1, *blocks.shape[::2])


def _eighths(x: Array) -> Array:
    """`[2 + x + 2, 2 + y + 2, 2 + z + 2]` without its rim at the eight quarters around its centres, cubic, `[8, x, y, z]`."""
    x = x[None]
    for axis in (1, 2, 3):
        n = x.shape[axis] - 4
        shifts = [jax.lax.slice_in_dim(x, t, t + n, axis=axis) for t in range(5)]
        x = jnp.concatenate([sum(float(w) * shift for w, shift in zip(row, shifts, strict=True) if w) for row in _QUARTERS])
    return x
