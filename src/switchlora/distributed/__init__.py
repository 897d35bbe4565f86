"""The steps of the method on ranks that each hold some rows of every parameter, and what ranks do for each other.

The single-process core knows sharded parameters only as `shards` has them. What takes talking to other ranks is here,
one idea a file: `scattered` (switching rows of A), `moving_layers` (W follows factors of which a rank has some rows),
`muon` (a rule that needs whole matrices), `agreement` (are all ranks still the same?).
"""
