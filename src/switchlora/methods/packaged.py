"""What the methods share whose rule for the hidden matrices comes from the package pytorch_optimizer.

It is an extra, `baselines`: who compares nothing need not install it. Its absence is found in `prepare`, so before data
are read.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError, way_to_install
from switchlora.methods.dense import DenseMethod
from switchlora.methods.parameters import groups_of, with_adamw

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

PACKAGE, EXTRA = "pytorch_optimizer", "baselines"


class PackagedMethod(DenseMethod):
    """See `protocol.Method`; a subclass gives name, lr, uses and the optimizer of the hidden matrices."""

    def prepare(self, model: "nn.Module", options: Any) -> str:
        """See `protocol.Method`; the model stays as it is.

        Raises:
            UserError: the package is not installed; says how to install it.
        """
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise UserError(
                f"--method {self.name}: needs the package {PACKAGE}, which is not installed; {way_to_install(EXTRA)}"
            )
        return super().prepare(model, options)

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        from switchlora.baselines.plain_state import keep_plain

        hidden, *others = groups_of(model, options)
        return keep_plain(with_adamw(self.of_hidden(hidden, options), others, options))

    def of_hidden(self, hidden: dict[str, Any], options: Any) -> "Optimizer":
        """The package's optimizer of the one group of hidden matrices."""
        raise NotImplementedError
