"""TensorBoard: one event file for each round, each point one record in it, synced before it counts as kept."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llmtrain_trainer.trackers.backend import Fence, Run
from llmtrain_trainer.trackers.points import Point


class TensorBoard:
    """Event files in `folder`. TensorBoard reads all files of a folder, in the order of their names, as one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = 0

    def begin(self, run: Run) -> int:
        """See `Backend.begin`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._fence = Fence(self._folder, run)
        self._fence.raise_to_this_round()
        older = sorted(self._folder.glob(f"events.out.tfevents.*.{run.id}"), reverse=True)
        self._kept = next(filter(None, map(_newest_step, older)), 0)
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        # The files are read in the order of their names. One that is started again in a round has a file of its own.
        name = f"events.out.tfevents.{run.round:020d}.{len(older):06d}.{socket.gethostname()}.{run.id}"
        self._file: BinaryIO = (self._folder / name).open("xb")
        self._writer = RecordWriter(self._file)
        self._writer.write(first.SerializeToString())
        if not older:
            self._writer.write(_config(run).SerializeToString())
        return self._kept

    def log(self, points: Sequence[Point]) -> None:
        """See `Backend.log`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._fence.check()
        for each in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in each.values.items()]
            event = Event(wall_time=each.time, step=each.step, summary=Summary(value=values))
            self._writer.write(event.SerializeToString())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._kept = points[-1].step

    def kept(self) -> int:
        """See `Backend.kept`."""
        return self._kept

    def finish(self) -> None:
        """See `Backend.finish`."""
        self._file.close()


def _config(run: Run) -> Any:
    """The job's spec, as text."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    text = "```json\n" + json.dumps(run.config, indent=2) + "\n```"
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[text.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag="job/spec", metadata=metadata, tensor=tensor)
    return Event(wall_time=time.time(), step=0, summary=Summary(value=[value]))


def _newest_step(file: Path) -> int:
    """The step of the last whole record, 0 if there is none. The tail of a file whose writer was killed may be torn."""
    from tensorboard.compat.proto.event_pb2 import Event

    newest = 0
    for record in _records(file):
        newest = max(newest, Event.FromString(record).step)
    return newest


def _records(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while len(head := stream.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            record, check = stream.read(length), stream.read(4)
            if len(record) < length or len(check) < 4:
                return
            yield record
