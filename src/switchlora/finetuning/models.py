"""A causal language model as a classifier: its body as it is, its LM head dropped, and a new head that is drawn."""

from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.finetuning.glue import Task
from switchlora.options.values import show
from switchlora.trained.loading import load, load_config
from switchlora.training.models import train_every_row

if TYPE_CHECKING:
    from torch import Tensor, nn

IN_PYTHON = "apply_delta_ of switchlora.finetuning.delta makes it in memory (docs/finetune.md)"
HEAD = "score"  # what transformers calls it in every causal model's classifier


def load_classifier(checkpoint: str, task: Task, tokenizer: Any, seed: int) -> "nn.Module":
    """The classifier, in fp32 on the CPU: transformers' own of that family, or ours where it has none.

    The head is a function of the seed; no global generator is moved.

    Raises:
        UserError: the checkpoint is not whole.
        NonFiniteError: some of its numbers are not finite.
    """
    import torch

    from switchlora.draws import key

    with torch.random.fork_rng(devices=[]):  # transformers draws a head of its own
        model = _with_a_head(checkpoint, task.num_outputs, pad_of(tokenizer))
    head = getattr(model, HEAD)
    generator = torch.Generator().manual_seed(key(seed, HEAD, "initial weights") % 2**63)
    torch.nn.init.normal_(
        head.weight, std=getattr(model.config, "initializer_range", None) or 0.02, generator=generator
    )
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    model.config.use_cache = False
    train_every_row(model)
    classifier: nn.Module = model
    return classifier


def _with_a_head(checkpoint: str, num_outputs: int, pad: int) -> Any:
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    from switchlora.finetuning.classifier import LastTokenClassifier

    settings: dict[str, Any] = {"dtype": torch.float32, "ignore_mismatched_sizes": True}
    has_own = type(load_config(checkpoint)) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if has_own:
        settings |= {"num_labels": num_outputs, "pad_token_id": pad}
    loader: Any = AutoModelForSequenceClassification if has_own else AutoModel
    model, report = load(loader.from_pretrained, checkpoint, "--checkpoint", **settings)
    unusable = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    absent = sorted(name for name in unusable if not is_head(name))  # a head of another task may be there
    if absent or (has_own and not hasattr(model, HEAD)):
        what = f"its weights lack {absent[0]}" if absent else f"its classifier has no {HEAD}"
        raise UserError(f"--checkpoint {show(checkpoint)}: {what}; give a whole causal language model")
    return model if has_own else LastTokenClassifier(model, num_outputs)


def require_saveable(model: Any, option: str) -> None:
    """Refuse to leave a classifier that nobody could load.

    Raises:
        UserError: transformers has no classifier of its kind.
    """
    if not is_saveable(model):
        way_out = IN_PYTHON if option == "--apply-delta" else "leave it out"
        raise UserError(
            f"{option}: transformers has no classifier for {model.config.model_type}, so it could not load one; "
            f"{way_out}"
        )


def is_saveable(model: Any) -> bool:
    """Whether transformers has a classifier of its kind."""
    return hasattr(model, "save_pretrained")


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
