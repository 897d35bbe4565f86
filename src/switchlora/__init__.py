"""SwitchLoRA: pre-train language models through low-rank factors whose vectors keep being exchanged.

    config = switchlora.SwitchLoraConfig(r=128)
    switchlora.convert(model, config)
    optimizer = switchlora.SwitchLora(model, config, total_steps=40_000, lr=2e-2)
    ...                          # any loop: loss.backward(); optimizer.step(); optimizer.zero_grad()
    switchlora.to_dense(model)   # plain nn.Linear again

Read `switching.py` for the algorithm, `effective_linear.py` for the form in which it is computed, `optimizer.py` for
one step. Names are loaded when they are first used, so that the command line answers before torch is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from switchlora.config import SwitchLoraConfig
    from switchlora.conversion import ConversionReport, convert, to_dense
    from switchlora.errors import NonFiniteError, UserError
    from switchlora.layer import SwitchLoraLinear
    from switchlora.memory_report import MemoryReport, memory
    from switchlora.optimizer import SwitchLora
    from switchlora.training.loop import pretrain
    from switchlora.training.options import PretrainOptions

__version__ = "0.1.0"

_HOMES = {
    "SwitchLoraConfig": "config",
    "ConversionReport": "conversion",
    "convert": "conversion",
    "to_dense": "conversion",
    "NonFiniteError": "errors",
    "UserError": "errors",
    "SwitchLoraLinear": "layer",
    "MemoryReport": "memory_report",
    "memory": "memory_report",
    "SwitchLora": "optimizer",
    "pretrain": "training.loop",
    "PretrainOptions": "training.options",
}

__all__ = [
    "ConversionReport",
    "MemoryReport",
    "NonFiniteError",
    "PretrainOptions",
    "SwitchLora",
    "SwitchLoraConfig",
    "SwitchLoraLinear",
    "UserError",
    "convert",
    "memory",
    "pretrain",
    "to_dense",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'switchlora' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"switchlora.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
