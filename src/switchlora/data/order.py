"""Which sequences make up the batch of step t: a pure function of (seed, t).

Each epoch visits every block once, in a pseudo-random order. A shuffled list would cost memory and would have
to be replayed on resume; instead a small Feistel network, keyed by (seed, epoch), permutes the indices: index
-> index, one to one, a few integer operations, no state. It permutes [0, 4^w), the next power of four; an
index that lands outside [0, n) is sent through again until it lands inside ("cycle walking", fewer than four
rounds on average), which keeps the map one to one on [0, n). Source: Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from switchlora.data.store import Blocks

if TYPE_CHECKING:
    import torch

NUM_ROUNDS = 6


def batch(blocks: Blocks, *, seed: int, step: int, batch_size: int) -> "torch.Tensor":
    """The sequences of step `step` (from 0): (batch_size, seq_len) int64, on the CPU.

    Step t takes the positions t·batch_size ... of the endless sequence of epochs, so epochs join inside a
    batch and a corpus smaller than a batch simply repeats. Streamed blocks keep the stream's order (see
    `Blocks.shuffled`)."""
    import torch

    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    if blocks.shuffled:
        indices = shuffled_indices(positions, num_blocks=len(blocks), seed=seed)
    else:
        num_blocks = blocks.num_available(int(positions[-1]) + 1)  # all positions, unless the stream has ended
        indices = positions % num_blocks
    return torch.from_numpy(np.stack([blocks[int(index)] for index in indices]))


def shuffled_indices(positions: NDArray[np.int64], *, num_blocks: int, seed: int) -> NDArray[np.int64]:
    """Block index of each global position; position p is in epoch p // num_blocks."""
    epochs, places = np.divmod(positions, num_blocks)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(places[chosen], num_blocks, seed=seed, epoch=int(epoch))
    return indices


def permute(places: NDArray[np.int64], num_blocks: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(num_blocks), keyed by (seed, epoch), at the given places."""
    half_bits = max(1, ((num_blocks - 1).bit_length() + 1) // 2)
    digest = blake2b(f"switchlora block order {seed} {epoch}".encode(), digest_size=8 * NUM_ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    values = _feistel(places.astype(np.uint64), keys, half_bits)
    while (outside := values >= num_blocks).any():
        values[outside] = _feistel(values[outside], keys, half_bits)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit. Wraps
    mod 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
