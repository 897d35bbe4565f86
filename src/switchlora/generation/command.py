"""`switchlora generate`: transformers' own generation with its key-value cache, shown as it is drawn.

A piece is shown when its characters are whole: a token may hold half of one, and some tokenizers put spaces before a
word only when they see the next.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from switchlora.errors import UserError
from switchlora.generation.options import MAX_NEW_TOKENS, STDIN, GenerateOptions
from switchlora.report.sample import end_tokens, start_tokens
from switchlora.trained.loading import load_model, load_tokenizer, require_checkpoint
from switchlora.training import devices
from switchlora.training.values import show

SEPARATOR = "\n---\n"  # between the texts of several prompts


def generate(options: GenerateOptions) -> list[str]:
    """Run `switchlora generate`; see docs/generate.md.

    Returns:
        the texts, prompts included, one for each prompt.

    Raises:
        UserError: a model that is not there or not whole, one without a tokenizer, or a prompt that leaves no room.
    """
    if options.checkpoint is None:
        raise UserError("--checkpoint: must be given; name the output folder of a finished run")
    require_checkpoint(options.checkpoint)
    prompts = [sys.stdin.read() if prompt == STDIN else prompt for prompt in options.prompt or ("",)]
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    tokenizer = load_tokenizer(options.checkpoint)
    model = load_model(options.checkpoint).to(device)
    starts = [start_tokens(model, tokenizer, prompt) for prompt in prompts]
    budgets = [_new_tokens(options, model, prompt, start) for prompt, start in zip(prompts, starts, strict=True)]
    texts = []
    try:
        for number, (start, budget) in enumerate(zip(starts, budgets, strict=True)):
            if number:
                _show(SEPARATOR)
            texts.append(continue_text(model, tokenizer, start, budget, options, show_piece=_show))
            _show("\n")
    except BrokenPipeError:  # the reader has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain again at its end
    return texts


def continue_text(
    model: Any,
    tokenizer: Any,
    start: list[int],
    new_tokens: int,
    options: GenerateOptions,
    show_piece: Callable[[str], None],
) -> str:
    """Draw at most `new_tokens` after the tokens `start`, hand over each piece of text as it is whole, and return all.

    No global generator is moved. The same seed gives the same text for each prompt, whatever the others are.
    """
    import torch

    pieces: list[str] = []

    def hand_over(piece: str) -> None:
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
            streamer=_streamer(tokenizer, hand_over),
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


def _streamer(tokenizer: Any, hand_over: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                hand_over(text)

    return Streamer(tokenizer, skip_special_tokens=True)


def _new_tokens(options: GenerateOptions, model: Any, prompt: str, start: list[int]) -> int:
    """How many tokens may follow a prompt.

    Raises:
        UserError: the model has no positions left for them, or there is nothing to start from.
    """
    if not start:
        raise UserError("--prompt: is empty, and this model has no token that begins a text; give a prompt")
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
