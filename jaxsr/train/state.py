"""What training carries from step to step, and how it is laid over devices."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jaxsr.experiment import OptimizerConfig
from jaxsr.methods.base import Batch, Method, Variables
from jaxsr.runtime.mesh import replicated, variable_shardings


class State(NamedTuple):
    """Everything that a checkpoint must hold.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: what is trained.
      ema: their exponential moving average, a copy of its own.
      opt: the optimiser's state.
      stats: running statistics of the method.
    """

    step: Array
    params: Any
    ema: Any
    opt: Any
    stats: Any


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up; see `OptimizerConfig`."""
    after = max(steps - config.warmup_steps, 1)
    rate = (
        optax.cosine_decay_schedule(config.learning_rate, after, config.final)
        if config.decay == "cosine"
        else optax.constant_schedule(config.learning_rate)
    )
    if config.warmup_steps:
        warmup = optax.linear_schedule(config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps - 1)
        rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
    adamw = optax.adamw(rate, *config.betas, eps=config.epsilon, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def init_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, key: Array, mesh: Mesh) -> tuple[State, State]:
    """A new state, made where it will live, and its shardings. `batch` may be abstract: only shapes matter."""
    shardings = state_shardings(method, optimizer, batch, mesh)
    return jax.jit(lambda key: _new(method, optimizer, batch, key), out_shardings=shardings)(key), shardings


def started(state: State, weights: Mapping[str, Any]) -> State:
    """A new state whose networks and statistics in `weights`, by name, start from those; laid out as it was."""

    def laid(tree: Mapping[str, Any]) -> dict[str, Any]:
        put = lambda leaf, value: jax.device_put(value, leaf.sharding)  # noqa: E731
        return {name: jax.tree.map(put, tree[name], weights[name]) for name in weights if name in tree}

    if not weights:
        return state
    params, stats = laid(state.params), laid(state.stats)
    ema = jax.tree.map(jnp.copy, params)
    return state._replace(params={**state.params, **params}, ema={**state.ema, **ema}, stats={**state.stats, **stats})


def abstract_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, shardings: State | None = None) -> State:
    """Shapes and dtypes of the state, with shardings where given: what a checkpoint is restored into."""
    shapes = jax.eval_shape(lambda key: _new(method, optimizer, batch, key), jax.random.key(0))
    if shardings is None:
        return shapes
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)


def state_shardings(method: Method, optimizer: optax.GradientTransformation, batch: Batch, mesh: Mesh) -> State:
    """The optimiser's moments lie where their parameters do; scalars and statistics are on every device."""
    boxed = jax.eval_shape(lambda key: method.init(key, _zeros(batch)), jax.random.key(0))
    params = variable_shardings(mesh, boxed["params"])
    everywhere = replicated(mesh)
    opt = jax.eval_shape(optimizer.init, nn.meta.unbox(boxed["params"]))
    opt = optax.tree_utils.tree_map_params(optimizer, lambda _, sharding: sharding, opt, params, transform_non_params=lambda _: everywhere)
    stats = jax.tree.map(lambda _: everywhere, nn.meta.unbox(boxed["stats"]))
    return State(everywhere, params, params, opt, stats)  # type: ignore[arg-type]


def frozen_shardings(method: Method, mesh: Mesh, batch: Batch | None = None) -> Any:
    """Of `variables["frozen"]` (`batch`: as `Method.frozen`): laid out as if it were trained."""
    return variable_shardings(mesh, method.frozen(batch))


def abstract_variables(method: Method, batch: Batch) -> Variables:
    """Shapes and dtypes of all that a method computes with of `batch`, which may be abstract."""
    shapes = jax.eval_shape(lambda key: nn.meta.unbox(method.init(key, _zeros(batch))), jax.random.key(0))
    return {**shapes, "frozen": nn.meta.unbox(method.frozen(batch))}


def _new(method: Method, optimizer: optax.GradientTransformation, batch: Batch, key: Array) -> State:
    variables = nn.meta.unbox(method.init(key, _zeros(batch)))
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params), variables["stats"])


def _zeros(batch: Batch) -> Batch:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
