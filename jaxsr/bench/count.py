"""Parameters and multiply-adds, from abstract shapes: nothing is allocated, the largest network is counted in seconds.

What is counted are the convolutions and matrix products of the traced program, each

    multiply-adds = elements written × products summed in each,

where a convolution sums over its kernel and the channels of one group; and Fourier transforms, as is the custom. All else (norms,
activations, softmax) is some hundredth of that and left out, as in the papers' tables. One multiply-add is two floating-point operations.
The body of a scan counts as often as it runs, the dearest branch of a cond once; what cannot be known from shapes is named in `notes`. (The
compiler's own cost analysis counts loop bodies once, so it is of no use for a sampler.)
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxsr.config import ConfigError
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Method, Part
from jaxsr.nn.attend import using
from jaxsr.train.build import build_method

OUTSIDE = "(outside its modules)"

# Primitives that may hold multiply-adds which their parameters do not tell.
OPAQUE = ("pallas_call", "ffi_call", "custom_call", "ragged_dot", "ragged_dot_general", "shard_map", "triton_kernel_call")
OPAQUE_PREFIXES = ("dot_product_attention", "custom_partitioning")


class Operation(NamedTuple):
    """Attributes:
    scope: names of the modules around it, outermost first, as 'UNet/down0/conv1'.
    multiply_adds: of all its runs.
    written: bytes of its results.
    """

    scope: str
    multiply_adds: int
    written: int


def check_size(method: Method, size: int) -> None:
    """Raises ConfigError where slices of `size`² pixels are none that the network takes."""
    if size < 1 or size % method.multiple:
        raise ConfigError(f"the size must be a positive multiple of {method.multiple} for this network, got {size}")


def count(experiment: Experiment, size: int | None = None) -> dict[str, Any]:
    """What one evaluation of each network on one slice of `size`² pixels (None: `data.crop`) takes, as JSON can hold it.

    `activation_bytes` is what convolutions and matrix products write: training without rematerialisation keeps about that much a slice.

    Raises:
      ConfigError: where `size` does not suit the network.
    """
    method = build_method(experiment)
    size = experiment.data.crop if size is None else size
    check_size(method, size)
    notes: list[str] = []
    parts = {name: count_part(part, notes) for name, part in method.parts(size).items()}
    summed = ("parameters", "multiply_adds", "parameter_bytes", "activation_bytes")
    sums = {key: sum(part[key] for part in parts.values()) for key in summed}
    about = {"method": experiment.method.kind, "size": size, "precision": experiment.precision}
    return {**about, **sums, "notes": list(dict.fromkeys(notes)), "parts": parts}


def count_part(part: Part, notes: list[str]) -> dict[str, Any]:
    """Sums of one network, and of each of its submodules; what could not be counted is added to `notes`."""
    variables = nn.meta.unbox(part.variables)
    params = variables.get("params", variables)
    with using("xla"):  # by parts, what is filled up would count
        found = operations(jax.make_jaxpr(part.apply)(part.variables, *part.inputs), notes)
    work: dict[str, int] = {}  # in the order of their work, those without any last
    for operation in found:
        name = next((name for name in re.split(r"[/()]", operation.scope) if name in params), OUTSIDE)
        work[name] = work.get(name, 0) + operation.multiply_adds
    modules = {name: {"parameters": _elements(params.get(name)), "multiply_adds": work.get(name, 0)} for name in {**work, **params}}
    return {
        "parameters": _elements(params),
        "multiply_adds": sum(operation.multiply_adds for operation in found),
        "parameter_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
        "activation_bytes": sum(operation.written for operation in found),
        "modules": modules,
    }


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int | None:
    """Multiply-adds of `function(*arguments)`; None where shapes do not tell them. Arguments may be abstract."""
    notes: list[str] = []
    with using("xla"):
        total = sum(operation.multiply_adds for operation in operations(jax.make_jaxpr(function)(*arguments), notes))
    return None if notes else total


def operations(jaxpr: ClosedJaxpr | Jaxpr, notes: list[str], scope: str = "") -> list[Operation]:
    """Every convolution, matrix product and Fourier transform in `jaxpr`; what could not be counted is added to `notes`."""
    equations = jaxpr.jaxpr.eqns if isinstance(jaxpr, ClosedJaxpr) else jaxpr.eqns
    return [operation for equation in equations for operation in _of_equation(equation, notes, scope)]


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    rows = [
        ("one evaluation of", f"one slice of {result['size']} × {result['size']}, {result['precision']}"),
        ("parameters", f"{result['parameters']:,}"),
        ("multiply-adds", quantity(result["multiply_adds"])),
        ("memory of the parameters", quantity(result["parameter_bytes"], "B", 1024)),
        ("memory of the activations", quantity(result["activation_bytes"], "B", 1024)),
    ]
    for name, part in result["parts"].items():
        rows.append((name, f"{part['parameters']:,} parameters, {quantity(part['multiply_adds'])} multiply-adds"))
        rows += [
            (f"  {module}", f"{of['parameters']:,} parameters, {quantity(of['multiply_adds'])} multiply-adds")
            for module, of in part["modules"].items()
        ]
    return rows + [("not counted", note) for note in result["notes"]]


def quantity(value: float | None, unit: str = "", base: int = 1000) -> str:
    """`value` to four digits with a prefix: 46.12 G, 39.04 GFLOP/s; with base 1024: 373.1 MiB; 'unknown' for None."""
    if value is None:
        return "unknown"
    prefixes = ["", "k", "M", "G", "T", "P"] if base == 1000 else ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    while value >= base and len(prefixes) > 1:
        value /= base
        prefixes.pop(0)
    return f"{value:.4g} {prefixes[0]}{unit}".rstrip()


def _of_equation(equation: JaxprEqn, notes: list[str], scope: str) -> list[Operation]:
    name = equation.primitive.name
    scope = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
    if name in ("conv_general_dilated", "dot_general"):
        work = _convolution(equation) if name == "conv_general_dilated" else _product(equation)
        return [Operation(scope, work, sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars))]  # type: ignore[attr-defined]
    if name == "fft":
        return [Operation(scope, _transform(equation), sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars))]  # type: ignore[attr-defined]
    if name in OPAQUE or name.startswith(OPAQUE_PREFIXES):
        notes.append(f"{name} in {scope or 'the program'}: its work is not known from shapes, nothing counted")
        return []
    if name == "cond":
        branches = [operations(branch, notes, scope) for branch in equation.params["branches"]]
        return max(branches, key=lambda found: sum(operation.multiply_adds for operation in found))
    inner = [operation for jaxpr in _jaxprs(equation.params.values()) for operation in operations(jaxpr, notes, scope)]
    if name == "while" and inner:
        notes.append(f"while loop in {scope or 'the program'}: it runs an unknown number of times, counted once")
    length = equation.params["length"] if name == "scan" else 1
    return [Operation(o.scope, o.multiply_adds * length, o.written * length) for o in inner]


def _product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape  # type: ignore[attr-defined]
    return equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)  # type: ignore[attr-defined, no-any-return]


def _convolution(equation: JaxprEqn) -> int:
    """The kernel's input channels are already those of one group. Zeros put between the inputs of a transposed convolution are no work."""
    kernel = equation.invars[1].aval.shape  # type: ignore[attr-defined]
    _, channels, *spatial = (kernel[axis] for axis in equation.params["dimension_numbers"].rhs_spec)
    written = equation.outvars[0].aval.size  # type: ignore[attr-defined]
    return written * channels * math.prod(spatial) // math.prod(equation.params["lhs_dilation"])  # type: ignore[no-any-return]


def _transform(equation: JaxprEqn) -> int:
    """Of N complex numbers half of the 5 N log₂ N operations that are the custom, of real ones half of that."""
    size = math.prod(equation.params["fft_lengths"])
    real = len({v.aval.dtype.kind for v in (*equation.invars, *equation.outvars)}) > 1  # type: ignore[attr-defined]
    transforms = max(v.aval.size for v in (*equation.invars, *equation.outvars)) // size  # type: ignore[attr-defined]
    return round(transforms * size * math.log2(size) * (1.25 if real else 2.5))


def _jaxprs(values: Iterable[Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def _elements(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
