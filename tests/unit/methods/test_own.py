"""Methods of the user's own, from a file."""

from pathlib import Path

import pytest

from switchlora.errors import UserError
from switchlora.methods import method_named
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve, run_name

WHOLE = """
from switchlora.methods.lora import LoraMethod

class Mine(LoraMethod):
    name, lr = "mine", 0.125

METHOD = Mine()
"""


def test_it_is_a_method_like_ours(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(WHOLE)
    options = resolve(PretrainOptions(method=str(file)))
    assert options.lr == 0.125
    assert options.r == 32
    assert method_named(str(file)) is method_named(str(file))
    assert run_name(options) == "tiny-mine-r32-seed0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere", ["ModuleNotFoundError", "nowhere"]),
        ("x = 1", ["defines no METHOD"]),
        ("METHOD = object()", ["lacks name, lr", "finish"]),
        (WHOLE.replace("Mine()", "Mine"), ["is a class", "METHOD = Mine()"]),
        ("import sys; sys.exit(3)", ["SystemExit", "mend it"]),
        (WHOLE.replace('name, lr = "mine", 0.125', 'uses = frozenset({"tempo"})'), ["uses tempo", "interval"]),
        (None, ["no such file"]),
    ],
)
def test_one_that_will_not_do_is_refused_in_one_line(tmp_path: Path, text: str | None, words: list[str]) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        PretrainOptions(method=str(file))
    for word in [str(file), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["orthonormal", "scaled", "soft_reset"])
def test_our_ideas_train(name: str) -> None:
    import torch

    from switchlora.training.models import build_model

    path = Path(__file__).parents[3] / "experiments" / "ideas" / f"{name}.py"
    options = resolve(PretrainOptions(method=str(path), steps=20, lr=1e-2))
    tokens = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(0))
    model = build_model("tiny", seed=0)
    method = method_named(options.method)
    method.prepare(model, options)
    optimizer = method.optimizer(model, options)
    losses = []
    for _ in range(10):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
