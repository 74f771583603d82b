"""Swin's block against timm's SwinTransformerBlock with the same weights: forward, and gradients by inputs and every weight.

Grids are multiples of the window: on others timm's pixels see padding, and ours do not (tests/nn/test_swin.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.nn.swin import SwinBlock

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from timm.models.swin_transformer import SwinTransformerBlock  # noqa: E402

CHANNELS, HEADS, WINDOW = 12, 3, 4
LAYERS = {"norm1": "norm1", "qkv": "attn.qkv", "out": "attn.proj", "norm2": "norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}
TABLE = "attn.relative_position_bias_table"


def their_arrays(params, sides):
    """Our parameters, or their gradients → {timm's name: array}. Timm's table ends with the side that is shorter than the window."""
    arrays = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        layer, _, kind = path.rpartition("/")
        if layer:
            arrays[f"{LAYERS[layer]}.{'bias' if kind == 'bias' else 'weight'}"] = np.asarray(leaf).T
    rows, columns = (slice(max(0, WINDOW - side), 2 * WINDOW - 1 - max(0, WINDOW - side)) for side in sides)
    arrays[TABLE] = np.asarray(params["bias"])[rows, columns].reshape(-1, HEADS)
    return arrays


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(ours, theirs, name=""):
    """Relative to the largest entry: 1e-4, in float32."""
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", [(8, 12), (4, 8), (3, 8)], ids=str)
def test_values_and_gradients_are_timm_s(sides, shifted):
    """Gradients of Σ c · output, c fixed and random. Where one window holds a whole side, neither is shifted along it."""
    ours = SwinBlock(HEADS, WINDOW, shifted)
    x, c = random(2, *sides, CHANNELS), random(2, *sides, CHANNELS, seed=1)
    shapes = flatten_dict(jax.eval_shape(ours.init, jax.random.key(0), x)["params"], sep="/")
    leaves = {path: jax.tree.leaves(leaf)[0].shape for path, leaf in shapes.items()}
    scales = {path: 0.8 / np.sqrt(shape[0]) if path.endswith("kernel") else 1 for path, shape in leaves.items()}
    params = unflatten_dict({path: scales[path] * random(*shape, seed=i) for i, (path, shape) in enumerate(leaves.items(), 2)}, sep="/")

    theirs = SwinTransformerBlock(CHANNELS, sides, HEADS, window_size=WINDOW, shift_size=WINDOW // 2 if shifted else 0)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in their_arrays(params, sides).items()})
    their_x = torch.tensor(x, requires_grad=True)
    their_output = theirs(their_x)
    (their_output * torch.tensor(c)).sum().backward()

    @jax.jit
    def run(params, x):
        output, back = jax.vjp(lambda params, x: ours.apply({"params": params}, x), params, x)
        return output, *back(jnp.asarray(c))

    output, by_params, by_x = run(params, x)
    assert_close(output, their_output.detach().numpy())
    assert_close(by_x, their_x.grad.numpy())
    by_params, expected = their_arrays(by_params, sides), dict(theirs.named_parameters())
    assert by_params.keys() == expected.keys()
    for name, gradient in by_params.items():
        assert_close(gradient, expected[name].grad.numpy(), name)
