"""Checkpoints of several processes, by torch.distributed.checkpoint: each writes its part while training goes on.

    step-00000100/
        __0_0.distcp, __1_0.distcp, ...   tensors, as torch.distributed.checkpoint lays them out: a file a process
        .metadata                         which part of which tensor is in which of them
        plain.pt                          the rest of the state: the same nested structure, with names for tensors
        meta.json, manifest.json          as in every checkpoint

A tensor that FSDP2 has shared out is written by those who hold it, one that all hold (DDP) by one of them. Nobody ever
gathers anything. What is written is a copy in host memory, made in a moment; a thread of each process then writes it,
syncs it and sums it (`manifest`), and when all have, the first process puts the manifest there and gives the folder its
name. A process killed in between leaves the earlier checkpoints alone. Cost: host memory for one copy of what this
process holds, and at the end of a run, or when the next checkpoint is due, waiting for the last one.

The threads agree over a group of their own, so that their messages and those of training cannot meet.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult

from switchlora.training.checkpoint import CheckpointStore
from switchlora.training.manifest import Entry, SummedFile, write_summed
from switchlora.training.parallel import Processes

PLAIN = "plain.pt"
NAME = "tensor:"  # what stands in `plain` where a tensor was


class ShardedCheckpoints:
    """Writes the checkpoints of a run of several processes; every method is called by all of them together."""

    def __init__(self, store: CheckpointStore, processes: Processes) -> None:
        self.store, self.processes = store, processes
        self._group = torch.distributed.new_group(backend="gloo")
        self._under_way: tuple[int, Path, Future[Any]] | None = None

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Begin to write the state after `step` optimizer steps; returns when it may change again.

        Args:
            state: nested mappings and lists of tensors (DTensors are parts of one) and plain data.
            meta: JSON; the first process's counts.

        Raises:
            UserError: the disk refused this checkpoint, or the last one. Those before are as they were.
        """
        self.wait()
        folder = self.processes.on_first(lambda: self._begin(step))
        if folder is None:
            return
        plain, tensors = taken_apart(state)
        writer = _Writer(folder, lambda entries: self._publish(folder, step, plain, entries, meta))
        future: Any = async_save(tensors, storage_writer=writer, process_group=self._group)
        self._under_way = step, folder, future

    @property
    def has_failed(self) -> bool:
        """Whether the last write of this process has ended in an error, which `wait` will raise."""
        return self._under_way is not None and self._under_way[2].done() and self._under_way[2].exception() is not None

    def wait(self) -> None:
        """Until the last checkpoint is whole.

        Raises:
            UserError: a disk refused it.
        """
        if self._under_way is None:
            return
        (step, folder, future), self._under_way = self._under_way, None
        try:
            future.result()
        except CheckpointException as error:
            if self.processes.is_first:
                self.store.abandon(folder)
            for reason, _ in error.failures.values():
                if isinstance(reason, OSError):
                    raise self.store.refusal(reason, step) from error
            raise

    def _begin(self, step: int) -> Path | None:
        try:
            return self.store.begin(step)
        except OSError as error:
            raise self.store.refusal(error, step) from error

    def _publish(self, folder: Path, step: int, plain: Any, entries: dict[str, Entry], meta: Mapping[str, Any]) -> None:
        entries[PLAIN] = write_summed(folder / PLAIN, lambda file: torch.save(plain, file))  # type: ignore[arg-type]
        self.store.publish(folder, step, entries, meta)


class _Writer(FileSystemWriter):
    """torch's writer into a folder, which sums what it writes; `publish` gets the sums when all have written."""

    def __init__(self, folder: Path, publish: Callable[[dict[str, Entry]], None]) -> None:
        super().__init__(folder)
        self.folder, self.publish = folder, publish
        self.fs: _SummingFileSystem = _SummingFileSystem()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write this process's files, and beside them, for the first one, their sums."""
        with self.fs.reasons():
            written: torch.futures.Future[list[WriteResult]] = super().write_data(plan, planner)
        (self.folder / f"sums-{self.rank}.json").write_text(json.dumps(self.fs.entries()))
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first process, when all have written."""
        with self.fs.reasons():
            super().finish(metadata, results)
        entries = self.fs.entries()
        for rank in range(len(results)):  # by name, for a folder's listing may be old on a network's file system
            path = self.folder / f"sums-{rank}.json"
            entries |= json.loads(path.read_text())
            path.unlink()
        self.publish(entries)


class _SummingFileSystem(FileSystem):
    """The local one; files that are written are summed on the way."""

    def __init__(self) -> None:
        self._files: dict[str, SummedFile] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """As torch's."""
        with super().create_stream(path, mode) as handle:
            if "w" not in mode:
                yield handle
                return
            self._files[Path(path).name] = file = SummedFile(handle)  # type: ignore[arg-type]
            yield file

    def rename(self, path: Any, new_path: Any) -> None:
        """As torch's."""
        super().rename(path, new_path)
        self._files[Path(new_path).name] = self._files.pop(Path(path).name)

    def entries(self) -> dict[str, Entry]:
        """Of all files written so far, by name."""
        return {name: file.entry for name, file in self._files.items()}

    @contextmanager
    def reasons(self) -> Iterator[None]:
        """Raise what the disk said, which torch buries under errors of its own."""
        try:
            yield
        except Exception as error:
            refused = [file.refused for file in self._files.values() if file.refused is not None]
            raise (refused[0] if refused else error) from None


def taken_apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as plain data, with "tensor:NAME" for each tensor, and the tensors by name."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            name = "/".join(path)
            tensors[name] = value
            return NAME + name
        if isinstance(value, Mapping):
            return {key: walk(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(walk(item, (*path, str(number))) for number, item in enumerate(value))
        assert not (isinstance(value, str) and value.startswith(NAME)), path
        return value

    return walk(state, ()), tensors


def put_together(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """`taken_apart` backwards."""
    if isinstance(plain, str) and plain.startswith(NAME):
        return tensors[plain.removeprefix(NAME)]
    if isinstance(plain, Mapping):
        return {key: put_together(item, tensors) for key, item in plain.items()}
    if isinstance(plain, list | tuple):
        return type(plain)(put_together(item, tensors) for item in plain)
    return plain
