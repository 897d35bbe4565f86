"""What collectives carry, counted as it passes, against what can be worked out from shapes."""

from typing import Any

import pytest
import torch

from switchlora import SwitchLoraConfig, convert
from switchlora.distributed.traffic import Traffic, counted
from switchlora.training.models import build_model
from tests.distributed.ranks import on_ranks
from tests.distributed.sharded import loss_of, make, train
from tests.numerics.cases import layers_of

DIMS = (8, 16, 12)


def traffic_of_steps(parallel: str, settings: dict[str, Any]) -> list[dict[str, int]]:
    model, optimizer = make(parallel, settings, DIMS)
    train(model, optimizer, range(1))  # DDP orders its buckets anew after the first
    found = []
    for step in range(1, 4):
        with counted() as traffic:
            loss_of(model, step).backward()
            optimizer.step()
        optimizer.zero_grad()
        found.append({**traffic.bytes_by_kind, "vectors of A": optimizer.stats.last.switches_done // 2})
    return found


def numbers(trainable: bool) -> int:
    model, _ = make("none", {"r": 4}, DIMS)
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def test_ddp_sends_gradients_of_what_trains_and_nothing_else() -> None:
    for of_rank in on_ranks(traffic_of_steps, "ddp", {"r": 4}):
        for of_step in of_rank[1:]:
            assert of_step.pop("vectors of A") > 0
            assert of_step == {"all_reduce": 8 * numbers(trainable=True)}


@pytest.mark.parametrize("alternate", [False, True])
def test_fsdp_gathers_the_model_twice_and_the_steps_of_A(alternate: bool) -> None:
    """Each of two ranks gives its half of all parameters for forward and backward, and of A' and dA, r n each; where A
    and B move in turn, of one of these."""
    model, _ = make("none", {"r": 4}, DIMS)
    of_A = sum((1 if alternate else 2) * layer.lora_A.numel() for layer in layers_of(model))
    ranks = on_ranks(traffic_of_steps, "fsdp", {"r": 4, "alternate": alternate})
    for of_rank in ranks:
        for of_step in of_rank:
            assert of_step["all_gather"] == 8 * (2 * numbers(trainable=False) + of_A) // 2
            assert of_step["reduce_scatter"] == 8 * numbers(trainable=True)
    for first, second in zip(*ranks, strict=True):  # each vector comes together once, and parts once
        most = 8 * 2 * max(DIMS[:2]) * first["vectors of A"]
        assert 0 < first["all_to_all"] + second["all_to_all"] <= most


def test_the_papers_largest_model_sends_54_percent_less() -> None:
    """Counted at a small shape, a gradient is 4 bytes a number that trains; so the ratio at 1.3B is that of counts."""
    model = build_model("1.3b", seed=0, vocab_size=32100, meta=True)
    full = sum(p.numel() for p in model.parameters())
    convert(model, SwitchLoraConfig(r=512))
    low_rank = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 1 - low_rank / full >= 0.54


def test_what_goes_round_a_ring() -> None:
    traffic = Traffic({"all_reduce": 100, "all_gather": 10, "reduce_scatter": 100})
    assert traffic.total_bytes == 210
    assert traffic.ring_bytes(4) == pytest.approx(150 + 30 + 75)


def compressed(compress: bool) -> tuple[list[float], int]:
    import torch.distributed as dist

    from switchlora.distributed.wrapping import data_parallel

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    wrapped = data_parallel(model, compressed=compress)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    losses: list[float] = []
    for step in range(20):
        with counted() as traffic:
            loss = loss_of(wrapped, step)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(loss.detach())
        losses.append(float(loss.detach()))
    return losses, traffic.bytes_by_kind["all_reduce"]


def test_compression_halves_the_bytes_and_hardly_moves_the_loss() -> None:
    (plain, plain_bytes), (narrow, narrow_bytes) = (on_ranks(compressed, flag)[0] for flag in (False, True))
    assert narrow_bytes * 2 == plain_bytes
    assert narrow != plain
    assert narrow == pytest.approx(plain, rel=1e-2)
