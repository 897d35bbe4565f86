"""The model that `--model` names, built by transformers' Auto classes: random weights, or somebody's.

A model without weights is initialised at random as a function of the seed alone, always in fp32 and then
rounded, so that a bf16 run starts from the rounded weights of the fp32 run. What costs seconds and gigabytes
(imports, weights) is in here; what can be known of a model without them is in `presets`.
"""

import contextlib
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from switchlora.data.network import hub_resolves
from switchlora.errors import UserError
from switchlora.options.values import show
from switchlora.training.presets import MIN_POSITIONS, PRESETS, Preset, first_line, has_weights, local_path, not_finite

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

    from switchlora.training.deferred import Recipes


def load_config(
    model: str, *, vocab_size: int | None = None, eos_token_id: int | None = None, seq_len: int | None = None
) -> "PretrainedConfig":
    """The transformers configuration of `model`, ready for training (no key-value cache).

    Args:
        vocab_size: the tokenizer's; a model without weights takes it, one with weights must have room for it.
        eos_token_id: the tokenizer's; a model without weights takes it for both ends of a text, for documents
            are packed with one end-of-text between them.
        seq_len: tokens per sequence, to be held against the model's own limit.

    Raises:
        UserError: no such model, a sequence longer than the model's positions, or a vocabulary too small.
    """
    if model in PRESETS:
        config = preset_config(PRESETS[model], seq_len)
    else:
        config = _foreign_config(model)
        _require_positions(model, config, seq_len)
    if has_weights(model):
        _require_vocabulary(model, config, vocab_size)
    else:
        config.vocab_size = vocab_size or config.vocab_size
        config.bos_token_id = config.eos_token_id = eos_token_id
        config.pad_token_id = None
    config.use_cache = False
    return config


def build_model(
    model: str,
    *,
    seed: int,
    vocab_size: int | None = None,
    eos_token_id: int | None = None,
    seq_len: int | None = None,
    dtype: "torch.dtype | None" = None,
    meta: bool = False,
) -> "torch.nn.Module":
    """The model to train, on the CPU. Random weights depend on `seed` only, and no global generator is moved.

    Args:
        dtype: of the parameters; fp32 when None. Buffers (rotary frequencies) keep their own.
        meta: build without memory, for counting (a model with weights then is its shapes only).
        vocab_size, eos_token_id, seq_len: see `load_config`.

    Raises:
        UserError: see `load_config`; also weights that are missing, broken, or incomplete.
        NonFiniteError: some of the weights are not finite.
    """
    import torch

    config = load_config(model, vocab_size=vocab_size, eos_token_id=eos_token_id, seq_len=seq_len)
    config.dtype = dtype or torch.float32
    if has_weights(model) and not meta:
        with torch.random.fork_rng(devices=[]):  # for what the weights do not cover
            torch.default_generator.manual_seed(seed)
            return _load_weights(model, config)
    try:
        return random_model(config, seed=seed, dtype=config.dtype, meta=meta)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise _no_language_model(model, first_line(error)) from None


def random_model(
    config: "PretrainedConfig", *, seed: int, dtype: "torch.dtype", meta: bool = False, device: str = "cpu"
) -> "nn.Module":
    """A model of random weights, drawn in fp32 and then rounded to `dtype`; on the CPU, or without memory (`meta`).

    Another `device` draws other weights from the same seed, but in no time.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from_config: Any = AutoModelForCausalLM.from_config  # transformers leaves it without types
    # The CPU generator alone: torch.manual_seed would also reseed the accelerators, and nothing would undo it.
    on_gpu = device.startswith("cuda") and not meta
    with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.device("meta" if meta else device):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        built = from_config(config, dtype=torch.float32)
    for parameter in built.parameters():
        parameter.data = parameter.data.to(dtype)
    built.config.dtype = dtype  # from_config has written its own
    train_every_row(built)
    trainable: nn.Module = built
    return trainable


def require_finite(model: "nn.Module", named: str, *, but: Container[str] = ()) -> None:
    """Refuse somebody's weights that training cannot go on from, nor anything else.

    Args:
        named: the option and its value; but: parameters that are not theirs.

    Raises:
        NonFiniteError: names the first that is not finite.
    """
    for name, parameter in model.named_parameters():
        if name not in but and not bool(parameter.isfinite().all()):
            raise not_finite(named, name)


def train_every_row(model: Any) -> None:
    """Let the input row of the token that pads train like any other.

    torch gives none of its gradient to the row that an embedding calls padding_idx, which transformers takes from the
    configuration. We pad nothing that counts, and that token often has other uses: it ends documents, say. The
    values of the row stay as they are.
    """
    model.get_input_embeddings().padding_idx = None


def deferred_model(
    model: str, *, seed: int, vocab_size: int, eos_token_id: int | None, seq_len: int | None, dtype: "torch.dtype"
) -> "tuple[nn.Module, Recipes | None]":
    """The same model as `build_model`'s, without memory for its parameters, and how each is made.

    One whose making cannot be recorded (see `deferred`), or whose weights transformers has to load itself (see
    `stored`), is built as usual; None then.

    Raises:
        UserError: see `load_config`.
    """
    import torch

    from switchlora.training.deferred import NotRecordable, recording
    from switchlora.training.stored import hub_folder, stored_parameters

    config = load_config(model, vocab_size=vocab_size, eos_token_id=eos_token_id, seq_len=seq_len)
    folder = (local_path(model) or hub_folder(model)) if has_weights(model) else None
    recipes: Recipes | None = None
    with contextlib.suppress(NotRecordable):
        if folder is not None or not has_weights(model):
            with recording() as recorder:
                built = random_model(config, seed=seed, dtype=torch.float32)
            drawn = {name: recorder.of(parameter) for name, parameter in built.named_parameters()}
            recipes = drawn if folder is None else stored_parameters(folder, built)
    if recipes is None:
        whole = build_model(
            model, seed=seed, vocab_size=vocab_size, eos_token_id=eos_token_id, seq_len=seq_len, dtype=dtype
        )
        return whole, None
    for parameter in built.parameters():
        parameter.data = parameter.data.to(dtype)
    built.config.dtype = dtype
    return built, recipes


def checkpoint_activations(model: "nn.Module") -> None:
    """Recompute activations in the backward pass. Newer transformers warn about the old name of this switch, older
    ones know only that."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]


def preset_config(preset: Preset, seq_len: int | None) -> "PretrainedConfig":
    """The LLaMA of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=preset.vocab_size,
        hidden_size=preset.hidden_size,
        intermediate_size=preset.ffn_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_kv_heads or preset.num_heads,
        max_position_embeddings=max(MIN_POSITIONS, seq_len or 0),
        tie_word_embeddings=False,
    )


def _foreign_config(model: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            _source(model), trust_remote_code=False, local_files_only=_offline(model)
        )
    except Exception as error:  # the hub client raises its own, its transport's and plain ones
        raise _cannot_load(model, error) from None
    if getattr(config, "vocab_size", None) is None:
        raise _no_language_model(model, "it has no vocabulary")
    return config


def _load_weights(model: str, config: "PretrainedConfig") -> "torch.nn.Module":
    from transformers import AutoModelForCausalLM

    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    offline = _offline(model)
    try:
        built, report = from_pretrained(
            _source(model),
            config=config,
            dtype=config.dtype,
            trust_remote_code=False,
            output_loading_info=True,
            local_files_only=offline,
            adapter_kwargs={"local_files_only": offline},
        )
    except Exception as error:  # as above, and safetensors' own
        raise _cannot_load(model, error) from None
    absent = sorted(report["missing_keys"])
    if absent:
        raise UserError(
            f"--model {show(model)}: its weights lack {len(absent)} tensors, first {absent[0]}; "
            "give a whole causal language model, or its config.json to start from random weights"
        )
    require_finite(built, f"--model {show(model)}")
    train_every_row(built)
    trainable: torch.nn.Module = built
    return trainable


def _require_positions(model: str, config: "PretrainedConfig", seq_len: int | None) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if seq_len and longest and seq_len > longest:
        raise UserError(f"--seq-len {seq_len}: {show(model)} has {longest} positions; use --seq-len {longest} or less")


def _require_vocabulary(model: str, config: "PretrainedConfig", vocab_size: int | None) -> None:
    if vocab_size and vocab_size > config.vocab_size:
        raise UserError(
            f"--tokenizer: has {vocab_size} tokens, but {show(model)} has embeddings for "
            f"{config.vocab_size}; leave --tokenizer out to use the model's own"
        )


def _source(model: str) -> str:
    return str(local_path(model) or model)


def _offline(model: str) -> bool:
    """Whether there is nobody to ask; the hub's client would try for a minute."""
    return local_path(model) is not None or not hub_resolves()


def _cannot_load(model: str, error: Exception) -> UserError:
    reason = first_line(error)
    if local_path(model) is None:
        return UserError(
            f"--model {show(model)}: is no local path, and the hub did not give it ({reason}); "
            "check the name and the network, or download it and give the folder"
        )
    return UserError(f"--model {show(model)}: cannot be loaded ({reason}); give a folder that transformers can load")


def _no_language_model(model: str, reason: str) -> UserError:
    return UserError(
        f"--model {show(model)}: no causal language model can be built ({reason}); "
        "give the configuration of one, such as a LLaMA"
    )
