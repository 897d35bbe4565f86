"""memory(model, optimizer) equals what torch's allocator handed out and did not get back, to the byte."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from switchlora import SwitchLora, SwitchLoraConfig, UserError, convert, memory
from tests.numerics.cases import backward, chain, config_of, layers_of, start, train

Built = tuple[nn.Module, torch.optim.Optimizer]


def allocated_bytes(build: Callable[[], Built]) -> tuple[int, Built]:
    """What `build` allocated and still holds when it returns, by the records of the CPU allocator itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as records:
        built = build()
    events = records.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]"), built


def tied_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    ))  # fmt: skip


def llama_step(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Steps, and one more backward, so that there are gradients."""
    tokens = torch.arange(12).view(2, 6)
    for _ in range(num_steps):
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, {}),
        ({"candidates": "fresh"}, {}),
        ({"candidate_device": "model"}, {}),
        ({"init_lora_weights": "lora"}, {}),
        ({"interval": math.inf}, {}),
        ({}, {"dtype": torch.bfloat16}),
        ({}, {"dtype": torch.bfloat16, "factor_dtype": torch.bfloat16}),
        ({}, {"bias": False, "dims": (33, 20, 5, 64)}),
    ],
)
def test_switchlora_holds_what_was_allocated(settings: Any, arguments: Any, num_steps: int) -> None:
    def build() -> Built:
        model, optimizer = start(config_of(**settings), **arguments)
        train(model, optimizer, num_steps)
        backward(model, num_steps)
        return model, optimizer

    num_bytes, (model, optimizer) = allocated_bytes(build)
    report = memory(model, optimizer)
    assert report.total_bytes == num_bytes > 0
    stored = settings.get("candidates", "pool") == "pool" and settings.get("interval") != math.inf
    assert (report.candidate_host_bytes > 0) == (stored and "candidate_device" not in settings)
    assert (report.candidate_device_bytes > 0) == (stored and "candidate_device" in settings)
    optimizer.zero_grad()
    assert memory(model, optimizer).total_bytes == report.total_bytes - report.gradient_bytes


@pytest.mark.parametrize("method", ["switchlora", "adamw", "fused adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_llama_with_tied_embeddings_holds_what_was_allocated(method: str, dtype: torch.dtype) -> None:
    def build() -> Built:
        model = tied_llama().to(dtype)
        optimizer: torch.optim.Optimizer
        if method == "switchlora":
            config = SwitchLoraConfig(r=4)
            convert(model, config)
            optimizer = SwitchLora(model, config, total_steps=10, lr=1e-2)
        elif method == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=method.startswith("fused"))
        llama_step(model, optimizer, 2)
        return model, optimizer

    build()  # what a first call of transformers keeps for the process is not the model's
    num_bytes, (model, optimizer) = allocated_bytes(build)
    report = memory(model, optimizer)
    assert report.total_bytes == num_bytes
    unique = {id(p): p.numel() * dtype.itemsize for p in model.parameters() if p.dtype is dtype}
    if method != "switchlora":
        assert report.weight_bytes == report.gradient_bytes == sum(unique.values())
    assert (report.optimizer_device_bytes == 0) == (method == "sgd")


@pytest.mark.parametrize(("m", "n", "r"), [(24, 16, 4), (33, 65, 7)])
def test_the_numbers_are_those_of_the_design(m: int, n: int, r: int) -> None:
    """Per layer: mn weights beside r(m+n) factors, 3r(m+n) gradients and moments, min(m, n)(m+n) candidates."""
    config = SwitchLoraConfig(r=r)
    model, optimizer = start(config, (n, m), bias=False)
    backward(model)
    report = memory(model, optimizer)
    assert report.weight_bytes == 4 * (m * n + r * (m + n))
    assert report.candidate_host_bytes == 4 * min(m, n) * (m + n)
    assert report.gradient_bytes == 4 * r * (m + n)
    counter_bytes = report.optimizer_device_bytes + report.optimizer_host_bytes - 4 * 2 * r * (m + n)
    assert 0 < counter_bytes <= 64 * r  # a few integers for each of 2r vectors


def test_each_storage_counts_once_and_whole() -> None:
    """State stacked over layers, gradients in one buffer, padding: what a fast optimizer may do."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 6, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    gradients, moments = torch.zeros(70), torch.zeros(2, 64, dtype=torch.bfloat16)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = gradients[number * 30 : number * 30 + 30].view_as(parameter)
        rows = moments[:, number * 30 : number * 30 + 30]
        optimizer.state[parameter] = {"exp_avg": rows[0], "exp_avg_sq": rows[1], "itself": parameter}
    report = memory(model, optimizer)
    assert (report.weight_bytes, report.gradient_bytes) == (60 * 4, 70 * 4)
    assert (report.optimizer_device_bytes, report.total_bytes) == (2 * 64 * 2, 240 + 280 + 256)


class Projector:
    """As galore-torch's: a tensor in a Python object in the state."""

    def __init__(self) -> None:
        self.ortho_matrix = torch.zeros(3, 7)
        self.around = self  # a walk must not go in circles


class Slotted:
    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor = torch.zeros(5)


def test_tensors_inside_objects_of_the_state_count() -> None:
    model = nn.Linear(7, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = [Projector(), ({"deep": torch.zeros(2)},), Slotted(), len, math, "text", None]
    optimizer.state[model.weight] = {"projector": held[0], "others": held[1:]}
    optimizer.workspace = torch.zeros(11)  # type: ignore[attr-defined]
    assert memory(model, optimizer).optimizer_device_bytes == 4 * (21 + 2 + 5 + 11)


def test_what_modules_hold_beside_parameters_counts_as_buffers_but_not_what_they_know() -> None:
    model = nn.Linear(7, 3, bias=False)
    model.register_buffer("registered", torch.zeros(2), persistent=False)
    model.attribute = torch.zeros(3)
    model.cache = {"rotary": [torch.zeros(4)]}
    model.trainer = SimpleNamespace(data=torch.zeros(1000))
    assert memory(model, torch.optim.SGD(model.parameters())).buffer_bytes == 4 * (2 + 3 + 4)


def test_sparse_gradients_count_by_indices_and_values() -> None:
    model = nn.Embedding(50, 8, sparse=True)
    model(torch.tensor([1, 2, 2])).sum().backward()
    report = memory(model, torch.optim.SparseAdam(model.parameters()))
    assert report.gradient_bytes == 3 * 8 + 3 * 8 * 4


def test_without_storage_the_bytes_are_those_that_would_be_allocated() -> None:
    model, optimizer = start(config_of())
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake, fake_optimizer = start(config_of())
    assert memory(fake, fake_optimizer) == memory(model, optimizer)
    with torch.device("meta"):
        meta = chain()
    assert memory(meta, torch.optim.SGD(meta.parameters())).weight_bytes > 0


def test_beside_an_accelerator_host_is_what_lies_on_the_cpu() -> None:
    """The meta device stands in for the accelerator."""
    with torch.device("meta"):
        meta = chain()
    optimizer = torch.optim.AdamW(meta.parameters())
    for parameter in meta.parameters():
        optimizer.state[parameter] = {"exp_avg": torch.zeros_like(parameter), "step": torch.tensor(0.0)}
    report = memory(meta, optimizer)
    assert (report.optimizer_host_bytes, report.host_bytes) == (4 * len(list(meta.parameters())),) * 2
    assert report.optimizer_device_bytes == report.weight_bytes


@pytest.mark.usefixtures("two_processes")
def test_a_sharded_parameter_counts_by_its_own_shard() -> None:
    """Of 3 rows, 2 are here."""
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    model, mesh = nn.Linear(7, 3, bias=False), init_device_mesh("cpu", (2,))
    shard = DTensor.from_local(torch.zeros(2, 7), mesh, [Shard(0)], shape=torch.Size((3, 7)), stride=(7, 1))
    model.weight = nn.Parameter(shard)
    model.weight.grad = torch.zeros_like(model.weight)
    report = memory(model, torch.optim.SGD(model.parameters()))
    assert (report.weight_bytes, report.gradient_bytes) == (4 * 2 * 7, 4 * 2 * 7)


def test_the_text_is_a_table_of_device_and_host() -> None:
    model, optimizer = start(config_of(r=3), (7, 13), bias=False)
    lines = str(memory(model, optimizer)).splitlines()
    assert lines[0].split() == ["bytes", "device", "host"]
    assert lines[1].split() == ["weights", "604", "0"]
    assert lines[-2].split() == ["candidates", "0", "560"]
    assert [line.split()[0] for line in lines[1:]] == [
        "weights", "buffers", "gradients", "optimizer", "candidates", "total",
    ]  # fmt: skip


def test_what_is_no_model_or_optimizer_or_another_models_is_refused() -> None:
    model, optimizer = start(config_of())
    with pytest.raises(UserError, match="model: is a list"):
        memory([model], optimizer)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="optimizer: is a Sequential"):
        memory(model, model)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="4 of 4 parameters in its group 0 are not the model's"):
        memory(chain(), optimizer)
    assert memory(nn.ModuleList([model, chain()]), optimizer).total_bytes > memory(model, optimizer).total_bytes
    layer = layers_of(model)[0]
    layer.lora_A = nn.Parameter(layer.lora_A.detach())
    with pytest.raises(UserError, match="1 of 4"):
        memory(model, optimizer)
