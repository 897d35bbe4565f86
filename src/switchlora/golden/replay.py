"""What the replays of all files share: recorded draws, an optimizer that is watched, and the list of deviations."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from switchlora.config import SwitchLoraConfig
from switchlora.conversion import convert
from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear
from switchlora.layer_group import LayerGroup
from switchlora.optimizer import SwitchLora
from switchlora.switching import Outcome, interval_at


class Deviations:
    """The largest absolute difference seen of each quantity, and the tolerance it must keep."""

    def __init__(self) -> None:
        self.largest: dict[str, tuple[float, float]] = {}

    def compare(self, quantity: str, ours: Any, recorded: Any, tolerance: float) -> None:
        """Take |ours - recorded| into account; a difference in shape counts as infinite."""
        a, b = np.asarray(ours, dtype=np.float64), np.asarray(recorded, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is not within any tolerance
            deviation = float(np.max(np.abs(a - b), initial=0.0)) if a.shape == b.shape else np.inf
        before = self.largest.get(quantity, (0.0, tolerance))[0]
        self.largest[quantity] = (max(before, deviation) if deviation == deviation else np.nan, tolerance)

    @property
    def within(self) -> bool:
        """Whether every quantity is within its tolerance."""
        return bool(self.largest) and all(deviation <= tolerance for deviation, tolerance in self.largest.values())

    def __str__(self) -> str:
        width = max(map(len, self.largest))
        rows = [
            f"{name:{width}}  {deviation:9.2e}  {'<=' if deviation <= tolerance else '> '} {tolerance:.0e}"
            for name, (deviation, tolerance) in self.largest.items()
        ]
        return "\n".join(rows)


class RecordedDraws:
    """The draws of a recorded run (see `draws.Draws`)."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def uniform(self, name: str, step: int) -> float:
        """The uniform that the official code drew."""
        return float(self.data[f"sw/{name}/u"][step])

    def choose(self, name: str, side: str, step: int, idle: Tensor, num: int) -> Tensor:
        """The candidates that the official code drew, in random order.

        Where the file has fewer than `num` of them (our numbers went another way), idle ones stand in, so that the
        replay runs on and the comparison of the maps shows it.
        """
        recorded = torch.from_numpy(self.data[f"sw/{name}/{side}_map"][step, :, 1]).to(idle)
        recorded = recorded[torch.isin(recorded, idle)]
        if len(set(recorded.tolist())) == len(recorded) >= num:
            return recorded[:num]
        return idle[:num]


class ObservedSwitchLora(SwitchLora):
    """SwitchLora that also notes, per layer, by how much a switch moved W and how many live candidates it took."""

    jumps: dict[str, float]
    overlaps: dict[str, dict[str, int]]

    def _switch(self, group: LayerGroup, part: slice) -> None:
        layers = group.layers[part]
        weights = [layer.weight.clone() for layer in layers]
        slots = {side: [state["slots"].clone() for state in group.states[side][part]] for side in ("A", "B")}
        super()._switch(group, part)
        for i, (layer, W) in enumerate(zip(layers, weights, strict=True)):
            self.jumps[layer.name] = float((layer.weight - W).abs().max())
            switches = self.outcomes[layer.name].switches
            self.overlaps[layer.name] = {
                side: int(torch.isin(switches[side].incoming, slots[side][i]).sum()) if side in switches else 0
                for side in ("A", "B")
            }


def recorded_config(meta: dict[str, Any], layers: list[str], *, switching: bool) -> SwitchLoraConfig:
    """The settings of a recorded run in our terms."""
    descend = meta.get("expect_switch_descend_step", 0) / meta["steps"]
    return SwitchLoraConfig(
        r=meta["rank"], lora_alpha=meta["lora_alpha"], target_modules=layers,
        interval=meta["base_interval"] if switching else float("inf"), freeze_steps=meta["freeze_steps"],
        decay_ratio=None if meta["fixed_interval"] else descend, order="cyclic" if meta["continuous"] else "random",
    )  # fmt: skip


class Replay:
    """A model and optimizer that start where a recorded run started, and the comparisons common to all files."""

    def __init__(
        self, model: nn.Module, data: Any, meta: dict[str, Any], config: SwitchLoraConfig, tolerance: float
    ) -> None:
        convert(model, config)
        self.optimizer = ObservedSwitchLora(
            model, config, total_steps=meta["steps"], lr=meta["lr"], betas=tuple(meta["betas"]), eps=meta["eps"],
            weight_decay=meta["weight_decay"],
        )  # fmt: skip
        self.optimizer.draws = RecordedDraws(data)
        self.model, self.data, self.meta, self.tolerance = model, data, meta, tolerance
        self.layers: dict[str, Any] = {name: model.get_submodule(name) for name in config.target_modules}
        for name, layer in self.layers.items():
            if not isinstance(layer, SwitchLoraLinear):
                raise UserError(f"layer {name}: rank {config.r} is not below min(m, n), so it has nothing to switch to")
        self.deviations = Deviations()
        self.switching = config.switches

    def start(self, name: str, W: Any, A: Any, B: Any) -> None:
        """Put a layer where the recorded run started: W is the paper's base."""
        layer = self.layers[name]
        with torch.no_grad():
            for tensor, value in ((layer.lora_A, A), (layer.lora_B, B)):
                tensor.copy_(torch.from_numpy(value))
            layer.weight.copy_(torch.from_numpy(W) + layer.scaling * layer.lora_B @ layer.lora_A)

    def start_side(self, name: str, side: str, candidates: Any, slots: Any, cursor: Any) -> None:
        """Likewise the switching state of one side of a layer."""
        state = self.state(name, side)
        for key, value in (("candidates", candidates), ("slots", slots), ("cursor", cursor)):
            state[key].copy_(torch.as_tensor(value))

    def state(self, name: str, side: str) -> dict[str, Tensor]:
        """The optimizer's state of one factor."""
        state: dict[str, Tensor] = self.optimizer.state[getattr(self.layers[name], f"lora_{side}")]
        return state

    def compare(self, quantity: str, ours: Any, recorded: Any, tolerance: float | None = None) -> None:
        """Note the deviation of one quantity."""
        ours = ours.detach() if isinstance(ours, Tensor) else ours
        self.deviations.compare(quantity, ours, recorded, self.tolerance if tolerance is None else tolerance)

    def step(self, loss: Tensor) -> Tensor:
        """Backward, clipping and one optimizer step; returns the gradient norm (0 where nothing is clipped)."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.compare_gradients(self.optimizer.param_groups[0]["step"])
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        clip = self.meta["clip_grad_norm"]
        norm = nn.utils.clip_grad_norm_(trainable, clip) if clip else torch.zeros(())
        self.optimizer.jumps, self.optimizer.overlaps = {}, {}
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def compare_gradients(self, t: int) -> None:
        """Raw gradients, where the file has them."""
        for name, layer in self.layers.items():
            for key, parameter in (("A", layer.lora_A), ("B", layer.lora_B), ("bias", layer.bias)):
                if f"grad/{name}/{key}" in self.data:
                    self.compare(f"grad/{key}", parameter.grad, self.data[f"grad/{name}/{key}"][t])

    def compare_switches(self, t: int) -> None:
        """Everything that the file holds about the switches of step t."""
        for name in self.layers:
            outcome = self.optimizer.outcomes[name]
            ours: dict[str, Any] = {
                "drawn": outcome.requested,
                "num": len(outcome.switches["A"].slots) if outcome.switches else 0,
            }
            for side in ("A", "B"):
                state = self.state(name, side)
                ours |= {
                    f"{side}_map": _padded_map(outcome, side, self.data[f"sw/{name}/{side}_map"]),
                    f"fixed_{side}": state["frozen"],
                    f"sel_{side}": state["slots"],
                    f"cursor_{side}": state["cursor"],
                    f"fn_jump_{side}": self.optimizer.jumps[name],
                    f"overlap_{side}": self.optimizer.overlaps[name][side],
                }
            if f"sw/{name}/interval" in self.data:  # grows to 1e8 and more, so it is compared by its ratio
                recorded = self.data[f"sw/{name}/interval"][t]
                interval = interval_at(t, self.optimizer.config, self.optimizer.total_steps)
                with np.errstate(divide="ignore"):
                    self.compare("sw/interval (ratio)", interval / recorded, 1.0)
            for key, value in ours.items():
                if f"sw/{name}/{key}" in self.data:
                    self.compare(f"sw/{key}", value, self.data[f"sw/{name}/{key}"][t])

    def base(self, name: str) -> Tensor:
        """The paper's frozen base of a layer, W - s B A."""
        layer = self.layers[name]
        with torch.no_grad():
            return layer.weight - layer.scaling * layer.lora_B @ layer.lora_A  # type: ignore[no-any-return]


def _padded_map(outcome: Outcome, side: str, recorded: Any) -> Any:
    """Our switches of one side as the file has them: rows (slot, candidate), filled up with -1."""
    rows = np.full(recorded.shape[1:], -1)
    if side in outcome.switches:
        switch = outcome.switches[side]
        ours = np.stack([switch.slots.numpy(), switch.incoming.numpy()], axis=1)
        if len(ours) > len(rows):
            return ours  # more than the file has room for: the shapes differ, which counts as infinitely far
        rows[: len(ours)] = ours
    return rows
