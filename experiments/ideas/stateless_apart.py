"""`stateless_muon` whose hidden matrices do not count in the norm that is clipped, as in `switchlora-polar`."""

from pathlib import Path
from typing import Any

from switchlora.methods.own import own_method

Base: Any = type(own_method(str(Path(__file__).with_name("stateless_muon.py"))))


class Apart(Base):  # type: ignore[misc]
    """See `switchlora.methods.protocol.Method`."""

    name = "stateless-apart"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The method's own, with its first group apart."""
        optimizer = super().optimizer(model, options)
        optimizer.param_groups[0]["clip"] = False
        return optimizer


METHOD = Apart()
