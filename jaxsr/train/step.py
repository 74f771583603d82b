"""One optimiser step, compiled once: gradients (accumulated in a scan), AdamW, moving average.

    θ ← θ − AdamW(∇ mean loss),      EMA ← d EMA + (1 − d) θ,      d = min(decay, (1 + step) / (10 + step))

The decay is lower at first, so that the average forgets the initial weights within a run of any length.
Statistics are linear in the batch (`LossOutput`): each part of an accumulated batch makes its own of those from before the step, and their
mean is what the whole batch would have made, as with gradients.
Slice i of the batch of step k always has the key fold_in(fold_in(root, k), i): noise depends neither on devices nor on accumulation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsr.methods.base import Method
from jaxsr.methods.condition import Batch
from jaxsr.train.state import State

Metrics = dict[str, Array]
Step = Callable[..., tuple[State, Metrics]]


def make_step(method: Method, optimizer: optax.GradientTransformation, *, ema: float, steps: int, accumulate: int = 1) -> Step:
    """`step(state, batch, root_key, frozen) -> state, metrics`, to be jitted with the state donated; `frozen` is {} for most.

    `steps`: of the whole run, by which a method knows how far it is.
    """

    def loss_of(params, stats, frozen, batch: Batch, keys: Array, progress: Array):  # type: ignore[no-untyped-def]
        output = method.loss({"params": params, "stats": stats, "frozen": frozen}, batch, keys, progress)
        return output.loss, ({"loss": output.loss, **output.metrics}, output.stats)

    def gradients(params, stats, frozen, batch: Batch, keys: Array, progress: Array):  # type: ignore[no-untyped-def]
        (_, (metrics, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats, frozen, batch, keys, progress)
        return grads, metrics, stats

    def accumulated(params, stats, frozen, batch: Batch, keys: Array, progress: Array):  # type: ignore[no-untyped-def]
        # Every device keeps its own slices: micro-batch j takes every `accumulate`-th.
        micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, keys))

        def add(total, part):  # type: ignore[no-untyped-def]
            grads, metrics, after = gradients(params, stats, frozen, part[0], part[1], progress)
            return jax.tree.map(jnp.add, total, (grads, after)), metrics

        total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, (params, stats)), micro)
        grads, after = jax.tree.map(lambda sum_of: sum_of / accumulate, total)
        return grads, jax.tree.map(lambda m: m.mean(0), metrics), after

    def step(state: State, batch: Batch, root: Array, frozen: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        at = jax.random.fold_in(root, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(at, jnp.arange(batch.size))
        one = accumulated if accumulate > 1 else gradients
        grads, metrics, stats = one(state.params, state.stats, frozen, batch, keys, state.step.astype(jnp.float32) / steps)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, params)
        # The norm of what the step made too: a checkpoint is only good if its parameters are finite.
        metrics = {**metrics, "gradient_norm": optax.tree.norm(grads), "parameter_norm": optax.tree.norm(params)}
        return State(state.step + 1, params, average, opt, stats), metrics

    return step
