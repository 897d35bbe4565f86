"""The methods that need the package pytorch_optimizer: refused in time without it, and what they hold with it."""

import math
import sys
from pathlib import Path

import pytest
from torch import nn

from switchlora.errors import UserError
from switchlora.memory_report import memory
from switchlora.methods import METHODS
from switchlora.methods.parameters import hidden_and_others
from switchlora.training.dry_run import plan
from switchlora.training.loop import pretrain
from switchlora.training.models import build_model
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve

PACKAGED = ("galore", "fira", "stable-spam")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", PACKAGED)
def test_without_the_package_the_run_is_refused_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dry_run: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    options = PretrainOptions(method=name, output=str(tmp_path / "run"), data=("no/such/file.txt",), dry_run=dry_run)
    with pytest.raises(UserError) as refused:
        pretrain(options)
    message = str(refused.value)
    assert message.startswith(f"--method {name}: needs the package pytorch_optimizer")
    assert message.endswith("pip install -c constraints.txt -e '.[baselines]'")
    assert "\n" not in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - PACKAGED))
def test_the_others_do_not_need_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    METHODS[name].prepare(build_model("tiny", seed=0, meta=True), resolve(PretrainOptions(method=name)))


def numbers(name: str, m: int, n: int, r: int) -> int:
    """What docs/methods/README.md says that an optimizer holds beside a matrix, with the scalars."""
    projected = 2 * r * max(m, n) + r * min(m, n)
    return {
        "galore": projected,
        "fira": projected + 1,
        "apollo": projected + 1,
        "apollo-mini": 2 * max(m, n) + min(m, n) + 1,
        "stable-spam": 2 * m * n + 3,
        "racs": m + n + 1,
    }[name]


@pytest.mark.parametrize("name", [*PACKAGED, "racs", "apollo", "apollo-mini"])
def test_the_state_is_what_the_pages_say_and_a_dry_run_knows_it(name: str) -> None:
    options = resolve(PretrainOptions(method=name))
    model = build_model("tiny", seed=0)
    optimizer = METHODS[name].optimizer(model, options)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    hidden, others = hidden_and_others(model)
    assert nn.Module.get_submodule(model, "lm_head").weight in set(others)
    rank = options.r or 0
    fp32 = sum(numbers(name, *matrix.shape, rank) for matrix in hidden) + sum(2 * p.numel() + 1 for p in others)
    held = memory(model, optimizer)
    allocated = held.optimizer_device_bytes + held.optimizer_host_bytes
    assert allocated == 4 * fp32
    assert plan(options).optimizer_bytes == allocated
    assert math.isfinite(sum(float(p.detach().sum()) for p in model.parameters()))
