"""What benchmarks are fed: made at once, whatever the size, and never all zeros, which devices multiply with less power and so faster."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

import jaxsr
from jaxsr.data.records import SUFFIX, Manifest, Shard, encode, write_manifest, write_shard
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Method, Variables
from jaxsr.methods.condition import Batch
from jaxsr.physics.acquisition import acquired_shape
from jaxsr.train.state import abstract_variables
from jaxsr.upscale.inputs import IN_PLANE_SIDE
from jaxsr.volume.io import Volume


def synthetic_variables(method: Method, batch: Batch, seed: int) -> Variables:
    """Normal weights on the host, the variance of a kernel one over its inputs; `batch` may be abstract.

    The method's own initial values would do as well, but compiling them takes longer than many benchmarks.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        values = rng.standard_normal(leaf.shape, np.float32) / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        return np.asarray(values, leaf.dtype)

    return jax.tree.map(draw, abstract_variables(method, batch))  # type: ignore[no-any-return]


def synthetic_batch(batch: Batch, seed: int) -> Batch:
    """Noise in -1…1 on the host, of the shapes of `batch`; integers (labels) are zero, scans twice as coarse, and all three axes serve."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype)

    drawn: Batch = jax.tree.map(draw, batch)
    told = {"scale": 2.0, "axes": 3.0, "quality": 1.0, "lacks": 0.1}
    return drawn._replace(**{name: np.full_like(of, told[name]) for name in told if (of := getattr(drawn, name)) is not None})


def synthetic_set(folder: Path, scans: int, *, side: int = 256, slices: int = 64, seed: int = 0, maps: tuple[str, ...] = ()) -> Path:
    """A prepared set of `scans` people in the train split, `slices` slices of `side`² pixels each: smooth noise. Returns its manifest."""
    shards = []
    for scan in range(scans):
        file, third = f"shards/sub-{scan:04d}{SUFFIX}", slices // 3
        shards.append(
            Shard(
                file=file,
                sha256=write_shard(folder / file, _smooth_records(np.random.default_rng((seed, scan)), side, slices, maps)),
                subject=f"sub-{scan:04d}",
                person=f"sub-{scan:04d}",
                split="train",
                records=slices,
                slices=(third, third, slices - 2 * third),
                shape=(side, side, slices),
                window=(0.0, 1000.0),
                acquired=(2.0, 2.0, 2.0),
                sources=(),
            )
        )
    settings = f'{{"synthetic": {seed}}}'
    about = {"made_by": f"jaxsr {jaxsr.__version__}", "voxel_size": 1.0, "dtype": "float16", "maps": ("high", "low", *maps)}
    return write_manifest(folder, Manifest(**about, settings=settings, shards=tuple(shards)))  # type: ignore[arg-type]


def _smooth_records(rng: np.random.Generator, side: int, count: int, maps: tuple[str, ...]) -> Iterator[bytes]:
    """Noise as smooth as an image, about a third of it background, moved on from slice to slice, so that one field makes them all."""
    field, grain = (ndimage.gaussian_filter(rng.standard_normal((side, side)), width, mode="wrap") for width in (side / 16, 1.5))
    field = np.clip(field / field.std() + 0.5 * grain / grain.std() + 0.5, 0, 4) / 2 - 1
    labels, smooth = (field > 0).astype(np.uint8), ndimage.gaussian_filter(field, side / 8, mode="wrap")
    fields = {"reference": -field, "bias": smooth, "gradient": np.stack([smooth] * 3, -1), "jacobian": smooth}
    optional = {**fields, "labels": labels, "mask": labels > 0}
    wanted = {"high": field, "low": ndimage.gaussian_filter(field, 1, mode="wrap"), **{name: optional[name] for name in maps}}
    for i in range(count):
        moved = {name: np.roll(x, 3 * i, axis=0) for name, x in wanted.items()}
        yield encode({name: x.astype(np.float16) if x.dtype == np.float64 else x for name, x in moved.items()})


def synthetic_head(shape: tuple[int, int, int], experiment: Experiment) -> Volume:
    """An ellipsoid of noise on the acquired grid, whose target grid has exactly `shape` voxels.

    Raises:
      ValueError: for sides below 1.
    """
    if min(shape) < 1:
        raise ValueError(f"a volume's sides must be at least 1, got {shape}")
    target = (experiment.data.voxel_size,) * 3
    coarse = acquired_shape(shape, target, experiment.data.acquisition.typical)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in coarse), indexing="ij", sparse=True)
    noise = np.random.default_rng(experiment.seed).uniform(300, 1000, coarse)
    data = np.where(sum(x**2 for x in axes) < 0.8, noise, 0).astype(np.float32)
    voxel_size = [v * n / m for v, n, m in zip(target, shape, coarse, strict=True)]
    return Volume(data, np.diag([*voxel_size, 1.0]))


def smallest_side(experiment: Experiment) -> int:
    """Voxels that a side of `synthetic_head` must have for slices of all three axes to serve."""
    target, acquisition = (experiment.data.voxel_size,) * 3, experiment.data.acquisition.typical
    side = IN_PLANE_SIDE
    while min(acquired_shape((side,) * 3, target, acquisition)) < IN_PLANE_SIDE:
        side += 1
    return side
