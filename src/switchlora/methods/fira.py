"""Fira on the hidden matrices, AdamW on the rest: GaLore, and what its projection leaves out, scaled as Adam scales.

pytorch_optimizer's, with the paper's alpha as a fraction of the learning rate, as the paper's algorithm has it: the
package's own `scale` makes another rule unless it is 1 (docs/methods/fira.md says which). Defaults of the paper (Chen
et al. 2024, arXiv 2410.01623): those of GaLore.
"""

from typing import TYPE_CHECKING, Any

from switchlora.methods.galore import GaLoreMethod, alpha_of, projected, settings

if TYPE_CHECKING:
    from torch.optim import Optimizer


class FiraMethod(GaLoreMethod):
    """See `protocol.Method`."""

    name = "fira"

    def of_hidden(self, hidden: dict[str, Any], options: Any) -> "Optimizer":
        """See `PackagedMethod`."""
        from pytorch_optimizer import Fira

        from switchlora.baselines.plain_state import at_fraction

        return at_fraction(Fira([projected(hidden, options, 1.0)], **settings(options)), alpha_of(options))
