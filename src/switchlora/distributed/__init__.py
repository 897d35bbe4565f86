"""One model on several ranks: what takes talking to other ranks, one idea a file.

The single-process core knows sharded parameters only as `shards` has them. The steps of the method on ranks that each
hold some rows of every parameter: `scattered` (switching rows of A), `moving_layers` (W follows factors of which a rank
has some rows), `muon` (a rule that needs whole matrices), `gathering` (a tensor whole again on one rank). What ranks do
for each other and for a run: `wrapping` (DDP and FSDP2 around a model), `agreement` (are all ranks still the same?),
`finiteness` (which one did a NaN come from?), `traffic` (bytes that travel, counted).
"""
