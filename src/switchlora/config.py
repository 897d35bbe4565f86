"""What to convert and how to switch: the settings of the method, and nothing about devices or trainers.

Field names are PEFT's where PEFT has the field. A configuration is frozen and is checked when it is
built, so whatever holds one may trust it. What each does is told in `docs/algorithm.md`.
"""

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from switchlora.errors import UserError

TargetModules = str | Sequence[str]
NUMBERS = ("lora_alpha", "interval", "polar", "lora_dropout")


@dataclasses.dataclass(frozen=True)
class SwitchLoraConfig:
    """Settings of SwitchLoRA.

    Attributes:
        r: rank, the number of trainable pairs (a_k, b_k) in each layer.
        lora_alpha: the update is scaled by s = lora_alpha / r (the paper: 1).
        target_modules: "all-linear" (every linear layer but the LM head), a list of name endings, or a
            regular expression that must match the whole module name.
        exclude_modules: a list of name endings or a regular expression; these stay as they are.
        rank_pattern: rank by module, from a regular expression on the end of the name to its rank.
        init_lora_weights: "switchlora" (the paper's, both factors non-zero) or "lora" (B = 0, and B is
            not switched).
        interval: expected number of steps between two switches of one vector at the start of training;
            math.inf never switches.
        decay_ratio: the switching frequency falls by 0.3 every decay_ratio * total_steps steps; None
            keeps it constant.
        freeze_steps: steps for which the counterpart of a switched vector rests (N in the paper); 0 is
            an ablation in which the stale gradient is used.
        reset: whether the counterpart's optimizer state is cleared; False is an ablation.
        order: "cyclic" takes candidates in turn, "random" draws them among the idle ones.
        candidates: "pool" keeps every vector that was switched out, "fresh" draws a switched-in vector
            anew from the initial distribution and stores nothing.
        candidate_device: where the pool lives, "cpu" (host memory) or "model" (beside the weights).
        alternate: A and B move in turn, A in the first step, while the moments of both follow every gradient; half the
            work of the weight update. The factors then want twice the learning rate. Turns go by the optimizer's
            steps, so a layer with gradients in every second step only would move one factor only. False is the paper's.
        polar: share of the learning rate at which W also follows its own gradient, orthogonalised (see `polar`; it
            takes a gradient of the size of W, which has to be left out of clipping); 0: it does not.
        lora_dropout: 0, PEFT's name for what is not supported here: W is the effective weight, so there is no adapter
            branch whose input could be dropped.
        seed: every choice is a function of (seed, layer name, purpose, step).

    Raises:
        UserError: (a ValueError) names the field, its value, the rule and the way out.
    """

    r: int = 128
    lora_alpha: float = 1.0
    target_modules: TargetModules = "all-linear"
    exclude_modules: TargetModules | None = None
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    init_lora_weights: Literal["switchlora", "lora"] = "switchlora"
    interval: float = 40.0
    decay_ratio: float | None = 0.1
    freeze_steps: int = 5
    reset: bool = True
    order: Literal["cyclic", "random"] = "cyclic"
    candidates: Literal["pool", "fresh"] = "pool"
    candidate_device: Literal["cpu", "model"] = "cpu"
    alternate: bool = False
    polar: float = 0.0
    lora_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        _check_values(self)
        # One form for each value, so that what is equal is written alike: a list read from JSON is the tuple written.
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(sorted(value) if isinstance(value, set | frozenset) else value))
        for name in NUMBERS:
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.decay_ratio is not None:
            object.__setattr__(self, "decay_ratio", float(self.decay_ratio))
        object.__setattr__(self, "rank_pattern", dict(self.rank_pattern))

    @property
    def switches(self) -> bool:
        """Whether anything is ever switched."""
        return math.isfinite(self.interval)

    @property
    def switches_B(self) -> bool:
        """Whether B is switched too: not when it starts at zero, as in the official code."""
        return self.switches and self.init_lora_weights == "switchlora"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, from which `from_dict` builds an equal configuration."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The configuration as strict JSON, for `from_json`; an infinite interval is written as "inf"."""
        values = self.to_dict()
        if not self.switches:
            values["interval"] = "inf"
        return json.dumps(values, indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values.

        Raises:
            UserError: for a key that is no field, with the nearest name that is one.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"not a SwitchLoraConfig: a dict of its fields is needed, this is {type(values).__name__}")
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(names)}"
                raise UserError(f"SwitchLoraConfig has no field {key!r}; {hint}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build from what `to_json` wrote."""
        if not isinstance(text, str):
            raise UserError(f"not a SwitchLoraConfig: JSON text is needed, this is {type(text).__name__}")
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"not a SwitchLoraConfig: the JSON does not parse ({error}); write it with to_json()"
            ) from None
        if not isinstance(values, dict):
            raise UserError(f"not a SwitchLoraConfig: a JSON object is needed, this is {type(values).__name__}")
        if values.get("interval") == "inf":
            values["interval"] = math.inf
        return cls.from_dict(values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SwitchLoraConfig):
            return NotImplemented
        return self.to_json() == other.to_json()  # as text: the order of rank_pattern counts, which dicts ignore

    def __hash__(self) -> int:
        return hash(self.to_json())


_CHOICES: dict[str, tuple[str, ...]] = {
    "init_lora_weights": ("switchlora", "lora"),
    "order": ("cyclic", "random"),
    "candidates": ("pool", "fresh"),
    "candidate_device": ("cpu", "model"),
}


def _check_types(config: SwitchLoraConfig) -> None:
    for name in ("r", "freeze_steps", "seed"):
        _require(_is_int(getattr(config, name)), config, name, "must be an integer")
    for name in NUMBERS:
        _require(_is_number(getattr(config, name)), config, name, "must be a number")
    _require(config.decay_ratio is None or _is_number(config.decay_ratio), config, "decay_ratio",
             "must be a number above 0, or None for no decay")  # fmt: skip
    for name in ("reset", "alternate"):
        _require(isinstance(getattr(config, name), bool), config, name, "must be True or False")
    for name, choices in _CHOICES.items():
        _require(getattr(config, name) in choices, config, name, f"must be one of {', '.join(choices)}")
    _require(_is_names(config.target_modules), config, "target_modules",
             'must be "all-linear", a list of name endings, or a regular expression')  # fmt: skip
    _require(config.exclude_modules is None or _is_names(config.exclude_modules), config, "exclude_modules",
             "must be a list of name endings or a regular expression")  # fmt: skip
    pattern = config.rank_pattern
    _require(isinstance(pattern, Mapping) and all(isinstance(k, str) and _is_int(v) for k, v in pattern.items()),
             config, "rank_pattern", "must map names (regular expressions) to integer ranks")  # fmt: skip

    for pattern_text in [v for v in (config.target_modules, config.exclude_modules) if isinstance(v, str)] + list(
        pattern
    ):
        try:
            re.compile(pattern_text)
        except re.error as error:
            raise UserError(
                f"{pattern_text!r} is not a regular expression ({error}); escape it, or give a list"
            ) from None


def _check_values(config: SwitchLoraConfig) -> None:
    _require(config.lora_alpha > 0 and math.isfinite(config.lora_alpha), config, "lora_alpha",
             "must be a finite number above 0")  # fmt: skip
    _require(config.interval > 0, config, "interval", "must be above 0 steps (math.inf never switches)")
    _require(config.decay_ratio is None or config.decay_ratio > 0, config, "decay_ratio",
             "must be above 0, or None for no decay")  # fmt: skip
    _require(0 <= config.polar < math.inf, config, "polar",
             "must be a finite share of the learning rate, 0 or more (0.5 is a good start)")  # fmt: skip
    _require(config.lora_dropout == 0, config, "lora_dropout",
             "is not supported, for there is no adapter branch to drop inputs of; leave it at 0, and use dropout of "
             "the model's own")  # fmt: skip
    _require(config.freeze_steps >= 0, config, "freeze_steps", "must be 0 or more steps")
    _require(0 <= config.seed < 2**63, config, "seed", "must be between 0 and 2**63 - 1")
    _require(config.interval >= 2 * config.freeze_steps, config, "interval",
             f"must be at least 2 * freeze_steps = {2 * config.freeze_steps}, or vectors would rest most of the "
             "time; raise interval or lower freeze_steps")  # fmt: skip
    for where, rank in (
        ("r", config.r),
        *((f"rank_pattern[{k!r}]", v) for k, v in config.rank_pattern.items()),
    ):
        if rank < 1:
            raise UserError(f"{where}={rank}: must be at least 1; a quarter of the hidden size is a good start")
        if rank == 1 and config.switches_B:
            raise UserError(
                f"{where}=1: can never switch, for a vector and its partner are not switched in one step; "
                "use r >= 2, or interval=inf for plain LoRA"
            )


def _require(condition: bool, config: SwitchLoraConfig, name: str, rule: str) -> None:
    if not condition:
        raise UserError(f"{name}={getattr(config, name)!r}: {rule}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max or abs(value) == math.inf  # no NaN, and no integer beyond all floats


def _is_names(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, Sequence | set | frozenset) and all(isinstance(v, str) and v for v in value) and bool(value)
    )
