"""DDP: several ranks are one process, equal to each other bit for bit, and a rank that is not is found."""

from typing import Any

import pytest
import torch

from switchlora.distributed import agreement
from switchlora.errors import RanksDifferError, UserError
from tests.distributed.ranks import on_ranks
from tests.distributed.sharded import assert_close, make, run, train
from tests.numerics.cases import assert_same, layers_of

DIMS = (7, 13, 9)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize(
    "settings", [{}, {"order": "random", "polar": 0.5}, {"candidates": "fresh"}], ids=["cyclic", "random", "fresh"]
)
def test_two_ranks_are_one_process_and_each_other(settings: dict[str, Any], rule: str) -> None:
    of_run = {"settings": settings, "dims": DIMS, "clip": 0.5, "rule": rule}
    losses, one = run("none", **of_run)
    assert one["group.0.switches_done"] > 10
    (first, of_first), (second, of_second) = on_ranks(run_ddp, of_run)
    assert first == second == pytest.approx(losses, abs=1e-10)
    assert_close(of_first, one, 1e-10)
    assert_same(of_first, of_second)


def test_ranks_round_alike() -> None:
    of_run = {"settings": {}, "dims": DIMS, "dtype": torch.bfloat16, "factor_dtype": torch.bfloat16}
    (_, first), (_, second) = on_ranks(run_ddp, {**of_run, "moment_dtype": torch.bfloat16})
    assert_same(first, second)


def run_ddp(of_run: dict[str, Any]) -> Any:
    return run("ddp", **of_run)


BREAKS = ("weight", "lora_A", "lora_B", "candidates", "cursor", "frozen")


def test_a_rank_that_differs_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(agreement.VARIABLE, "2")
    for messages in on_ranks(broken_runs):
        assert [what for what in BREAKS if messages[what] is None] == []
        for what, message in messages.items():
            assert message.startswith("layer 2: after step 4 its "), message
            assert {"weight": "weights"}.get(what, what) in message
            assert "ranks 0 and 1" in message


def broken_runs() -> dict[str, str | None]:
    """One number of the second layer is changed on rank 1, after step 2: found after step 4, not after 3."""
    import torch.distributed as dist

    messages: dict[str, str | None] = {}
    for what in BREAKS:
        model, optimizer = make("ddp", {"interval": 1e9}, DIMS, lr=0.0, weight_decay=0.0)
        train(model, optimizer, range(2))
        layer = layers_of(model)[1]
        if dist.get_rank() == 1:
            tensor = getattr(layer, what) if hasattr(layer, what) else optimizer.state[layer.lora_B][what]
            tensor.data.view(-1)[-1:] += 5
        train(model, optimizer, range(2, 3))
        try:
            train(model, optimizer, range(3, 4))
            messages[what] = None
        except RanksDifferError as error:
            messages[what] = str(error)
    return messages


def test_equal_ranks_pass_and_the_variable_is_checked() -> None:
    assert agreement.steps_between_checks({}) == 0
    assert agreement.steps_between_checks({agreement.VARIABLE: "1"}) == 1
    with pytest.raises(UserError, match="SWITCHLORA_DEBUG=often"):
        agreement.steps_between_checks({agreement.VARIABLE: "often"})
    for parallel in ("ddp", "fsdp"):
        assert on_ranks(checked_run, parallel) == [True, True]


def checked_run(parallel: str) -> bool:
    import os

    os.environ[agreement.VARIABLE] = "1"
    losses, _ = run(parallel, steps=3, settings={}, dims=DIMS)
    return len(losses) == 3


def test_only_gradients_of_what_trains_travel() -> None:
    """Counted where DDP hands its buckets over: no byte of W. Collectives of all kinds are counted in test_planned."""
    for polar in (0.0, 0.5):  # with which W trains, too
        for num_reduced, num_trainable in on_ranks(reduced_numbers, polar):
            assert num_reduced == num_trainable


def reduced_numbers(polar: float) -> tuple[int, int]:
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    model, optimizer = make("ddp", {"polar": polar}, DIMS)
    sizes: list[int] = []

    def counting(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sizes.append(bucket.buffer().numel())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, counting)  # type: ignore[operator]
    train(model, optimizer, range(1))
    return sum(sizes), sum(p.numel() for p in model.parameters() if p.requires_grad)
