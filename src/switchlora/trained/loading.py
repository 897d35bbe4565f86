"""`--checkpoint`: a model that is done, whoever made it, and the tokenizer beside it.

A run of `switchlora pretrain` leaves what transformers calls a pretrained model, so one loader serves both. What is
refused here is what users mix up: a run that is not over, a folder of its checkpoints (weights and optimizer state, to
go on from), a model without the tokenizer that its numbers depend on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.options.values import show
from switchlora.training.folder import CHECKPOINTS, OPTIONS
from switchlora.training.models import require_finite
from switchlora.training.presets import HUB_NAME, TOKENIZER_FILES, WEIGHT_FILES, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

WAY_OUT = "give the output folder of a finished switchlora pretrain, or a folder or hub name that transformers can load"


def require_checkpoint(name: str, option: str = "--checkpoint") -> Path | None:
    """The folder that an option names, or None for a hub name; imports nothing slow and asks no network.

    Raises:
        UserError: no such folder, a run that is not over, or a folder without weights.
    """
    path = Path(name).expanduser()
    named = f"{option} {show(name)}"
    if not path.exists():
        if HUB_NAME.fullmatch(name):
            return None
        raise UserError(f"{named}: no such folder; {WAY_OUT}")
    if not path.is_dir():
        raise UserError(f"{named}: is a file; {WAY_OUT}")
    if any((path / file).is_file() for file in WEIGHT_FILES):
        return path
    if (path / OPTIONS).is_file() and (path / CHECKPOINTS).exists():
        raise UserError(f"{named}: that run is not over; give its pretrain command again, which goes on")
    if path.parent.name == CHECKPOINTS:
        raise UserError(f"{named}: is a checkpoint to go on from, not a model; finish the run, and give its folder")
    raise UserError(f"{named}: holds no weights ({', '.join(WEIGHT_FILES[:2])}); {WAY_OUT}")


def load_model(
    name: str, option: str = "--checkpoint", *, dtype: "torch.dtype | None" = None, needs_head: bool = True
) -> Any:
    """The causal language model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        dtype: of the weights; None: as they are stored.
        needs_head: whether the LM head must be there; else a classifier will do, for its body.

    Raises:
        UserError: see `require_checkpoint`; also weights that are broken or incomplete.
        NonFiniteError: some of them are not finite.
    """
    from transformers import AutoModelForCausalLM

    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    model, report = load(from_pretrained, name, option, dtype="auto" if dtype is None else dtype)
    head = model.get_output_embeddings()
    unneeded = set() if needs_head or head is None else {id(p) for p in head.parameters()}
    state = model.state_dict(keep_vars=True)
    absent = sorted(key for key in report["missing_keys"] if id(state.get(key)) not in unneeded)
    if absent:
        raise UserError(
            f"{option} {show(name)}: its weights lack {len(absent)} tensors, first {absent[0]}; "
            "give a whole causal language model"
        )
    return model.eval()


def load(from_pretrained: Any, name: str, option: str, **settings: Any) -> tuple[Any, Any]:
    """(model, loading report) of transformers' `from_pretrained`, with its errors as one line.

    Raises:
        UserError, NonFiniteError: see `load_model`.
    """
    path = require_checkpoint(name, option)
    try:
        with quiet_transformers():
            model, report = from_pretrained(
                *_where(path, name), trust_remote_code=False, output_loading_info=True, **_offline(path),
                adapter_kwargs=_offline(path), **settings,  # with peft, transformers looks for an adapter first
            )  # fmt: skip
    except Exception as error:  # transformers', safetensors', the hub client's own
        raise _cannot_load(path, f"{option} {show(name)}", error) from None
    drawn = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    require_finite(model, f"{option} {show(name)}", but=drawn)
    return model, report


def load_config(name: str, option: str = "--checkpoint") -> "PretrainedConfig":
    """The transformers configuration of a checkpoint.

    Raises:
        UserError: see `require_checkpoint`; also a configuration that transformers does not know.
    """
    from transformers import AutoConfig

    path = require_checkpoint(name, option)
    try:
        from_pretrained: Any = AutoConfig.from_pretrained
        config: PretrainedConfig = from_pretrained(*_where(path, name), trust_remote_code=False, **_offline(path))
    except Exception as error:
        raise _cannot_load(path, f"{option} {show(name)}", error) from None
    return config


def load_tokenizer(name: str, option: str = "--checkpoint") -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside a checkpoint's weights.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    from switchlora.data.tokenizer import pretrained_tokenizer

    path = require_checkpoint(name, option)
    if path is not None and not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(
            f"{option} {show(name)}: has no tokenizer ({TOKENIZER_FILES[0]}), without which text means nothing to it; "
            "copy there the files of the one that it was trained with"
        )
    try:
        return pretrained_tokenizer(path or name, offline=_offline(path)["local_files_only"])
    except Exception as error:
        if path is None:
            raise _cannot_load(path, f"{option} {show(name)}", error) from None
        raise UserError(
            f"{option} {show(name)}: its tokenizer cannot be loaded ({first_line(error)}); copy there the files of the "
            "one that it was trained with"
        ) from None


def require_tokens(model: Any, largest: int) -> None:
    """Refuse a token that the model has no row for.

    A tokenizer may know more tokens than its model, as long as none of them comes up.

    Raises:
        UserError: the tokenizer is another model's.
    """
    num, name = model.get_input_embeddings().weight.shape[0], str(model.config.name_or_path)
    if largest >= num:
        raise UserError(
            f"--checkpoint {show(name)}: its tokenizer gives token {largest}, and the model has {num}; copy there the "
            "files of the one that it was trained with"
        )


def require_end_of_text(name: str, tokenizer: Any) -> None:
    """Refuse a tokenizer without the token that ends documents, and stands between two texts.

    Raises:
        UserError: it has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--checkpoint {show(name)}: its tokenizer has no end-of-text (eos) token, which ends every document; name "
            "one as eos_token in its tokenizer_config.json"
        )


class quiet_transformers:
    """A block in which transformers draws no progress bars and reports no weights that we look at ourselves."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.shown, self.level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _cannot_load(path: Path | None, named: str, error: Exception) -> UserError:
    reason = first_line(error)
    if path is not None:
        return UserError(f"{named}: cannot be loaded ({reason}); {WAY_OUT}")
    return UserError(
        f"{named}: is no local path, and the hub did not give it ({reason}); check the name and the network, or "
        f"{WAY_OUT}"
    )


def _where(path: Path | None, name: str) -> tuple[str]:
    return (name if path is None else str(path),)


def _offline(path: Path | None) -> dict[str, bool]:
    """A hub that is not there is told at once, instead of after a minute of retries."""
    from switchlora.data.network import hub_resolves

    return {"local_files_only": path is not None or not hub_resolves()}
