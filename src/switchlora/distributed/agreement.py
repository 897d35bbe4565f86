"""Are all ranks still the same? `SWITCHLORA_DEBUG=K` asks after every K steps, and stops at the first difference.

Under DDP nothing but gradients travels: every rank switches and steps by itself, and stays equal bit for bit because
gradients, choices and rounding bits are. What could break that (a gradient changed on one rank only, a damaged memory,
different libraries) would go unnoticed, for the loss goes on falling. So ranks compare 64-bit hashes of W, A, B,
candidates, slots, cursors and counters of every layer. Of sharded layers each rank has numbers of its own, and only the
integers are compared. It costs a copy of the model to the host each time, so it is for debugging.
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from switchlora.errors import RanksDifferError, UserError
from switchlora.layer import SwitchLoraLinear
from switchlora.shards import is_sharded

VARIABLE = "SWITCHLORA_DEBUG"
COMPARED = ("slots", "cursor", "step", "frozen", "candidates")
States = Mapping[str, Mapping[str, Tensor]]


def steps_between_checks(environment: Mapping[str, str]) -> int:
    """K of `SWITCHLORA_DEBUG=K`; 0: never.

    Raises:
        UserError: it is no whole number.
    """
    text = environment.get(VARIABLE) or "0"
    if not text.isdecimal():
        raise UserError(f"{VARIABLE}={text}: must be a whole number of steps between checks; use 1, or unset it")
    return int(text)


def check_agreement(layers: Iterable[tuple[SwitchLoraLinear, States]], step: int) -> None:
    """Compare the layers of all processes; nothing is done where there is one.

    Args:
        layers: each with its optimizer state of side "A" and "B".
        step: optimizer steps done, for the message.

    Raises:
        RanksDifferError: on all of them, with the first layer that differs, what of it, and where.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    ours = [entry for layer, states in layers for entry in digests(layer, states)]
    gathered: list[list[tuple[str, str, str]]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, ours)
    for rank, theirs in enumerate(gathered):
        for (name, what, digest), (_, _, other) in zip(gathered[0], theirs, strict=False):
            if digest != other:
                raise RanksDifferError(
                    f"layer {name}: after step {step} its {what} differ between ranks 0 and {rank}; compare their "
                    "versions and hardware, and leave out what changes gradients or weights on one rank only"
                )
        if len(theirs) != len(gathered[0]):
            raise RanksDifferError(f"rank {rank} has other layers than rank 0; start all with the same model")


def digests(layer: SwitchLoraLinear, states: States) -> list[tuple[str, str, str]]:
    """(the layer's name, what, hash) of everything that must be equal on all ranks."""
    tensors = {"weights": layer.weight, "lora_A": layer.lora_A, "lora_B": layer.lora_B}
    for letter, state in states.items():
        tensors |= {f"{what} of {letter}": state[what] for what in COMPARED if what in state}
    return [(layer.name, what, digest_of(tensor)) for what, tensor in tensors.items() if not is_sharded(tensor)]


def digest_of(tensor: Tensor) -> str:
    """A hash of the bytes of a tensor."""
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes(), digest_size=8).hexdigest()
