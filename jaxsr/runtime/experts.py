"""Networks side by side on a mesh: each on devices of its own, where the mesh has an axis for them.

Experts that differ in architecture cannot be stacked and split as arrays are. On an `expert` axis of as many devices, every device runs the
one program of its own place instead (a switch by its place on the axis), on what slices it has along the other axes; results are put
together afterwards, so they are those of one device after another. Parameters lie on every device of the axis: what is won is time, not
memory.

Which mesh a program is traced for is known inside `with jax.set_mesh(mesh):`, where training and upscaling trace theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from jaxsr.runtime.mesh import BATCH, MeshError

AXIS = "expert"


def each(functions: Sequence[Callable[..., Array]], shared: Any, *sliced: Any) -> Array:
    """f(shared, *sliced) of each of `functions`, whose results have one shape `[B, …]` and dtype, stacked: `[K, B, …]`.

    Args:
      shared: a pytree of arrays that every slice needs, as parameters are; what functions need must be in it or in `sliced`.
      sliced: pytrees of arrays `[B, …]`. No slice may need to know of another: on a mesh, functions see those of their device alone.

    Raises:
      MeshError: where the mesh has an expert axis of another size than there are functions.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.shape.get(AXIS, 1)
    if size == 1:
        return jnp.stack([function(shared, *sliced) for function in functions])
    if size != len(functions):
        raise MeshError(f"mesh.expert is {size}, and there are {len(functions)} experts: set it to {len(functions)}, or to 1")

    def own(shared: Any, *sliced: Any) -> Array:
        return jnp.asarray(jax.lax.switch(jax.lax.axis_index(AXIS), functions, shared, *sliced))[None]

    # Manual along all axes: of an axis that is left to XLA it may put an exchange between devices into a branch, in which others are not,
    # and they would wait for each other for ever. Gradients of `shared` are summed over devices outside.
    split = tuple(name for name in BATCH[0] if name in mesh.shape)
    specs = (PartitionSpec(), *(PartitionSpec(split),) * len(sliced))
    return jnp.asarray(jax.shard_map(own, in_specs=specs, out_specs=PartitionSpec(AXIS, split), check_vma=False)(shared, *sliced))
