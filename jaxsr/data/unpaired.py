"""Streams of which half the slices have no pair: some subjects are known at both resolutions, of others nobody says what belongs together.

Slices of both kinds take turns, so that a batch of an even number has as many of each, and what those with a pair teach has one weight
however few they are: `paired` says what comparing both images counts, 2 or 0, which is 1 on average. Of a slice without a pair the
high-resolution image is that of another slice altogether: of other scans without a pair, or, where there are only acquired ones, of the
subjects with pairs.
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
      highs: whose high-resolution images go with `others`: `others` itself, or `paired`.
      apart: how far on in `highs` they are.
      first: the number of the first of the subjects of `others`, in `origin`, where they are none of those of `paired`.
    """

    def __init__(self, paired: Stream, others: Stream, highs: Stream, apart: int, first: int = 0):
        self._streams, self._highs, self._apart, self._first = (paired, others), highs, max(apart, 1), first

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
        low, high = self._streams[1][turn], self._highs[turn + self._apart]["high"]
        origin = low["origin"] + np.array([0, self._first, 0, 0])
        return cast(Sample, {**low, "high": high, "origin": origin, "paired": np.float32(0)})
