"""One run: so many epochs at one learning rate from one seed, and the metrics of the rows that were not trained on.

Nothing is picked by what it gives there: the model after the last epoch is the one that counts.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from switchlora.errors import NonFiniteError
from switchlora.finetuning.batches import Example, batches
from switchlora.finetuning.delta import write_delta
from switchlora.finetuning.glue import Task
from switchlora.finetuning.methods import prepare
from switchlora.finetuning.metrics import scores
from switchlora.finetuning.models import body, load_classifier, pad_of
from switchlora.finetuning.options import FinetuneOptions
from switchlora.machine.files import writing
from switchlora.training.export import save_quietly
from switchlora.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    from torch import Tensor

DELTA = "delta.safetensors"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs share. `options` are checked and whole, `tokenizer` is the checkpoint's."""

    options: FinetuneOptions
    task: Task
    tokenizer: Any
    device: torch.device


def run(
    setting: Setting,
    train: Sequence[Example],
    evaluated: Mapping[str, Sequence[Example]],
    *,
    lr: float,
    seed: int,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Fine-tune once.

    Args:
        train: what is trained on; evaluated: what is evaluated after the last step, by name.
        lr: peak learning rate.
        seed: of the head, the order of rows, dropout, and factors.
        folder: where the delta, and with --save the model, is left, inside of --output; None: neither.

    Returns:
        plain data: metrics by split, mean loss of each epoch, and what it took.

    Raises:
        NonFiniteError: a loss, or after the last step a weight or a prediction, is not finite.
        UserError: the disk refuses what is left.
    """
    options, started = setting.options, time.monotonic()
    model = load_classifier(str(options.checkpoint), setting.task, setting.tokenizer, seed).to(setting.device)
    keeps_delta = options.method == "subset" and folder is not None
    before = {name: p.detach().cpu().clone() for name, p in body(model).items()} if keeps_delta else {}
    steps_per_epoch = -(-len(train) // options.batch_size)
    method = prepare(model, options, lr, options.epochs * steps_per_epoch, seed)
    on_gpu = [setting.device] if setting.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        torch.manual_seed(seed)  # dropout
        losses = _train(model, method, setting, train, seed, steps_per_epoch)
    method.finish()
    predicted = {name: predict(model, setting, rows) for name, rows in evaluated.items()}
    _require_finite(model, predicted, seed)
    result: dict[str, Any] = {
        "seed": seed,
        "lr": lr,
        "metrics": {
            name: scores(setting.task.metrics, predicted[name], np.array([label for _, label in rows]))
            for name, rows in evaluated.items()
        },
        "train_losses": losses,
        "trainable_parameters": sum(p.numel() for p in method.trainable),
        "seconds": time.monotonic() - started,
    }
    if folder is not None and (keeps_delta or options.save):
        with writing(f"what seed {seed} leaves", folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            if keeps_delta:
                about = {name: getattr(options, name) for name in ("task", "checkpoint", "epsilon", "silo")}
                about |= {"seed": seed}
                result["delta_bytes"] = write_delta(folder / DELTA, before, dict(model.named_parameters()), about)
            if options.save:
                save(model, setting.tokenizer, folder)
    return result


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Leave a classifier that transformers can load."""
    model.config.use_cache = True
    save_quietly(model, folder)
    tokenizer.save_pretrained(folder)


def _train(
    model: nn.Module, method: Any, setting: Setting, train: Sequence[Example], seed: int, steps_per_epoch: int
) -> list[float]:
    options, steps = setting.options, setting.options.epochs * steps_per_epoch
    warmup, step = math.ceil(options.warmup * steps), 0
    for group in method.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    model.train()
    epochs = []
    for epoch in range(options.epochs):
        order = np.random.default_rng([seed, 2, epoch]).permutation(len(train)).tolist()
        total = 0.0
        for inputs, labels in batches(train, order, options.batch_size, pad_of(setting.tokenizer), setting.device):
            factor = learning_rate_factor(step, steps=steps, warmup=warmup, schedule="linear", min_lr_ratio=0.0)
            for group in method.optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]
            loss = loss_of(model(**inputs).logits, labels, setting.task)
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"seed {seed}, step {step + 1}: the loss is {float(loss.detach())}; lower --lr, and give another "
                    "--output"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            if options.clip:
                nn.utils.clip_grad_norm_(method.trainable, options.clip)
            method.optimizer.step()
            method.optimizer.zero_grad()
            method.after_step()
            total += float(loss.detach()) * len(labels)
            step += 1
        epochs.append(total / len(train))
    return epochs


def _require_finite(model: nn.Module, predicted: "Mapping[str, np.ndarray[Any, Any]]", seed: int) -> None:
    """No loss follows the last step, and of NaN a class can be read off like of any logits."""
    broken = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    broken += [f"a prediction of {name}" for name, values in predicted.items() if not np.isfinite(values).all()]
    if broken:
        raise NonFiniteError(
            f"seed {seed}, after the last step: {broken[0]} is not finite; lower --lr, and give another --output"
        )


def loss_of(logits: "Tensor", labels: "Tensor", task: Task) -> "Tensor":
    """Cross entropy of classes, mean squared error of scores. logits (B, outputs), labels (B,)."""
    if task.is_regression:
        return F.mse_loss(logits[:, 0].float(), labels)
    return F.cross_entropy(logits.float(), labels.long())


@torch.no_grad()
def predict(model: nn.Module, setting: Setting, rows: Sequence[Example]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """(N,) the class, or the score, of each row; NaN where logits are not finite. Leaves evaluation mode behind."""
    model.eval()
    found = []
    longest_last = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    size = 4 * setting.options.batch_size
    for inputs, _ in batches(rows, longest_last, size, pad_of(setting.tokenizer), setting.device):
        logits = model(**inputs).logits.float()
        values = logits[:, 0] if setting.task.is_regression else logits.argmax(-1).float()
        found.append(torch.where(logits.isfinite().all(-1), values, math.nan))
    predicted = np.empty(len(rows))
    predicted[longest_last] = torch.cat(found).double().cpu().numpy()
    return predicted
