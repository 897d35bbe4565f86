"""sample.txt: a few prompts, continued by the trained model.

Sampling has its own loop of ten lines, because `generate` draws from the global generator and a report must not move
it: the same model, seed and prompts give the same text, and whatever comes after is not changed by it. There is no
key-value cache, so a token costs a forward pass over all tokens before it; for a page of text that is little.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

PROMPTS = ("The", "def __init__(self", "In this case")
NEW_TOKENS, TEMPERATURE, TOP_K = 64, 0.8, 50


def write_sample(path: Path, texts: Sequence[str], *, seed: int, prompts: Sequence[str] = PROMPTS) -> None:
    """Write `texts`, the `continuations` of `prompts` from this seed, and how they were drawn."""
    header = (
        f"Continued by the model: seed {seed}, temperature {TEMPERATURE}, top_k {TOP_K}, "
        f"at most {NEW_TOKENS} new tokens. One sample per prompt, none was chosen.\n"
    )
    parts = [header]
    for prompt, text in zip(prompts, texts, strict=True):
        parts.append(f"--- prompt: {prompt}\n{prompt}{text}\n")
    Path(path).write_text("\n".join(parts), encoding="utf-8", errors="replace")


def continuations(
    model: "nn.Module",
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    new_tokens: int = NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_k: int = TOP_K,
) -> list[str]:
    """What a causal model of transformers writes after each prompt, up to the end of the text.

    Each prompt is drawn from its own generator, so its text does not depend on the others. The model's mode is left
    as it was, and no global generator moves.
    """
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            texts = []
            for number, prompt in enumerate(prompts):
                generator = torch.Generator().manual_seed(_generator_seed(seed, number))
                start = start_tokens(model, tokenizer, prompt)
                drawn = _draw(model, start, generator, new_tokens, temperature, top_k, end_tokens(model, tokenizer))
                texts.append(_decode_after(tokenizer, start, drawn, prompt))
            return texts
    finally:
        model.train(was_training)


def _generator_seed(seed: int, number: int) -> int:
    """63 bits for one prompt, since a seed of our own may already use all the bits that a generator takes."""
    digest = hashlib.blake2b(f"{seed}\0sample\0{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def start_tokens(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as at the start of a document: after the token that begins one, and without one that ends it.

    The tokenizer says which that is, as in fine-tuning; what the configuration says is often its family's default. A
    special token that the prompt spells is that token, unlike in a document: the turns of a chat have no other way in.
    """
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, *_in_vocabulary(model, "bos_token_id"))
    first = next((token for token in candidates if token is not None), None)
    return ids if first is None else [first, *ids]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens after which a text is over."""
    return {tokenizer.eos_token_id, *_in_vocabulary(model, "eos_token_id")} - {None}


def _in_vocabulary(model: Any, name: str) -> list[int]:
    """The tokens that the configuration calls so, as far as the embedding has rows for them.

    A configuration with a smaller vocabulary keeps its family's default: GPT-2's is 50256.
    """
    found = getattr(model.config, name, None)
    tokens = found if isinstance(found, list | tuple) else [found]
    num_rows = model.get_input_embeddings().weight.shape[0]
    return [token for token in tokens if token is not None and token < num_rows]


def _draw(
    model: Any,
    start: list[int],
    generator: "torch.Generator",
    new_tokens: int,
    temperature: float,
    top_k: int,
    ends: set[int],
) -> list[int]:
    import torch

    device = next(model.parameters()).device
    positions = getattr(model.config, "max_position_embeddings", None) or len(start) + new_tokens
    tokens = list(start)
    for _ in range(new_tokens):
        window = torch.tensor([tokens[-positions:]], device=device)
        logits = model(input_ids=window).logits[0, -1].float().cpu()  # on the CPU, so that every device draws alike
        best = torch.topk(logits / temperature, min(top_k, len(logits)))
        choice = torch.multinomial(torch.softmax(best.values, 0), 1, generator=generator)
        token = int(best.indices[choice])
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(start) :]


def _decode_after(tokenizer: Any, start: list[int], drawn: list[int], prompt: str) -> str:
    """The text of `drawn`, decoded behind the prompt, because some tokenizers drop a leading space."""
    before = tokenizer.decode(start, skip_special_tokens=True)
    whole = tokenizer.decode([*start, *drawn], skip_special_tokens=True)
    text: str = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(drawn, skip_special_tokens=True)
    return text
