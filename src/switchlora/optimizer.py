"""SwitchLora: a torch optimizer whose `step` is one step of the method, in the order of DESIGN section 4.

It needs no callback and no trainer of its own: schedulers, clipping, accumulation and loggers treat it like
torch.optim.AdamW. The first parameter group holds the factors of all converted layers, the second everything
else that trains (embeddings, head, norms, biases), with a learning rate of its own.

All state is created at construction and sits under its parameter: moments, and for the factors the per-vector
step counts, freeze counters, slots, cursor and candidates; the number of steps and the totals of switches are
integers in the first group. Moments are fp32 (float64 for float64 parameters), counters are integers on the
host, candidates live where the configuration says; loading a state keeps all of that.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from switchlora import draws, switching
from switchlora.candidates import Candidates, Fresh, Pool
from switchlora.config import SwitchLoraConfig
from switchlora.errors import UserError
from switchlora.initialisation import num_candidates, vector_bounds
from switchlora.layer import SwitchLoraLinear
from switchlora.optimizer_checks import check_hyperparameters, check_layers
from switchlora.precision import store_, wide_dtype
from switchlora.rules import adamw_
from switchlora.state import check_same_entries, factor_state, ordinary_state
from switchlora.stats import COUNTS, SwitchCounts, SwitchStats, count
from switchlora.weight_update import update_weight_

logger = logging.getLogger("switchlora")


class SwitchLora(torch.optim.Optimizer):
    """AdamW with one step count per vector on the factors, switching, and an AdamW for everything else.

    Args:
        model: converted by `convert`, on its device, not on the meta device.
        config: the one given to `convert`.
        total_steps: length of the run in optimizer steps; the switching frequency decays by it.
        lr: learning rate of the factors.
        other_lr: learning rate of everything else; None: `lr`.
        betas, eps: of AdamW.
        weight_decay: decoupled, times the learning rate; of the effective weight W in place of the factors
            (decaying them would pull W to no smaller weight), and of all other parameters.

    Attributes:
        draws: where switches take their chances from; a function of the seed.
        outcomes: what was switched in the last step, by layer name.
        config, total_steps: as given.

    Raises:
        UserError: (a ValueError) no converted layer, another configuration than the layers', a model on the
            meta device, or a value out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SwitchLoraConfig,
        *,
        total_steps: int,
        lr: float,
        other_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        check_hyperparameters(total_steps, lr, other_lr, betas, eps, weight_decay)
        self.config, self.total_steps = config, total_steps
        self.draws: draws.Draws = draws.SeededDraws(config.seed)
        self.outcomes: dict[str, switching.Outcome] = {}
        self._last = SwitchCounts()
        self._layers = [module for module in model.modules() if isinstance(module, SwitchLoraLinear)]
        check_layers(self._layers, config)
        factors = [factor for layer in self._layers for factor in (layer.lora_A, layer.lora_B)]
        taken = set(factors)
        others = {p: name for name, p in model.named_parameters() if p.requires_grad and p not in taken}
        groups: list[dict[str, Any]] = [{"params": factors, "step": 0, **dataclasses.asdict(SwitchCounts())}]
        if others:
            groups.append({"params": list(others), "lr": lr if other_lr is None else other_lr})
        self._names: dict[Tensor, str] = dict(others.items())
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._candidates: dict[tuple[str, str], Candidates] = {}
        for layer in self._layers:
            for letter in ("A", "B"):
                state = self.state[getattr(layer, f"lora_{letter}")]
                state.update(factor_state(layer, letter, config))
                if "slots" in state:
                    self._candidates[layer.name, letter] = self._candidates_of(layer, letter)

    # -- one step, DESIGN section 4 ------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Switch, reset and freeze, move the factors and W with them, and step everything else.

        A layer or parameter without a gradient is left alone, as torch's optimizers do.

        Args:
            closure: evaluates the model again and returns the loss (optional, as in torch).

        Returns:
            the closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        interval = switching.interval_at(group["step"], self.config, self.total_steps)
        self.outcomes = {}
        if group["step"] == 0:
            self._warn_of_idle_layers()
        for layer in self._layers:
            if layer.lora_A.grad is not None and layer.lora_B.grad is not None:
                if self.config.switches:
                    self._switch(layer, group["step"], interval)
                self._move(layer, group)
        self._last = count(self.outcomes.values(), self.config)
        for name in COUNTS:
            group[name] += getattr(self._last, name)
        for other_group in self.param_groups[1:]:
            for parameter in other_group["params"]:
                if parameter.grad is not None:
                    self._move_ordinary(parameter, other_group, group["step"])
        group["step"] += 1
        return loss

    def _warn_of_idle_layers(self) -> None:
        """A model that reads `layer.weight` itself, instead of calling the layer, would never train that layer."""
        idle = [layer.name for layer in self._layers if layer.lora_A.grad is None]
        if idle:
            logger.warning("%d converted layers got no gradient in the first step, such as %s", len(idle), idle[0])

    def _switch(self, layer: SwitchLoraLinear, step: int, interval: float) -> None:
        A, B = self._side(layer, "A"), self._side(layer, "B")
        self.outcomes[layer.name] = switching.switch(A, B, self.config, self.draws, layer.name, step, interval)

    def _move(self, layer: SwitchLoraLinear, group: dict[str, Any]) -> None:
        """The rule on A and B, and what it means for W."""
        A, B, W = layer.lora_A, layer.lora_B, layer.weight
        old_B = B.detach().clone()
        dA, dB = (self._move_factor(layer, letter, group) for letter in ("A", "B"))
        decay = 1 - float(group["lr"]) * group["weight_decay"]
        key = draws.key(self.config.seed, layer.name, "rounding of W", group["step"])
        update_weight_(W, A, old_B.to(dA.dtype), dA, dB, layer.scaling, decay, key)

    def _move_factor(self, layer: SwitchLoraLinear, letter: str, group: dict[str, Any]) -> Tensor:
        """Step one factor; a vector that rests has no gradient, and does not move. Returns the change."""
        factor: Tensor = getattr(layer, f"lora_{letter}")
        state, wide = self.state[factor], wide_dtype(factor.dtype)
        old = factor.to(wide, copy=True)
        live = (state["frozen"] == 0).view(state["step"].shape).to(wide).to(factor.device, non_blocking=True)
        assert factor.grad is not None
        direction = _direction(state, factor.grad.to(wide) * live, group)
        new = torch.addcmul(old, direction, live, value=-float(group["lr"]))
        store_(factor, new, draws.key(self.config.seed, layer.name, f"rounding of {letter}", group["step"]))
        state["frozen"].sub_(1).clamp_(min=0)
        return factor.to(wide) - old

    def _move_ordinary(self, parameter: Tensor, group: dict[str, Any], step: int) -> None:
        state, wide, lr = self.state[parameter], wide_dtype(parameter.dtype), float(group["lr"])
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            raise UserError(f"{self._names[parameter]} has a sparse gradient; use nn.Embedding(..., sparse=False)")
        direction = _direction(state, parameter.grad.to(wide), group)
        decayed = parameter.to(wide) * (1 - lr * group["weight_decay"])
        key = draws.key(self.config.seed, self._names[parameter], "rounding", step)
        store_(parameter, decayed.sub_(direction, alpha=lr), key)

    # -- state ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch. All groups but the first, which holds the factors, are of ordinary parameters."""
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        for place, parameter in enumerate(self.param_groups[number]["params"] if number else ()):
            self.state[parameter].update(ordinary_state(parameter))
            self._names.setdefault(parameter, f"parameter {place} of group {number}")

    def _candidates_of(self, layer: SwitchLoraLinear, letter: str) -> Candidates:
        state = self.state[getattr(layer, f"lora_{letter}")]
        if self.config.candidates == "pool":
            return Pool(state["candidates"])
        bounds = vector_bounds(layer.out_features, layer.in_features, layer.r, layer.init_lora_weights)
        return Fresh(self.config.seed, layer.name, letter, bounds[letter])

    def _side(self, layer: SwitchLoraLinear, letter: str) -> switching.Side:
        """One side of a layer with vectors as rows. Resolved now: wrappers may have replaced the parameter."""
        factor: Tensor = getattr(layer, f"lora_{letter}")
        state = self.state[factor]
        tensors = (factor, state["exp_avg"], state["exp_avg_sq"])
        vectors, *moments = tensors if letter == "A" else (tensor.T for tensor in tensors)
        return switching.Side(
            letter, vectors, tuple(moments), state["step"].view(-1), state["frozen"],
            slots=state.get("slots", state["frozen"]), cursor=state.get("cursor", torch.tensor(0)),
            candidates=self._candidates.get((layer.name, letter)),
            num_candidates=num_candidates(layer.out_features, layer.in_features),
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: torch's own keeps only groups and state."""
        self._settle()
        own = ("config", "total_steps", "draws", "outcomes", "_last", "_layers", "_names", "_candidates")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def state_dict(self) -> dict[str, Any]:
        """As in torch; rows that are still on their way to a pool in host memory are filed first."""
        self._settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state in place: every tensor keeps its dtype and device (torch's would cast to the parameter's).

        Raises:
            UserError: (a ValueError) entries or shapes differ from this optimizer's: another model or configuration.
        """
        own = self.state
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        pairs = list(zip(indices, parameters, strict=False))
        for index, parameter in pairs:
            check_same_entries(state_dict["state"].get(index, {}), own[parameter])
        super().load_state_dict({**state_dict, "state": {}})  # groups, and torch's own checks of them
        self.state = own
        self._settle()
        for index, parameter in pairs:
            for name, tensor in state_dict["state"][index].items():
                own[parameter][name].copy_(tensor)

    def _settle(self) -> None:
        for candidates in self._candidates.values():
            candidates.settle()

    # -- what was done -------------------------------------------------------------------------------------

    @property
    def stats(self) -> SwitchStats:
        """Requested and done switches and resets, of the last step and in total."""
        group = self.param_groups[0]
        return SwitchStats(self._last, SwitchCounts(**{name: group[name] for name in COUNTS}))


def _direction(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    """Count the step and apply the rule to one parameter's state."""
    state["step"] += 1
    return adamw_(grad, state["exp_avg"], state["exp_avg_sq"], state["step"], group["betas"], group["eps"])
