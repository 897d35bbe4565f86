"""Any method, with its hidden matrices left out of the norm that is clipped, as in `switchlora-polar`.

No method by itself: `full_apart`, `muon_apart` and `stateless_apart` run this file and give it their base.
"""

from typing import Any


def apart(base: Any, name: str) -> Any:
    """A method like `base`, a class, whose first group, the hidden matrices, is not clipped with the rest."""

    class Apart(base):  # type: ignore[misc]
        """See `switchlora.methods.protocol.Method`."""

        def optimizer(self, model: Any, options: Any) -> Any:
            """The method's own, with its first group apart."""
            optimizer = super().optimizer(model, options)
            optimizer.param_groups[0]["clip"] = False
            return optimizer

    Apart.name = name
    return Apart()
