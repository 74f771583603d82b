"""softmax(q kᵀ s) v [Vaswani et al. 2017, Eq. 1], by what is quickest where it runs:

    cudnn   flash attention, which never holds the scores: on a GPU, in half precision, where cuDNN has a program for such shapes (probed)
    parts   queries a part at a time, so that scores stay small enough to be reused: on a CPU, three to five times as fast as XLA's own
    xla     all scores at once: elsewhere

All agree to rounding; softmax is float32 in each. JAXSR_ATTENTION names one for all of a process.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

WAYS = ("cudnn", "parts", "xla")
_PART = 2**24  # bytes of scores
_FLASH = 256  # tokens on either side from which cuDNN's is worth its start
_named: ContextVar[str | None] = ContextVar("attention", default=None)


@contextlib.contextmanager
def using(way: str) -> Iterator[None]:
    """All that is traced meanwhile attends by one of `WAYS`: for what is to be counted or planned for another device than this one."""
    token = _named.set(way)
    try:
        yield
    finally:
        _named.reset(token)


def attend(query: Array, key: Array, value: Array, *, scale: float | None = None) -> Array:
    """`[B, N, heads, d]`, `[B, M, heads, d]`, `[B, M, heads, d]` → `[B, N, heads, d]`; `scale` None: 1 / √d.

    Raises:
      ValueError: where JAXSR_ATTENTION names no way.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    way = _named.get() or os.environ.get("JAXSR_ATTENTION") or _quickest(query, key)
    if way == "parts":
        return _by_parts(query, key, value, scale)
    if way not in WAYS:
        raise ValueError(f"JAXSR_ATTENTION={way} is none of {', '.join(WAYS)}")
    by: Any = way
    return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation=by)


def _quickest(query: Array, key: Array) -> str:
    if jax.default_backend() == "cpu":
        return "parts"
    flash = jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16) and min(query.shape[1], key.shape[1]) >= _FLASH
    return "cudnn" if flash and _cudnn_takes(query.shape[1:], key.shape[1:], query.dtype) else "xla"


@functools.cache
def _cudnn_takes(query: tuple[int, ...], key: tuple[int, ...], dtype: Any) -> bool:
    """Whether it compiles for one of a batch, `[N, heads, d]` and `[M, heads, d]`: values and gradients."""

    def loss(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").sum()

    q, k = (jax.ShapeDtypeStruct((1, *shape), dtype) for shape in (query, key))
    try:
        jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(q, k, k).compile()
    except Exception:  # JAX's own checks raise three kinds, cuDNN's compiler a fourth
        return False
    return True


def _by_parts(query: Array, key: Array, value: Array, scale: float) -> Array:
    batch, tokens, heads, width = query.shape
    parts = -(-4 * batch * heads * tokens * key.shape[1] // _PART)
    rows = -(-tokens // parts)
    keys, values = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)  # [B, heads, d, M], [B, heads, M, d]

    def part(queries: Array) -> Array:
        scores = jnp.matmul(queries, keys, preferred_element_type=jnp.float32)
        shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = shares.sum(-1, keepdims=True)
        return (jnp.matmul(shares.astype(value.dtype), values, preferred_element_type=jnp.float32) / total).astype(value.dtype)

    queries = (query * scale).transpose(0, 2, 1, 3)  # [B, heads, N, d]
    if parts == 1:
        return part(queries).transpose(0, 2, 1, 3)
    padded = jnp.pad(queries, ((0, 0), (0, 0), (0, parts * rows - tokens), (0, 0)))
    split = padded.reshape(batch, heads, parts, rows, width).transpose(2, 0, 1, 3, 4)
    # Gradients compute the scores again: all of them would be read from memory else, where they were computed to stay out of it.
    seen = jax.lax.map(jax.checkpoint(part), split)  # [parts, B, heads, rows, d]
    return seen.transpose(1, 0, 3, 2, 4).reshape(batch, parts * rows, heads, width)[:, :tokens]
