"""What may be asked of a layout, and the sentence for what may not."""

from collections.abc import Mapping
from pathlib import Path

from jaxsr.data.layouts.base import Wanted
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError


def no_low(root: Path, wanted: Wanted, name: str, why: str) -> None:
    """Refuses a low side where a data set has none."""
    if wanted.low or wanted.low_in:
        raise VolumeError(f"{shown(root)}: {name} has no low side ({why}): leave out low and low_in, and it will be simulated")


def word(root: Path, key: str, asked: str | None, known: Mapping[str, str]) -> str | None:
    """The layout's own word for what was `asked`, upper and lower case being the same; None for None."""
    if asked is None:
        return None
    found = {name.lower(): own for name, own in known.items()}.get(asked.lower())
    if found is None:
        raise VolumeError(f"{shown(root)}: {key}={shown(asked)} is not known here: it is one of {', '.join(sorted(set(known)))}")
    return found
