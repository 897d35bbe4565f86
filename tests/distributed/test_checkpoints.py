"""Sharded checkpoints: written while training goes on, read by any number of ranks, and data, not programs."""

import copy
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from switchlora.errors import UserError
from switchlora.training import sharded
from switchlora.training.checkpoint import CheckpointStore, inspect
from switchlora.training.parallel import Processes
from switchlora.training.sharded import ShardedCheckpoints, put_together, taken_apart
from switchlora.training.sharded_loading import INDEX, Unreadable, read_sharded
from switchlora.training.sharing import load, state_of
from tests.distributed.ranks import on_ranks
from tests.distributed.sharded import everything, make, train
from tests.numerics.cases import assert_same

DIMS = (7, 13, 9)


def writer(root: Path) -> ShardedCheckpoints:
    processes = Processes(rank=dist.get_rank(), world_size=dist.get_world_size())
    return ShardedCheckpoints(CheckpointStore(root, keep=2), processes)


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def save_midway(root: Path, parallel: str, of_run: dict[str, Any]) -> dict[str, Any]:
    """Train six steps with a checkpoint after the third, which later steps must not have changed."""
    model, optimizer = make(parallel, **of_run)
    checkpoints = writer(root)
    train(model, optimizer, range(3))
    inner = model.module if parallel == "ddp" else model
    checkpoints.save(3, state_of(inner, optimizer), {"at": 3})  # type: ignore[arg-type]
    at_three = copy.deepcopy(everything(model, optimizer))
    train(model, optimizer, range(3, 6))
    checkpoints.wait()
    return at_three


def load_and_show(root: Path, parallel: str, of_run: dict[str, Any]) -> dict[str, Any]:
    model, optimizer = make(parallel, **of_run)
    inner: Any = model.module if parallel == "ddp" else model
    load(inner, optimizer, read_sharded(root / "step-00000003", state_of(inner, optimizer), parameters(optimizer)))
    shown = copy.deepcopy(everything(model, optimizer))
    train(model, optimizer, range(3, 6))  # it trains
    return shown


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("first", "num", "second", "num_then"),
    [
        ("fsdp", 3, "fsdp", 2),
        ("fsdp", 2, "none", 1),
        ("ddp", 2, "fsdp", 3),
        ("fsdp", 2, "ddp", 2),
        ("ddp", 2, "none", 1),
    ],
)
def test_any_number_of_ranks_reads_what_any_other_wrote(
    tmp_path: Path, first: str, num: int, second: str, num_then: int, rule: str
) -> None:
    of_run = {"settings": {"r": 3}, "dims": DIMS, "rule": rule}
    written = on_ranks(save_midway, tmp_path, first, of_run, num=num)[0]
    assert written["group.0.switches_done"] > 0
    found = inspect(tmp_path / "step-00000003")
    assert (found.step, found.meta, found.is_sharded) == (3, {"at": 3}, True)
    if second == "none":
        read = [load_and_show(tmp_path, second, of_run)]
    else:
        read = on_ranks(load_and_show, tmp_path, second, of_run, num=num_then)
    for of_rank in read:
        assert_same(of_rank, written)


def test_each_rank_writes_its_share(tmp_path: Path) -> None:
    for strategy in ("ddp", "fsdp"):
        of_run = {"settings": {"r": 8}, "dims": (64, 96, 64)}
        on_ranks(save_midway, tmp_path / strategy, strategy, of_run)
        files = sorted((tmp_path / strategy / "step-00000003").glob("*.distcp"))
        sizes = [file.stat().st_size for file in files]
        assert len(files) == 2
        assert max(sizes) < 1.5 * min(sizes)


def save_without_the_sums_of_another(root: Path) -> tuple[str, bool]:
    model, optimizer = make("fsdp", {}, DIMS)
    write_data = sharded._Writer.write_data

    def forgetful(self: Any, *args: Any) -> Any:
        written = write_data(self, *args)
        if dist.get_rank() == 1:
            (self.folder / "sums-1.json").unlink()
        return written

    sharded._Writer.write_data = forgetful  # type: ignore[method-assign]
    checkpoints = writer(root)
    checkpoints.save(1, state_of(model, optimizer), {})
    try:
        checkpoints.wait()
    except UserError as error:
        return str(error), (root / "step-00000001").exists()
    return "", True


def test_a_file_whose_sum_did_not_arrive_makes_no_checkpoint(tmp_path: Path) -> None:
    for message, is_there in on_ranks(save_without_the_sums_of_another, tmp_path):
        assert "cannot write checkpoint step-00000001 (No such file or directory)" in message
        assert not is_there


def held_up(root: Path) -> tuple[int, bool]:
    """Steps done while a checkpoint could not be finished, and whether it had a name then."""
    model, optimizer = make("fsdp", {}, DIMS)
    checkpoints, gate = writer(root), root / "gate"
    publish = checkpoints.store.publish

    def late(*args: Any) -> None:
        while not gate.exists():
            time.sleep(0.01)
        publish(*args)

    checkpoints.store.publish = late  # type: ignore[method-assign]
    train(model, optimizer, range(2))
    checkpoints.save(2, state_of(model, optimizer), {})
    losses = train(model, optimizer, range(2, 8))
    has_name = (root / "step-00000002").exists()
    assert not checkpoints.has_failed
    dist.barrier()
    gate.touch()
    checkpoints.wait()
    return len(losses), has_name


def test_training_goes_on_while_it_is_written(tmp_path: Path) -> None:
    assert on_ranks(held_up, tmp_path) == [(6, False)] * 2
    assert inspect(tmp_path / "step-00000002").step == 2


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("code was run",)


def test_an_index_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run = {"settings": {"r": 3}, "dims": DIMS}
    on_ranks(save_midway, tmp_path, "fsdp", of_run)
    (tmp_path / "step-00000003" / INDEX).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(Unreadable, match=r"names builtins.print, which no index is made of"):
        load_and_show(tmp_path, "none", of_run)
    assert "code was run" not in capsys.readouterr().out


def test_a_state_is_taken_apart_and_put_together() -> None:
    state = {"a": [torch.ones(2), 3, (torch.zeros(1), "text")], "b": {0: {"step": torch.tensor(4)}, 1: None}}
    plain, tensors = taken_apart(state)
    assert sorted(tensors) == ["a/0", "a/2/0", "b/0/step"]
    json.dumps({"a": plain["a"]})  # nothing but plain data is left
    assert_same({"x": put_together(plain, tensors)["a"][0]}, {"x": torch.ones(2)})
    again = put_together(plain, tensors)
    assert again["a"][1:] == [3, (torch.zeros(1), "text")] and again["b"][1] is None
    assert again["b"][0]["step"] is tensors["b/0/step"]
