"""The counterpart of `mlp_ranks`: half the rank in the MLP's matrices, and what that saves given to the attention's."""

from pathlib import Path
from typing import Any

from switchlora.methods.own import own_method

MlpRanks: Any = type(own_method(str(Path(__file__).with_name("mlp_ranks.py"))))


class AttentionRanks(MlpRanks):  # type: ignore[misc]
    """See `switchlora.methods.protocol.Method`."""

    name = "attention-ranks"
    halved, raised = MlpRanks.raised, MlpRanks.halved


METHOD = AttentionRanks()
