"""How fast training steps are: the trainer's own program, fed one synthetic batch that lies on the devices, so that no disk and no reader
counts; or fed as training is, by the configured data, so that they do.

Multiply-adds of a step are those of the forward pass over the batch, of the gradients of activations and of the gradients of weights: three
times the pass, less what needs no gradient, as the networks that are frozen and the first layer's input. Work done twice to save memory is
not counted: the convention of model-FLOP utilisation [PaLM, App. B].
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxsr.bench.count import multiply_adds, quantity
from jaxsr.bench.measure import (
    circumstances,
    compiled,
    describe_rates,
    describe_times,
    peak_memory,
    rates,
    step_times,
    summary,
)
from jaxsr.bench.synthetic import synthetic_batch, synthetic_variables
from jaxsr.data.pipeline import batches
from jaxsr.data.prepared import PreparedSet
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Method, Variables
from jaxsr.methods.condition import Batch
from jaxsr.methods.precision import held_to_train
from jaxsr.runtime.memory import program_memory
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated, share_of_batch
from jaxsr.train.build import abstract_batch, build_method, build_stream, build_subjects, fitted, prepared_set
from jaxsr.train.loop import laid_out
from jaxsr.train.state import State, abstract_state, abstract_variables, frozen_shardings, make_optimizer, players_of, shardings_of
from jaxsr.train.step import make_step


def bench_train(experiment: Experiment, steps: int = 20, warmup: int = 3, encoded: bool = False, fed: bool = False) -> dict[str, Any]:
    """Times `steps` steps after `warmup` others, as JSON can hold it; of an encoded set, where data.manifest names one, or if asked.

    Args:
      fed: by the configured data, in place of one batch that lies on the devices.

    Raises: as training on that set would; ConfigError as `abstract_batch`.
    """
    records = prepared_set(experiment.data)
    experiment = fitted(experiment, records)
    config = experiment.train
    mesh = make_mesh(**dict(experiment.mesh))
    method = build_method(experiment)
    optimizer = make_optimizer(experiment.optimizer, config.steps, players_of(method))
    shape = abstract_batch(experiment, records, encoded)
    shardings = shardings_of(abstract_state(method, optimizer, shape, mesh))
    variables = synthetic_variables(method, shape, experiment.seed)
    state = synthetic_state(variables, optimizer, shardings)
    held = held_to_train(method, variables["frozen"], shape, experiment.precision)
    frozen = jax.device_put(held, frozen_shardings(method, mesh, shape))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))

    step_fn = jax.jit(
        make_step(method, optimizer, ema=config.ema, steps=config.steps, accumulate=config.accumulate),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    batch = jax.device_put(synthetic_batch(shape, experiment.seed), batch_sharding(mesh))
    root = jax.jit(lambda: jax.random.key(2), out_shardings=replicated(mesh))()
    with jax.set_mesh(mesh):
        program, compilation = compiled(step_fn, state, batch, root, frozen)

    def dispatch(batch: Batch) -> Any:
        nonlocal state
        state, metrics = program(state, batch, root, frozen)
        return metrics

    if fed:
        with _feed(experiment, records, shape, mesh) as following:
            times = summary(step_times(lambda: dispatch(following()), steps, warmup))
    else:
        times = summary(step_times(lambda: dispatch(batch), steps, warmup))
    memory = peak_memory()  # before the matrix product of `rates` adds its own
    work = step_multiply_adds(method, shape)
    return {
        "batch_size": config.batch_size,
        "size": experiment.data.crop,
        "encoded": shape.latents is not None,
        "input": "the configured data" if fed else "one synthetic batch",
        "seconds_per_step": times["median"],
        "steps_per_second": 1 / times["median"],
        "slices_per_second": config.batch_size / times["median"],
        **compilation,
        "parameters": parameters,
        "multiply_adds": work,
        **rates(work, times["median"], experiment.precision),
        **memory,
        "program_memory_bytes": program_memory(program),
        "step_seconds": times,
        **circumstances(experiment),
    }


@contextmanager
def _feed(experiment: Experiment, records: PreparedSet | None, shape: Batch, mesh: Mesh) -> Iterator[Callable[[], Batch]]:
    """Gives batch after batch of the data, as the trainer reads and lays them out."""
    config, data = experiment.train, experiment.data
    subjects = records or build_subjects(data, "train", experiment.seed)
    with build_stream(experiment, subjects) as stream:
        rows = share_of_batch(mesh, config.batch_size, config.accumulate)
        iterator = batches(stream, config.batch_size, rows=rows, threads=data.threads)
        try:
            yield lambda: laid_out(next(iterator), shape, batch_sharding(mesh))
        finally:
            iterator.close()


def synthetic_state(variables: Variables, optimizer: optax.GradientTransformation, shardings: State) -> State:
    """A state as `init_state` makes it, where it makes it, of these values."""

    def new(variables: Variables) -> State:
        params = variables["params"]
        return State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params), variables["stats"])

    trained = {name: variables[name] for name in ("params", "stats")}
    return jax.jit(new, out_shardings=shardings)(trained)  # type: ignore[no-any-return]


def step_multiply_adds(method: Method, batch: Batch) -> int | None:
    """Of the loss of one batch and its gradient by the parameters; None where shapes do not tell.

    A forward-mode derivative has the products of a backward one, and none that are done twice.
    """
    variables = abstract_variables(method, batch)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch.size))

    def loss_and_derivative(variables: Variables, direction: Any, batch: Batch, keys: Any, progress: Any) -> Any:
        def loss(params: Any) -> Any:
            return method.loss({**variables, "params": params}, batch, keys, progress).loss

        return jax.jvp(loss, (variables["params"],), (direction,))

    return multiply_adds(loss_and_derivative, variables, variables["params"], batch, keys, jax.ShapeDtypeStruct((), jnp.float32))


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    return [
        ("one step of", f"{result['batch_size']} slices of {result['size']} × {result['size']}{', encoded' if result['encoded'] else ''}"),
        ("fed by", result["input"]),
        ("seconds a step", describe_times(result["step_seconds"])),
        ("steps/s", f"{result['steps_per_second']:.4g}"),
        ("slices/s", f"{result['slices_per_second']:.4g}"),
        ("compilation", f"{result['compile_seconds']:.1f} s{', from the cache' if result['compile_cached'] else ''}"),
        ("multiply-adds a step", quantity(result["multiply_adds"])),
        *describe_rates(result),
    ]
