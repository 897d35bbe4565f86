"""The dense model of a run under FSDP2, written without ever being whole anywhere.

Hugging Face's format may lie in several files, with an index. Here they are as many as there are processes; more, so
that none is large; or fewer, where there are few tensors. Each process gathers the tensors of its files and writes
them, while the others write theirs.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from switchlora.distributed.gathering import whole_on
from switchlora.machine.files import atomic_write_json, let_others_read, writing
from switchlora.training.parallel import Processes

LARGEST_BYTES = 4 * 2**30  # of a file, about, and with that of what a process gathers at one time
INDEX = "model.safetensors.index.json"


def write_dense_shards(
    path: Path, model: Any, state: Mapping[str, Tensor], transposed: Collection[str], processes: Processes
) -> None:
    """Write a dense model for `from_pretrained`; called by all processes together.

    Args:
        path: the folder.
        model: the dense transformers model, which needs no memory: it is asked for its configuration.
        state: its entries, each shared out among all processes.
        transposed: of these, the ones that the model has transposed.

    Raises:
        UserError: a disk refused.
    """
    ranks = processes.sharing
    assert ranks is not None
    parts = list(_parts({name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}, ranks.num))
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    files = {entry: name for name, part in zip(names, parts, strict=True) for entry in part}
    processes.on_first(lambda: _begin(path, model, files, total))
    for first in range(0, len(parts), ranks.num):
        mine: tuple[str, dict[str, Tensor]] | None = None
        for owner, (name, part) in enumerate(
            zip(names[first : first + ranks.num], parts[first : first + ranks.num], strict=True)
        ):
            gathered = {entry: whole_on(owner, state[entry].detach(), ranks) for entry in part}
            if ranks.rank == owner:
                mine = (
                    name,
                    {
                        entry: (tensor.T.contiguous() if entry in transposed else tensor).cpu()
                        for entry, tensor in gathered.items()
                        if tensor is not None
                    },
                )
        processes.on_each(lambda mine=mine: _write(path, *mine) if mine else None)  # type: ignore[misc]


def _parts(sizes_bytes: Mapping[str, int], num: int) -> Iterator[list[str]]:
    """The entries in `num` runs of about equal size, in more where these would be large, in fewer where entries are
    larger than that."""
    total = sum(sizes_bytes.values())
    num = max(num, -(-total // LARGEST_BYTES))
    part: list[str] = []
    before, num_ended = 0, 0  # bytes in all entries before this one
    for name, num_bytes in sizes_bytes.items():
        if part and (before + num_bytes / 2) * num > total * (num_ended + 1):
            yield part
            part, num_ended = [], max(num_ended + 1, before * num // total)
        part.append(name)
        before += num_bytes
    yield part


def remove_weights(path: Path) -> None:
    """What an export that was interrupted may have left in a folder: files, or an index of other files."""
    for old in path.glob("model*.safetensors*"):
        old.unlink()


def _begin(path: Path, model: Any, files: Mapping[str, str], total_bytes: int) -> None:
    with writing("the results", path):
        remove_weights(path)
        model.config.architectures, model.config.use_cache = [type(model).__name__], True
        model.config.save_pretrained(path)
        if model.can_generate():
            model.generation_config.save_pretrained(path)
        atomic_write_json(path / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": dict(files)})


def _write(path: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with writing("the results", path):
        save_file(dict(tensors), path / name, metadata={"format": "pt"})
        let_others_read(path / name)
