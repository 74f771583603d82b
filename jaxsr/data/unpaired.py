"""Streams of which half the slices have no pair: some subjects are known at both resolutions, of others nobody says what belongs together.

Slices of both kinds take turns, so that a batch of an even number has as many of each, and what those with a pair teach has one weight
however few they are: `paired` says what comparing both images counts, 2 or 0, which is 1 on average. Of a slice without a pair the
high-resolution image is that of another slice altogether, as it would be of scans that were never paired.
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
    """Slices of `paired` and of `others`, by turns; see the head of this file.

    Args:
      apart: how far on in `others` the high-resolution image of a slice without a pair is.
    """

    def __init__(self, paired: Stream, others: Stream, apart: int):
        self._streams, self._apart = (paired, others), max(apart, 1)

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
        if not other:
            return cast(Sample, {**self._streams[0][turn], "paired": np.float32(2)})
        low, high = (self._streams[1][turn + i] for i in (0, self._apart))
        return cast(Sample, {**low, "high": high["high"], "paired": np.float32(0)})
