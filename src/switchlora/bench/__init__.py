"""`switchlora bench`: what a training step costs, of SwitchLoRA and of what it is an alternative to, side by side.

    options -> contestants -> build -> rounds (interleaved steps) -> paired ratios -> table, JSON, chart

Contestants take turns, one step each, on the same batch in the same process. A machine that is shared, that warms up or
clocks down then slows all of a round alike, and the ratio of two steps of one round hardly notices; times taken
minutes apart on such a machine differ by more than the methods do. So a ratio here is always the median of
paired ratios, with its spread, and absolute times are for orientation only.
"""
