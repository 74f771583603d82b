"""What single layers take, the parts that the time of every network here is made of: their values, and their gradients with them.

Each is run by itself, so what XLA fuses with its neighbours in a network counts here too: norms and activations are a little dearer than
there. `launch/peer_layers.py` times the same layers of PyTorch's.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxsr.bench.count import multiply_adds, quantity
from jaxsr.bench.measure import call_times, processor, summary, versions
from jaxsr.nn.attention import PixelAttention
from jaxsr.nn.convolution import conv
from jaxsr.nn.norm import GroupNorm
from jaxsr.nn.resnet import Downsample, Upsample

# As `launch/peer_layers.py` names them.
KINDS = ("convolution 3 × 3", "convolution 1 × 1", "half the resolution", "twice the resolution", "norm and swish", "attention")
HEAD = 32  # channels of a head, and of a group


class NormSwish(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.swish(GroupNorm(max(x.shape[-1] // HEAD, 1), dtype=self.dtype)(x))


class Case(NamedTuple):
    """A layer of `channels` in and out, on `batch` feature maps of `side`²."""

    kind: str
    batch: int
    side: int
    channels: int


def cases_of(batch: int, side: int, channels: int, levels: int) -> list[Case]:
    """All kinds at each of `levels` resolutions, with twice the channels at half the side; attention from 32² down."""
    cases = [Case(kind, batch, side >> level, channels << level) for level in range(levels) for kind in KINDS]
    return [case for case in cases if case.kind != "attention" or case.side <= 32]


def _module(case: Case, dtype: Any) -> nn.Module:
    modules = {
        "convolution 3 × 3": conv(case.channels, dtype=dtype),
        "convolution 1 × 1": conv(case.channels, 1, dtype=dtype),
        "half the resolution": Downsample(dtype),
        "twice the resolution": Upsample(dtype),
        "norm and swish": NormSwish(dtype),
        "attention": PixelAttention(max(case.channels // HEAD, 1), max(case.channels // HEAD, 1), fused=False, dtype=dtype),
    }
    return modules[case.kind]


def bench_layers(
    batch: int = 8, side: int = 64, channels: int = 64, levels: int = 3, precision: str = "f32", repeats: int = 20
) -> dict[str, Any]:
    """Medians of each case of `cases_of`, as JSON can hold it.

    Raises:
      ValueError: for a side that is not halved so often.
    """
    if side % 2**levels:
        raise ValueError(f"a side of {side} is not halved {levels} times")
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    measured = [_measured(case, dtype, repeats) for case in cases_of(batch, side, channels, levels)]
    about = {"device": jax.devices()[0].device_kind, "precision": precision, "processor": processor()}
    return {"layers": measured, **about, **versions()}


def _measured(case: Case, dtype: Any, repeats: int) -> dict[str, Any]:
    module = _module(case, dtype)
    x = jax.random.normal(jax.random.key(0), (case.batch, case.side, case.side, case.channels), dtype)
    variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(1), x))

    def values(variables: Any, x: jax.Array) -> Any:
        return module.apply(variables, x)

    def gradients(variables: Any, x: jax.Array, weights: jax.Array) -> Any:
        y, back = jax.vjp(values, variables, x)
        return y, back(weights)

    weights = jnp.ones_like(jax.jit(values)(variables, x))
    found: dict[str, Any] = {**case._asdict(), "multiply_adds": multiply_adds(values, variables, x)}
    for name, function, operands in (("forward", values, (variables, x)), ("gradients", gradients, (variables, x, weights))):
        program = jax.jit(function)
        call_times(lambda program=program, operands=operands: program(*operands), 2)  # type: ignore[misc]
        found[name] = summary(call_times(lambda program=program, operands=operands: program(*operands), repeats))  # type: ignore[misc]
    return found


def compared(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """`ours` with the peer's figures, and how many times as fast each layer of ours is.

    Raises:
      ValueError: where the two are not of the same layers.
    """
    key = lambda layer: tuple(layer[name] for name in Case._fields)  # noqa: E731
    theirs = {key(layer): layer for layer in peer["layers"]}
    if theirs.keys() != {key(layer) for layer in ours["layers"]}:
        raise ValueError("the peer has timed other layers")
    ratios = [
        {name: theirs[key(layer)][name]["median"] / layer[name]["median"] for name in ("forward", "gradients")} for layer in ours["layers"]
    ]
    return {**ours, "peer": peer, "layers": [{**layer, "ratios": ratio} for layer, ratio in zip(ours["layers"], ratios, strict=True)]}


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""

    def told(layer: dict[str, Any], name: str, passes: int) -> str:
        seconds, work = layer[name]["median"], layer["multiply_adds"]
        rate = f", {quantity(2 * passes * work / seconds, 'FLOP/s')}" if work else ""
        ratio = f", {layer['ratios'][name]:.2f} of the peer's speed" if "ratios" in layer else ""
        return f"{seconds * 1e3:.3g} ms{rate}{ratio}"

    rows = [
        (
            f"{layer['kind']}, {layer['batch']} × {layer['side']}² × {layer['channels']}",
            f"{told(layer, 'forward', 1)}; with gradients {told(layer, 'gradients', 3)}",
        )
        for layer in result["layers"]
    ]
    peer = [("the peer", f"PyTorch {result['peer']['versions']['torch']}")] if "peer" in result else []
    return [*rows, *peer, ("on", f"{result['device']} ({result['processor']}), {result['precision']}")]
