"""A contestant made ready: its model, its optimizer, and one step of it with a stopwatch running.

All start from copies of one model. Every method trains embeddings, head and norms with full rank, and every linear
layer between them in its own way, so that what differs is that way alone.
"""

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from switchlora.bench.adamw import make_adamw
from switchlora.bench.adapter import add_adapters
from switchlora.bench.contestants import Contestant, import_or_say
from switchlora.bench.galore import build_galore, refresh_in_next_step
from switchlora.bench.options import SWITCHING, BenchOptions
from switchlora.bench.stopwatch import Stopwatch
from switchlora.bench.switched import backward_way, build_switchlora
from switchlora.conversion import hidden_linears
from switchlora.distributed.wrapping import blocks_of
from switchlora.machine.cpu_products import write_out_attention
from switchlora.precision import stored_dtype
from switchlora.training.models import checkpoint_activations, preset_config, random_model

if TYPE_CHECKING:
    from torch.optim import Optimizer

LEARNING_RATE = 1e-3  # small enough that nothing diverges, for NaN and denormal numbers have times of their own


@dataclass
class Trainee:
    """What takes part in the rounds."""

    contestant: Contestant
    model: nn.Module
    optimizer: "Optimizer"
    stopwatch: Stopwatch

    @property
    def fused(self) -> bool:
        """Whether factors are stepped inside the backward pass, so that the two cannot be timed apart."""
        return self.contestant.method == "switchlora-fused"

    def backward(self, tokens: Tensor) -> Tensor:
        """Forward and backward pass on tokens (sequences, seq_len); returns the loss."""
        with backward_way(self.contestant.method):
            loss: Tensor = self.model(input_ids=tokens, labels=tokens).loss
            self.stopwatch.mark("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            self.stopwatch.mark("backward")
        return loss.detach()

    def step(self, tokens: Tensor) -> dict[str, float]:
        """One whole training step; returns the seconds of its parts, and of "step"."""
        self.stopwatch.start()
        self.backward(tokens)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.stopwatch.mark("optimizer")
        if self.contestant.method == "galore":
            refresh_in_next_step(self.optimizer, False)
        return self.stopwatch.read()


def base_model(options: BenchOptions, device: torch.device) -> nn.Module:
    """The dense model that every contestant starts from; a function of shape, dtype, seed and kind of device."""
    config = preset_config(options.shape, options.seq_len)
    config.use_cache = False
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = random_model(config, seed=options.seed, dtype=stored_dtype(options.dtype), device=str(device))
    write_out_attention(model)
    if options.checkpoint_activations:
        checkpoint_activations(model)
    return model.train()


def build(
    contestant: Contestant, base: nn.Module, options: BenchOptions, device: torch.device, *, copied: bool = True
) -> Trainee:
    """A copy of `base` on `device`, trained as the contestant does; without `copied`, `base` itself."""
    model = (copy.deepcopy(base) if copied else base).to(device)
    stopwatch = Stopwatch(device)
    optimizer: Optimizer
    if contestant.method in SWITCHING:
        optimizer = build_switchlora(model, contestant, options, stopwatch, LEARNING_RATE)
    elif contestant.method == "galore":
        assert contestant.r is not None
        optimizer = build_galore(model, contestant.r, LEARNING_RATE)
    else:
        if contestant.method == "lora-adapter":
            assert contestant.r is not None
            add_adapters(model, hidden_linears(model), r=contestant.r, seed=options.seed)
        elif contestant.method == "peft":
            model = _with_peft(model, contestant.r)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_adamw(trainable, lr=LEARNING_RATE, moments=options.moments)
    for block in blocks_of(model) if options.compile else ():  # all are alike, so the compiler works once
        block.compile(dynamic=False)
    return Trainee(contestant, model, optimizer, stopwatch)


def compiling(options: BenchOptions, num_trainees: int) -> contextlib.AbstractContextManager[Any]:
    """Room for every trainee's code: all compile the same functions, and by default the ninth would silently stay
    uncompiled. Running out of room is an error here."""
    if not options.compile:
        return contextlib.nullcontext()
    import torch._dynamo

    room = 16 * num_trainees
    patch: Any = torch._dynamo.config.patch
    context: contextlib.AbstractContextManager[Any] = patch(
        recompile_limit=room, accumulated_recompile_limit=64 * room, fail_on_recompile_limit_hit=True
    )
    return context


def _with_peft(model: nn.Module, r: int | None) -> nn.Module:
    """PEFT's LoRA on every linear layer but the head. Embeddings, norms and head train on, as for the others; PEFT
    would freeze them. In bf16 the factors are bf16 too: PEFT's default, fp32 factors, would be slower."""
    import_or_say("peft")
    from peft import LoraConfig, get_peft_model

    assert r is not None
    ordinary = {id(p) for p in model.parameters()} - {id(linear.weight) for linear in hidden_linears(model)}
    config = LoraConfig(r=r, lora_alpha=1, target_modules="all-linear", lora_dropout=0.0, bias="none")
    with warnings.catch_warnings():  # it asks transformers for an attribute by its old name
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in wrapped.parameters():
        if id(parameter) in ordinary:
            parameter.requires_grad_(True)
    trainable: nn.Module = wrapped
    return trainable
