"""Metrics of a run: JSON lines, TensorBoard events and one progress line.

On a local disk every line is appended at once. Objects of a bucket cannot be appended to: there
lines and events are kept here and written as a whole at most once a minute, by a thread of their
own, so that a killed process loses its last minute and a training step never waits for a bucket.
"""

import json
import math
import os
import pathlib
import shutil
import tempfile
import threading
import time
from typing import Any

from emigm_jax.errors import UserError
from emigm_jax.io import files, paths
from emigm_jax.training.events import Events

FILE, EVENTS = 'metrics.jsonl', 'tensorboard'
PERIOD = 60.0  # seconds between two writes to a bucket
# Values of a step that every head has; the others are the parts of its loss.
_ALWAYS = ('loss', 'mask_ratio', 'gradient_norm', 'learning_rate')


class Metrics:
    """Writes scalars by step. On resuming, lines beyond the resumed step are dropped.

    Args:
      workdir: local or gs://.
      start: the step that is resumed from, 0 for a new run.
      total: steps of the whole run.
      writes: False in all but one of several processes: the same interface, but silent.

    Raises:
      UserError: the workdir cannot be read or written.
    """

    def __init__(self, workdir: os.PathLike | str, start: int, total: int, writes: bool = True):
        self._clock, self._last, self._total = time.perf_counter(), start, total
        self._waited, self._writes = 0.0, writes
        if not writes:
            return
        folder = paths.absolute(workdir)
        self._sink = (_Bucket if files.remote(folder) else _Disk)(folder, _kept(folder, start))
        self._events = Events(self._sink.events, start)

    def write(
        self, step: int, values: dict[str, float], images_per_step: int, waited: float
    ) -> None:
        """Writes the values of a step and prints a line.

        Added are images/s, seconds left and the share of the time that was spent waiting for data;
        `waited` is the total of such seconds so far.
        """
        now = time.perf_counter()
        per_step = (now - self._clock) / max(1, step - self._last)
        share = min(1.0, (waited - self._waited) / max(1e-9, now - self._clock))
        self._clock, self._last, self._waited = now, step, waited
        rate, left = images_per_step / per_step, per_step * (self._total - step)
        parts = ', '.join(f'{k} {v:.4f}' for k, v in values.items() if k not in _ALWAYS)
        self._put(
            step,
            {**values, 'data_wait': share, 'images_per_second': rate, 'seconds_left': left},
            f'loss {values["loss"]:.4f} ({parts})  '
            f'grad {values["gradient_norm"]:.2f}  {rate:.1f} images/s  {_clock(left)} left',
        )

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes values of a step that say nothing about speed, e.g. {'fid': 7.2}."""
        self._put(step, values, '  '.join(f'{name} {value:.5g}' for name, value in values.items()))

    def _put(self, step, values, text):
        if not self._writes:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        self._sink.add(json.dumps({'step': step, **{k: _finite(v) for k, v in values.items()}}))
        print(f'step {step}/{self._total}  {text}', flush=True)

    def pause(self, waited: float) -> None:
        """Takes the time since the last line out of the rate, e.g. after sampling."""
        self._clock, self._waited = time.perf_counter(), waited

    def flush(self) -> None:
        """Returns when all lines and events are where they belong."""
        if self._writes:
            self._events.flush()
            self._sink.flush()

    def close(self) -> None:
        """Flushes, and ends what was begun; may be called twice."""
        if self._writes:
            self._writes = False
            self._events.close()
            self._sink.flush()
            self._sink.close()


class _Disk:
    """Lines appended to a local file, events beside it."""

    def __init__(self, workdir, lines):
        self._file, self.events = workdir / FILE, str(workdir / EVENTS)
        files.write_text(self._file, ''.join(line + '\n' for line in lines))

    def add(self, line):
        with files.reported(self._file), open(self._file, 'a') as f:
            f.write(line + '\n')

    def flush(self):
        """Nothing is held back."""

    def close(self):
        """Nothing is left open."""


class _Bucket:
    """Lines in memory and events in a temporary folder, copied to a bucket by and by."""

    def __init__(self, workdir, lines):
        self._workdir, self._lines = workdir, [line + '\n' for line in lines]
        self.events = tempfile.mkdtemp(prefix='emigm-events-')
        self._writing, self._changing = threading.Lock(), threading.Lock()
        self._timer, self._last = None, -math.inf
        self.flush()

    def add(self, line):
        with self._changing:
            self._lines.append(line + '\n')
            if self._timer is None:
                wait = max(0.0, self._last + PERIOD - time.monotonic())
                self._timer = threading.Timer(wait, self._copy_later)
                self._timer.daemon = True
                self._timer.start()

    def flush(self):
        with self._writing:  # one at a time, so that an older state never replaces a newer one
            with self._changing:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer, self._last = None, time.monotonic()
                text = ''.join(self._lines)
            files.write_text(self._workdir / FILE, text)
            for file in sorted(pathlib.Path(self.events).iterdir()):
                files.write(self._workdir / EVENTS / file.name, [file.read_bytes()])

    def _copy_later(self):
        try:
            self.flush()
        except UserError as error:  # the lines are still here, and go with the next ones
            print(f'metrics: {error}', flush=True)

    def close(self):
        shutil.rmtree(self.events, ignore_errors=True)


def _kept(workdir, start):
    """Lines that an earlier process wrote up to the step that is resumed from."""
    return [line for line in _lines(workdir) if _step(line) <= start]


def _lines(workdir):
    file = paths.absolute(workdir) / FILE
    with files.reported(file):
        return file.read_text().splitlines() if file.exists() else []


def read(workdir: os.PathLike | str) -> list[dict[str, Any]]:
    """All metrics of a run, line by line; its workdir is local or gs://."""
    return [json.loads(line) for line in _lines(workdir)]


def _step(line):
    try:
        return json.loads(line)['step']
    except (ValueError, KeyError):  # the process was killed while it wrote this line
        return math.inf


def _finite(value):
    return value if math.isfinite(value) else str(value)


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
