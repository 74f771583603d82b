"""Where activations lie: what a layer makes of a batch is split as the batch is, by slices.

Without being told, XLA's partitioner may take an axis that splits parameters to split channels by: it then adds up activations over
devices, which for a decoder at full resolution is twenty times what gathering the parameters costs. Nothing is said where no mesh is set.
"""

import math

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

SLICES = ("data", "fsdp")  # mesh axes that a batch is split over


def by_slices(x: Array) -> Array:
    """`x` `[B, …]` itself, its first dimension split over devices as slices are; how its others lie is left to XLA."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    axes = tuple(name for name in SLICES if name in free)
    parts = math.prod(mesh.shape[name] for name in axes)
    if parts == 1 or x.ndim < 2 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
