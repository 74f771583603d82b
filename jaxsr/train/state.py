"""What training carries from step to step, and how it is laid over devices."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jaxsr.experiment import OptimizerConfig, OptimizerSettings
from jaxsr.methods.base import MAIN, Adversarial, Method, Variables
from jaxsr.methods.condition import Batch
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


def make_optimizer(config: OptimizerConfig, steps: int, players: Mapping[str, str] = MappingProxyType({})) -> optax.GradientTransformation:
    """AdamW with warm-up; see `OptimizerConfig`. Of a method with `players` (`Adversarial`), one each, which clips by its own norm."""
    if not players:
        return _adamw(config, steps)
    return _by_player(
        {name: _adamw(getattr(config, name, None) or config, steps) for name in (MAIN, *dict.fromkeys(players.values()))}, players
    )


def players_of(method: Method) -> Mapping[str, str]:
    """Network → player, of a method that has several; {} for most."""
    return method.players if isinstance(method, Adversarial) else {}


def _adamw(config: OptimizerSettings, steps: int) -> optax.GradientTransformation:
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


def _by_player(optimizers: Mapping[str, optax.GradientTransformation], players: Mapping[str, str]) -> optax.GradientTransformation:
    """Each player's parameters, whole networks by their names, by its own optimiser, side by side."""

    def shares(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {player: {name: of for name, of in tree.items() if players.get(name, MAIN) == player} for player in optimizers}

    def init(params: Any) -> dict[str, Any]:
        return {player: optimizers[player].init(share) for player, share in shares(params).items()}

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        of_params = shares(params)
        updates, after = dict[str, Any](), dict[str, Any]()
        for player, share in shares(gradients).items():
            made, after[player] = optimizers[player].update(share, state[player], of_params[player])
            updates |= made
        return {name: updates[name] for name in gradients}, after

    return optax.GradientTransformation(init, update)


def init_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, key: Array, mesh: Mesh) -> tuple[State, State]:
    """A new state, made where it will live, and its shardings. `batch` may be abstract: only shapes matter."""
    shardings = shardings_of(abstract_state(method, optimizer, batch, mesh))
    return new_state(method, optimizer, batch, key, shardings), shardings


def new_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, key: Array, shardings: State) -> State:
    """A new state, made where `shardings` says."""
    return jax.jit(make_init(method, optimizer, batch), out_shardings=shardings)(key)  # type: ignore[no-any-return]


def make_init(method: Method, optimizer: optax.GradientTransformation, batch: Batch) -> Callable[[Array], State]:
    """`init(key) -> state`, to be jitted."""

    def init(key: Array) -> State:
        variables = nn.meta.unbox(method.init(key, _zeros(batch)))
        params = variables["params"]
        return State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params), variables["stats"])

    return init


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


def abstract_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state: what a checkpoint is restored into. The method's own `init` is traced once.

    The optimiser's moments lie where their parameters do; scalars and statistics are on every device.
    """
    boxed = jax.eval_shape(lambda key: method.init(key, _zeros(batch)), jax.random.key(0))
    params, stats = nn.meta.unbox(boxed["params"]), nn.meta.unbox(boxed["stats"])
    opt, everywhere = jax.eval_shape(optimizer.init, params), replicated(mesh)
    of_params = variable_shardings(mesh, boxed["params"])
    by_path = dict(jax.tree_util.tree_leaves_with_path(of_params))

    def placed(path: tuple[Any, ...], leaf: Any) -> Any:
        """A moment's path ends in that of its parameter."""
        return next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), everywhere)

    shapes = State(jax.ShapeDtypeStruct((), jnp.int32), params, params, opt, stats)  # type: ignore[arg-type]
    of_opt, of_stats = jax.tree_util.tree_map_with_path(placed, opt), jax.tree.map(lambda _: everywhere, stats)
    shardings = State(everywhere, of_params, of_params, of_opt, of_stats)  # type: ignore[arg-type]
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)


def shardings_of(state: State) -> State:
    """Where each leaf of a state lies, which may be abstract."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def frozen_shardings(method: Method, mesh: Mesh, batch: Batch | None = None) -> Any:
    """Of `variables["frozen"]` (`batch`: as `Method.frozen`): laid out as if it were trained."""
    return variable_shardings(mesh, method.frozen(batch))


def abstract_variables(method: Method, batch: Batch) -> Variables:
    """Shapes and dtypes of all that a method computes with of `batch`, which may be abstract."""
    shapes = jax.eval_shape(lambda key: nn.meta.unbox(method.init(key, _zeros(batch))), jax.random.key(0))
    return {**shapes, "frozen": nn.meta.unbox(method.frozen(batch))}


def _zeros(batch: Batch) -> Batch:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
