"""Dice and cross-entropy of soft masks are MONAI's and PyTorch's, with their gradients."""

import jax
import numpy as np
import pytest

from jaxsr.losses.overlap import SMOOTHING, cross_entropies, dice_errors

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")

K = 4


def given(hard):
    """Logits `[B, H, W, K]` and a target of probabilities, of which the last class may have nothing."""
    rng = np.random.default_rng(0)
    logits, q = 2 * rng.normal(size=(2, 3, 20, 17, K)).astype(np.float32)
    q = np.asarray(jax.nn.softmax(q))
    return logits, np.eye(K, dtype=np.float32)[q[..., :-1].argmax(-1)] if hard else q


def theirs(loss, logits, q):
    """Values `[B]`, and the gradient of their sum by the logits."""
    z, q = (torch.tensor(np.moveaxis(array, -1, 1), requires_grad=array is logits) for array in (logits, q))
    values = loss(z, q)
    values.sum().backward()
    return values.detach().numpy(), np.moveaxis(z.grad.numpy(), 1, -1)


def ours(loss, logits, q):
    return loss(logits, q), jax.jit(jax.grad(lambda z: loss(z, q).sum()))(logits)


@pytest.mark.parametrize("hard", [False, True])
def test_dice_errors_are_monai_s_of_squares(hard):
    losses = pytest.importorskip("monai.losses")
    dice = losses.DiceLoss(squared_pred=True, softmax=True, reduction="none", smooth_nr=SMOOTHING, smooth_dr=SMOOTHING)
    pair = given(hard)
    value, slope = ours(lambda z, q: dice_errors(jax.nn.softmax(z), q), *pair)
    their_value, their_slope = theirs(lambda z, q: dice(z, q).mean((1, 2, 3)), *pair)
    np.testing.assert_allclose(value, their_value, rtol=1e-5)
    np.testing.assert_allclose(slope, their_slope, atol=1e-8)


@pytest.mark.parametrize("hard", [False, True])
def test_cross_entropies_are_pytorch_s_of_probabilities(hard):
    pair = given(hard)
    value, slope = ours(cross_entropies, *pair)
    their_value, their_slope = theirs(lambda z, q: torch.nn.functional.cross_entropy(z, q, reduction="none").mean((1, 2)), *pair)
    np.testing.assert_allclose(value, their_value, rtol=1e-5)
    np.testing.assert_allclose(slope, their_slope, atol=1e-8)
