"""`switchlora generate`: transformers' own generation with its key-value cache, shown as it is drawn (`pieces`)."""

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from switchlora.errors import NonFiniteError, UserError
from switchlora.generation.options import MAX_NEW_TOKENS, STDIN, GenerateOptions
from switchlora.generation.pieces import Pieces
from switchlora.machine import devices
from switchlora.options.values import show
from switchlora.precision import stored_dtype
from switchlora.report.sample import end_tokens, start_tokens
from switchlora.trained.loading import load_model, load_tokenizer, require_checkpoint, require_tokens

if TYPE_CHECKING:
    import torch

SEPARATOR = "\n---\n"  # between the texts of several prompts


def generate(options: GenerateOptions) -> list[str]:
    """Run `switchlora generate`; see docs/generate.md.

    Returns:
        the texts, prompts included, one for each prompt.

    Raises:
        UserError: a model that is not there or not whole, one without a tokenizer or with another model's, or a prompt
            that is no text or leaves no room.
        NonFiniteError: the model's logits are no numbers.
    """
    if options.checkpoint is None:
        raise UserError("--checkpoint: must be given; name the output folder of a finished run")
    require_checkpoint(options.checkpoint)
    prompts = [_text_of(prompt) for prompt in options.prompt or ("",)]
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    tokenizer = load_tokenizer(options.checkpoint)
    dtype = None if options.dtype is None else stored_dtype(options.dtype)
    model = load_model(options.checkpoint, dtype=dtype).to(device)
    starts = [start_tokens(model, tokenizer, prompt) for prompt in prompts]
    budgets = [_new_tokens(options, model, prompt, start) for prompt, start in zip(prompts, starts, strict=True)]
    texts = []
    for number, (prompt, start, budget) in enumerate(zip(prompts, starts, budgets, strict=True)):
        _show(SEPARATOR + prompt if number else prompt)
        texts.append(prompt + continue_text(model, tokenizer, start, budget, options, show_piece=_show))
        _show("\n")
    return texts


def continue_text(
    model: Any,
    tokenizer: Any,
    start: list[int],
    new_tokens: int,
    options: GenerateOptions,
    show_piece: Callable[[str], None],
) -> str:
    """Draw at most `new_tokens` after the tokens `start`, hand over each piece of text as it is whole, and return them
    together.

    No global generator is moved. The same seed gives the same text for each prompt, whatever the others are.
    """
    import torch
    from transformers import LogitsProcessorList

    pieces: list[str] = []

    def hand_over(piece: str) -> None:
        if piece:
            pieces.append(piece)
            show_piece(piece)

    ends = sorted(end_tokens(model, tokenizer))
    tokens = torch.tensor([start], device=model.device)
    settings: dict[str, Any] = {"do_sample": options.temperature > 0}
    if settings["do_sample"]:
        settings |= {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    on_gpu = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), _own_settings(model):
        torch.manual_seed(options.seed)
        model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new_tokens,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,  # one text has no padding; this keeps transformers from guessing
            streamer=_streamer(Pieces(tokenizer, start), hand_over),
            logits_processor=LogitsProcessorList([_require_numbers]),
            **settings,
        )
    return "".join(pieces)


@contextlib.contextmanager
def _own_settings(model: Any) -> Any:
    """What somebody's checkpoint says of sampling does not count in here: the options say all."""
    from transformers import GenerationConfig

    theirs = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = theirs


def _streamer(pieces: Pieces, hand_over: Callable[[str], None]) -> Any:
    """What transformers hands each token to as it is drawn."""
    from transformers.generation.streamers import BaseStreamer

    class Streamer(BaseStreamer):
        begun = False

        def put(self, value: "torch.Tensor") -> None:
            if self.begun:  # the prompt's tokens come first, all at once
                hand_over(pieces.add(int(value)))
            self.begun = True

        def end(self) -> None:
            hand_over(pieces.rest())

    return Streamer()


def _require_numbers(tokens: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
    """Refuse what weights that went astray in training give: torch would stop without saying why, or draw anything."""
    if bool(logits.isnan().any()):
        raise NonFiniteError("the model's logits are NaN; its training has failed, so give another --checkpoint")
    return logits


def _text_of(prompt: str) -> str:
    """A prompt as it was typed or, for -, what comes in.

    Raises:
        UserError: it is not UTF-8, or nothing can come in.
    """
    named = f"--prompt {show(prompt, 40)}"
    if prompt == STDIN and sys.stdin is None:
        raise UserError(f"{named}: standard input is closed; give the text itself, or a pipe")
    try:
        text = sys.stdin.read() if prompt == STDIN else prompt
        text.encode("utf-8")  # what came in as other bytes is in there as halves of surrogate pairs
    except UnicodeError:
        raise UserError(f"{named}: is not UTF-8; convert it (iconv -f LATIN1 -t UTF-8, say)") from None
    return text


def _new_tokens(options: GenerateOptions, model: Any, prompt: str, start: list[int]) -> int:
    """How many tokens may follow a prompt.

    Raises:
        UserError: the model has no positions left for them or no rows for the prompt's, or there is no start.
    """
    if not start:
        raise UserError("--prompt: is empty, and this model has no token that begins a text; give a prompt")
    require_tokens(model, max(start))
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return options.max_new_tokens or MAX_NEW_TOKENS
    room = positions - len(start)
    if room < 1:
        raise UserError(
            f"--prompt {show(prompt, 40)}: has {len(start)} tokens, and the model has {positions} positions; "
            "give a shorter one"
        )
    if options.max_new_tokens is not None and options.max_new_tokens > room:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens}: with the prompt's {len(start)} that is more than the model's "
            f"{positions} positions; use at most {room}"
        )
    return min(options.max_new_tokens or MAX_NEW_TOKENS, room)


def _show(piece: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(piece.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
