"""`switchlora plan`: what fits, what is refused, and the table in docs/plan.md."""

import json
from pathlib import Path

import pytest

from switchlora.cli import main
from switchlora.errors import UserError
from switchlora.methods import METHODS, method_named
from switchlora.planning.estimate import plan_of
from switchlora.planning.options import PlanOptions
from switchlora.planning.outline import outline

SMALL = {"model": "60m", "batch_size": 64, "seq_len": 64}


def test_the_largest_sizes_fit_and_larger_ones_do_not() -> None:
    options = PlanOptions(**SMALL, gpus=2, parallel="fsdp", r=64, micro_batch_size=1)
    sizes = [plan_of(PlanOptions.merge({**options.to_dict(), "r": r})).memory.device_bytes for r in (64, 256)]
    options = PlanOptions.merge({**options.to_dict(), "gpu_memory": sum(sizes) // 2})
    found = plan_of(options)
    assert found.fits
    assert found.largest_rank is not None and 64 < found.largest_rank < 511
    assert found.largest_micro_batch is not None and found.largest_micro_batch > 1

    def fits(r: int, micro: int) -> bool:
        changed = {**options.to_dict(), "r": r, "micro_batch_size": micro}
        return plan_of(PlanOptions.merge(changed)).fits

    assert fits(found.largest_rank, 1)
    assert not fits(found.largest_rank + 1, 1)
    assert fits(64, found.largest_micro_batch)
    if found.largest_micro_batch < 32:
        assert not fits(64, 2 * found.largest_micro_batch)


@pytest.mark.parametrize(("method", "r"), [
    ("lora", 1), ("lora", 2), ("lora", 64), ("lora", 300), ("lora", 511),
    *(("switchlora", r) for r in (2, 3, 4, 300, 511)),
])  # fmt: skip
def test_the_largest_rank_does_not_depend_on_the_rank_that_was_asked_for(method: str, r: int) -> None:
    found = plan_of(PlanOptions(**SMALL, method=method, gpu_memory="600MB", r=r, micro_batch_size=1))
    expected = plan_of(PlanOptions(**SMALL, method=method, gpu_memory="600MB", r=128, micro_batch_size=1))
    assert found.largest_rank == expected.largest_rank
    assert expected.largest_rank is not None and 1 < expected.largest_rank < 511


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_planned(method: str) -> None:
    found = plan_of(PlanOptions(**SMALL, method=method, micro_batch_size=1))
    assert found.fits
    assert (found.largest_rank is None) == ("r" not in method_named(method).uses)
    if found.largest_rank is not None:
        assert 128 < found.largest_rank < 512


@pytest.mark.parametrize(("dtype", "slower"), [("bf16", 2), ("bf16-mixed", 989 / 67), ("fp32", 1)])
@pytest.mark.parametrize("method", ["switchlora", "switchlora-polar", "switchlora-muon"])
def test_the_weight_update_counts_at_its_own_rate(method: str, dtype: str, slower: float) -> None:
    """And what is orthogonalised at that of the model's products."""
    options = PlanOptions(
        **SMALL, method=method, r=64, dtype=dtype, micro_batch_size=64, peak_tflops=100.0, utilisation=0.5
    )
    drawn = outline(options.run())
    of_update = 8 * drawn.block.update_flops + drawn.rest.update_flops
    assert of_update == 8 * 4 * 64 * (4 * 512 * 512 + 3 * 512 * 1376)
    assert (drawn.block.orthogonalise_flops > 0) == (method != "switchlora")
    found = plan_of(options)
    assert found.step_seconds[0] * 50e12 == pytest.approx(found.flops + (slower - 1) * of_update)


def test_what_does_not_fit_at_all() -> None:
    found = plan_of(PlanOptions(**SMALL, gpu_memory="100MB"))
    assert not found.fits
    assert found.largest_micro_batch is None and found.largest_rank is None


def test_a_plan_of_seventy_billion_parameters_on_a_thousand_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--model", "70b", "--gpus", "1024", "--parallel", "fsdp", "--gpu-memory", "80GB"]
    words += ["--batch-size", "1024", "--micro-batch-size", "1", "--output", str(tmp_path / "plan.json")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "bf16 with bf16 factors, 1,024 devices, fsdp" in out  # which sums gradients of one dtype only
    assert "it fits" in out and "seconds, estimated" in out
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert kept["options"]["model"] == "70b"
    memory = kept["plan"]["memory"]
    assert memory["weight_bytes"] < 1e9 < memory["gathered_bytes"]
    assert kept["plan"]["largest_rank"] > 1024  # where k_proj and v_proj, which are narrower, stay plain


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "7B."], ["--model 7B.", "7b"]),
        (["--gpus", "0"], ["--gpus 0", "1"]),
        (["--gpu-memory", "much"], ["--gpu-memory much", "80GB"]),
        (["--gpus", "3", "--batch-size", "64"], ["--batch-size 64", "multiple of the 3 devices", "63"]),
        (["--gpus", "2", "--batch-size", "64", "--micro-batch-size", "5"], ["--batch-size 64", "--micro-batch-size 4"]),
        (["--gpus", "2", "--batch-size", "60", "--micro-batch-size", "4"], ["--micro-batch-size 4", "30", "use 3"]),
        (["--gpus", "2", "--parallel", "none"], ["--parallel none", "ddp or fsdp"]),
        (["--parallel", "fsdp"], ["--parallel fsdp", "more than one device"]),
        (["--model", "tiny", "--r", "128"], ["--r 128"]),
        (["--method", "muon", "--gpus", "2", "--parallel", "fsdp"], ["--method muon", "whole matrices", "ddp"]),
        (
            ["--method", "switchlora-polar", "--gpus", "2", "--parallel", "fsdp"],
            ["--method switchlora-polar", "needs whole matrices", "--parallel ddp"],
        ),
        (["--method", "switchlora-moon"], ["--method switchlora-moon", "switchlora-muon"]),
        (["--pretrain", "r=8"], ["--pretrain r", "--r"]),
        (["--gpus", "2", "--pretrain", "fused_backward=true", "clip=0"], ["--fused-backward", "each of 2 devices"]),
        (["--gpus", "2", "--parallel", "fsdp", "--pretrain", "grad_compression=bf16"], ["--grad-compression bf16"]),
        (["--gpus", "2", "--parallel", "fsdp", "--pretrain", "factor_dtype=fp32"], ["FSDP2 sums gradients of one"]),
        (["--output", "/proc/plan/x.json"], ["nothing can be written in /proc"]),
        (["--method", "relora", "--pretrain", "warm_start_steps=9"], ["warm_start_steps", "--method full"]),
        (["--pretrain", "moment_dtype=bf17"], ["moment", "bf17"]),
        (["--utilisation", "40"], ["--utilisation 40"]),
    ],
)
def test_mistakes_are_one_line(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("24GiB", 24 * 2**30), ("1.5TB", 15 * 10**11), ("4096", 4096), (12, 12)]
)
def test_sizes(text: object, size: int) -> None:
    assert PlanOptions(gpu_memory=text).gpu_memory == size  # type: ignore[arg-type]


def test_an_empty_size_is_refused() -> None:
    with pytest.raises(UserError, match="gpu-memory"):
        PlanOptions(gpu_memory="")  # type: ignore[arg-type]
