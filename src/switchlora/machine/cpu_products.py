"""`--cpu-products onednn`: float32 products on the CPU by oneDNN in place of MKL. torch brings both along.

MKL has AVX2 code only for processors of AMD, where oneDNN uses AVX-512: there it is more than twice as fast
(docs/cpu.md). torch gives products to it at the float32 precision "medium", which allows rounding to bfloat16
where the processor has instructions for that (AMX). Held to AVX-512, oneDNN has none and computes in float32; that this
is so is seen before anything is trained. The many small products inside torch's fused attention are slower that way, so
attention is written out.
"""

import os
from typing import Any

from switchlora.errors import UserError

PRODUCTS = TORCH, ONEDNN = "torch", "onednn"
ISA, AVX512 = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE"  # a variable of the environment, read when oneDNN is first used


def use(products: str) -> None:
    """Set who computes float32 products on the CPU from now on, in the whole process.

    Raises:
        UserError: oneDNN would round to bfloat16 here.
    """
    import torch

    if in_use():
        torch.set_float32_matmul_precision("highest")
    if products == TORCH:
        return
    os.environ.setdefault(ISA, AVX512)
    torch.set_float32_matmul_precision("medium")
    if not (in_use() and _is_float32()):
        torch.set_float32_matmul_precision("highest")
        raise UserError(
            f"--cpu-products {ONEDNN}: may round to bfloat16 in this process; set {ISA}={AVX512} before it starts, or "
            f"use {TORCH}"
        )


def in_use() -> str | None:
    """What a record of the machine says: "onednn", or None for torch's own choice."""
    import torch

    medium = torch.get_float32_matmul_precision() == "medium"
    return ONEDNN if medium and os.environ.get(ISA) == AVX512 else None


def write_out_attention(model: Any) -> None:
    """Let a transformers model compute attention by plain products, where they are oneDNN's."""
    if in_use():
        model.set_attn_implementation("eager")


def _is_float32() -> bool:
    """Whether a product keeps what bfloat16 would round away."""
    import torch

    like_one = torch.full((256, 256), 1 + 2.0**-12)
    return torch.equal(like_one @ torch.eye(256), like_one)
