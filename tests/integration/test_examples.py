"""The programs in examples/ run, and the one under transformers.Trainer resumes bit for bit."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from switchlora import SwitchLora, SwitchLoraLinear, to_dense

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def hf_trainer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hf_trainer", EXAMPLES / "hf_trainer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "plain_loop.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines if line.startswith("step")]
    assert losses[-1] < losses[0] / 4
    assert "SwitchLoraLinear" not in "".join(lines)


def test_trainer_resumes_bitwise(hf_trainer: ModuleType, tmp_path: Path) -> None:
    whole = hf_trainer.make_trainer(tmp_path / "whole", steps=16, save_steps=8)
    whole.train()
    resumed = hf_trainer.make_trainer(tmp_path / "resumed", steps=16, save_steps=100)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    losses = [
        {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row} for trainer in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert losses[0][16] < losses[0][1]


def test_trainer_switches_and_leaves_a_dense_model(hf_trainer: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trainer = hf_trainer.make_trainer(tmp_path, steps=16, save_steps=100)
    optimizer = trainer.optimizer
    assert isinstance(optimizer, SwitchLora)
    trainer.train()
    assert optimizer.stats.total.switches_done > 0
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        before = trainer.model.eval()(input_ids=tokens).logits
        to_dense(trainer.model)
        trainer.model.save_pretrained(tmp_path / "dense")
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", output_loading_info=True)
        assert torch.equal(loaded.eval()(input_ids=tokens).logits, before)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not any(isinstance(module, SwitchLoraLinear) for module in trainer.model.modules())


def test_fsdp2() -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*words, str(EXAMPLES / "fsdp2.py")], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0] / 2
    assert "'0.weight': (256, 64)" in done.stdout
