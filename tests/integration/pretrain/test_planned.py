"""`switchlora plan` against what two processes hold and hand to collectives: to the byte."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from switchlora.planning.estimate import memory_with, plan_of
from switchlora.planning.options import PlanOptions
from switchlora.planning.outline import outline
from switchlora.training.options import PretrainOptions
from tests.distributed.ranks import on_ranks, warm
from tests.integration.pretrain.conftest import MODEL
from tests.integration.pretrain.test_parallel import pretrain_on_a_rank

warm()
MESH_BYTES = 16  # the numbers of the ranks, which the optimizer holds under fsdp


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("method", "tied"), [("full", False), ("switchlora", False), ("switchlora-muon", False), ("switchlora", True)]
)
def test_memory_and_traffic_of_two_processes(
    tmp_path: Path, options: Callable[..., PretrainOptions], method: str, tied: bool, strategy: str
) -> None:
    """Rows and columns that two do not divide: 33 in the MLP, r = 7."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**MODEL, "intermediate_size": 33, "tie_word_embeddings": tied}))
    same = {"model": str(config), "method": method, "batch_size": 4, "micro_batch_size": 1, "seq_len": 32}
    same |= {} if method == "full" else {"r": 7}
    chosen = options(tmp_path / "run", **{**{"r": None}, **same}, parallel=strategy, steps=4, eval_tokens=500)
    on_ranks(pretrain_on_a_rank, chosen, group=False)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    asked = PlanOptions(**same, dtype="fp32", gpus=2, parallel=strategy, pretrain={"interval": 10.0})
    plan = plan_of(asked)
    assert plan.num_micro_batches == 2
    for rank, held in enumerate(result["bytes_per_rank"]):
        if rank == 0:  # which never has less than another
            assert plan.memory.weight_bytes == held["weight_bytes"]
            assert plan.memory.gradient_bytes == held["gradient_bytes"]
            assert plan.memory.candidate_host_bytes == held["candidate_host_bytes"]
            assert 0 <= held["optimizer_device_bytes"] - plan.memory.optimizer_bytes <= MESH_BYTES
        assert held["weight_bytes"] <= plan.memory.weight_bytes
    counted, planned = result["traffic_bytes"], dict(plan.traffic_bytes)
    if strategy == "fsdp" and method != "full":  # the vectors that are switched in this very step
        planned.pop("all_to_all"), counted.pop("all_to_all", None)
    assert {kind: round(num) for kind, num in planned.items()} == counted


def test_under_ddp_whole_gradients_travel_where_weights_follow_them(
    tmp_path: Path, options: Callable[..., PretrainOptions]
) -> None:
    test_memory_and_traffic_of_two_processes(tmp_path, options, "switchlora-polar", False, "ddp")


def test_one_outline_serves_any_number_of_devices() -> None:
    asked = PlanOptions(model="60m", gpus=8, parallel="fsdp", dtype="fp32", batch_size=8)
    drawn = outline(asked.run(micro_batch_size=1))
    assert memory_with(asked, drawn) == plan_of(asked).memory
