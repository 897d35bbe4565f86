"""`sketch` that switches only in the second half of the run, when the learning rate is low."""

import math
from pathlib import Path
from typing import Any

from switchlora.methods.own import own_method

Sketch: Any = type(own_method(str(Path(__file__).with_name("sketch.py"))))


class LateSketch(Sketch):  # type: ignore[misc]
    """See `switchlora.methods.protocol.Method`."""

    name = "late-sketch"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The one of `sketch`, with another schedule of the interval."""
        optimizer = super().optimizer(model, options)

        def step_and_interval() -> tuple[int, float]:
            step = optimizer.param_groups[0]["step"]
            return step, optimizer.config.interval if 2 * step >= optimizer.total_steps else math.inf

        optimizer._step_and_interval = step_and_interval
        return optimizer


METHOD = LateSketch()
