"""A causal language model as a classifier: its body as it is, its LM head dropped, and a new head that is drawn."""

from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.finetuning.glue import Task
from switchlora.trained.loading import load
from switchlora.training.values import show

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = "score"  # what transformers calls it in every causal model's classifier


def load_classifier(checkpoint: str, task: Task, tokenizer: Any, seed: int) -> "nn.Module":
    """The classifier, in fp32 on the CPU. Its head is a function of the seed; no global generator is moved.

    Raises:
        UserError: the checkpoint is not whole, or transformers has no classifier of its kind.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from switchlora.draws import key

    from_pretrained: Any = AutoModelForSequenceClassification.from_pretrained
    with torch.random.fork_rng(devices=[]):  # transformers draws a head of its own
        model, report = load(
            from_pretrained, checkpoint, "--checkpoint", dtype=torch.float32, num_labels=task.num_outputs,
            pad_token_id=pad_of(tokenizer), ignore_mismatched_sizes=True,
        )  # fmt: skip
        unusable = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
        absent = sorted(name for name in unusable if not name.startswith(HEAD))  # a head of another task may be there
        if absent or not hasattr(model, HEAD):
            what = f"its weights lack {absent[0]}" if absent else f"its classifier has no {HEAD}"
            raise UserError(f"--checkpoint {show(checkpoint)}: {what}; give a whole causal language model")
    head = getattr(model, HEAD)
    generator = torch.Generator().manual_seed(key(seed, HEAD, "initial weights") % 2**63)
    torch.nn.init.normal_(
        head.weight, std=getattr(model.config, "initializer_range", None) or 0.02, generator=generator
    )
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    model.config.use_cache = False
    classifier: nn.Module = model
    return classifier


def pad_of(tokenizer: Any) -> int:
    """The token that fills up short rows; attention does not see it."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the new head."""
    return name.startswith(f"{HEAD}.")


def body(model: "nn.Module") -> "dict[str, Tensor]":
    """The parameters that come from the checkpoint, by name."""
    return {name: p for name, p in model.named_parameters() if not is_head(name)}
