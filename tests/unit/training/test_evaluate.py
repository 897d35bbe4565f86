"""Validation weighs by tokens: not a mean of means of batches, of which the last may be smaller."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from switchlora.training.evaluate import evaluate
from switchlora.training.models import build_model


class FiveBlocks:
    """As `switchlora.data.Blocks`, the last with tokens that all others lack."""

    seq_len = 8
    rows = np.random.default_rng(0).integers(0, 100, (5, 8))
    rows[4] += 1000

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


@pytest.fixture(scope="module")
def model() -> Any:
    """One that scores large ids in another way, so that the last block's loss is far from the others'."""
    model = build_model("tiny", seed=0)
    with torch.no_grad():
        model.lm_head.weight[1000:] *= 10
    return model


def of_every_token(model: Any, num_blocks: int) -> float:
    tokens = torch.from_numpy(FiveBlocks.rows[:num_blocks])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
    predicted = logits[:, :-1].reshape(-1, logits.shape[-1])
    return float(torch.nn.functional.cross_entropy(predicted.double(), tokens[:, 1:].reshape(-1)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 9])
def test_the_batch_size_does_not_matter(model: Any, batch_size: int) -> None:
    given: dict[str, Any] = {"device": torch.device("cpu"), "autocast": contextlib.nullcontext(), "max_tokens": 40}
    loss = evaluate(model, FiveBlocks(), batch_size=batch_size, **given)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(of_every_token(model, 5), abs=1e-6)
    parts = [evaluate(model, FiveBlocks(), batch_size=batch_size, rank=r, world_size=3, **given) for r in range(3)]  # type: ignore[arg-type]
    assert float(sum(parts)) == pytest.approx(float(loss), abs=1e-12)


def test_a_mean_of_means_would_be_seen(model: Any) -> None:
    """The trap: batches of four and of one, each counted alike."""
    whole, four = of_every_token(model, 5), of_every_token(model, 4)
    last = 5 * whole - 4 * four
    assert abs((four + last) / 2 - whole) > 1e-2
