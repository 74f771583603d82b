"""Which parameters are held in bfloat16 where a method computes in it: those that its layers make so each time before they use them.

A convolution in bfloat16 rounds its float32 kernel in every sampling step; a norm, and a layer in float32 (the last of a network, the
embedding of time), take theirs as they are. Which is which is read from the traced program, so that no list of layers can go out of date:

    p may be rounded ahead   ⇔   the program uses p, and all it does with it is to convert it to bfloat16.

Rounding twice is rounding once, so the program gives the same, from half the bytes. Hashes are of what was trained, before that.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from jaxsr.methods.base import Method, Variables
from jaxsr.methods.condition import Batch, abstract_condition

_CALLS = ("jaxpr", "call_jaxpr")  # under these an equation holds a program that takes its operands one by one


def held_to_upscale(method: Method, variables: Variables, precision: str) -> Variables:
    """`variables`, which may be abstract, as `method.upscale` is given them in `precision`, f32 or bf16."""
    if precision == "f32":
        return variables
    condition = abstract_condition(method, (1, method.multiple, method.multiple))
    upscale = partial(method.upscale, request=method.default_request)
    return rounded_ahead(upscale, variables, condition, _keys(1))  # type: ignore[no-any-return]


def held_to_train(method: Method, frozen: Any, batch: Batch, precision: str) -> Any:
    """`frozen`, likewise, as `method.loss` of a `batch`, of which shapes matter, is given it. What is trained stays float32."""
    if precision == "f32" or not frozen:
        return frozen
    trained = jax.eval_shape(lambda key, batch: nn.meta.unbox(method.init(key, batch)), jax.random.key(0), batch)

    def loss(frozen: Any, trained: Variables, *arguments: Any) -> Any:
        return method.loss({**trained, "frozen": frozen}, *arguments)

    return rounded_ahead(loss, frozen, trained, batch, _keys(batch.size), jax.ShapeDtypeStruct((), jnp.float32), unused=True)


def rounded_ahead(function: Callable[..., Any], tree: Any, *arguments: Any, unused: bool = False) -> Any:
    """`tree` with those leaves in bfloat16 of which `function(tree, *arguments)` only uses that; all may be abstract.

    Args:
      unused: those that it does not use at all too, since nothing else is given them.
    """
    leaves, structure = jax.tree.flatten(tree)
    program = jax.make_jaxpr(function)(tree, *arguments).jaxpr
    rounded, otherwise = set(range(len(leaves)) if unused else ()), set[int]()
    _look(program, dict(zip(program.invars, range(len(leaves)), strict=False)), rounded, otherwise)
    return jax.tree.unflatten(structure, [_round(leaf) if i in rounded - otherwise else leaf for i, leaf in enumerate(leaves)])


def _look(program: Jaxpr, known: Mapping[Var, int], rounded: set[int], otherwise: set[int]) -> None:
    """Adds the numbers of the `known` variables that `program` converts to bfloat16, and of those that it uses in another way."""
    for equation in program.eqns:
        given = {i: known[v] for i, v in enumerate(equation.invars) if isinstance(v, Var) and v in known}
        if not given:
            continue
        if equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == jnp.bfloat16:
            rounded.update(given.values())
            continue
        followed = set[int]()
        for inner, places in _inner(equation):
            within = {v: given[i] for v, i in zip(inner.invars, places, strict=True) if i in given}
            _look(inner, within, rounded, otherwise)
            followed.update(places)
        otherwise.update(number for i, number in given.items() if i not in followed)
    otherwise.update(known[v] for v in program.outvars if isinstance(v, Var) and v in known)


def _inner(equation: JaxprEqn) -> Iterator[tuple[Jaxpr, list[int]]]:
    """The programs within an equation, with the place among its operands of each of their inputs; -1: it is not what was given."""
    name, params, places = equation.primitive.name, equation.params, list(range(len(equation.invars)))
    if name == "scan":
        first = params["num_consts"]
        carried = range(first, first + params["num_carry"])  # from turn to turn another
        yield params["jaxpr"].jaxpr, [-1 if i in carried else i for i in places]
    elif name == "cond":
        yield from ((branch.jaxpr, places[1:]) for branch in params["branches"])
    else:
        for inner in (params.get(key) for key in _CALLS):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                if len(inner.invars) == len(places):
                    yield inner, places


def _round(leaf: Any) -> Any:
    if leaf.dtype != jnp.float32:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding)
    return leaf.astype(jnp.bfloat16)


def _keys(count: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
