"""Which devices multiply matrices in bfloat16 faster than in float32."""

import torch


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether `device` has instructions for products of bf16 matrices, and PyTorch was built to use them.

    A CPU without them is many times slower in bf16 than in fp32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    if kind == "cpu":
        known = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.backends.mkldnn.is_available() and known
    return False
