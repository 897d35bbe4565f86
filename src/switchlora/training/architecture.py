"""Whether a run goes on with the model that it began with: one of the same shapes can compute something else."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.options.values import show

if TYPE_CHECKING:
    from torch import nn


def architecture(model: "nn.Module") -> dict[str, Any]:
    """What the model's configuration says, as plain data, without what says nothing of its function."""
    config: Any = model.config
    entries: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in entries.items() if name[0] != "_" and name != "transformers_version"}


def require_architecture(model: "nn.Module", named: str, before: Mapping[str, Any]) -> None:
    """Refuse a model that is not what a run began with; entries that only one of the two has are not compared.

    Args:
        named: the value of --model.
        before: its `architecture` then; empty where that was not kept.

    Raises:
        UserError: names an entry.
    """
    for name, value in architecture(model).items():
        if before.get(name, value) != value:
            change = f"{name} {show(str(before[name]))} before, {show(str(value))} now"
            raise UserError(
                f"--model {show(named)}: is not the model that the run began with ({change}); bring it back, or start "
                "anew with another --output or --overwrite"
            )
