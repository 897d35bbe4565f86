"""Read a checkpoint of several processes (`sharded`) for any number of them, and any strategy.

Each process reads what it will hold and nothing else: of a tensor that FSDP2 shares out among N processes now, its
rows, whoever wrote them; of one that it holds whole, all parts. No process talks to another.

torch's own reader unpickles the index, and a pickle can run code. Ours admits the handful of classes that an index
is made of, so that a checkpoint stays data.
"""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from switchlora.shards import is_sharded, laid_out_like, local
from switchlora.training.checkpoint import INDEX
from switchlora.training.sharded import PLAIN, put_together, taken_apart

ADMITTED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "BytesStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip


class Unreadable(Exception):
    """Why the files of a checkpoint cannot be loaded."""


def read_sharded(folder: Path, own: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state that `sharded.ShardedCheckpoints.save` was given, as this process holds it.

    Args:
        folder: a whole checkpoint.
        own: this run's state, nested alike; its sharded tensors say how theirs will be.
        parameters: of the optimizer, by number, for moments that an optimizer of torch does not have yet.

    Returns:
        tensors on the device of the own ones where those are sharded, else on the CPU.

    Raises:
        Unreadable: the folder is no such checkpoint.
    """
    try:
        return _read(folder, own, parameters)
    except Exception as error:  # torch raises many kinds here; whatever it is, these files are the reason
        failures = getattr(error, "failures", {})  # of a CheckpointException
        reason = next((found for found, _ in failures.values()), error)
        raise Unreadable((str(reason).splitlines() or [type(reason).__name__])[0]) from error


def _read(folder: Path, own: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    plain = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    reader = _Reader(folder)
    _, held = taken_apart(own)
    tensors = {
        name: _room_for(entry, _pattern(name, entry, held, parameters))
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():  # of what `no_dist` means
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        load(tensors, storage_reader=reader, no_dist=True)
    state: dict[str, Any] = put_together(plain, tensors)
    return state


def _pattern(
    name: str, entry: TensorStorageMetadata, held: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> Tensor | None:
    """The sharded tensor of this run that a saved one will be laid out like; None: it will be whole."""
    first, *more = name.split("/")
    numbered = first == "optimizer" and len(more) > 2 and more[0] == "state" and int(more[1]) < len(parameters)
    own = held.get(name, parameters[int(more[1])] if numbered else None)
    return own if own is not None and is_sharded(own) and own.shape == entry.size else None


def _room_for(entry: TensorStorageMetadata, pattern: Tensor | None) -> Tensor:
    dtype = entry.properties.dtype
    if pattern is None:
        return torch.empty(entry.size, dtype=dtype)
    return laid_out_like(torch.empty_like(local(pattern), dtype=dtype), pattern)


class _Reader(FileSystemReader):
    """torch's reader, with an index that is data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As torch's.

        Raises:
            pickle.UnpicklingError: it holds something else than an index does.
        """
        with (Path(self.path) / INDEX).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{INDEX} is no index")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"{INDEX} names {module}.{name}, which no index is made of")
        return super().find_class(module, name)
