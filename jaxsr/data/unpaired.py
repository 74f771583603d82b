"""Streams of which half the slices have no pair: some subjects are known at both resolutions, of others nobody says what belongs together.

Slices of both kinds take turns, so that every batch has as many of each, and what those with a pair teach has one weight however few they
are. Slices come as ever, with both images; `paired` says what comparing them counts: 2 and 0, which is 1 on average.
"""

import contextlib
from collections.abc import Sequence
from typing import cast

import numpy as np

from jaxsr.config import ConfigError
from jaxsr.data.pipeline import ENDLESS, Sample, Stream


def split_paired(people: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Places in `people` of those with pairs, a `share` of the persons and at least one, and of the others; a person is in one only.

    Raises:
      ConfigError: where nobody would be left without.
    """
    persons = sorted(set(people))
    count = max(round(share * len(persons)), 1)
    if count >= len(persons):
        raise ConfigError(f"data.paired: {share:g} of {len(persons)} people leaves none without pairs: lower it, or train on more")
    chosen = {persons[i] for i in np.random.default_rng((seed, 3)).permutation(len(persons))[:count]}
    return [i for i, person in enumerate(people) if person in chosen], [i for i, person in enumerate(people) if person not in chosen]


class HalfPaired:
    """Slices of `paired` and of `others`, by turns; see the head of this file."""

    def __init__(self, paired: Stream, others: Stream):
        self._streams = (paired, others)

    def __enter__(self) -> "HalfPaired":
        self._open = contextlib.ExitStack()
        for stream in self._streams:
            self._open.enter_context(stream)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Sample:
        turn, other = divmod(int(position), 2)
        return cast(Sample, {**self._streams[other][turn], "paired": np.float32(0 if other else 2)})
