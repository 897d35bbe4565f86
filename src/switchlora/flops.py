"""FLOPs of a step: by formula for one layer, and counted for whatever is run.

The formulas are those of the effective-weight form (`effective_linear`), in the letters m, n (shape of W), r (rank) and
T (tokens in one forward pass). A multiplication and an addition are two FLOPs; only matrix products count.

    full rank        2mnT forward, 2mnT for dX, 2mnT for G                               6mnT
    this library     2mnT forward, 2mnT for dX, and the cheaper of
                     thin 4r(m+n)T and dense 2mnT + 4mnr                 at most 6mnT + 4mnr
    adapter branch   the same two, and three products each with A and B     4mnT + 6r(m+n)T

Thin is dense's equal or better up to r = mn / 2(m+n), a quarter of a square layer's width, so up to there a layer is
never dearer than full rank. Above, what is left of the excess is 4mnr per forward pass, a share of 2r / 3T of full
rank's layer: it falls with the tokens of a forward pass and not with the size of the layer. The weight update adds
4mnr per optimizer step, however many forward passes that has; half of it where A and B move in turn.

A layer whose weight takes a gradient (`polar`) always goes the dense way, and its step adds to that of the factors
5 (4 k^2 l + 2 k^3) for Newton-Schulz, k = min(m, n), l = max(m, n).

`count_flops` counts what runs, by torch's FlopCounterMode, with what that leaves out in torch 2.13: products in place
(`addmm_`, which the weight update is) and attention on the CPU would count as nothing. Attention counts alike
on every device and kernel: two products forward, four backward, of the whole square, without what a kernel computes
again. FLOPs by module are not offered, for torch attributes the backward of layers that share an input (q, k and v)
to the wrong one. What torch.compile or a Triton kernel fuses is not seen: count the eager form.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from switchlora.effective_linear import dense_is_cheaper
from switchlora.layer import SwitchLoraLinear
from switchlora.muon import STEPS

Found = TypeVar("Found")


def forward_flops(m: int, n: int, T: int) -> int:
    """y = x W^T."""
    return 2 * m * n * T


def input_gradient_flops(m: int, n: int, T: int) -> int:
    """dX = dY W."""
    return 2 * m * n * T


def thin_flops(m: int, n: int, r: int, T: int) -> int:
    """dA and dB by X A^T and dY B."""
    return 4 * r * (m + n) * T


def dense_flops(m: int, n: int, r: int, T: int) -> int:
    """dA and dB by G = dY^T X."""
    return 2 * m * n * T + 4 * m * n * r


def factor_gradient_flops(m: int, n: int, r: int, T: int) -> int:
    """dA and dB by the way that the layer takes."""
    return dense_flops(m, n, r, T) if dense_is_cheaper(m, n, r, T) else thin_flops(m, n, r, T)


def layer_flops(m: int, n: int, r: int, T: int) -> int:
    """Forward and backward of a SwitchLoraLinear; the weight update is apart."""
    return forward_flops(m, n, T) + input_gradient_flops(m, n, T) + factor_gradient_flops(m, n, r, T)


def full_rank_flops(m: int, n: int, T: int) -> int:
    """Forward and backward of an nn.Linear."""
    return 6 * m * n * T


def adapter_branch_flops(m: int, n: int, r: int, T: int) -> int:
    """Forward and backward of LoRA as y = W x + s B (A x), W frozen."""
    return 4 * m * n * T + 6 * r * (m + n) * T


def weight_update_flops(m: int, n: int, r: int, *, alternate: bool = False) -> int:
    """W += s (dB A' + B dA), one product of rank 2r per optimizer step; of rank r where A and B move in turn."""
    return (2 if alternate else 4) * m * n * r


def orthogonalise_flops(m: int, n: int) -> int:
    """The Newton-Schulz steps of an (m, n) matrix, per optimizer step: of Muon's momentum, or of W's own gradient."""
    short, long = sorted((m, n))
    return STEPS * (4 * short**2 * long + 2 * short**3)


def model_weight_update_flops(model: nn.Module, *, alternate: bool = False) -> int:
    """`weight_update_flops`, and where weights take gradients `orthogonalise_flops`, of all converted layers.

    0 for a dense model.
    """
    total = 0
    for layer in model.modules():
        if isinstance(layer, SwitchLoraLinear):
            m, n = layer.out_features, layer.in_features
            total += weight_update_flops(m, n, layer.r, alternate=alternate)
            total += orthogonalise_flops(m, n) if layer.trains_weight else 0
    return total


def tokens_for_share(update_flops: int, flops_per_token: float, share: float = 0.01) -> int:
    """The number of tokens per optimizer step from which the weight update is less than `share` of the whole step.

    Args:
        update_flops: per optimizer step, whatever its tokens.
        flops_per_token: of forward and backward.
        share: of the step, the update included; above 0, below 1.
    """
    assert 0 < share < 1 and flops_per_token > 0
    return math.floor(update_flops * (1 - share) / (share * flops_per_token)) + 1


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of all that `work` runs: a forward, a backward, an optimizer's step, on any device, real or fake.

    Args:
        work: called once, without arguments.
    """
    with FlopCounterMode(display=False, custom_mapping=left_out_by_torch()) as counter:
        work()
    return int(counter.get_total_flops())


def count_forward_backward(model: nn.Module, num_sequences: int, seq_len: int) -> int:
    """FLOPs of one forward and backward of a causal language model of transformers; see `without_storage`."""
    return without_storage(model, num_sequences, seq_len, count_flops)


def without_storage(
    model: nn.Module, num_sequences: int, seq_len: int, watch: Callable[[Callable[[], None]], Found]
) -> Found:
    """What `watch` finds while one forward and backward of a causal language model runs without memory or arithmetic.

    Runs on copies without storage, so the model may be on the meta device, and is left as it is.

    Args:
        model: dense or converted.
        num_sequences, seq_len: of the batch; their product is the number of tokens.
        watch: is given the pass, and calls it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        copies: dict[str, Tensor] = {
            name: torch.empty_like(tensor, device="cpu").requires_grad_(tensor.requires_grad)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        tokens = torch.zeros(num_sequences, seq_len, dtype=torch.int64)
        batch = {"input_ids": tokens, "labels": tokens, "use_cache": False}

        def forward_backward() -> None:
            torch.func.functional_call(model, copies, (), batch).loss.backward()

        return watch(forward_backward)


def left_out_by_torch() -> dict[Any, Callable[..., int]]:
    """Formulas that FlopCounterMode lacks, or has differently for one kernel and another; they are given shapes."""
    aten = torch.ops.aten
    products = {aten.addmm_: _product, aten.baddbmm_: _product}
    forward = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
        aten._scaled_dot_product_flash_attention: _attention_forward,
        aten._scaled_dot_product_efficient_attention: _attention_forward,
        aten._scaled_dot_product_cudnn_attention: _attention_forward,
    }
    backward = {
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten._scaled_dot_product_flash_attention_backward: _attention_backward,
        aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
        aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
    }
    return {**products, **forward, **backward}


Shape = tuple[int, ...]


def _product(accumulator: Shape, left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    """(..., m, k) times (..., k, n)."""
    return 2 * math.prod(left) * right[-1]


def _attention_forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and their product with the values. query (batch, heads, tokens, features)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Two products for each of the forward's two."""
    return 2 * _attention_forward(query, key, value)
