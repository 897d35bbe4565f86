"""FSDP2 by hand: on two ranks the steps of one process, and no rank with more than its share."""

from typing import Any

import pytest
import torch

from switchlora import memory
from tests.distributed.ranks import on_ranks
from tests.distributed.sharded import assert_close, everything, make, run, train

EVEN, UNEVEN = (8, 16, 12), (7, 13, 9)  # with r = 4, and with r = 3: ranks hold 2 and 1 rows of A


@pytest.mark.parametrize(("dims", "r"), [(EVEN, 4), (UNEVEN, 3)], ids=["even", "uneven"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"order": "random"}, {"candidates": "fresh"}, {"init_lora_weights": "lora"}, {"alternate": True}],
    ids=["cyclic", "random", "fresh", "lora", "alternate"],
)
def test_two_ranks_are_one_process(settings: dict[str, Any], dims: tuple[int, ...], r: int) -> None:
    of_run = {"settings": {"r": r, **settings}, "dims": dims, "clip": 0.5}
    losses, one = run("none", **of_run)
    assert one["group.0.switches_done"] > 10
    for of_rank, two in on_ranks(run_fsdp, of_run):
        assert of_rank == pytest.approx(losses, abs=1e-10)
        assert_close(two, one, 1e-10)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_rank_without_rows(rule: str) -> None:
    """r = 1: all of A is on the first rank."""
    of_run = {"settings": {"r": 1, "init_lora_weights": "lora"}, "dims": UNEVEN, "rule": rule}
    losses, one = run("none", **of_run)
    assert one["group.0.switches_done"] > 0
    for of_rank, two in on_ranks(run_fsdp, of_run):
        assert of_rank == pytest.approx(losses, abs=1e-10)
        assert_close(two, one, 1e-10)


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize(("dims", "r"), [(EVEN, 4), (UNEVEN, 3)], ids=["even", "uneven"])
def test_muon(dims: tuple[int, ...], r: int, alternate: bool) -> None:
    of_run = {"settings": {"r": r, "alternate": alternate}, "dims": dims, "rule": "muon", "lr": 0.05}
    losses, one = run("none", **of_run)
    for of_rank, two in on_ranks(run_fsdp, of_run):
        assert of_rank == pytest.approx(losses, abs=1e-10)
        assert_close(two, one, 1e-10)


def test_stochastic_rounding_draws_what_the_whole_would_draw() -> None:
    """All in bfloat16, and gradients made by hand, so that they agree bit for bit: so must what is rounded."""
    of_run = {"settings": {}, "dims": UNEVEN, "dtype": torch.bfloat16, "factor_dtype": torch.bfloat16}
    of_run |= {"moment_dtype": torch.bfloat16}
    one = steps_with_given_gradients("none", of_run)
    for two in on_ranks(steps_with_given_gradients, "fsdp", of_run):
        assert_close(two, one, 0.0)


def run_fsdp(of_run: dict[str, Any]) -> Any:
    return run("fsdp", **of_run)


def steps_with_given_gradients(parallel: str, of_run: dict[str, Any]) -> dict[str, Any]:
    model, optimizer = make(parallel, **of_run)
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            if p.requires_grad:
                grad = torch.randn(p.shape, generator=generator).to(p.dtype)
                if parallel == "fsdp":
                    from torch.distributed.tensor import DTensor, distribute_tensor

                    assert isinstance(p, DTensor)
                    grad = distribute_tensor(grad, p.device_mesh, p.placements)
                p.grad = grad
        optimizer.step()
    return everything(model, optimizer)


def test_no_rank_holds_more_than_its_share() -> None:
    of_run: dict[str, Any] = {"settings": {"r": 4}, "dims": (64, 128, 96)}
    model, optimizer = make("none", **of_run)
    train(model, optimizer, range(2))
    one = memory(model, optimizer)
    for two in on_ranks(memory_on_a_rank, of_run):
        for kind in ("weight_bytes", "optimizer_device_bytes", "candidate_host_bytes"):
            assert two[kind] <= 0.51 * getattr(one, kind) + 2000, kind  # counters are on every rank


def memory_on_a_rank(of_run: dict[str, Any]) -> dict[str, int]:
    import dataclasses

    model, optimizer = make("fsdp", **of_run)
    train(model, optimizer, range(2))
    return dataclasses.asdict(memory(model, optimizer))
