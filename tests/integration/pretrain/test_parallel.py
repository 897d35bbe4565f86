"""`--parallel ddp|fsdp`: two processes give what one gives, write once, and refuse in one line."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from switchlora.errors import UserError
from switchlora.training.loop import pretrain
from switchlora.training.options import PretrainOptions
from switchlora.training.parallel import no_sync
from switchlora.training.resolve import resolve
from switchlora.training.run import check_model
from tests.distributed.ranks import on_ranks, warm
from tests.distributed.runs import as_words, torchrun_words

warm()
MakeOptions = Callable[..., PretrainOptions]


def pretrain_on_a_rank(options: PretrainOptions) -> dict[str, Any]:
    return pretrain(options)


def losses_of(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_run(ours: Path, one: Path) -> None:
    """The issue's tolerances for a LLaMA in fp32."""
    assert losses_of(ours) == pytest.approx(losses_of(one), abs=1e-5)
    weights = weights_of(one)
    assert weights_of(ours).keys() == weights.keys()
    for name, tensor in weights_of(ours).items():
        assert float((tensor - weights[name]).abs().max()) <= 1e-4, name


@pytest.mark.parametrize(("method", "steps"), [("switchlora", 50), ("switchlora-muon", 6), ("full", 12)])
def test_two_processes_are_one(tmp_path: Path, options: MakeOptions, method: str, steps: int) -> None:
    changes = {"steps": steps, "method": method, "save_every": 0}
    one = pretrain(options(tmp_path / "none", **changes))
    for strategy in ("ddp", "fsdp"):
        on_ranks(pretrain_on_a_rank, options(tmp_path / strategy, parallel=strategy, **changes), group=False)
        result = json.loads((tmp_path / strategy / "result.json").read_text())
        assert (result["parallel"], result["world_size"]) == (strategy, 2)
        assert result["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)
        assert result["total_parameters"] == one["total_parameters"]
        assert_same_run(tmp_path / strategy, tmp_path / "none")
        whole = one["bytes_per_rank"][0]
        share = 0.5 if strategy == "fsdp" else 1.0
        for of_rank in result["bytes_per_rank"]:
            for kind in ("weight_bytes", "gradient_bytes", "candidate_host_bytes"):
                assert of_rank[kind] == share * whole[kind], kind
            assert of_rank["optimizer_device_bytes"] <= share * whole["optimizer_device_bytes"] + 3000  # counters


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_micro_batches_and_activation_checkpoints(tmp_path: Path, options: MakeOptions, strategy: str) -> None:
    changes = {"checkpoint_activations": True, "micro_batch_size": 1, "steps": 6}
    pretrain(options(tmp_path / "none", **changes))
    on_ranks(pretrain_on_a_rank, options(tmp_path / "two", parallel=strategy, **changes), group=False)
    assert_same_run(tmp_path / "two", tmp_path / "none")


def test_bf16_mixed_under_fsdp_learns_as_autocast_does(tmp_path: Path, options: MakeOptions) -> None:
    one = pretrain(options(tmp_path / "none", dtype="bf16-mixed"))
    chosen = options(tmp_path / "two", dtype="bf16-mixed", parallel="fsdp")
    two = on_ranks(pretrain_on_a_rank, chosen, group=False)[0]
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=0.02)


def test_all_in_bf16_under_fsdp(tmp_path: Path, options: MakeOptions) -> None:
    chosen = options(tmp_path / "two", dtype="bf16", factor_dtype="bf16", parallel="fsdp")
    two = on_ranks(pretrain_on_a_rank, chosen, group=False)[0]
    one = pretrain(options(tmp_path / "one", dtype="bf16", factor_dtype="bf16"))
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=0.02)


def test_two_dtypes_are_found_before_the_data_are_read(tmp_path: Path, options: MakeOptions) -> None:
    chosen = options(tmp_path / "two", dtype="bf16", factor_dtype="fp32", parallel="fsdp")
    with pytest.raises(UserError, match="FSDP2 sums gradients of one dtype"):
        check_model(resolve(chosen))


def test_a_compiled_model_sums_its_gradients_once_a_step() -> None:
    asked = []

    class Wrapped(torch.nn.parallel.DistributedDataParallel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def no_sync(self) -> Any:
            asked.append(self)
            return contextlib.nullcontext()

    wrapped = Wrapped()
    for model in (wrapped, torch.compile(wrapped), torch.nn.Linear(2, 2)):
        with no_sync(model):  # type: ignore[arg-type]
            pass
    assert asked == [wrapped, wrapped]


def test_a_finished_run_is_described_as_it_was(tmp_path: Path, options: MakeOptions) -> None:
    """Killed after its last step, and ended by one process; of the files of several none is left."""
    on_ranks(pretrain_on_a_rank, options(tmp_path / "run", parallel="fsdp", r=7), group=False)
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").unlink()
    after = pretrain(options(tmp_path / "run", parallel="none", r=7))
    first, second = before["bytes_per_rank"]
    assert first["optimizer_device_bytes"] > second["optimizer_device_bytes"]  # seven rows, of which one has four
    for key in ("parallel", "world_size", "bytes_per_rank", "bytes_by_kind", "traffic_bytes"):
        assert after[key] == before[key], key
    assert before["traffic_bytes"] and before["world_size"] == 2
    assert [path.name for path in (tmp_path / "run").glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("method", ["switchlora", "full"])
@pytest.mark.parametrize(("first", "second"), [("none", "fsdp"), ("fsdp", "ddp"), ("ddp", "none")])
def test_a_run_goes_on_with_another_strategy(
    tmp_path: Path, options: MakeOptions, first: str, second: str, method: str
) -> None:
    """A checkpoint of step 8 of 12, from one strategy, is finished by another."""
    goes_on_with_another(tmp_path, options, first, second, method=method)


@pytest.mark.parametrize(("first", "second"), [("ddp", "ddp"), ("ddp", "none"), ("none", "ddp")])
def test_so_does_one_whose_weights_have_no_state(tmp_path: Path, options: MakeOptions, first: str, second: str) -> None:
    goes_on_with_another(tmp_path, options, first, second, method="switchlora-polar")


@pytest.mark.parametrize(("first", "second"), [("none", "fsdp"), ("fsdp", "none")])
def test_so_does_one_whose_embedding_one_whose_embedding_is_its_head(
    tmp_path: Path, options: MakeOptions, first: str, second: str, model_config: Path
) -> None:
    (tmp_path / "tied").mkdir()
    config = json.loads(model_config.read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "tied" / "config.json").write_text(json.dumps(config))
    goes_on_with_another(tmp_path, options, first, second, model=str(tmp_path / "tied"))
    assert "lm_head.weight" not in weights_of(tmp_path / "run")


def goes_on_with_another(tmp_path: Path, options: MakeOptions, first: str, second: str, **changes: Any) -> None:
    pretrain(options(tmp_path / "whole", **changes))
    _start(options(tmp_path / "run", parallel=first, keep=9, **changes), first)
    (tmp_path / "run" / "result.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name > "step-00000008":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    _start(options(tmp_path / "run", parallel=second, keep=9, **changes), second)
    assert len(losses_of(tmp_path / "run")) == 12
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def _start(options: PretrainOptions, strategy: str) -> None:
    if strategy == "none":
        pretrain(options)
    else:
        on_ranks(pretrain_on_a_rank, options, group=False)


@pytest.mark.parametrize(
    ("environment", "changes", "parts"),
    [
        ({}, {"parallel": "fsdp"}, ["--parallel fsdp", "needs processes", "torchrun --nproc-per-node N"]),
        ({}, {"parallel": "ddp"}, ["--parallel ddp", "needs processes"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"parallel": "none"}, ["--parallel none", "2 processes", "ddp or fsdp"]),
        ({"RANK": "0", "WORLD_SIZE": "3"}, {}, ["--batch-size 4", "multiple of the 3 processes", "--batch-size 3"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"micro_batch_size": 4}, ["--micro-batch-size 4", "share", "use 2"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"fused_backward": True, "clip": 0.0}, ["--fused-backward", "leave it out"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"parallel": "fsdp", "method": "muon"}, ["--method muon", "--parallel ddp"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, ["MASTER_ADDR, MASTER_PORT", "are not set", "torchrun"]),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, ["accelerate's FSDP", "--parallel fsdp"]),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, ["DeepSpeed is not supported", "--parallel fsdp"]),
    ],
)
def test_what_a_launch_cannot_give(
    tmp_path: Path,
    options: MakeOptions,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    changes: dict[str, Any],
    parts: list[str],
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        pretrain(options(tmp_path / "run", **changes))
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)
    assert not (tmp_path / "run").exists()


def torchrun(values: dict[str, Any], output: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    words = [*torchrun_words(), "--output", str(output), *as_words({**values, **changes})]
    return subprocess.run(words, capture_output=True, text=True, timeout=180, env=dict(os.environ))


def test_torchrun_trains_and_the_first_process_alone_talks(tmp_path: Path, values: dict[str, Any]) -> None:
    done = torchrun(values, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation perplexity") == 1
    assert done.stdout.count("linear layers converted") == 1
    assert done.stderr.count("step 12/12") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["parallel"] == "ddp"  # the default there


def test_accelerate_launches_the_same_command(tmp_path: Path, values: dict[str, Any]) -> None:
    """--multi_gpu is accelerate's word for torchrun's processes, GPU or not; with --cpu it starts one alone."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    words = [sys.executable, "-m", *launch, "-m", "switchlora", "pretrain", "--output", str(tmp_path / "run")]
    words += as_words({**values, "parallel": "fsdp", "steps": 4})
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["parallel"], result["world_size"], result["steps"]) == ("fsdp", 2, 4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_compiled_processes_learn_as_plain_ones(
    tmp_path: Path, options: MakeOptions, values: dict[str, Any], strategy: str
) -> None:
    """Not forked: what an earlier test compiled here leaves threads, and a fork of them waits for ever."""
    pretrain(options(tmp_path / "none", steps=4, save_every=0))
    changes = {"parallel": strategy, "compile": True, "steps": 4, "save_every": 0}
    done = torchrun(values, tmp_path / "two", **changes)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "two", tmp_path / "none")


def test_a_mistake_that_the_first_process_finds_ends_all_with_one_line(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "run").write_text("a file")
    done = torchrun(values, tmp_path / "run", parallel="fsdp")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("switchlora: error")] == [
        f"switchlora: error: --output {tmp_path / 'run'}: is a file; give a folder"
    ]
    assert "switchlora/" not in done.stderr  # of tracebacks, there is torchrun's own alone
    exit_codes = set(re.findall(r"exitcode  : (-?\d+)", done.stderr))
    assert {"2"} <= exit_codes <= {"2", str(-signal.SIGTERM)}  # torchrun may stop the other before it ends itself
