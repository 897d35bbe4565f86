"""SwitchLoRA that resets the first moment of a counterpart and keeps its second.

The paper clears both, so that for some steps a counterpart divides by an estimate of g^2 from a few gradients alone and
moves by nearly lr in every entry, noise and all. But when a_k is exchanged for another vector of the same length, the
scale of b_k's gradient, which is what its second moment estimates, stays what it was; only the direction, the first
moment, is stale. So m <- 0, v stays, and neither is corrected for a start that v did not make: the steps begin small
and grow as m does.
"""

import dataclasses
from typing import Any, ClassVar

from switchlora.methods.switchlora import SwitchLoraMethod


class SoftReset(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "soft-reset"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The usual one with another rule."""
        from switchlora.moving_layers import move_layers_
        from switchlora.optimizer import SwitchLora
        from switchlora.rules import AdamW
        from switchlora.transfers import along

        @dataclasses.dataclass(frozen=True)
        class SoftAdamW(AdamW):
            steps: int  # of the run, this one included
            elementwise: ClassVar[bool] = False  # so that what is reset is set to zero before the step, by us

            def coefficients(self, step: Any, lr: float) -> Any:
                import numpy as np

                return super().coefficients(np.full(step.shape, self.steps), lr)

        class Optimizer(SwitchLora):
            def _move(self, group: Any, part: slice) -> None:
                settings = self.param_groups[0]
                rule, lr = SoftAdamW(settings["betas"], settings["eps"], settings["step"] + 1), float(settings["lr"])
                coefficients = {letter: group.count_step(letter, part, rule, lr) for letter in ("A", "B")}
                states = {letter: of_side[part] for letter, of_side in group.states.items()}
                for letter, of_side in coefficients.items():
                    for state, reset in zip(states[letter], of_side.zero_before, strict=True):
                        if reset is not None:
                            state["exp_avg"][along(0 if letter == "A" else 1, reset)] = 0
                    coefficients[letter] = dataclasses.replace(of_side, zero_before=[None] * len(of_side.zero_before))
                decay = 1 - lr * settings["weight_decay"]
                move_layers_(group.layers[part], states, coefficients, rule, decay, self._key_of)

        return Optimizer(model, self.config(options), **{**self.settings(options), "fused_backward": False})


METHOD = SoftReset()
