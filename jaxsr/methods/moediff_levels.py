"""At which levels of noise experts learn [MoEDiff-SR, Eq. 5]: each at its own, or all at one, so that Eq. 14 compares experts alone."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.diffusion.sampling import draw_noise
from jaxsr.diffusion.schedule import Level, Schedule, level_at, log_alpha_bar_at, nearest_step


class Drawn(NamedTuple):
    """What is drawn for a training step, by expert.

    Attributes:
      levels: `[B]` each.
      noises: ε, `[B, h, w, C]`.
      comparable: 1 where Eq. 14 may compare the experts, else 0, `[B]`.
    """

    levels: dict[str, Level]
    noises: dict[str, Array]
    comparable: Array


def draw_levels(schedules: Mapping[str, Schedule], keys: Array, shape: tuple[int, ...], how: Literal["own", "matched"]) -> Drawn:
    """Of slices with `keys` `[B]`, whose latents have `shape` (h, w, C); the K `schedules` are by expert.

    'own': each expert's t and ε apart. 'matched': t of one of them, drawn for each slice, and of the others the step nearest to its noise,
    with one ε; where one's schedule has no such level, as there is none without signal in a short one, each keeps its own t.
    """
    count = len(schedules)

    def own(purpose: int, i: int) -> Array:
        return jax.vmap(jax.random.fold_in, (0, None))(keys, count * purpose + i)

    def steps(keys: Array, last: int) -> Array:
        return jax.vmap(lambda key: jax.random.randint(key, (), 1, last + 1))(keys)

    ts = [steps(own(0, i), schedule.steps) for i, schedule in enumerate(schedules.values())]
    if how == "own":
        noises = {name: draw_noise(own(1, i), 0, shape) for i, name in enumerate(schedules)}
        return Drawn(_levels(schedules, ts), noises, jnp.ones(len(keys)))
    leader = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(own(2, 0))
    of_leader = jnp.stack([log_alpha_bar_at(schedule, t) for schedule, t in zip(schedules.values(), ts, strict=True)])  # [K, B]
    wanted = jnp.take_along_axis(of_leader, leader[None], axis=0)[0]
    shared = wanted >= jnp.stack([schedule.log_alpha_bar[-1] for schedule in schedules.values()]).max()
    ts = [jnp.where(shared, nearest_step(schedule, wanted), t) for schedule, t in zip(schedules.values(), ts, strict=True)]
    return Drawn(_levels(schedules, ts), dict.fromkeys(schedules, draw_noise(own(1, 0), 0, shape)), shared.astype(jnp.float32))


def _levels(schedules: Mapping[str, Schedule], ts: list[Array]) -> dict[str, Level]:
    return {name: level_at(schedule, t) for (name, schedule), t in zip(schedules.items(), ts, strict=True)}
