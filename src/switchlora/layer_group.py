"""Layers of one shape, handled together: their counters stand side by side in one tensor per kind.

The optimizer's state has one home, under each parameter. Here the integer counters of all layers of one shape are
stacked, and what stands under the parameters are views of the stack: a choice for all layers is then one operation
on host integers, not one per layer. `LayerGroup.side` is what `switching` sees of A or B.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from switchlora import switching
from switchlora.candidates import Candidates, Fresh, pools_of
from switchlora.config import SwitchLoraConfig
from switchlora.distributed.scattered import ScatteredVectors
from switchlora.draws import Draws
from switchlora.errors import UserError
from switchlora.exchange import DeviceVectors
from switchlora.initialisation import num_candidates
from switchlora.kernels.availability import use_kernels
from switchlora.layer import SwitchLoraLinear
from switchlora.moving_layers import Coefficients, numbers_of
from switchlora.precision import wide_dtype
from switchlora.rules import Rule
from switchlora.shards import Ranks, local, own_rows, ranks_of
from switchlora.transfers import on_device

COUNTERS = ("step", "frozen", "slots", "cursor")
State = dict[str, Tensor]


def grouped(layers: Sequence[SwitchLoraLinear]) -> list[list[SwitchLoraLinear]]:
    """The layers by shape, device, dtypes and ranks that share them; within groups and between them in their order.

    Raises:
        UserError: a layer was parametrized, or is sharded in part.
    """
    groups: dict[tuple[object, ...], list[SwitchLoraLinear]] = {}
    for layer in layers:
        require_own_parameters(layer)
        shape = (layer.out_features, layer.in_features, layer.r)
        groups.setdefault((*shape, *_format(layer), _common_ranks(layer)), []).append(layer)
    return list(groups.values())


def require_own_parameters(layer: SwitchLoraLinear) -> None:
    """Refuse a layer that was parametrized after `convert`: what is computed anew in every call cannot be moved.

    Raises:
        UserError: names the layer and the way out.
    """
    for name in ("weight", "lora_A", "lora_B"):
        if name not in layer._parameters:
            raise UserError(
                f"layer {layer.name}: its {name} is no parameter of its own any more, as if it was parametrized after "
                "convert, and would not be trained; take that away"
            )


def _format(layer: SwitchLoraLinear) -> tuple[object, ...]:
    return layer.weight.device, layer.weight.dtype, layer.lora_A.dtype


def _common_ranks(layer: SwitchLoraLinear) -> Ranks | None:
    ranks = ranks_of(layer.weight)
    if not ranks == ranks_of(layer.lora_A) == ranks_of(layer.lora_B):
        raise UserError(
            f"layer {layer.name}: its weight, lora_A and lora_B are not sharded alike; give fully_shard all three"
        )
    return ranks


def part_of(plan: switching.Plan, part: slice) -> switching.Plan:
    """What some neighbouring ones of its layers switch, counted from the first of these."""
    num, chosen = plan.num[part], dict[str, switching.Chosen]()
    if num.any():
        first = int(plan.num[: part.start].sum())
        some = slice(first, first + int(num.sum()))
        for letter, all_ in plan.chosen.items():
            layers = all_.layers[some] - part.start
            chosen[letter] = switching.Chosen(layers, all_.slots[some], all_.outgoing[some], all_.incoming[some])
    return switching.Plan(plan.requested[part], num, chosen)


class LayerGroup:
    """Layers of one shape and their optimizer state.

    Attributes:
        layers: L of them.
        states: of side "A" and "B", one dict a layer, the very ones that the optimizer holds.
        candidates: by side; none for a side that is never switched.
        fused: whether they are stepped by `kernels`.
        ranks: those that share their rows out among them (`shards`); None: all are here.
    """

    def __init__(
        self,
        layers: Sequence[SwitchLoraLinear],
        states: dict[str, list[State]],
        config: SwitchLoraConfig,
        fused: bool | None = None,
    ) -> None:
        self.layers, self.states, self.config, self._asked = layers, states, config, fused
        self.ranks, self._format = ranks_of(layers[0].weight), _format(layers[0])
        self._planned: tuple[int, switching.Plan] | None = None  # of this step, by number
        self._foreseen: tuple[int, switching.Plan] | None = None  # of the next one, where it was made with this
        self.link()

    def link(self) -> None:
        """Stack the counters, and put views of the stacks in their places; also after unpickling, which loses views."""
        self._counters: dict[str, dict[str, Tensor]] = {}
        self.candidates: dict[str, Candidates] = {}
        device = self.layers[0].lora_A.device
        self.fused = use_kernels(self._asked, self._numbers())
        for letter, states in self.states.items():
            self._counters[letter] = {}
            for name in COUNTERS:
                if name in states[0]:
                    stack = torch.stack([state[name].reshape(state[name].numel()) for state in states])
                    for state, row in zip(states, stack, strict=True):
                        state[name] = row.view(state[name].shape)
                    self._counters[letter][name] = stack
            if "candidates" in states[0]:
                self.candidates[letter] = pools_of([local(state["candidates"]) for state in states], device)
            elif "slots" in states[0]:
                self.candidates[letter] = Fresh(self.layers, letter, self.config.seed)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickle, which know no streams: `link` makes the candidates anew."""
        return {**self.__dict__, "candidates": {}, "_planned": None, "_foreseen": None}

    def _numbers(self) -> Iterator[Tensor]:
        """All that a step of the rule changes."""
        for layer in self.layers:
            yield from (layer.lora_A.detach(), layer.lora_B.detach(), layer.weight.detach())
        for states in self.states.values():
            for state in states:
                yield from (tensor for name, tensor in state.items() if name not in (*COUNTERS, "candidates"))

    def with_states(self) -> list[tuple[SwitchLoraLinear, dict[str, State]]]:
        """Every layer with its state of side "A" and "B"."""
        return [(layer, {letter: self.states[letter][i] for letter in "AB"}) for i, layer in enumerate(self.layers)]

    def begin_step(self) -> None:
        """Take what was chosen in advance, once: a step that failed chooses anew when it is done again.

        Raises:
            UserError: see `_require_unchanged`.
        """
        self._planned, self._foreseen = self._foreseen, None
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        """Refuse to step what was moved or cast since, what was parametrized, and what FSDP2 has gathered and not put
        away again: those are copies, soon to be dropped.

        Raises:
            UserError: names the layer and the way out.
        """
        for layer in self.layers:
            require_own_parameters(layer)
            if ranks_of(layer.weight) != self.ranks:
                raise UserError(
                    f"layer {layer.name} was {'whole' if self.ranks is None else 'sharded'} when SwitchLora was made, "
                    "and is not now; make it after fully_shard, and call step() right after backward(), or "
                    "model.reshard() after a forward pass without one"
                )
            if _format(layer) != self._format:
                there, here = (" ".join(map(str, found)) for found in (self._format, _format(layer)))
                raise UserError(
                    f"layer {layer.name} was {there} when SwitchLora was made, and is {here} now; move and cast the "
                    "model before"
                )

    def parts_with_gradients(self) -> Iterator[slice]:
        """Runs of neighbouring layers that have all their gradients: as a rule one, of all layers."""
        first = 0
        for i, is_ready in enumerate([*(layer.has_gradients for layer in self.layers), False]):
            if not is_ready:
                if i > first:
                    yield slice(first, i)
                first = i + 1

    def side(self, letter: str, part: slice) -> switching.Side:
        """What `switching` sees. Resolved now: wrappers may have replaced the parameters since the last step."""
        layers = self.layers[part]
        factors = [
            local(layer.lora_A.detach()) if letter == "A" else local(layer.lora_B.detach()).T for layer in layers
        ]
        counters = {name: stack[part].numpy() for name, stack in self._counters[letter].items()}
        layer, candidates = self.layers[0], self.candidates.get(letter)
        vectors: switching.Vectors = DeviceVectors(factors, candidates, part.start, self.fused)
        if letter == "A" and self.ranks is not None:
            vectors = ScatteredVectors(factors, candidates, part.start, layer.r, layer.in_features, self.ranks)
        return switching.Side(
            letter,
            vectors,
            counters["step"], counters["frozen"],
            slots=counters.get("slots", counters["frozen"]),
            cursor=counters["cursor"][:, 0] if "cursor" in counters else np.zeros(len(factors), dtype=np.int64),
            num_candidates=num_candidates(layer.out_features, layer.in_features),
        )  # fmt: skip

    def count_step(self, letter: str, part: slice, rule: Rule, lr: float, moves: bool = True) -> Coefficients:
        """Count one step of the rule and of every rest, and return what the rule needs of it: one transfer for all.

        Unless the factor `moves`, every vector's size is 0.
        """
        counters, factor = self._counters[letter], getattr(self.layers[0], f"lora_{letter}")
        step, frozen = counters["step"][part].numpy(), counters["frozen"][part].numpy()
        kept, live = step != 0, frozen == 0
        step += 1
        size, small = rule.coefficients(step, lr)
        dtype = np.float64 if wide_dtype(factor.dtype) == torch.float64 else np.float32
        table = np.stack((size * (live & moves), small, live, kept), axis=1).astype(dtype)
        frozen[~live] -= 1
        # A vector that rests since it was reset has moments of zero all the while. Where no vector depends on another,
        # it may take its gradient, for its size is 0, and have them set to zero again.
        keeps_none = ~live & (self.config.reset and rule.elementwise)
        own = own_rows(factor) if letter == "A" else slice(None)
        few = [
            () if self.fused and self.ranks is None else numbers_of(flags[:, own], factor.device)
            for flags in (~live & ~keeps_none, ~kept & ~keeps_none, keeps_none)
        ]
        return Coefficients(on_device(table, factor.device), *few)

    def switch(self, part: slice, draws: Draws, step: int, interval: float) -> dict[str, switching.Outcome]:
        """Switch vectors of some of the layers, and say by name what was done.

        The choices of all layers are made together, by `prefetch` or when the first of them comes, and kept for the
        step: with `fused_backward` each comes by itself, and integers of one layer cost as much as those of all.
        """
        if self._planned is None or self._planned[0] != step:
            self._planned = step, self._plan(draws, step, interval)
        names, planned = [layer.name for layer in self.layers[part]], part_of(self._planned[1], part)
        sides = self.side("A", part), self.side("B", part)
        return dict(zip(names, switching.switch(*sides, planned, self.config, step), strict=True))

    def _plan(self, draws: Draws, step: int, interval: float) -> switching.Plan:
        every, names = slice(0, len(self.layers)), [layer.name for layer in self.layers]
        return switching.plan(self.side("A", every), self.side("B", every), self.config, draws, names, step, interval)

    def prefetch(self, draws: Draws, step: int, interval: float) -> None:
        """Send for the vectors that a step will take, if they lie elsewhere: every choice is known in advance."""
        if any(candidates.is_remote for candidates in self.candidates.values()):
            self._foreseen = step, self._plan(draws, step, interval)
            for letter, chosen in self._foreseen[1].chosen.items():
                self.candidates[letter].prefetch(chosen.layers, chosen.incoming, step)

    def settle(self) -> None:
        """Wait until every vector that is on its way has been filed, and forget what was chosen in advance."""
        self._planned = self._foreseen = None
        for candidates in self.candidates.values():
            candidates.settle()
