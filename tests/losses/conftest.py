"""What tests of losses compare."""

import numpy as np
import pytest


@pytest.fixture
def latents():
    """Two batches, not square, with an odd number of columns if nothing else is said."""
    return lambda *shape, seed=0: np.random.default_rng(seed).normal(size=(2, *(shape or (3, 12, 13, 5)))).astype(np.float32)
