"""Pydantic's errors told as sentences about the config: dotted path, what is wrong, what was found, where it was written, the way out."""

import difflib
import re
import types
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import pydantic

from .document import Node, find, show
from .schema import Strict


class _Complaint(NamedTuple):
    path: tuple[str | int, ...]
    reason: str  # 'should be …'
    found: bool  # whether to add what was found
    advice: str
    alternative: bool  # one branch of a plain union was tried and did not fit


def explain(error: pydantic.ValidationError, schema: type[Strict], tree: Node) -> list[str]:
    """One sentence a path; what each branch of a union wanted is joined by 'or'."""
    complaints = [_complain(details, schema) for details in error.errors(include_url=False)]
    paths = {complaint.path for complaint in complaints}
    sentences: dict[tuple[str | int, ...], list[_Complaint]] = {}
    for complaint in complaints:
        deeper = any(len(path) > len(complaint.path) and path[: len(complaint.path)] == complaint.path for path in paths)
        if not (complaint.alternative and deeper):  # a branch that went further says more
            sentences.setdefault(complaint.path, []).append(complaint)

    lines = []
    for path, group in sentences.items():
        node, exact = find(tree, path)
        reason = " or ".join(dict.fromkeys([group[0].reason, *(complaint.reason.removeprefix("should be ") for complaint in group[1:])]))
        found = f", found {show(node)}" if group[0].found and exact else ""
        origin = f" ({node.origin})" if node.origin else ""
        lines.append(f"{'.'.join(map(str, path)) or 'the config'}: {reason}{found}{group[0].advice}{origin}")
    return lines


def _complain(details: Any, schema: type[Strict]) -> _Complaint:
    kind, loc, value, context = details["type"], details["loc"], details["input"], details.get("ctx", {})
    path, members, alternative = _locate(schema, loc)
    known = re.findall(r"'([^']*)'", str(context.get("expected_tags", context.get("expected", ""))))

    def wrong(reason: str, advice: str = "", *, found: bool = True, at: tuple[str | int, ...] = path) -> _Complaint:
        return _Complaint(at, reason, found, advice, alternative)

    match kind:
        case "extra_forbidden":
            keys = list(_locate(schema, loc[:-1])[1][0].model_fields)
            return wrong("unknown key", _did_you_mean(path[-1], keys) or f"; the keys here are {', '.join(keys)}")
        case "missing":
            return wrong("is missing", found=False)
        case "union_tag_not_found":
            kinds = ", ".join(name for member in members for name in _kinds(member))
            return wrong(f"is missing, should be one of {kinds}", found=False, at=(*path, "kind"))
        case "union_tag_invalid":
            return wrong(f"should be one of {', '.join(known)}", _did_you_mean(context["tag"], known), at=(*path, "kind"))
        case "literal_error":
            return wrong(f"should be {context['expected']}", _did_you_mean(value, known))
        case "bool_type":
            return wrong("should be true or false")
        case "model_type" | "model_attributes_type":
            return wrong("should be a mapping of keys to values")
        case "tuple_type":
            return wrong("should be a list")
        case "value_error":
            return wrong(details["msg"].removeprefix("Value error, "), found=False)
    return wrong(details["msg"].removeprefix("Input "))


def _locate(schema: type[Strict], loc: Sequence[str | int]) -> tuple[tuple[str | int, ...], tuple[Any, ...], bool]:
    """Pydantic's location → (path in the config, the types expected there, whether a plain union was passed).

    Where the type is a union, pydantic puts the name of the branch it tried, which nobody wrote, into the location.
    """
    path: list[str | int] = []
    here: tuple[Any, ...] = (schema,)
    alternative = False
    for segment in loc:
        if len(here) == 1:
            path.append(segment)
            here = _inside(here[0], segment)
            continue
        tagged = tuple(member for member in here if segment in _kinds(member))
        alternative |= not tagged
        here = tagged or tuple(member for member in here if _is_branch(member, str(segment))) or (None,)
    return tuple(path), here, alternative


def _inside(expected: Any, segment: str | int) -> tuple[Any, ...]:
    """The types expected at `segment` of a value of type `expected`."""
    if _is_strict(expected) and segment in expected.model_fields:
        return _members(expected.model_fields[segment].annotation)
    if get_origin(expected) is tuple and isinstance(segment, int):
        entries = get_args(expected)
        return _members(entries[0] if entries[-1] is Ellipsis or segment >= len(entries) else entries[segment])
    return (None,)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type, None aside: `Annotated[A | B, …] | None` → (A, B)."""
    match get_origin(annotation):
        case origin if origin is Annotated:
            return _members(get_args(annotation)[0])
        case origin if origin in (Union, types.UnionType):
            return tuple(member for part in get_args(annotation) if part is not type(None) for member in _members(part))
    return (annotation,)


def _kinds(member: Any) -> tuple[str, ...]:
    """The values of `kind` that choose this class."""
    return get_args(member.model_fields["kind"].annotation) if _is_strict(member) and "kind" in member.model_fields else ()


def _is_strict(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Strict)


def _is_branch(member: Any, branch: str) -> bool:
    """Whether pydantic calls this member of a plain union `branch`: 'int', 'tuple[float, …]', 'function-before[…(), UNet]'."""
    if _is_strict(member):
        return re.search(rf"\b{member.__name__}\b", branch) is not None
    return branch.startswith(getattr(get_origin(member) or member, "__name__", "?").lower())


def _did_you_mean(word: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
