"""`--dry-run`: what a run would train, hold and read, without data, network or memory.

The model and the optimizer are really built, but of tensors without storage (torch's FakeTensorMode), so the
bytes are those that would be allocated, for any method, and not a formula that has to be kept in step.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchlora.data.tokenizer import TRAIN_PREFIX, loaded_tokenizer, num_ids
from switchlora.methods import method_named
from switchlora.options.values import show
from switchlora.training.models import build_model
from switchlora.training.options import PretrainOptions
from switchlora.training.presets import has_weights
from switchlora.training.resolve import resolve

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Plan:
    """Counts of parameters, bytes and tokens. `total_parameters` is the dense model that is exported; `vocabulary`
    says how many rows its embedding has, and whence that is known."""

    layers: str
    vocabulary: str
    total_parameters: int
    trainable_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    candidate_device_bytes: int
    candidate_host_bytes: int
    tokens_per_step: int
    total_tokens: int

    def __str__(self) -> str:
        numbers = asdict(self)
        head = [numbers.pop("layers"), f"vocabulary: {numbers.pop('vocabulary')}"]
        rows = [f"{name.replace('_', ' '):24} {_readable(name, value)}" for name, value in numbers.items()]
        return "\n".join([*head, "", *rows])


def plan(options: PretrainOptions) -> Plan:
    """The plan of resolved options.

    Raises:
        UserError: as the run itself would, for the model and the method.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from switchlora.precision import stored_dtype

    method = method_named(options.method)
    dtype = stored_dtype(options.dtype)
    vocab_size, origin = _vocabulary(options)
    model = build_model(
        options.model, seed=options.seed, vocab_size=vocab_size, seq_len=options.seq_len, dtype=dtype, meta=True
    )
    options = resolve(options, config=model.config)
    vocabulary = f"{model.config.vocab_size:,} tokens ({origin})"  # type: ignore[union-attr]
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_storage(model)
        total_parameters = sum(p.numel() for p in model.parameters())
        layers = method.prepare(model, options)
        optimizer = method.optimizer(model, options)
        make_gradients_and_state(model, optimizer)
        return _count(model, optimizer, options, (layers, vocabulary), total_parameters)


def _count(
    model: "nn.Module", optimizer: "Optimizer", options: PretrainOptions, head: tuple[str, str], total_parameters: int
) -> Plan:
    from switchlora.memory_report import memory

    held = memory(model, optimizer)
    assert options.batch_size is not None and options.seq_len is not None and options.steps is not None
    tokens_per_step = options.batch_size * options.seq_len
    return Plan(
        *head,
        total_parameters,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        weight_bytes=held.weight_bytes,
        gradient_bytes=held.gradient_bytes,
        optimizer_bytes=held.optimizer_device_bytes + held.optimizer_host_bytes,
        candidate_device_bytes=held.candidate_device_bytes,
        candidate_host_bytes=held.candidate_host_bytes,
        tokens_per_step=tokens_per_step,
        total_tokens=tokens_per_step * options.steps,
    )


def give_storage(model: "nn.Module") -> None:
    """Take a model off the meta device, under FakeTensorMode, with the embeddings that are its head still the head."""
    model.to_empty(device="cpu")
    model.tie_weights()  # type: ignore[operator]  # which to_empty has cut


def make_gradients_and_state(model: "nn.Module", optimizer: "Optimizer") -> None:
    """torch's optimizers make their state in the first step; ours has it already."""
    import torch

    for parameter in gradients_at_once(model, optimizer):
        parameter.grad = torch.zeros_like(parameter)
    if not optimizer.state:
        optimizer.step()


def gradients_at_once(model: "nn.Module", optimizer: "Optimizer") -> "list[Tensor]":
    """What has gradients together: all that trains, or with `fused_backward` the layer or parameter with the most."""
    from switchlora.layer import SwitchLoraLinear

    trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not getattr(optimizer, "fused_backward", False):
        return trained
    layers = [list(layer.stepped_by) for layer in model.modules() if isinstance(layer, SwitchLoraLinear)]
    of_layers = {parameter for layer in layers for parameter in layer}
    units: list[list[Tensor]] = [*layers, *([parameter] for parameter in trained if parameter not in of_layers)]
    return max(units, key=lambda unit: sum(parameter.nbytes for parameter in unit))


def _vocabulary(options: PretrainOptions) -> tuple[int | None, str]:
    """How many tokens the run's tokenizer has, and whence that is known. None: as many as the model."""
    name = options.tokenizer
    if name is None:
        return None, "the model's"
    if name.startswith(TRAIN_PREFIX):
        return int(name.removeprefix(TRAIN_PREFIX)), "of the tokenizer, if the data give so many"
    if not (Path(name).expanduser().exists() or name.startswith((".", "~", "/")) or name.endswith(".json")):
        return None, f"the model's: assumed, for a dry run does not ask the hub for --tokenizer {show(name)}"
    num_tokens = num_ids(loaded_tokenizer(name, None))
    if has_weights(options.model):
        return num_tokens, "the model's, which is to hold the tokenizer's"
    return num_tokens, "of the tokenizer"


def _readable(name: str, value: Any) -> str:
    if not name.endswith("_bytes"):
        return f"{value:>18,}"
    return f"{value:>18,}  ({value / 2**30:.2f} GiB)"
