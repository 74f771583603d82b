"""YAML documents as trees whose nodes know where they were written, and how one lies on top of another.

YAML is read as its 1.2 core schema or narrower, since each of these has silently ruined runs: only true and false are booleans (not on, off
and their like); 1e-3 is a number and 1e6 an integer; a key written twice is an error. Tags and aliases are refused, so nothing in a file
runs.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class ConfigError(ValueError):
    """Everything found wrong with a config, a sentence each: dotted path, what was found, what was expected, where it was written."""

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return self.problems[0] if len(self.problems) == 1 else "\n  ".join((f"{len(self.problems)} errors in the config:", *self.problems))


class Node(NamedTuple):
    value: Any  # a scalar, a list of nodes, or a dict of nodes
    origin: str  # 'file:line' or 'override …'


def read_file(path: Path, problems: list[str], chain: tuple[Path, ...] = (), wanted_by: str = "") -> Node:
    """The tree of `path` on top of its bases; `chain` holds the files that led here."""
    if path.resolve() in chain:
        raise ConfigError(f"{wanted_by}: base: these files lie on top of each other: {' → '.join(file.name for file in (*chain, path))}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{wanted_by and wanted_by + ': base: '}cannot read the config {path}: {reason}") from error

    tree = _parse(text, lambda line: f"{path}:{line}", problems)
    if tree.value is None:
        tree = Node({}, tree.origin)
    if not isinstance(tree.value, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {show(tree)}")

    base = tree.value.pop("base", Node([], ""))
    names = base.value if isinstance(base.value, list) else [base]
    below = Node({}, tree.origin)
    for name in names:
        if not isinstance(name.value, str):
            raise ConfigError(f"{name.origin}: base: should be a file name or a list of them, found {show(base)}")
        below = merge(below, read_file(path.parent / name.value, problems, (*chain, path.resolve()), name.origin))
    return merge(below, tree)


def read_overrides(overrides: Sequence[str], problems: list[str]) -> Node:
    """One tree of all overrides; of two that name the same key, the later holds."""
    root = Node({}, "override")
    for text in overrides:
        try:
            _plant_override(text, root, problems)
        except ConfigError as error:
            problems.extend(error.problems)
    return root


def merge(below: Node, above: Node) -> Node:
    """`above` on top of `below`: mappings of the same kind key by key, a list by the numbers of its entries, anything else replaced."""
    under, over = below.value, above.value
    if isinstance(under, list) and isinstance(over, dict) and over and over.keys() <= set(map(str, range(len(under)))):
        return Node([merge(item, over[str(i)]) if str(i) in over else item for i, item in enumerate(under)], below.origin)
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return above
    if "kind" in under and "kind" in over and under["kind"].value != over["kind"].value:
        return above
    merged = {key: merge(under[key], node) if key in under else node for key, node in over.items()}
    return Node({**under, **merged}, below.origin if above.origin.startswith("override") else above.origin)


def write(data: Mapping[str, Any]) -> str:
    """Plain data → YAML that reads back to the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def plant(data: Any, origin: str) -> Node:
    """Plain data → nodes."""
    match data:
        case Mapping():
            return Node({str(key): plant(value, origin) for key, value in data.items()}, origin)
        case list() | tuple():
            return Node([plant(value, origin) for value in data], origin)
    return Node(data, origin)


def plain(node: Node) -> Any:
    """Nodes → plain data."""
    match node.value:
        case dict() as entries:
            return {key: plain(value) for key, value in entries.items()}
        case list() as items:
            return [plain(item) for item in items]
    return node.value


def find(tree: Node, path: Sequence[str | int]) -> tuple[Node, bool]:
    """The node at `path`, or the last one on the way and False."""
    for segment in path:
        entries = dict(enumerate(tree.value)) if isinstance(tree.value, list) else tree.value
        if not isinstance(entries, dict) or segment not in entries:
            return tree, False
        tree = entries[segment]
    return tree, True


def show(node: Node) -> str:
    text = json.dumps(plain(node), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


def _plant_override(text: str, root: Node, problems: list[str]) -> None:
    origin = f"override {text!r}"
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{origin}: should look like a.b.c=value")
    leaf = _parse(value, lambda line: origin, problems)
    here = root.value
    for key in keys[:-1]:
        if key not in here or not isinstance(here[key].value, dict):
            here[key] = Node({}, origin)
        here = here[key].value
    here[keys[-1]] = leaf


# --- the grammar ---

_CORE = "tag:yaml.org,2002:"
_SCALARS = {  # the YAML 1.2 core schema without octal and hexadecimal
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(?:_[0-9]+)*", list("-+0123456789")),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own interface) forgets YAML 1.1: on, off, 010, 1:30, dates

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read here; write it out, or use base:", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or `_Loader` would take for something else than a string; lists of scalars stand on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=not any(isinstance(entry, dict | list) for entry in sequence))


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_CORE + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def _parse(text: str, origin: Callable[[int], str], problems: list[str]) -> Node:
    """The tree of a YAML text; `origin` names a line of it. What cannot be read raises; what can, but is wrong, joins `problems`."""

    def convert(node: yaml.Node) -> Node:
        where = origin(node.start_mark.line + 1)
        kind = node.tag.removeprefix(_CORE)
        match node:
            case yaml.MappingNode(value=pairs) if kind == "map":
                entries: dict[str, Node] = {}
                for key, value in pairs:
                    line = origin(key.start_mark.line + 1)
                    if not isinstance(key, yaml.ScalarNode):
                        problems.append(f"{line}: a key should be a plain word, found a list or a mapping")
                    elif key.value in entries:
                        problems.append(f"{line}: the key {key.value!r} is here twice; it was first set at {entries[key.value].origin}")
                    else:
                        entries[key.value] = convert(value)
                return Node(entries, where)
            case yaml.SequenceNode(value=items) if kind == "seq":
                return Node([convert(item) for item in items], where)
            case yaml.ScalarNode(value=word) if kind == "str" or (kind in _SCALARS and re.fullmatch(_SCALARS[kind][0], word)):
                return Node(_scalar(kind, word), where)
        problems.append(f"{where}: the tag {node.tag} is not read here; only plain values are")
        return Node(None, where)

    try:
        root = yaml.compose(text, Loader=_Loader)
        return Node(None, origin(1)) if root is None else convert(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{origin(mark.line + 1 if mark else 1)}: not readable as YAML: {reason}") from error


def _scalar(kind: str, word: str) -> Any:
    match kind:
        case "null":
            return None
        case "bool":
            return word.lower() == "true"
        case "int":
            return int(word)
        case "float":
            number = float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
            return int(number) if "." not in word and number.is_integer() else number  # 1e6 steps
    return word
