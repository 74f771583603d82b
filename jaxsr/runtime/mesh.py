"""Devices: one mesh, and one table that says how named dimensions lie on it.

Layers name the dimensions of their parameters (`conv_in`, `embed_out`, …); the table below maps names to mesh axes. On top, `fsdp` splits
the largest dimension still whole of every parameter above a size floor and needs no rule. Shapes that do not divide stay whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsr.nn.layout import SLICES

AXES = ("data", "fsdp", "tensor", "expert")

# Every logical name that a layer may use. A name that is not here is an error, not a silent replication. Experts differ and are not
# stacked: which device runs which is settled in runtime/experts.py.
LOGICAL_AXES: Mapping[str, str | None] = {
    "kernel_height": None,
    "kernel_width": None,
    "conv_in": None,
    "conv_out": "tensor",
    "embed_in": None,
    "embed_out": "tensor",
}

BATCH = PartitionSpec(SLICES)  # slices are split over both: fsdp is data parallelism with split parameters
FSDP_FLOOR = 2**16  # elements; splitting less costs more in latency than it saves


class MeshError(ValueError):
    """Mesh sizes that do not fit the devices, or that XLA computes wrongly on; names them."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, expert: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (None: all of all processes); one size may be -1: whatever is left.

    Raises:
      MeshError: where the sizes do not multiply to the number of devices, or XLA would compute wrong gradients.
    """
    sizes, count = [data, fsdp, tensor, expert], jax.device_count() if devices is None else len(devices)
    if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
        raise MeshError(f"mesh sizes must be positive, one of them may be -1, got {dict(zip(AXES, sizes, strict=True))}")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if int(np.prod(sizes)) != count:
        raise MeshError(f"a mesh of {dict(zip(AXES, sizes, strict=True))} does not cover {count} devices; use -1 for the axis to be filled")
    data, fsdp, tensor, expert = sizes
    if data > 1 and fsdp > 1 and max(tensor, expert) > 1:  # see tests/runtime/test_mesh_gradients.py
        raise MeshError(
            f"on a mesh of {dict(zip(AXES, sizes, strict=True))} XLA computes wrong gradients and says nothing: data and fsdp cannot both "
            f"be above 1 beside tensor or expert; slices lie over both, so set data=1 and fsdp={data * fsdp}"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading dimension over the data axes."""
    return NamedSharding(mesh, BATCH)


def share_of_batch(mesh: Mesh, size: int, accumulate: int = 1) -> np.ndarray:
    """Which slices of a batch of `size` lie on this process's devices: their places in the batch, ascending; not always neighbours.

    Processes that differ only along `tensor` or `expert` have the same ones.

    Raises:
      MeshError: where the batch, or one of the `accumulate` parts that it is computed in, does not divide over the devices.
    """
    over = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % over:
        raise MeshError(f"a batch of {size} slices does not divide over data × fsdp = {over} devices: make it a multiple of {over}")
    if size % (over * accumulate):
        raise MeshError(
            f"in {accumulate} parts a batch of {size} slices does not divide over data × fsdp = {over} devices: make it a multiple of "
            f"{over * accumulate}, or train.accumulate smaller"
        )
    places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in places]))  # type: ignore[index]


def variable_shardings(mesh: Mesh, boxed: Any) -> Any:
    """A `NamedSharding` for each leaf of `boxed`, abstract variables as `jax.eval_shape(init)` returns them (with Linen's metadata).

    Raises:
      ValueError: for a logical name that the table does not have.
    """
    shapes = nn.meta.unbox(boxed)
    names = nn.get_partition_spec(boxed)
    return jax.tree.map(lambda leaf, spec: NamedSharding(mesh, _spec(mesh, leaf.shape, tuple(spec))), shapes, names)


def _spec(mesh: Mesh, shape: tuple[int, ...], names: tuple[str | None, ...]) -> PartitionSpec:
    unknown = [n for n in names if n is not None and n not in LOGICAL_AXES]
    if unknown:
        raise ValueError(f"logical axes {unknown} are not in the table of runtime/mesh.py; it has {sorted(LOGICAL_AXES)}")
    axes: list[str | None] = [LOGICAL_AXES[n] if n else None for n in names] + [None] * (len(shape) - len(names))
    axes = [a if a and size % mesh.shape[a] == 0 and mesh.shape[a] > 1 else None for a, size in zip(axes, shape, strict=True)]
    if mesh.shape["fsdp"] > 1 and int(np.prod(shape)) >= FSDP_FLOOR:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)
