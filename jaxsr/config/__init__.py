"""Typed configs: a YAML file and `a.b.c=value` overrides in, a frozen, hashable object out, or every error at once.

A schema is a tree of `Strict` classes, and `load` returns one of its root. This package knows no schema, only the rules:

    base: other.yaml         start from that file, relative to this one; of a list, each lies on top of the one before
    model: {kind: sr3, …}    `kind` chooses among the classes of a union, declared with `Field(discriminator="kind")`
    model.channels=64        an override, its value read as YAML; a number enters a list: stages.0.steps=100

A mapping on top is merged key by key into the one below; anything else replaces what was there, and so does a mapping of another `kind`,
as the settings of one kind mean nothing to another. Overrides are gathered first and merged once, so `model.channels=64 model.kind=sr3`
may come in any order.

How YAML is read stands in document.py, what a class accepts in schema.py, how an error is told in complaints.py.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from .complaints import explain
from .document import ConfigError, Node, merge, plain, plant, read_file, read_overrides, write
from .schema import Strict

__all__ = ["ConfigError", "Strict", "differences", "dump", "from_dict", "load", "to_dict"]

Schema = TypeVar("Schema", bound=Strict)


def load(path: str | Path, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """The config in the YAML file `path`, with its bases below it and `overrides` (each `a.b.c=value`) on top.

    Raises:
      ConfigError: with all problems found, in the file, its bases, the overrides and the values.
    """
    problems: list[str] = []
    tree = read_file(Path(path), problems)
    tree = merge(tree, read_overrides(overrides, problems))
    return _validate(tree, schema, problems)


def from_dict(data: Mapping[str, Any], schema: type[Schema]) -> Schema:
    """The config whose `to_dict` is `data`. Raises ConfigError, as `load` does."""
    return _validate(plant(data, ""), schema, [])


def to_dict(config: Strict) -> dict[str, Any]:
    """All settings, defaults included, as mappings, lists and scalars that JSON and YAML can hold."""
    return config.model_dump(mode="json")


def dump(config: Strict) -> str:
    """YAML with every default resolved and no base; `load` makes an equal config of it."""
    return write(to_dict(config))


def differences(a: Strict, b: Strict) -> list[str]:
    """What changed from `a` to `b`, each as 'dotted.path: a → b'; empty if they are equal."""
    before, after = dict(_leaves(to_dict(a))), dict(_leaves(to_dict(b)))
    changed = [key for key in before | after if before.get(key, "absent") != after.get(key, "absent")]
    return [f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}" for key in changed]


def _validate(tree: Node, schema: type[Schema], problems: list[str]) -> Schema:
    config = None
    try:
        # As JSON, because strictness means the same there as in YAML: a list may become a tuple and a string a path, but nothing a number.
        config = schema.model_validate_json(json.dumps(plain(tree), default=str))
    except pydantic.ValidationError as error:
        problems = [*problems, *explain(error, schema, tree)]
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def _leaves(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each setting as (dotted path, value as written); a list of scalars is one setting."""
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        data = dict(enumerate(data))
    if not isinstance(data, dict):
        yield path, json.dumps(data, ensure_ascii=False)
        return
    for key, value in data.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
