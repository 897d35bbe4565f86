"""SwitchLoRA with Muon's rule on the factors: one momentum and no second moment, so half the optimizer state.

Ours, not the paper's: see `switchlora.muon` for the rule and for what a reset means to it.
"""

from switchlora.methods.switchlora import SwitchLoraMethod


class SwitchLoraMuonMethod(SwitchLoraMethod):
    """See `protocol.Method`."""

    name = "switchlora-muon"
    lr = 2e-2
    rule = "muon"
