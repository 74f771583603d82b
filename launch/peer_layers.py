#!/usr/bin/env python3
"""The layers of `jaxsr bench layers` by PyTorch, channels last: on CUDA in bfloat16 if asked, through torch.compile; on a CPU in float32.

    python launch/peer_layers.py [--batch-size 8] [--side 64] [--channels 64] [--levels 3] [--precision f32] [--device cpu]

It prints one line of JSON, which `jaxsr bench layers --peer` puts beside ours. Needs torch, of the extra `reference`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence

os.environ["JAX_PLATFORMS"] = "cpu"  # it names the layers here, and must not take the GPU's memory

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxsr.bench.layers import HEAD, Case, cases_of
from jaxsr.bench.measure import summary


class NormSwish(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(max(channels // HEAD, 1), channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.norm(x))


class Doubled(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(channels // HEAD, 1)
        self.norm = nn.GroupNorm(self.heads, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        shape = batch, height * width, self.heads, channels // self.heads
        parts = (part(tokens).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, height, width, channels)
        return x + self.out(y).permute(0, 3, 1, 2)


def module_of(case: Case) -> nn.Module:
    made: dict[str, Callable[[int], nn.Module]] = {
        "convolution 3 × 3": lambda c: nn.Conv2d(c, c, 3, padding=1),
        "convolution 1 × 1": lambda c: nn.Conv2d(c, c, 1),
        "half the resolution": lambda c: nn.Conv2d(c, c, 3, stride=2, padding=1),
        "twice the resolution": Doubled,
        "norm and swish": NormSwish,
        "attention": Attention,
    }
    return made[case.kind](case.channels)


def measured(case: Case, device: str, dtype: torch.dtype, mode: str, repeats: int) -> dict:
    module = module_of(case).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(case.batch, case.channels, case.side, case.side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    run = module if mode == "off" else torch.compile(module, mode=mode, dynamic=False)
    weights = torch.ones_like(run(x))
    leaves = x.clone().requires_grad_()

    @torch.no_grad()
    def values() -> None:
        run(x)

    def gradients() -> None:
        leaves.grad = None
        module.zero_grad(set_to_none=True)
        run(leaves).backward(weights)

    def times(function: Callable[[], None]) -> list[float]:
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return found

    told = dict(case._asdict())
    for name, function in (("forward", values), ("gradients", gradients)):
        for _ in range(3):
            function()
        told[name] = summary(times(function))
    return told


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("--batch-size", 8), ("--side", 64), ("--channels", 64), ("--levels", 3), ("--repeats", 20)):
        parser.add_argument(name, type=int, default=value, help="(%(default)s)")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", metavar="MODE", help="of torch.compile, or off (max-autotune-no-cudagraphs on CUDA, off on a CPU)")
    given = parser.parse_args(words)
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    mode = given.compile or ("max-autotune-no-cudagraphs" if device == "cuda" else "off")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as JAX does
    cases = cases_of(given.batch_size, given.side, given.channels, given.levels)
    layers = [measured(case, device, dtype, mode, given.repeats) for case in cases]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps({"layers": layers, "device": name, "compile": mode, "versions": {"torch": torch.__version__}}))


if __name__ == "__main__":
    main()
