"""Which of XLA's convolutions a CPU computes with, settled before JAX starts: figures in BENCHMARKS.md, "Made faster"."""

import os
from importlib.metadata import version

# XLA's own, and not YNNPACK's, which take two to four times as long for the gradient of a kernel, and in jaxlib 0.10 twice for the rest.
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_OWN = f"{_FLAG}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
_KNOWN_TO = ("0.10.", "0.11.", "0.12.")  # versions of jaxlib; another might not know the flag, and would end at it


def choose_convolutions() -> None:
    """Adds to XLA_FLAGS, where they say nothing of it."""
    given = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in given and version("jaxlib").startswith(_KNOWN_TO):
        os.environ["XLA_FLAGS"] = f"{given} {_OWN}".strip()
