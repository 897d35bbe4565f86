"""Commands on an accelerator: they use it, and a run that was killed ends with the bits of one that was not."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import waiting
from tests.accelerator import pretend_gpu
from tests.distributed.runs import as_words, assert_same_bits
from tests.integration.pretrain.conftest import MODEL, RUN, write_corpus

# Smaller than elsewhere, for kernels are interpreted.
SMALLER = {**MODEL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
ON_GPU = {
    **RUN, "r": 4, "batch_size": 2, "seq_len": 16, "save_every": 2, "eval_every": 4, "eval_tokens": 64, "device": "cuda"
}  # fmt: skip
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start(with_gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a command in a process that has a GPU: `start("pretrain", name=value, ...)`. At the end none is left."""
    processes = []
    environment = with_gpu | {"SWITCHLORA_CACHE": str(tmp_path_factory.mktemp("cache"))}

    def started(command: str, kernels: bool = True, **values: Any) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "switchlora", command, *as_words(values)]
        settings = environment | {pretend_gpu.SKIP: "" if kernels else "1"}
        processes.append(
            subprocess.Popen(words, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a small run, but for its output folder."""
    folder = tmp_path_factory.mktemp("of the run")
    write_corpus(folder)
    (folder / "config.json").write_text(json.dumps(SMALLER))
    return {"data": str(folder / "*.txt"), "model": str(folder / "config.json"), **ON_GPU}


def done(process: "subprocess.Popen[str]") -> str:
    """What it printed, once it has ended well."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "hazards" not in errors
    return out


@pytest.mark.parametrize("settings", [{}, {"dtype": "bf16", "factor_dtype": "bf16", "moment_dtype": "bf16"}], ids=str)
def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path, start: Start, run: dict[str, Any], settings) -> None:
    options = {**run, **settings}
    whole, killed = (start("pretrain", output=tmp_path / name, **options) for name in ("whole", "killed"))
    lines = tmp_path / "killed" / "metrics.jsonl"
    waiting.wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= 5, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not (tmp_path / "killed" / "result.json").exists()
    assert "going on after step" in done(start("pretrain", output=tmp_path / "killed", **options))
    done(whole)
    assert_same_bits(tmp_path / "killed", tmp_path / "whole")
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["hardware"]["gpu"] == "pretend GPU"
    assert result["peak_memory_bytes"] > 0
    assert "main" in done(
        start("generate", checkpoint=tmp_path / "whole", prompt="main", max_new_tokens=4, device="cuda")
    )


def test_a_benchmark(tmp_path: Path, start: Start) -> None:
    methods = ("full", "switchlora", "switchlora-fused", "lora-adapter")
    table = done(start(
        "bench", kernels=False, model="tiny", num_layers=1, sequences=1, seq_len=16, steps=6, ranks=8, methods=methods,
        dtype="bf16", moments="fp32", checkpoint_activations=True, peak_memory=True, peak_tflops=989, device="cuda",
        output=tmp_path / "bench.json",
    ))  # fmt: skip
    assert all(method in table for method in methods)
    (workload,) = json.loads((tmp_path / "bench.json").read_text())["workloads"]
    peaks = {row["method"]: row["peak_bytes"] for row in workload["contestants"]}
    assert peaks["switchlora-fused"] <= peaks["switchlora"] < peaks["full"]
