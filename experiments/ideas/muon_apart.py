"""Muon whose hidden matrices do not count in the norm that is clipped, as in `switchlora-polar`."""

from typing import Any

from switchlora.methods.muon import MuonMethod as Base


class Apart(Base):
    """See `switchlora.methods.protocol.Method`."""

    name = "muon-apart"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The method's own, with its first group apart."""
        optimizer = super().optimizer(model, options)
        optimizer.param_groups[0]["clip"] = False
        return optimizer


METHOD = Apart()
