"""Makes once what is a function of a config alone, so that JAX traces and compiles it once: most of the time of tests that train."""

from collections.abc import Callable
from typing import Any

import jax

import jaxsr.upscale.model
from jaxsr.config import dump
from jaxsr.train import build, loop, state, step
from jaxsr.upscale.batches import Batches


def make_once(setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    """Methods, optimisers and steps of the same settings are the same objects from here on, and so are compiled programs of `upscale`."""
    made: dict = {}

    def as_named(*arguments: Any, **options: Any) -> tuple:
        """A batch by its shapes, which are all that counts of it here."""
        shapes = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf  # noqa: E731
        return tuple(jax.tree.map(shapes, argument) for argument in arguments), *sorted(options.items())

    def once(function: Callable, name_of: Callable = as_named) -> Callable:
        def remembered(*arguments: Any, **options: Any) -> Any:
            name = (function, name_of(*arguments, **options))
            if name not in made:
                made[name] = function(*arguments, **options), arguments  # held, so that no other object is ever taken for one of them
            return made[name][0]

        return remembered

    def optimizer_name(config: Any, steps: int, players: Any = ()) -> tuple:
        text = dump(config)
        return text, "cosine" in text and steps, *sorted(dict(players).items())

    def program_of(batches: Batches, *arguments: Any, compile_: Callable = Batches._compile) -> Any:
        shapes = str(jax.tree.map(jax.typeof, batches._variables))
        name = (compile_, batches._method, batches._mesh, shapes, arguments)
        batches.compilations += name in made
        if name not in made:
            made[name] = compile_(batches, *arguments)
        return made[name]

    functions = {
        "build_method": once(build.build_method, lambda experiment: (experiment.precision, dump(experiment.method))),
        "make_optimizer": once(state.make_optimizer, optimizer_name),
        "make_step": once(step.make_step),
        "make_init": once(state.make_init),
        "abstract_state": once(state.abstract_state),
        "abstract_variables": once(state.abstract_variables),
    }
    for module in (build, loop, state, jaxsr.upscale.model):
        for name, function in functions.items():
            if hasattr(module, name):
                setattr(module, name, function)
    setattr(Batches, "_compile", program_of)
