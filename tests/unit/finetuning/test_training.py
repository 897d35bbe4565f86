"""One run, watched from inside: rates, gradients, order of rows, dropout, and what is computed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from switchlora.errors import NonFiniteError
from switchlora.finetuning import training
from switchlora.finetuning.batches import Example
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.methods import prepare
from switchlora.finetuning.models import load_classifier
from switchlora.finetuning.options import FinetuneOptions
from switchlora.finetuning.training import Setting, loss_of, predict, run

DEVICE = torch.device("cpu")
TOKENIZER = SimpleNamespace(pad_token_id=None, eos_token_id=0)
ROWS: list[Example] = [([0, number, 7], float(number % 2)) for number in range(10, 26)]


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0, resid_pdrop=0.5
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


@pytest.fixture
def watched(gpt2: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """`watched(seed=..., **options)`: a run of 16 rows in batches of 4, and what was seen at each of its steps."""

    def go(seed: int = 0, lr: float = 1e-3, **options: Any) -> SimpleNamespace:
        seen = SimpleNamespace(rates=[], norms=[], rows=[], seeds=[])

        def see_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            seen.rates.append([group["lr"] for group in optimizer.param_groups])
            seen.norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

        def see_rows(module: torch.nn.Module, _: Any, inputs: dict[str, Any]) -> None:
            if module.training:
                seen.rows += inputs["input_ids"][:, 1].tolist()
                seen.seeds.append(torch.initial_seed())

        def prepared(model: torch.nn.Module, *rest: Any) -> Any:
            method = prepare(model, *rest)
            model.register_forward_pre_hook(see_rows, with_kwargs=True)
            method.optimizer.register_step_pre_hook(see_step)
            return method

        monkeypatch.setattr(training, "prepare", prepared)
        wanted = FinetuneOptions(**{"checkpoint": gpt2, "task": "rte", "batch_size": 4, "epochs": 2, **options})
        run(Setting(wanted, TASKS["rte"], TOKENIZER, torch.device("cpu")), ROWS, {"dev": ROWS}, lr=lr, seed=seed)
        return seen

    return go


def test_the_rate_rises_falls_and_is_the_head_s_own(watched: Callable[..., SimpleNamespace]) -> None:
    """Eight steps, two of them of warm-up."""
    seen = watched(lr=6e-3, head_lr=6e-2, warmup=0.25)
    shares = [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert seen.rates == [pytest.approx([share * 6e-3, share * 6e-2]) for share in shares]


def test_gradients_are_clipped_together(watched: Callable[..., SimpleNamespace]) -> None:
    free, clipped = watched(clip=0.0).norms, watched(clip=1e-2).norms
    assert len(clipped) == 8
    assert all(norm > 2e-2 for norm in free)
    assert clipped == pytest.approx([1e-2] * 8, rel=1e-3)


def test_every_epoch_and_every_seed_has_an_order_and_a_dropout_of_its_own(
    watched: Callable[..., SimpleNamespace],
) -> None:
    before = torch.get_rng_state()
    first, again, other = (watched(seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    everything = [ids[1] for ids, _ in ROWS]
    epochs = [first.rows[:16], first.rows[16:]]
    assert [sorted(epoch) for epoch in epochs] == [everything, everything]
    assert epochs[0] != epochs[1] != everything
    assert first.rows == again.rows != other.rows
    assert (set(first.seeds), set(other.seeds)) == ({3}, {4})


@pytest.mark.parametrize("method", ["full", "lora", "switchlora", "subset"])
def test_the_head_moves_at_its_own_rate(gpt2: str, method: str) -> None:
    """AdamW's first step is as long as the rate, in each entry."""
    for head_lr, expected in ((1e-1, 1e-1), (None, 1e-3)):
        model: Any = load_classifier(gpt2, TASKS["rte"], TOKENIZER, 0).eval()
        before = model.score.weight.detach().clone()
        made = prepare(model, FinetuneOptions(method=method, r=4, head_lr=head_lr), 1e-3, 8, 0)
        logits = model(input_ids=torch.tensor([[0, 5, 7]]), attention_mask=torch.ones(1, 3)).logits
        loss_of(logits, torch.tensor([1.0]), TASKS["rte"]).backward()  # type: ignore[no-untyped-call]
        made.optimizer.step()
        moved = (model.score.weight.detach() - before).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize(("method", "switches"), [("switchlora", True), ("lora", False)])
def test_one_method_switches_and_the_other_does_not(gpt2: str, method: str, switches: bool) -> None:
    model: Any = load_classifier(gpt2, TASKS["rte"], TOKENIZER, 0)
    made = prepare(model, FinetuneOptions(method=method, r=4, interval=10.0), 1e-3, 20, 0)
    optimizer: Any = made.optimizer
    num = 0
    for _ in range(20):
        model(input_ids=torch.tensor([[0, 5, 7]]), attention_mask=torch.ones(1, 3)).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        num += sum(bool(outcome.switches) for outcome in optimizer.outcomes.values())
    assert (num > 0) == switches


def test_predictions_are_without_dropout(gpt2: str) -> None:
    model = load_classifier(gpt2, TASKS["stsb"], TOKENIZER, 0)
    setting = Setting(FinetuneOptions(task="stsb"), TASKS["stsb"], TOKENIZER, torch.device("cpu"))
    rows = [([0, 5, 7], 1.0), ([0, 5], 2.0), ([0, 9, 8, 4], 0.0)]
    each, again = (predict(model.train(), setting, rows) for _ in range(2))
    assert each.tolist() == again.tolist()
    assert not model.training
    alone = [float(predict(model, setting, [row])[0]) for row in rows]
    assert each.tolist() == pytest.approx(alone, rel=1e-4)  # in the order of the rows


@pytest.mark.parametrize("task", ["stsb", "rte"])
@pytest.mark.parametrize("broken", ["a weight", "a prediction"])
def test_what_breaks_in_the_last_step_is_no_result(
    gpt2: str, task: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss would show it; of NaN a class can be read off, and a correlation with it is undefined like others."""

    def prepared(model: Any, *rest: Any) -> Any:
        value = float("nan") if broken == "a weight" else 3e38  # finite, but what follows is not
        made = prepare(model, *rest)
        made.optimizer.register_step_post_hook(lambda *_: model.score.weight.data.fill_(value))
        return made

    monkeypatch.setattr(training, "prepare", prepared)
    setting = Setting(FinetuneOptions(checkpoint=gpt2, epochs=1, method="full"), TASKS[task], TOKENIZER, DEVICE)
    what = "score.weight" if broken == "a weight" else "a prediction of dev"
    with pytest.raises(NonFiniteError, match=f"seed 3, after the last step: {what} is not finite; lower --lr"):
        run(setting, ROWS, {"dev": ROWS}, lr=1e-3, seed=3)


def test_losses() -> None:
    """Squares of 1 and 2; and minus the logarithm of 1/4, where the right class has a logit of -ln 3."""
    assert float(loss_of(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), TASKS["stsb"])) == 2.5
    logits = torch.tensor([[0.0, -1.0986123]])
    assert float(loss_of(logits, torch.tensor([1.0]), TASKS["rte"])) == pytest.approx(1.3862944)
