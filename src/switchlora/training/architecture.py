"""Whether a run goes on with the model that it began with: one of the same shapes can compute something else."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.machine.description import version_of
from switchlora.options.values import show

if TYPE_CHECKING:
    from torch import nn

# Entries of a configuration that change nothing that training computes; those that begin with "_" do not, either.
WITHOUT_EFFECT = frozenset({
    "architectures", "bos_token_id", "eos_token_id", "id2label", "initializer_range", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "transformers_version", "use_cache",
})  # fmt: skip


def architecture(model: "nn.Module") -> dict[str, Any]:
    """What the model's configuration says of its function, as plain data."""
    config: Any = model.config
    entries: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in entries.items() if name[0] != "_" and name not in WITHOUT_EFFECT}


def require_architecture(model: "nn.Module", named: str, meta: Mapping[str, Any]) -> None:
    """Refuse a model that is not what a checkpoint was written with.

    Another version of transformers may know other entries and other defaults: it is told of anyway, and not compared.

    Args:
        named: the value of --model.
        meta: of the checkpoint: `architecture` under "model" (older ones have none), versions under "machine".

    Raises:
        UserError: names the entries that differ.
    """
    if meta["machine"].get("transformers") != version_of("transformers"):
        return
    changes = list(differences(meta.get("model", {}), architecture(model)))
    if changes:
        raise UserError(
            f"--model {show(named)}: is not the model that the run began with ({', '.join(changes)}); bring it back, "
            "or start anew with another --output or --overwrite"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """What both have and differs, as 'num_attention_heads 4 before, 2 now'."""
    for name in sorted(before.keys() & now.keys()):
        was, value = before[name], now[name]
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            yield from differences(was, value, f"{inside}{name}.")
        elif repr(was) != repr(value):
            yield f"{inside}{name} {show(str(was))} before, {show(str(value))} now"
