"""What a finished run leaves, and that it is what the run had."""

import contextlib
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from switchlora.data import load_corpus
from switchlora.machine.files import LOCK
from switchlora.training.evaluate import evaluate
from switchlora.training.folder import OPTIONS, claim_folder
from switchlora.training.loop import pretrain
from switchlora.training.options import PretrainOptions

MakeOptions = Callable[..., PretrainOptions]

RESULT_KEYS = {
    "method", "seed", "config", "validation_loss", "validation_perplexity", "bits_per_byte", "steps", "tokens",
    "trainable_parameters", "total_parameters", "tokens_per_second", "peak_memory_bytes", "wall_seconds",
    "switches_requested", "switches_done", "world_size", "parallel", "bytes_per_rank",
    "threads", "versions", "hardware", "source",
}  # fmt: skip


def test_everything_is_there_and_the_result_came_last(tmp_path: Path, options: MakeOptions) -> None:
    result = pretrain(options(tmp_path / "run"))
    names = ["model.safetensors", "config.json", "tokenizer.json", "README.md", "loss.png", "sample.txt", "result.json"]
    times = [(tmp_path / "run" / name).stat().st_mtime_ns for name in names]
    assert times.index(max(times)) == names.index("result.json")
    assert times[0] <= times[3] <= times[-1]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result.keys() >= RESULT_KEYS
    assert result["tokens"] == 12 * 4 * 32
    assert result["switches_requested"] >= result["switches_done"] > 0
    assert result["validation_perplexity"] == pytest.approx(math.exp(result["validation_loss"]))
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "loss.png" in card and "from_pretrained" in card
    assert (tmp_path / "run" / "sample.txt").read_text().strip()


def test_products_by_onednn_make_the_same_run(
    tmp_path: Path, options: MakeOptions, start: Callable[..., subprocess.Popen[str]]
) -> None:
    run = start(tmp_path / "onednn", cpu_products="onednn")
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    ours, theirs = json.loads((tmp_path / "onednn" / "result.json").read_text()), pretrain(options(tmp_path / "torch"))
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-3)
    assert [result["hardware"]["cpu_products"] for result in (ours, theirs)] == ["onednn", None]
    assert "eager" not in (tmp_path / "onednn" / "config.json").read_text()


def test_overwrite_removes_all_that_a_run_leaves(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "run", track="tensorboard"))
    again = options(tmp_path / "run", overwrite=True)
    claim_folder(again).start(again)
    assert {item.name for item in (tmp_path / "run").iterdir()} == {OPTIONS, LOCK}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["switchlora", "switchlora-polar", "full"])
def test_the_exported_model_is_bitwise_the_trained_one(
    tmp_path: Path, options: MakeOptions, cache: Path, method: str, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chosen = options(tmp_path / "run", method=method, dtype=dtype)
    result = pretrain(chosen)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert AutoTokenizer.from_pretrained(tmp_path / "run").eos_token_id == model.config.eos_token_id
    corpus = load_corpus(
        chosen.data, chosen.tokenizer, seq_len=32, num_sequences=48, vocab_size=None, cache_dir=cache, log=print
    )
    loss = evaluate(
        model,
        corpus.valid,
        batch_size=4,
        max_tokens=PretrainOptions().eval_tokens,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext(),
    )
    assert loss == result["validation_loss"]


def test_metrics_hold_each_step_once(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    for name in ("loss", "lr", "other_lr", "grad_norm", "tokens_per_second", "peak_memory_bytes", "switches_done"):
        assert all(isinstance(row[name], int | float) for row in rows), name
    assert [row["step"] for row in rows if "validation_loss" in row] == [6, 12]
    assert rows[0]["lr"] == pytest.approx(0.01)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_accumulation_gives_the_same_run(tmp_path: Path, options: MakeOptions) -> None:
    whole = pretrain(options(tmp_path / "whole"))
    parts = pretrain(options(tmp_path / "parts", micro_batch_size=1))
    assert parts["validation_loss"] == pytest.approx(whole["validation_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora"},
        {"dtype": "bf16-mixed"},
        {"order": "random"},
        {"candidates": "fresh"},
        {"init_lora_weights": "lora"},
        {"checkpoint_activations": True},
        {"target_modules": ("q_proj", "down_proj")},
        {"decay_ratio": None, "schedule": "linear", "weight_decay": 0.1, "clip": 0.0},
    ],
    ids=str,
)
def test_every_kind_of_run_learns(tmp_path: Path, options: MakeOptions, changes: dict[str, object]) -> None:
    result = pretrain(options(tmp_path / "run", steps=30, **changes))
    assert result["validation_loss"] < math.log(300) - 0.2


def test_a_warm_start_counts_in_the_bytes_of_a_run(tmp_path: Path, options: MakeOptions) -> None:
    """ReLoRA's first steps hold full rank's gradients and moments, its last do not."""
    own = {"method": "relora", "steps": 4, "warmup": 0, "eval_every": 4, "save_every": 4}
    cold = pretrain(options(tmp_path / "cold", **own))["bytes_by_kind"]
    warm = pretrain(options(tmp_path / "warm", **own, warm_start_steps=2))["bytes_by_kind"]
    for kind in ("gradient_bytes", "optimizer_device_bytes"):
        assert warm[kind] > cold[kind]


def test_same_options_same_bits_other_seed_other_bits(tmp_path: Path, options: MakeOptions) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(options(tmp_path / name, seed=seed))
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_a_dry_run_names_what_has_no_use(
    tmp_path: Path, options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(options(tmp_path / "run", method="full", fused_backward=True, interval=20.0, dry_run=True))
    out = capsys.readouterr().out
    for flag in ("--fused-backward", "--interval"):
        assert f"note: {flag} has no use with --method full\n" in out


def test_dry_run_needs_no_data_and_writes_nothing(
    tmp_path: Path, options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(options(tmp_path / "run", data=("no/such/file.txt",), dry_run=True))
    assert "trainable parameters" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_largest_seed_and_files_that_others_may_read(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "run", seed=2**63 - 1, steps=3))
    modes = {path.stat().st_mode for path in (tmp_path / "run").glob("*.*") if path.name != ".lock"}
    assert len(modes) == 1


def test_a_tokenizer_with_gaps_in_its_ids(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "run", steps=3))
    tokenizer = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["id"] = tokenizer["model"]["vocab"]["<|endoftext|>"] = 500
    (tmp_path / "gaps").mkdir()
    (tmp_path / "gaps" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "gaps" / "tokenizer_config.json").write_bytes((tmp_path / "run" / "tokenizer_config.json").read_bytes())
    pretrain(options(tmp_path / "far", steps=3, tokenizer=str(tmp_path / "gaps")))
    assert json.loads((tmp_path / "far" / "config.json").read_text())["vocab_size"] == 501
