"""SwitchLoRA as it is, and beside it a step along the whole gradient, orthogonalised and without state.

W moves by -0.5 lr 0.2 sqrt(max(m, n)) O(G) beside what the factors make of G, with O and scale of `switchlora.muon`.
Taking only what the factors do not see of G (`residual`) came to the same (docs/log.md), and costs projections.
"""

from pathlib import Path
from typing import Any

from switchlora.methods.own import own_method

Residual: Any = type(own_method(str(Path(__file__).with_name("residual.py"))))

SHARE = 0.5


class Polar(Residual):  # type: ignore[misc]
    """See `switchlora.methods.protocol.Method`."""

    name = "polar"

    def spans(self, layer: Any) -> None:
        """Not needed."""

    def more(self, layer: Any, G: Any, spans: None, seen_step: Any, lr: float) -> Any:
        """What is taken from W, (m, n)."""
        from switchlora.muon import scaled

        return scaled(G) * (SHARE * lr)


METHOD = Polar()
