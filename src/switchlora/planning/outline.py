"""A model in training as a list of shapes: those of one decoder layer, and those of the rest.

Model, method and optimizer are really built, with two decoder layers, of tensors without storage (torch's
FakeTensorMode); so are the tensors that autograd saves in a forward pass. What belongs to the second layer is
`block`, what belongs to neither is `rest`, and a model of L layers is L blocks and the rest.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from switchlora.errors import UserError
from switchlora.flops import count_forward_backward, orthogonalise_flops, weight_update_flops
from switchlora.training.options import PretrainOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHT, GRADIENT, OPTIMIZER, CANDIDATE = "weights", "gradients", "optimizer state", "candidates"
ROWS, COLUMNS, WHOLE = "rows", "columns", "whole"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor. split: how FSDP2 shares it out; trains: whether its gradient travels (weights)."""

    kind: str
    shape: tuple[int, ...]
    item_bytes: int
    split: str
    on_host: bool = False
    trains: bool = False


@dataclasses.dataclass(frozen=True)
class Factors:
    """A converted layer: W (m, n) with A (r, n) and B (m, r)."""

    m: int
    n: int
    r: int
    item_bytes: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Of a decoder layer, or of the rest."""

    pieces: tuple[Piece, ...]
    factors: tuple[Factors, ...]
    saved_bytes: int  # by autograd, for one micro-batch
    flops: int  # forward and backward of one micro-batch
    update_flops: int  # of the weight update
    orthogonalise_flops: int  # of the optimizer's other products


@dataclasses.dataclass(frozen=True)
class Outline:
    """num_layers blocks and the rest. boundary_bytes: what passes from one block to the next."""

    num_layers: int
    block: Part
    rest: Part
    boundary_bytes: int


def outline(options: PretrainOptions, strategy: str = "none") -> Outline:
    """The outline of what resolved options train.

    Args:
        options: their micro-batch, or batch, is what one device has in one forward pass.
        strategy: how several devices will share it: ddp, fsdp or none.

    Raises:
        UserError: the model has no decoder layers to multiply, or the method or the strategy refuses it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from switchlora.distributed.wrapping import require_shardable
    from switchlora.methods import method_named
    from switchlora.training.dry_run import give_storage, make_gradients_and_state

    num_layers = _num_layers(options.model)
    one, two = (_built(options, num) for num in (1, 2))
    sequences, seq_len = options.micro_batch_size or options.batch_size, options.seq_len
    assert sequences is not None and seq_len is not None
    method = method_named(options.method)
    for model in (one, two):
        method.prepare(model, options)
    if strategy == "fsdp":
        require_shardable(one)
    flops = [count_forward_backward(model, sequences, seq_len) for model in (one, two)]
    alternate = options.alternate and "alternate" in method.uses
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_storage(two)
        optimizer = method.optimizer(two, options)
        make_gradients_and_state(two, optimizer)
        pieces = list(_pieces(two, optimizer))
        orthogonalised = list(_orthogonalised_flops(two, optimizer, alternate))
        for parameter in two.parameters():
            parameter.grad = None
        saved = _saved_bytes(two, sequences, seq_len, options.dtype)
    factors = _factors(two)
    block = Part(
        tuple(piece for place, piece in pieces if place == 1),
        tuple(found for place, found in factors if place == 1),
        saved["block"],
        flops[1] - flops[0],
        _update_flops(factors, 1, alternate),
        sum(num for place, num in orthogonalised if place == 1),
    )
    rest = Part(
        tuple(piece for place, piece in pieces if place is None),
        tuple(found for place, found in factors if place is None),
        saved["rest"],
        2 * flops[0] - flops[1],
        _update_flops(factors, None, alternate),
        sum(num for place, num in orthogonalised if place is None),
    )
    return Outline(num_layers, block, rest, saved["boundary"])


def _num_layers(model: str) -> int:
    from switchlora.training.models import load_config

    num_layers = getattr(load_config(model), "num_hidden_layers", None)
    if num_layers is None:
        raise UserError(f"--model {model}: has no num_hidden_layers to multiply; plan a decoder-only model")
    return int(num_layers)


def _built(options: PretrainOptions, num_layers: int) -> "nn.Module":
    from switchlora.precision import stored_dtype
    from switchlora.training.models import load_config, random_model

    config = load_config(options.model, seq_len=options.seq_len)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return random_model(config, seed=options.seed, dtype=stored_dtype(options.dtype), meta=True)


def _place(name: str, blocks: list[str]) -> int | None:
    return next((number for number, block in enumerate(blocks) if name.startswith(block + ".")), None)


def _block_names(model: "nn.Module") -> list[str]:
    from switchlora.distributed.wrapping import blocks_of

    blocks = {id(block) for block in blocks_of(model)}
    return [name for name, module in model.named_modules() if id(module) in blocks]


def _pieces(model: "nn.Module", optimizer: Any) -> Iterator[tuple[int | None, Piece]]:
    import torch

    blocks = _block_names(model)
    on_host = getattr(getattr(optimizer, "config", None), "candidate_device", None) == "cpu"
    once = getattr(optimizer, "fused_backward", False)  # gradients of one layer, of whichever block
    state: Mapping[Any, Any] = optimizer.state
    for name, parameter in model.named_parameters():
        place, split = _place(name, blocks), ROWS if parameter.dim() else WHOLE
        shape, item_bytes = tuple(parameter.shape), parameter.element_size()
        trains = parameter.requires_grad
        yield place, Piece(WEIGHT, shape, item_bytes, split, trains=trains)
        if parameter.grad is not None:
            yield None if once else place, Piece(GRADIENT, shape, item_bytes, split)
        for entry, tensor in state.get(parameter, {}).items():
            if isinstance(tensor, torch.Tensor):
                is_pool = entry == "candidates"
                own_split = COLUMNS if is_pool else split if tensor.shape == parameter.shape else WHOLE
                kind = CANDIDATE if is_pool else OPTIMIZER
                yield (
                    place,
                    Piece(kind, tuple(tensor.shape), tensor.element_size(), own_split, on_host=is_pool and on_host),
                )


def _orthogonalised_flops(model: "nn.Module", optimizer: Any, alternate: bool) -> Iterator[tuple[int | None, int]]:
    """Of what moves by Muon's rule, which is what has its one moment: weights, or factors; where these move in turn,
    the mean of a step. And of weights that follow their own gradients (`polar`)."""
    from switchlora.layer import SwitchLoraLinear

    blocks = _block_names(model)
    for name, layer in model.named_modules():
        if isinstance(layer, SwitchLoraLinear) and layer.trains_weight:
            yield _place(name, blocks), orthogonalise_flops(layer.out_features, layer.in_features)
    for name, parameter in model.named_parameters():
        if "momentum_buffer" in optimizer.state.get(parameter, {}):
            yield _place(name, blocks), orthogonalise_flops(*parameter.shape) // (2 if alternate else 1)


def _update_flops(factors: Sequence[tuple[int | None, Factors]], place: int | None, alternate: bool) -> int:
    return sum(weight_update_flops(one.m, one.n, one.r, alternate=alternate) for at, one in factors if at == place)


def _factors(model: "nn.Module") -> list[tuple[int | None, Factors]]:
    from switchlora.layer import SwitchLoraLinear

    blocks = _block_names(model)
    return [
        (
            _place(name, blocks),
            Factors(layer.out_features, layer.in_features, layer.r, layer.lora_A.element_size()),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, SwitchLoraLinear)
    ]


@contextlib.contextmanager
def _no_mask() -> Iterator[None]:
    """transformers looks at positions for packed sequences; where they have no values it makes a mask, in case."""
    try:
        from transformers import masking_utils
    except ImportError:
        yield
        return
    with mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None, create=True):
        yield


def _saved_bytes(model: "nn.Module", sequences: int, seq_len: int, dtype: str) -> dict[str, int]:
    """What autograd keeps of a forward pass: of the second block, of what is in neither, and what passes between."""
    import torch

    from switchlora.distributed.wrapping import blocks_of

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: set[int] = set()
    kept: list[Tensor] = []  # so that no address is used again
    total, marks, boundary = 0, list[int](), 0

    def pack(tensor: "Tensor") -> "Tensor":
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in own | seen:
            seen.add(storage._cdata)
            kept.append(tensor)
            total += storage.nbytes()
        return tensor

    def mark(module: "nn.Module", args: Any, output: Any = None) -> None:
        nonlocal boundary
        marks.append(total)
        if output is not None:
            first = output[0] if isinstance(output, tuple) else output
            boundary = first.numel() * first.element_size()

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for block in blocks_of(model):
        handles += [block.register_forward_pre_hook(mark), block.register_forward_hook(mark)]
    tokens = torch.zeros(sequences, seq_len, dtype=torch.int64)
    model.train()
    with (
        _no_mask(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16-mixed"),
    ):
        model(input_ids=tokens, labels=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    second = marks[3] - marks[2]  # the first one also counts what all share, such as the angles of positions
    return {"block": second, "rest": total - 2 * second, "boundary": boundary}
