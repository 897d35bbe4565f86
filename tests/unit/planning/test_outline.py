"""Two layers, multiplied, are the whole model: its bytes, what autograd saves, its FLOPs."""

import dataclasses

import pytest
import torch

from switchlora.flops import count_flops, count_forward_backward
from switchlora.methods import METHODS
from switchlora.planning.options import PlanOptions
from switchlora.planning.outline import outline
from switchlora.planning.shares import memory_of
from switchlora.training.dry_run import plan as dry_run
from switchlora.training.models import build_model

SHARDED = [name for name, method in METHODS.items() if method.shards]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [*SHARDED, "switchlora-polar", "muon", "relora"])
@pytest.mark.parametrize("model", ["tiny", "60m"])
def test_bytes_are_those_of_a_model_that_is_built(model: str, method: str, dtype: str) -> None:
    """To the byte; the dry run's are those that `switchlora.memory` measures (its own tests)."""
    run = PlanOptions(model=model, method=method, dtype=dtype, batch_size=2).run()
    ours = memory_of(outline(run), 1, "none", checkpoint_activations=False, gathered_item_bytes=None)
    built = dry_run(run)
    assert ours.weight_bytes == built.weight_bytes
    assert ours.gradient_bytes == built.gradient_bytes
    assert ours.optimizer_bytes == built.optimizer_bytes
    assert ours.candidate_device_bytes == built.candidate_device_bytes
    assert ours.candidate_host_bytes == built.candidate_host_bytes


def test_gradients_are_those_of_one_layer_where_each_is_stepped_in_the_backward_pass() -> None:
    asked = PlanOptions(model="tiny", method="switchlora-polar", batch_size=2)
    run = asked.run(fused_backward=True, clip=0.0)
    ours = memory_of(outline(run), 1, "none", checkpoint_activations=False, gathered_item_bytes=None)
    assert ours.gradient_bytes == dry_run(run).gradient_bytes < dry_run(asked.run()).gradient_bytes / 4


def test_what_autograd_saves_and_what_runs() -> None:
    """Against a real forward pass of all four layers of tiny, with real numbers."""
    run = PlanOptions(model="tiny", dtype="fp32", batch_size=3, seq_len=40).run()
    drawn = outline(run)
    model = build_model("tiny", seed=0, seq_len=40)
    METHODS["switchlora"].prepare(model, run)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(3, 40, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    measured = sum(storage.nbytes() for storage in saved.values())
    assert loss.requires_grad
    planned = 4 * drawn.block.saved_bytes + drawn.rest.saved_bytes
    assert planned == measured
    assert 4 * drawn.block.flops + drawn.rest.flops == count_forward_backward(model, 3, 40)


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("method", ["switchlora", "switchlora-polar", "switchlora-muon", "muon", "full"])
def test_products_of_the_optimizer(method: str, alternate: bool) -> None:
    """Against those that two steps of it run on all four layers of tiny: where A and B move in turn, the mean."""
    run = PlanOptions(model="tiny", method=method, batch_size=1).run(alternate=alternate)
    drawn = outline(run)
    model = build_model("tiny", seed=0, seq_len=16)
    METHODS[method].prepare(model, run)
    optimizer = METHODS[method].optimizer(model, run)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    counted = count_flops(optimizer.step) + count_flops(optimizer.step)
    parts = 4 * [drawn.block] + [drawn.rest]
    assert 2 * sum(part.update_flops + part.orthogonalise_flops for part in parts) == counted


def test_checkpointed_activations_are_fewer() -> None:
    drawn = outline(PlanOptions(model="60m", batch_size=4).run())
    kept, recomputed = (
        memory_of(drawn, 1, "none", checkpoint_activations=flag, gathered_item_bytes=None).activation_bytes
        for flag in (False, True)
    )
    assert recomputed < 0.6 * kept  # the head's logits are most of what is left


def test_a_larger_model_is_more_blocks() -> None:
    run = PlanOptions(model="7b", batch_size=1, seq_len=16).run()
    drawn = outline(run)
    assert drawn.num_layers == 32
    weights = memory_of(drawn, 1, "none", checkpoint_activations=False, gathered_item_bytes=None).weight_bytes
    factors = sum(32 * (one.m + one.n) * one.r * 4 for one in drawn.block.factors)
    assert (weights - factors) / 2 == 6_738_415_616  # LLaMA 7B
    assert dataclasses.replace(drawn, num_layers=64) != drawn
