"""GPT-2's `Conv1D`: a linear layer whose weight lies transposed, (n, m), so that y = x weight + bias.

GPT-1, GPT-2 and a few of their kin are made of it. `conversion` trains such a layer as any other, with its weight as
(m, n), and gives it back as it was. Both ways the weight is copied, one layer after the other: what a view would save
is little for models of that age, and kernels and FSDP2 want contiguous tensors.
"""

import sys
from typing import Any, TypeGuard

import torch
from torch import nn


def is_conv1d(module: nn.Module) -> TypeGuard[Any]:
    """Whether a module is exactly transformers' Conv1D. Imports nothing: whoever has one has imported transformers."""
    home = sys.modules.get("transformers.pytorch_utils")
    return home is not None and type(module) is home.Conv1D


def linear_shape(module: Any) -> tuple[int, int]:
    """(m, n), features out and in, of an nn.Linear or a Conv1D."""
    if is_conv1d(module):
        n, m = module.weight.shape
        return m, n
    return module.out_features, module.in_features


@torch.no_grad()
def linear_of(conv: Any) -> nn.Linear:
    """An nn.Linear of the same function as a Conv1D, with a copy of its weight and its own bias."""
    m, n = linear_shape(conv)
    linear = nn.Linear(n, m, bias=False, device="meta", dtype=conv.weight.dtype)
    linear.weight = nn.Parameter(conv.weight.T.contiguous(), requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias
    linear.train(conv.training)
    return linear


@torch.no_grad()
def conv1d_of(linear: nn.Linear) -> nn.Module:
    """The way back: a trainable Conv1D of the same function as a linear layer."""
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        conv: Any = Conv1D(linear.out_features, linear.in_features)  # type: ignore[no-untyped-call]
    conv.weight = nn.Parameter(linear.weight.T.contiguous())
    conv.bias = linear.bias
    conv.train(linear.training)
    return conv  # type: ignore[no-any-return]
