"""Attention is the same whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn import attend as module
from jaxsr.nn.attend import attend, using


def drawn(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def softmax_attention(q, k, v, scale):
    """Vaswani et al. 2017, Eq. 1, in float64."""
    q, k, v = (np.asarray(x, np.float64).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = np.exp(scale * q @ k.swapaxes(2, 3))
    return (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("most", [2**24, 2**11, 2**9], ids=["one part", "some parts", "a part a row"])
def test_parts_and_the_whole_are_the_definition(most, scale, monkeypatch):
    """13 queries do not divide: the last part is filled up."""
    monkeypatch.setattr(module, "_PART", most)
    q, k, v = drawn(2, 13, 3, 8), drawn(2, 9, 3, 8, seed=1), drawn(2, 9, 3, 8, seed=2)
    expected = softmax_attention(q, k, v, 8**-0.5 if scale is None else scale)
    for way in ("parts", "xla"):
        with using(way):
            np.testing.assert_allclose(attend(q, k, v, scale=scale), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [2**24, 2**11])
def test_their_gradients_are_one_another_s(most, monkeypatch):
    monkeypatch.setattr(module, "_PART", most)
    operands = [drawn(2, n, 3, 8, seed=seed) for seed, n in enumerate((13, 9, 9))]
    weights = drawn(2, 13, 3, 8, seed=3)

    def gradients(way):
        with using(way):
            return jax.grad(lambda *operands: (attend(*operands) * weights).sum(), (0, 1, 2))(*operands)

    for a, b in zip(gradients("parts"), gradients("xla"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_scores_are_never_held_whole(monkeypatch):
    """A volume's slices are many: 8 × 4 × 256² scores of float32 are 8 MiB, of which a sixteenth is held."""
    monkeypatch.setattr(module, "_PART", 2**19)
    q = jax.ShapeDtypeStruct((8, 256, 4, 8), jnp.float32)
    held = {}
    for way in ("parts", "xla"):
        with using(way):
            held[way] = jax.jit(lambda q, k, v: attend(q, k, v)).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes
    assert held["xla"] >= 2**23
    assert held["parts"] < 2**22


def test_softmax_is_float32_where_the_computation_is_bfloat16():
    """Shares of 2000 equal keys are 1/2000 each; in bfloat16 their sum would stop growing at 256."""
    q, k, v = jnp.zeros((1, 4, 1, 8), jnp.bfloat16), jnp.zeros((1, 2000, 1, 8), jnp.bfloat16), jnp.ones((1, 2000, 1, 8), jnp.bfloat16)
    with using("parts"):
        found = attend(q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), 1, atol=1e-2)


def test_a_cpu_takes_parts_a_gpu_cudnn_where_that_compiles_and_what_is_named_goes_before(monkeypatch):
    chosen = lambda n, dtype: module._quickest(jnp.zeros((1, n, 1, 8), dtype), jnp.zeros((1, n, 1, 8), dtype))  # noqa: E731
    assert chosen(1024, jnp.float32) == "parts"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(module, "_cudnn_takes", lambda query, key, dtype: True)
    assert [chosen(1024, jnp.bfloat16), chosen(1024, jnp.float32), chosen(64, jnp.bfloat16)] == ["cudnn", "xla", "xla"]
    monkeypatch.setattr(module, "_cudnn_takes", lambda query, key, dtype: False)
    assert chosen(1024, jnp.bfloat16) == "xla"
    monkeypatch.setenv("JAXSR_ATTENTION", "flash")
    with pytest.raises(ValueError, match="none of cudnn, parts, xla"):
        attend(*[drawn(1, 4, 1, 8)] * 3)


def test_where_there_is_no_cudnn_the_probe_says_so():
    assert module._cudnn_takes((1024, 2, 32), (1024, 2, 32), jnp.dtype("bfloat16")) is False
