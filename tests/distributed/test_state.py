"""The state of sharded parameters goes through torch.distributed.checkpoint, also to another number of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from switchlora import SwitchLora
from switchlora.errors import UserError
from tests.distributed.ranks import on_ranks
from tests.distributed.sharded import assert_close, everything, loss_of, make, train

OF_RUN: dict[str, Any] = {"settings": {}, "dims": (7, 13, 9)}


def state_of(model: nn.Module, optimizer: SwitchLora) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def run_half(parallel: str, folder: Path) -> dict[str, Any]:
    """Six steps, a checkpoint, and six more."""
    model, optimizer = make(parallel, **OF_RUN)
    train(model, optimizer, range(6))
    dcp.save(state_of(model, optimizer), checkpoint_id=folder)
    train(model, optimizer, range(6, 12))
    return everything(model, optimizer)


def go_on(parallel: str, folder: Path) -> dict[str, Any]:
    """The last six steps, from the checkpoint."""
    model, optimizer = make(parallel, **OF_RUN)
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    train(model, optimizer, range(6, 12))
    return everything(model, optimizer)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize(
    ("first", "second"),
    [("fsdp", "fsdp"), ("fsdp", "none"), ("none", "fsdp"), ("ddp", "fsdp")],
)
def test_a_distributed_checkpoint_goes_on(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "checkpoint"
    whole = run_half(first, folder) if first == "none" else on_ranks(run_half, first, folder)[0]
    resumed = go_on(second, folder) if second == "none" else on_ranks(go_on, second, folder)[0]
    assert_close(resumed, whole, 1e-10)


def test_a_step_on_gathered_parameters_is_refused() -> None:
    for message in on_ranks(step_after_a_forward_pass):
        assert "layer 0 was sharded when SwitchLora was made" in message
        assert "reshard()" in message


def step_after_a_forward_pass() -> str:
    model, optimizer = make("fsdp", **OF_RUN)
    loss_of(model, 0).backward()
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            layer.unshard()  # type: ignore[operator]
    with pytest.raises(UserError) as refused:
        optimizer.step()
    return str(refused.value)


def test_other_ways_to_shard_are_refused() -> None:
    for message in on_ranks(columns_sharded):
        assert "only rows can be shared out" in message


def columns_sharded() -> str:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    from switchlora import convert
    from tests.numerics.cases import chain, config_of

    model = chain((8, 16, 12))
    convert(model, config_of())
    fully_shard(model, shard_placement_fn=lambda p: Shard(1) if p.dim() == 2 and p.shape[1] % 2 == 0 else None)
    with pytest.raises(UserError) as refused:
        SwitchLora(model, config_of(), total_steps=10, lr=0.1)
    return str(refused.value)


def test_hsdp_keeps_copies_of_shards() -> None:
    """A mesh of two copies of one shard each: the ranks that share rows out are one of its dimensions."""
    first, second = on_ranks(hybrid)
    assert_close(first, second, 0.0)


def hybrid() -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from switchlora import convert
    from tests.numerics.cases import chain, config_of

    torch.manual_seed(3)
    model = chain((7, 13, 9), torch.float64)
    convert(model, config_of())
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards")))
    optimizer = SwitchLora(model, config_of(), total_steps=100, lr=1e-2)
    train(model, optimizer, range(4))
    return everything(model, optimizer)
