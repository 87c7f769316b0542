"""The metrics of each epoch as TensorBoard's events."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

from llm4msr import storage
from llm4msr.training.checkpoint import Epoch

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter


class Board:
    """A file of events below a training's output; an object store gets it at the end, since it grows while it is open.

    tensorboardX's `SummaryWriter` would write it in a thread, which a full disk ends without a word, and all that is
    shown later waits.
    """

    def __init__(self, writer: "EventsWriter"):
        self._writer = writer

    @classmethod
    @contextlib.contextmanager
    def open(cls, output: UPath) -> Iterator["Board"]:
        """A new file below `output`."""
        from tensorboardX.event_file_writer import EventsWriter

        local = isinstance(output, Path)
        with tempfile.TemporaryDirectory() as aside:
            folder = output / "tensorboard" if local else Path(aside)
            folder.mkdir(exist_ok=True)
            writer = EventsWriter(str(folder / "events"))
            try:
                yield cls(writer)
            finally:
                with contextlib.suppress(OSError):  # every epoch is on the disk, or the disk was full and that is known
                    writer.close()
            for file in [] if local else folder.iterdir():
                storage.write_bytes(output / "tensorboard" / file.name, file.read_bytes())

    def write(self, epoch: Epoch) -> None:
        """Add one event for each metric that the rows define."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in epoch.items():
            if value is not None:  # GAUC of single rows, say, is not defined
                event = Event(wall_time=time.time(), step=epoch["epoch"], summary=scalar(name, value))
                self._writer.write_event(event)
        self._writer.flush()
