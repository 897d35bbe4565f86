"""The optimizer's state: what is kept for a parameter, how it starts, and how it is taken over from a file.

Everything sits under its parameter and is a plain tensor, so that `torch.save`, `weights_only=True` and
torch.distributed.checkpoint handle it. Moments are wide (fp32, or float64 for float64 parameters) unless asked
otherwise, and lie beside the parameter; counters are integers on the host, where the choices are made, so that no
step waits for the device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from switchlora.candidates import new_pool
from switchlora.config import SwitchLoraConfig
from switchlora.errors import UserError
from switchlora.initialisation import initial_slots, num_candidates
from switchlora.layer import SwitchLoraLinear
from switchlora.precision import wide_dtype
from switchlora.rules import AdamW, Rule
from switchlora.shards import local, part_like
from switchlora.stats import COUNTS


def ordinary_state(parameter: Tensor, moment_dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Moments, and one step count ()."""
    return {**_moments(AdamW.moments, parameter, moment_dtype), "step": torch.zeros((), dtype=torch.int32)}


def factor_state(
    layer: SwitchLoraLinear,
    letter: str,
    config: SwitchLoraConfig,
    rule: Rule,
    moment_dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The state of lora_A or lora_B.

    Returns:
        the rule's moments, shaped as the factor: exp_avg and exp_avg_sq of AdamW, momentum_buffer of Muon.
        step: int32, (r, 1) for A, (1, r) for B: the rule's steps of each vector since its last reset.
        frozen: int32 (r,): steps for which a vector still rests.
        slots: int64 (r,): which candidate each vector is; cursor: int64 (): the slot that is switched next (both
            only where this side is switched).
        candidates: (c, n) for A, (c, m) for B (only where there is a pool).
    """
    factor: Tensor = getattr(layer, f"lora_{letter}")
    m, n, r = layer.out_features, layer.in_features, layer.r
    state = _moments(rule.moments, factor, moment_dtype)
    state["step"] = torch.zeros((r, 1) if letter == "A" else (1, r), dtype=torch.int32)
    state["frozen"] = torch.zeros(r, dtype=torch.int32)
    if config.switches if letter == "A" else config.switches_B:
        state["slots"] = initial_slots(m, n, r)[letter]
        state["cursor"] = torch.tensor(0 if letter == "A" else r // 2)
        if config.candidates == "pool":
            device = torch.device("cpu") if config.candidate_device == "cpu" else factor.device
            state["candidates"] = new_pool(layer, letter, num_candidates(m, n), state["slots"], device)
    return state


def matched(
    state_dict: Mapping[str, Any], optimizer: torch.optim.Optimizer, order: str
) -> list[tuple[dict[str, Tensor], Mapping[str, Tensor]]]:
    """The entries of every parameter beside those that were saved for it.

    Args:
        state_dict: to be loaded.
        optimizer: whose state it is to be.
        order: of its configuration.

    Raises:
        UserError: they differ: another model or configuration.
    """
    check_groups(state_dict, optimizer.param_groups)
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    pairs = [
        (optimizer.state[parameter], state_dict["state"].get(index, {}))
        for index, parameter in zip(indices, parameters, strict=False)  # torch refuses another number of them
    ]
    for own, saved in pairs:
        check_same_entries(saved, own, order)
    return pairs


def check_same_entries(saved: Mapping[str, Any], own: Mapping[str, Tensor], order: str) -> None:
    """Refuse a saved state whose entries or shapes are not those of this optimizer, or whose candidates do not follow
    each other where they are taken in turn.

    Raises:
        UserError: says what differs.
    """
    if saved.keys() != own.keys():
        raise UserError(
            f"optimizer state holds {', '.join(sorted(saved)) or 'nothing'} where this optimizer has "
            f"{', '.join(sorted(own)) or 'nothing'}; load it with the configuration it was saved with"
        )
    for name, tensor in own.items():
        if tuple(saved[name].shape) != tuple(tensor.shape):
            raise UserError(
                f"optimizer state {name} has shape {tuple(saved[name].shape)} where this optimizer has "
                f"{tuple(tensor.shape)}; load it with the model and rank it was saved with"
            )
    num = len(own["candidates"]) if "candidates" in own else None
    if order == "cyclic" and "slots" in saved and not _in_turn(saved["slots"], int(saved["cursor"]), num):
        raise UserError(
            "the candidates of the optimizer state do not follow each other, so that some would be taken twice: it was "
            "saved with order='random'; load it with the configuration it was saved with"
        )


def _in_turn(slots: Tensor, cursor: int, num: int | None) -> bool:
    """Whether candidates follow each other from the cursor on; after the last one of `num`, if that is known, comes
    0."""
    oldest_first = slots.roll(-cursor)
    before, after = oldest_first[:-1], oldest_first[1:]
    begins_again = after == 0 if num is None else (after == 0) & (before == num - 1)
    return bool(((after == before + 1) | begins_again).all())


def check_groups(state: object, own: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a saved state that is none, or whose groups are not those of a SwitchLora or not as many as this one has.

    Raises:
        UserError: names what is missing.
    """
    entries = state if isinstance(state, Mapping) else {}
    groups = entries.get("param_groups")
    if not isinstance(entries.get("state"), Mapping) or not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise UserError(
            "the state to load is no state of an optimizer, a mapping 'state' beside a list of 'param_groups'; load "
            "what optimizer.state_dict() gave"
        )
    missing = sorted({"step", *COUNTS} - groups[0].keys()) if groups else ["param_groups"]
    if missing:
        raise UserError(
            f"the state to load has no {', '.join(missing)} in its first group, so it is not of a SwitchLora; load "
            "what optimizer.state_dict() gave"
        )
    if len(groups) != len(own):
        raise UserError(
            f"the state to load has {len(groups)} parameter groups and this optimizer {len(own)}; load it with the "
            "configuration (polar) and the groups it was saved with"
        )


def _is_group(group: object) -> bool:
    return isinstance(group, Mapping)


def take_over_(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved entries into those of this optimizer, which keep their dtypes and devices; of a whole tensor a rank
    takes what it holds of its own."""
    for name, tensor in saved.items():
        local(own[name]).copy_(part_like(tensor, own[name]))


def _moments(names: tuple[str, ...], parameter: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Zero moments, wide unless `dtype` says otherwise."""
    dtype = dtype or wide_dtype(parameter.dtype)
    return {name: torch.zeros_like(parameter, dtype=dtype, requires_grad=False) for name in names}
