"""SwitchLoRA as it is, and the part of the gradient that its factors do not see, orthogonalised and without state.

The unseen part is R (`residual`). W moves by -0.5 lr 0.2 sqrt(max(m, n)) O(R) beside what the factors make of theirs,
with O and the scale of `switchlora.muon`, but no momentum. 0.5 was better than 0.3 (docs/log.md).
"""

from pathlib import Path
from typing import Any

from switchlora.methods.own import own_method

Residual: Any = type(own_method(str(Path(__file__).with_name("residual.py"))))

SHARE = 0.5


class PolarResidual(Residual):  # type: ignore[misc]
    """See `switchlora.methods.protocol.Method`."""

    name = "polar-residual"

    def unseen_step(self, layer: Any, G: Any, R: Any, seen_step: Any, lr: float) -> Any:
        """What is taken from W, (m, n)."""
        from switchlora.muon import scaled

        return scaled(R) * (SHARE * lr)


METHOD = PolarResidual()
