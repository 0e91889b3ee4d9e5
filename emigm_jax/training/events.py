"""Numbers, texts and images as TensorBoard events, written by whoever adds them.

The writer of tensorboardX hands events to a thread of its own: where a disk is full that thread
ends with a traceback, and whoever waits for it waits for ever. Its formats are used without it.
"""

import contextlib
import os
import socket
import time
from typing import Any

import numpy as np
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from emigm_jax.io import files

_proto: Any = event_pb2  # whose classes are made when it is imported


class Events:
    """A file of events.

    Args:
      folder: local; made if it does not exist.
      start: a step; what a run that was cut off wrote about later ones is forgotten.

    Raises:
      UserError: the folder cannot be written; so do all methods but `close`.
    """

    def __init__(self, folder: str, start: int):
        self._folder = folder
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.from-{start}'
        with files.reported(folder):
            os.makedirs(folder, exist_ok=True)
            self._file = record_writer.RecordWriter(os.path.join(folder, name))
            self._write(file_version='brain.Event:2')
            forget = _proto.SessionLog(status=_proto.SessionLog.START)
            self._write(step=start + 1, session_log=forget)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a value of a step; it is in the file after `flush`."""
        self._add(step, summary.scalar(name, value))

    def add_text(self, name: str, text: str, step: int) -> None:
        """Likewise a text, in Markdown."""
        self._add(step, summary.text(name, text))

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Likewise an image, uint8 (H, W, 1 or 3)."""
        self._add(step, summary.image(name, image, dataformats='HWC'))

    def _add(self, step, value):
        with files.reported(self._folder):
            self._write(step=step, summary=value)

    def flush(self) -> None:
        """Returns when everything is in the file."""
        with files.reported(self._folder):
            self._file.flush()

    def close(self) -> None:
        """Ends the file; that it cannot be written was reported before."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **event):
        content = _proto.Event(wall_time=time.time(), **event)
        self._file.write(content.SerializeToString())
