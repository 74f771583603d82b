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

from jaxsr.runtime.mesh import MeshError

AXIS = "expert"


def each(functions: Sequence[Callable[..., Array]], *operands: Any) -> Array:
    """f(*operands) of each of `functions`, whose results have one shape and dtype, stacked: `[K, …]`.

    Operands are pytrees of arrays, whole along the axis; what functions need must be among them.

    Raises:
      MeshError: where the mesh has an expert axis of another size than there are functions.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.shape.get(AXIS, 1)
    if size == 1:
        return jnp.stack([function(*operands) for function in functions])
    if size != len(functions):
        raise MeshError(f"mesh.expert is {size}, and there are {len(functions)} experts: set it to {len(functions)}, or to 1")

    def own(*operands: Any) -> Array:
        return jnp.asarray(jax.lax.switch(jax.lax.axis_index(AXIS), functions, *operands))[None]

    spec = PartitionSpec()
    return jnp.asarray(jax.shard_map(own, in_specs=spec, out_specs=PartitionSpec(AXIS), axis_names={AXIS}, check_vma=False)(*operands))
