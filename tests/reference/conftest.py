"""Makes torchvision importable beside torch for the CPU, for whatever asks for it: lpips, piq, diffusers."""

try:
    import torch
except ModuleNotFoundError:  # every test that needs it skips with its own reason
    torch = None

# torchvision's wheel is built for CUDA, and here misses two operators of detection, which nothing of ours calls.
if torch is not None and not hasattr(torch.ops.torchvision, "nms"):
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
