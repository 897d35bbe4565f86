"""Which model to train: the shapes of the paper by name, somebody's config.json, or a model to go on from.

`--model` takes, in this order of precedence: a preset's name; a path that exists (a `config.json`, or a
folder that holds one, with weights or without); a hub name, which always has a slash (`org/name`). A bare
word that is no preset is therefore a typing error and is answered at once, without asking the network.

This file reads at most one small JSON file and imports neither torch nor transformers, so that the
configuration is checked before anything slow begins. `models` builds what is named here.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchlora.errors import NonFiniteError, UserError
from switchlora.options.values import nearest, one_of, show

PAPER_VOCABULARY = 32_100  # T5's 32,000 pieces and its 100 sentinels
MIN_POSITIONS = 1024  # rotary positions cost no parameters, so presets can generate past their training length
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "spiece.model", "vocab.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Preset:
    """A LLaMA by its shape, and the length of a run that suits it.

    hidden_size, ffn_size: features; batch_size: sequences per optimizer step; seq_len: tokens; steps:
    optimizer steps.
    """

    hidden_size: int
    num_heads: int
    num_layers: int
    ffn_size: int
    vocab_size: int
    batch_size: int
    seq_len: int
    steps: int
    num_kv_heads: int | None = None


@dataclass(frozen=True)
class RunDefaults:
    """The default length of a run: optimizer steps, sequences per step, tokens per sequence."""

    steps: int
    batch_size: int
    seq_len: int


# The shapes of LLaMA (70b: of LLaMA 2), for `switchlora plan`; their runs are round numbers.
LARGE = {
    "7b": Preset(4096, 32, 32, 11008, 32_000, batch_size=1024, seq_len=2048, steps=100_000),
    "13b": Preset(5120, 40, 40, 13824, 32_000, batch_size=1024, seq_len=2048, steps=100_000),
    "70b": Preset(8192, 64, 80, 28672, 32_000, batch_size=1024, seq_len=2048, steps=100_000, num_kv_heads=8),
}
# 130m to 1.3b are the paper's. It has no 60m: the shape is GaLore's, the run that of 130m.
PRESETS = {
    "tiny": Preset(128, 4, 4, 344, 2048, batch_size=16, seq_len=128, steps=400),
    "60m": Preset(512, 8, 8, 1376, PAPER_VOCABULARY, batch_size=600, seq_len=256, steps=40_000),
    "130m": Preset(768, 12, 12, 2048, PAPER_VOCABULARY, batch_size=600, seq_len=256, steps=40_000),
    "250m": Preset(768, 16, 24, 2560, PAPER_VOCABULARY, batch_size=1152, seq_len=512, steps=40_000),
    "350m": Preset(1024, 16, 24, 2736, PAPER_VOCABULARY, batch_size=1152, seq_len=512, steps=40_000),
    "1.3b": Preset(2048, 32, 24, 5461, PAPER_VOCABULARY, batch_size=1536, seq_len=512, steps=40_000),
    **LARGE,
}
OTHER_MODELS = RunDefaults(steps=1000, batch_size=16, seq_len=512)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading it; None where only the hub could tell."""

    hidden_size: int | None = None
    vocab_size: int | None = None
    max_positions: int | None = None


def model_facts(model: str) -> ModelFacts:
    """The facts of a preset or of a config.json; of a hub name nothing, without asking the network.

    Raises:
        UserError: `model` is none of the things that --model takes, or its config.json cannot be read.
    """
    if model in PRESETS:
        preset = PRESETS[model]
        return ModelFacts(preset.hidden_size, preset.vocab_size, None)
    path = local_path(model)
    if path is None:
        return ModelFacts()
    values = _read_json(model, path)

    def first(*names: str) -> int | None:
        return next((values[name] for name in names if isinstance(values.get(name), int)), None)

    return ModelFacts(
        first("hidden_size", "n_embd", "d_model"),
        first("vocab_size"),
        first("max_position_embeddings", "n_positions", "n_ctx"),
    )


def preset_defaults(model: str) -> RunDefaults:
    """How long to train, and on what batches, when the user does not say."""
    if model in PRESETS:
        preset = PRESETS[model]
        return RunDefaults(preset.steps, preset.batch_size, preset.seq_len)
    longest = model_facts(model).max_positions or OTHER_MODELS.seq_len
    return RunDefaults(OTHER_MODELS.steps, OTHER_MODELS.batch_size, min(OTHER_MODELS.seq_len, longest))


def has_weights(model: str) -> bool:
    """Whether training goes on from weights: a folder that holds them, or a hub name."""
    if model in PRESETS:
        return False
    path = local_path(model)
    return path is None or (path.is_dir() and any((path / name).is_file() for name in WEIGHT_FILES))


def brings_tokenizer(model: str) -> bool:
    """Whether the model comes with a tokenizer of its own: a folder that holds one, or a hub name."""
    if model in PRESETS:
        return False
    path = local_path(model)
    return path is None or (path.is_dir() and any((path / name).is_file() for name in TOKENIZER_FILES))


def local_path(model: str) -> Path | None:
    """The path that `model` names, or None for a hub name."""
    path = Path(model).expanduser()
    if path.exists():
        return path
    if HUB_NAME.fullmatch(model):
        return None
    close = nearest(model, PRESETS)
    hint = f"did you mean {close}? " if close else ""
    raise UserError(
        f"--model {show(model)}: no such preset, file or folder; {hint}give {one_of(list(PRESETS))}, "
        "a config.json, a folder with one, or a hub name (org/name)"
    )


def _read_json(model: str, path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--model {show(model)}: {show(str(path))} cannot be read as JSON ({first_line(error)}); "
            "give a transformers config.json"
        ) from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise UserError(f"--model {show(model)}: {show(str(path))} has no model_type; give a transformers config.json")
    return values


def not_finite(named: str, name: str) -> NonFiniteError:
    """Of weights that were read: the option and its value, and the tensor."""
    return NonFiniteError(f"{named}: {name} is not finite; its training has failed, so give another")


def first_line(error: Exception) -> str:
    """Somebody else's error as part of a one-line message."""
    return show(" ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__, 160)
