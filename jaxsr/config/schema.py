"""What a config class accepts.

Types are strict, since a config that is silently converted has ruined runs: a boolean or a string is never taken for a number; an integer
is, where a float is expected. NaN and Inf are refused: no config that holds NaN equals itself, and JSON holds neither.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import pydantic


class Strict(pydantic.BaseModel):
    """Base of every config class: frozen, hashable, no unknown key, no silent conversion. Sequences are `tuple[…]`; a list becomes one."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _lists_become_tuples(cls, data: Any) -> Any:
        return {key: _as_tuple(value) for key, value in data.items()} if isinstance(data, dict) else data

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for name, field in cls.model_fields.items():
            _check_annotation(field.annotation, f"{cls.__name__}.{name}")


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list) else value


def _check_annotation(annotation: Any, name: str) -> None:
    """Refuses, when the class is defined, the types that would make a config mutable or let a boolean through."""
    origin = get_origin(annotation)
    if (origin or annotation) in (list, set, dict, Sequence, Mapping):
        raise TypeError(f"{name}: a config holds tuple[…] or another Strict class, not {annotation}, so that it can be hashed")
    if origin is Literal and any(type(value) is int and value in (0, 1) for value in get_args(annotation)):
        raise TypeError(f"{name}: {annotation} takes true for 1; declare an int with bounds")
    for part in get_args(annotation) if origin is not Literal else ():
        _check_annotation(part, name)
