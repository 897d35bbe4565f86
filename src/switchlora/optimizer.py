"""SwitchLora: a torch optimizer whose `step` is one step of the method, in the order of `docs/algorithm.md`.

It needs no callback and no trainer of its own: schedulers, clipping, accumulation and loggers treat it like
torch.optim.AdamW. The first parameter group holds the factors of all converted layers, the last everything else
that trains (embeddings, head, norms, biases), with a learning rate of its own (see `parameter_groups`).

All state is created at construction and sits under its parameter: moments, and for the factors the per-vector
step counts, freeze counters, slots, cursor and candidates; the number of steps and the totals of switches are
integers in the first group. Moments are fp32 (float64 for float64 parameters), counters are integers on the
host, candidates live where the configuration says; loading a state keeps all of that.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from switchlora import draws, switching
from switchlora import optimizer_checks as checks
from switchlora.closures import loss_of
from switchlora.config import SwitchLoraConfig
from switchlora.distributed.agreement import check_agreement, steps_between_checks
from switchlora.distributed.moving_layers import move_sharded_layers_
from switchlora.errors import UserError
from switchlora.fused_backward import FusedBackward, check_fused_backward
from switchlora.layer import SwitchLoraLinear
from switchlora.layer_group import LayerGroup, grouped
from switchlora.moving import Key
from switchlora.moving_layers import move_layers_, turn_of
from switchlora.muon import rule_of
from switchlora.ordinary import move_ordinary_
from switchlora.parameter_groups import checked_group, num_own_groups, parameter_groups
from switchlora.polar import follow_gradients_
from switchlora.precision import without_autocast
from switchlora.state import factor_state, matched, ordinary_state, take_over_
from switchlora.stats import COUNTS, SwitchCounts, SwitchStats, count


class SwitchLora(torch.optim.Optimizer):
    """AdamW with one step count per vector on the factors (or Muon), switching, and an AdamW for everything else.

    Args:
        model: converted by `convert`, on its device, not on the meta device.
        config: the one given to `convert`.
        total_steps: length of the run in optimizer steps; the switching frequency decays by it.
        lr: learning rate of the factors.
        other_lr: learning rate of everything else; None: `lr`.
        betas, eps: of AdamW.
        weight_decay: decoupled, times the learning rate; of the effective weight W in place of the factors
            (decaying them would pull W to no smaller weight), and of all other parameters.
        rule: of the factors: "adamw", or "muon" (see `muon`): one moment instead of two, of decay `momentum`.
        moment_dtype: torch.bfloat16 to store all moments so, stochastically rounded; None: wide (fp32, or float64
            beside float64 parameters).
        fused_backward: step each layer inside the backward pass, as soon as its gradients are there, and free them
            (see `fused_backward`); not with gradient accumulation, clipping by global norm, DDP or a gradient scaler.
        fused: step all layers of a shape in a few launches (see `kernels`); None: on CUDA where that can be done.

    Attributes:
        draws: where switches take their chances from; a function of the seed.
        outcomes: what was switched in the last step, by layer name.
        config, total_steps: as given.

    Raises:
        UserError: (a ValueError) no converted layer, another configuration than the layers', a parameter on the
            meta device or of a format that cannot train, several devices, or a value out of range.
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
        rule: str = "adamw",
        momentum: float = 0.95,
        moment_dtype: torch.dtype | None = None,
        fused_backward: bool = False,
        fused: bool | None = None,
    ) -> None:
        checks.check_model(model, config)
        checks.check_hyperparameters(total_steps, lr, other_lr, betas, eps, weight_decay)
        checks.check_rule(rule, momentum, fused)
        checks.check_moment_dtype(moment_dtype)
        checks.check_fused_backward_flag(fused_backward)
        self.config, self.total_steps = config, int(total_steps)
        self.moment_dtype, self.fused_backward = moment_dtype, fused_backward
        self.fused = fused if rule == "adamw" else False
        self.draws: draws.Draws = draws.SeededDraws(config.seed)
        self.outcomes: dict[str, switching.Outcome] = {}
        self._last = SwitchCounts()
        self._layers = [module for module in model.modules() if isinstance(module, SwitchLoraLinear)]
        checks.check_layers(self._layers, config)
        if fused_backward:
            check_fused_backward(model)
        groups, self._names = parameter_groups(model, self._layers, config, lr, other_lr, rule, momentum)
        other_lr = lr if other_lr is None else other_lr
        defaults = {"lr": other_lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, checks.plain_numbers(defaults))
        self._layer_groups = [self._make_group(layers) for layers in grouped(self._layers)]
        self._arm()

    def _make_group(self, layers: list[SwitchLoraLinear]) -> LayerGroup:
        rule, states = rule_of(self.param_groups[0]), dict[str, list[dict[str, Tensor]]](A=[], B=[])
        for layer in layers:
            if self.config.polar:
                self.state[layer.weight] = {}  # torch.distributed.checkpoint refuses what trains and has no entry
            for letter in states:
                state = self.state[getattr(layer, f"lora_{letter}")]
                state.update(factor_state(layer, letter, self.config, rule, self.moment_dtype))
                states[letter].append(state)
        return LayerGroup(layers, states, self.config, self.fused)

    def _arm(self) -> None:
        """Register the hooks of `fused_backward`; a copied or unpickled optimizer needs its own."""
        self._steps_between_checks = steps_between_checks(os.environ)
        self._fused_backward: FusedBackward | None = None
        if self.fused_backward:
            others = [(self._names[p], p) for group in self._other_groups for p in group["params"]]
            self._fused_backward = FusedBackward(
                self._layers, others, self._layer_is_ready, self._parameter_is_ready, self._begin_step
            )

    # -- one step; the numbers are those of docs/algorithm.md -----------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Switch, reset and freeze, move the factors and W with them, and step everything else.

        A layer or parameter without a gradient is left alone, as torch's optimizers do. With `fused_backward` all that
        happened in the backward pass, and this counts the step.

        Args:
            closure: evaluates the model again and returns the loss (optional, as in torch).

        Returns:
            the closure's loss, or None.
        """
        loss = loss_of(closure)
        with without_autocast(self._layers[0].weight.device):
            self._step_what_has_gradients()
        return loss

    def _step_what_has_gradients(self) -> None:
        if self.param_groups[0]["step"] == 0:
            checks.warn_of_idle_layers(self._layers, self._fused_backward.done if self._fused_backward else set())
        if self._fused_backward is None or not self._fused_backward.finish():
            self._begin_step()
        for group in self._layer_groups:
            for part in group.parts_with_gradients():
                self._step_layers(group, part)
        for others in self._other_groups:
            self._step_others(others, [p for p in others["params"] if p.grad is not None])
        self._finish_step()

    def _layer_is_ready(self, layer: SwitchLoraLinear) -> None:
        group = next(group for group in self._layer_groups if layer in group.layers)
        number = group.layers.index(layer)
        self._step_layers(group, slice(number, number + 1))

    def _parameter_is_ready(self, parameter: nn.Parameter) -> None:
        group = next(g for g in self._other_groups if any(p is parameter for p in g["params"]))
        self._step_others(group, [parameter])

    def _begin_step(self) -> None:
        self.outcomes = {}
        for group in self._layer_groups:
            group.begin_step()

    def _step_layers(self, group: LayerGroup, part: slice) -> None:
        if self.config.switches:
            self._switch(group, part)
        self._move(group, part)
        if self.config.polar:
            lr = self.config.polar * float(self.param_groups[1]["lr"])
            follow_gradients_(group.layers[part], lr, self._key_of)

    def _switch(self, group: LayerGroup, part: slice) -> None:
        """1 to 5, for some layers of one shape."""
        self.outcomes |= group.switch(part, self.draws, *self._step_and_interval())

    def _move(self, group: LayerGroup, part: slice) -> None:
        """6 and 7: the rule on A and B, and what it means for W."""
        settings = self.param_groups[0]
        rule, lr = rule_of(settings), float(settings["lr"])
        decay = 1 - lr * settings["weight_decay"]
        turn = turn_of(settings["step"], self.config.alternate)
        coefficients = {letter: group.count_step(letter, part, rule, lr, letter in turn) for letter in ("A", "B")}
        states = {letter: of_side[part] for letter, of_side in group.states.items()}
        arguments = (group.layers[part], states, coefficients, rule, decay, self._key_of, turn)
        if group.ranks is not None:
            move_sharded_layers_(*arguments, group.ranks)
        elif group.fused:
            from switchlora.kernels import moving_layers

            moving_layers.move_layers_(*arguments)
        else:
            move_layers_(*arguments)

    @property
    def _other_groups(self) -> list[dict[str, Any]]:
        """The groups of ordinary parameters."""
        return self.param_groups[num_own_groups(self.config) :]

    def _step_others(self, settings: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """8: AdamW on ordinary parameters, torch's own where nothing is stored in a narrow format."""
        for parameter in parameters:
            assert parameter.grad is not None
            if parameter.grad.is_sparse:
                raise UserError(f"{self._names[parameter]} has a sparse gradient; use nn.Embedding(..., sparse=False)")
        keys = [self._key_of(self._names[parameter]) for parameter in parameters]
        move_ordinary_(parameters, [self.state[p] for p in parameters], settings, keys, self.fused)

    def _finish_step(self) -> None:
        """Count the step and what was switched in it, and send for the vectors that the next one will take."""
        settings = self.param_groups[0]
        self._last = count(self.outcomes.values(), self.config)
        for name in COUNTS:
            settings[name] += getattr(self._last, name)
        settings["step"] += 1
        if self._steps_between_checks and settings["step"] % self._steps_between_checks == 0:
            self._settle()
            check_agreement([pair for group in self._layer_groups for pair in group.with_states()], settings["step"])
        for group in self._layer_groups:
            group.prefetch(self.draws, *self._step_and_interval())

    def _step_and_interval(self) -> tuple[int, float]:
        step = self.param_groups[0]["step"]
        return step, switching.interval_at(step, self.config, self.total_steps)

    def _key_of(self, name: str, suffix: str = "") -> Key:
        """Keys of the rounding bits of one layer or parameter in this step."""
        step = self.param_groups[0]["step"]
        return lambda purpose: draws.key(self.config.seed, name, purpose + suffix, step)

    # -- state ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, for ordinary parameters, at `other_lr` if the group has no rate of its own.

        Raises:
            UserError: a parameter or a value that the constructor would refuse, too; nothing has changed then.
        """
        if len(self.param_groups) >= num_own_groups(self.config):
            param_group = checked_group(param_group, self._names, self._layers[0].weight.device)
        super().add_param_group(param_group)
        for place, parameter in enumerate(p for group in self._other_groups[-1:] for p in group["params"]):
            self._names.setdefault(parameter, f"parameter {place} of group {len(self.param_groups) - 1}")
            self.state[parameter].update(ordinary_state(parameter, self.moment_dtype))

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: torch's own keeps only groups and state."""
        self._settle()
        settings = ("config", "total_steps", "moment_dtype", "fused_backward", "fused")
        own = (*settings, "draws", "outcomes", "_last", "_layers", "_names", "_layer_groups")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For copy.deepcopy and pickle: what was shared is shared again. torch's load_state_dict comes by, too."""
        super().__setstate__(state)
        if "_layer_groups" in state:
            for group in self._layer_groups:
                group.link()
            self._arm()

    def state_dict(self) -> dict[str, Any]:
        """As in torch; rows that are still on their way to a pool in host memory are filed first."""
        self._settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state in place: every tensor keeps its dtype and device (torch's would cast to the parameter's).

        Raises:
            UserError: (a ValueError) entries or shapes differ from this optimizer's: another model or configuration.
        """
        pairs = matched(state_dict, self, self.config.order)
        own = self.state
        super().load_state_dict({**state_dict, "state": {}})  # groups, and torch's own checks of them
        self.state = own
        self._settle()
        for entries, saved in pairs:
            take_over_(entries, saved)

    def _settle(self) -> None:
        for group in self._layer_groups:
            group.settle()

    # -- what was done -------------------------------------------------------------------------------------

    @property
    def stats(self) -> SwitchStats:
        """Requested and done switches and resets, of the last step and in total."""
        return SwitchStats(self._last, SwitchCounts(**{name: self.param_groups[0][name] for name in COUNTS}))
