"""Which convolutions a CPU computes with."""

import os
import subprocess
import sys

import pytest

from jaxsr.runtime import cpu

COMPILED = """
from jaxsr.cli.options import select_device
select_device("cpu")
import jax, jax.numpy as jnp
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
shapes = jnp.zeros((4, 32, 32, 32)), jnp.zeros((3, 3, 32, 32))
print(jax.jit(jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))).lower(*shapes).compile().as_text())
"""


def test_commands_compile_convolutions_as_xla_s_own():
    """A flag that XLA knows no longer, or by another meaning, would be lost in silence."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    entry = done.stdout[done.stdout.index("ENTRY") :]
    assert entry.count(" convolution(") == 3  # the value, and both gradients


@pytest.mark.parametrize("given, version, expected", [
    ("", "0.10.2", cpu._OWN),
    ("--xla_a=1", "0.12.0.1", f"--xla_a=1 {cpu._OWN}"),
    (f"{cpu._FLAG}= --xla_a=1", "0.11.2", f"{cpu._FLAG}= --xla_a=1"),
    ("--xla_a=1", "0.13.0", "--xla_a=1"),
])  # fmt: skip
def test_flags_that_say_something_of_it_stay_and_unknown_versions_are_told_nothing(monkeypatch, given, version, expected):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(cpu, "version", {"jaxlib": version}.get)
    cpu.choose_convolutions()
    assert os.environ["XLA_FLAGS"] == expected
