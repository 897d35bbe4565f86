"""Every contestant trains, on the same terms: one start, the same ordinary parameters, each its own way between."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from switchlora import effective_linear
from switchlora.bench import adamw
from switchlora.bench.adamw import WideMomentsAdamW, make_adamw
from switchlora.bench.adapter import AdapterLinear
from switchlora.bench.contestants import Contestant, why_absent
from switchlora.bench.counts import count
from switchlora.bench.options import METHODS, BenchOptions
from switchlora.bench.rounds import batch
from switchlora.bench.switched import backward_way, same_as_the_cost_models
from switchlora.bench.trainee import Trainee, base_model, build, compiling
from switchlora.conversion import hidden_linears
from switchlora.layer import SwitchLoraLinear

CPU = torch.device("cpu")
R, SEQUENCES = 16, 2
OPTIONS = BenchOptions(model="tiny", ranks=R, seq_len=16, interval=10)
METHODS_WITH_RANK = [method for method in METHODS if method != "full"]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return base_model(OPTIONS, CPU)


def make(method: str, base: nn.Module, options: BenchOptions = OPTIONS) -> Trainee:
    if absence := why_absent(method, options):
        pytest.skip(absence)
    with warnings.catch_warnings():  # of other people's packages, at import
        warnings.simplefilter("ignore")
        return build(Contestant(method, None if method == "full" else R), base, options, CPU)


def num_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_a_batch(method: str, base: nn.Module) -> None:
    trainee = make(method, base)
    tokens = batch(OPTIONS, SEQUENCES, 0)
    losses = []
    for _ in range(5):
        trainee.stopwatch.start()
        losses.append(float(trainee.backward(tokens)))
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.3
    assert losses[0] == pytest.approx(float(base(input_ids=tokens, labels=tokens).loss.detach()), rel=1e-6), (
        "one start for all"
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_timed_in_parts(method: str, base: nn.Module) -> None:
    seconds = make(method, base).step(batch(OPTIONS, SEQUENCES, 0))
    assert seconds.keys() == {"forward", "backward", "optimizer", "switch", "step"}
    assert seconds["step"] == pytest.approx(sum(s for part, s in seconds.items() if part != "step"))
    assert (seconds["switch"] > 0) == method.startswith("switchlora")


@pytest.mark.parametrize("method", METHODS_WITH_RANK)
def test_the_same_parameters_train(method: str, base: nn.Module) -> None:
    """Embeddings, head and norms whole; of a hidden (m, n) matrix r(m + n) numbers, or all of it with GaLore."""
    trainee = make(method, base)
    hidden = [linear.weight.shape for linear in hidden_linears(base)]
    ordinary = num_trainable(base) - sum(m * n for m, n in hidden)
    expected = num_trainable(base) if method == "galore" else ordinary + sum(R * (m + n) for m, n in hidden)
    assert num_trainable(trainee.model) == expected
    in_groups = [parameter for group in trainee.optimizer.param_groups for parameter in group["params"]]
    assert sum(parameter.numel() for parameter in in_groups) == expected


def test_the_base_is_left_alone(base: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    make("switchlora", base).step(batch(OPTIONS, SEQUENCES, 0))
    make("full", base).step(batch(OPTIONS, SEQUENCES, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_the_adapter_branch_is_lora() -> None:
    linear = nn.Linear(5, 7)
    adapted = AdapterLinear(linear, r=2, lora_alpha=3.0, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 5)
    assert torch.equal(adapted(x), linear(x)), "B = 0 at the start"
    nn.init.normal_(adapted.lora_B)
    effective = linear.weight + 1.5 * adapted.lora_B @ adapted.lora_A
    torch.testing.assert_close(adapted(x), nn.functional.linear(x, effective, linear.bias))
    adapted(x).sum().backward()
    assert linear.weight.grad is None and adapted.lora_A.grad is not None


@pytest.mark.parametrize(("method", "dense"), [("switchlora-thin", False), ("switchlora-dense", True)])
def test_a_way_is_forced_and_only_inside(method: str, dense: bool, base: nn.Module) -> None:
    cost_model, shape = effective_linear.dense_is_cheaper, (128, 128, R)
    with backward_way(method):
        assert effective_linear.dense_is_cheaper(*shape, 1) == effective_linear.dense_is_cheaper(*shape, 10**6) == dense
    assert effective_linear.dense_is_cheaper is cost_model
    with pytest.raises(ZeroDivisionError), backward_way(method):
        raise ZeroDivisionError
    assert effective_linear.dense_is_cheaper is cost_model


def test_a_way_that_the_cost_model_picks_anyway_is_known(base: nn.Module) -> None:
    model = make("switchlora", base).model
    assert same_as_the_cost_models("switchlora-thin", model, 32)
    assert not same_as_the_cost_models("switchlora-dense", model, 32)
    assert not same_as_the_cost_models("switchlora", model, 32)
    for module in model.modules():
        if isinstance(module, SwitchLoraLinear):
            module.r = 127  # thin products would cost more than forming G
    assert same_as_the_cost_models("switchlora-dense", model, 10**6)


def test_bf16_weights_and_moments() -> None:
    options = BenchOptions(model="tiny", ranks=R, seq_len=16, dtype="bf16", factor_dtype="bf16")
    narrow = base_model(options, CPU)
    trainee = make("switchlora", narrow, options)
    assert {p.dtype for p in trainee.model.parameters()} == {torch.bfloat16}
    trainee.step(batch(options, SEQUENCES, 0))
    full = make("full", narrow, options)
    full.step(batch(options, SEQUENCES, 0))
    assert {state["exp_avg"].dtype for state in full.optimizer.state.values()} == {torch.bfloat16}


def test_wide_moments_are_adamw() -> None:
    """Against torch's in fp32, on gradients of known values."""
    start, grads = torch.randn(9), torch.randn(5, 9)
    ours, torchs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (WideMomentsAdamW([ours], lr=0.1), torch.optim.AdamW([torchs], lr=0.1, weight_decay=0.0))
    for grad in grads:
        for parameter, optimizer in zip((ours, torchs), optimizers, strict=True):
            parameter.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(ours, torchs)
    narrow = nn.Parameter(start.bfloat16())
    wide = make_adamw([narrow], lr=0.1, moments="fp32")
    narrow.grad = grads[0].bfloat16()
    wide.step()
    assert wide.state[narrow]["exp_avg"].dtype == torch.float32
    assert not torch.equal(narrow, start.bfloat16())


def test_the_wide_one_holds_little_beside_its_moments(monkeypatch) -> None:
    """Its peak is to be that of what is held: with pieces as small as this it is, and the result is the same."""
    start, grad = torch.randn(33, 17).bfloat16(), torch.randn(33, 17).bfloat16()
    found = []
    for piece in (adamw.PIECE, 64):
        monkeypatch.setattr(adamw, "PIECE", piece)
        parameter = nn.Parameter(start.clone())
        parameter.grad = grad.clone()
        optimizer = WideMomentsAdamW([parameter], lr=0.1)
        sizes = Sizes()
        with sizes:
            optimizer.step()
        assert sizes.largest == min(piece, start.numel())
        found.append(parameter.detach())
    assert torch.equal(*found)


class Sizes(TorchDispatchMode):
    """The largest new tensor, in numbers."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.largest = max(self.largest, out.numel())
        return out


def test_compiled_models_have_room() -> None:
    import torch._dynamo

    before = torch._dynamo.config.recompile_limit
    with compiling(BenchOptions(compile=True), 11):
        assert torch._dynamo.config.recompile_limit >= 11
        assert torch._dynamo.config.fail_on_recompile_limit_hit
    assert torch._dynamo.config.recompile_limit == before


def test_compiled_are_the_decoder_layers_and_counting_compiles_nothing(base: nn.Module) -> None:
    import torch._dynamo

    options = BenchOptions(model="tiny", ranks=R, seq_len=16, compile=True)
    for method in ("full", "switchlora", "peft"):
        contestant = Contestant(method, None if method == "full" else R)
        trainee = build(contestant, base, options, torch.device("cpu"))
        compiled = [module for module in trainee.model.modules() if module._compiled_call_impl is not None]
        assert [type(module).__name__ for module in compiled] == ["LlamaDecoderLayer"] * options.shape.num_layers
        torch._dynamo.utils.counters.clear()
        count(trainee, batch(options, 2, 0))
        assert not torch._dynamo.utils.counters["frames"]


def test_bf16_moments_where_all_have_them(base: nn.Module) -> None:
    options = BenchOptions(model="tiny", ranks=R, seq_len=16, dtype="bf16", moments="bf16")
    trainee = make("switchlora-fused", base_model(options, CPU), options)
    trainee.step(batch(options, SEQUENCES, 0))
    assert {state["exp_avg"].dtype for state in trainee.optimizer.state.values()} == {torch.bfloat16}
