"""Metrics of a run: JSON lines, TensorBoard events, W&B if asked for, and what a person sees.

On a local disk every line is appended at once. Objects of a bucket cannot be appended to: there
lines and events are kept here and written as a whole at most once a minute, by a thread of their
own, so that a training step never waits for a bucket; and before each checkpoint, so that a killed
process loses no line of a step that it goes on from.
"""

import json
import math
import os
import pathlib
import shutil
import tempfile
import threading
import time

import numpy as np

from emigm_jax.config import curves, nested
from emigm_jax.config.settings import Config
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths, swap
from emigm_jax.parallel import agreement
from emigm_jax.training import records, speed
from emigm_jax.training.events import Events
from emigm_jax.training.progress import Progress
from emigm_jax.training.records import FILE, read
from emigm_jax.training.speed import Work
from emigm_jax.training.wandb_run import WandbRun

__all__ = ['EVENTS', 'FILE', 'PERIOD', 'Metrics', 'read']

EVENTS = 'tensorboard'
PERIOD = 60.0  # seconds between two writes to a bucket
_SLOW = 0.1  # of the time: a process that waits longer for data is worth a word
# Values of a step that every head has; the others are the parts of its loss.
_ALWAYS = ('loss', 'mask_ratio', 'gradient_norm', 'learning_rate')


class Metrics:
    """Writes scalars and pictures by step. On resuming, lines beyond the resumed step are dropped.

    Args:
      workdir: local or gs://.
      start: the step that is resumed from, 0 for a new run.
      total: steps of the whole run.
      writes: False in all but one of several processes: the same interface, but silent.
      config: of the run, to stand beside the numbers; None: it is not known.
      identity: of the run, by which W&B knows it again.

    Raises:
      UserError: the workdir cannot be read or written, or W&B refuses.

    Attributes:
      scored: whether the resumed step has scores.
    """

    scored = False

    def __init__(
        self,
        workdir: os.PathLike | str,
        start: int,
        total: int,
        writes: bool = True,
        config: Config | None = None,
        identity: str = '',
    ):
        self._clock, self._last, self._total = time.perf_counter(), start, total
        self._waited, self._writes = 0.0, writes
        if not writes:
            return
        folder = paths.absolute(workdir)
        settings = nested.as_dict(config) if config else {}
        self._usual = curves.reference(nested.flatten(settings))
        self._wandb = None
        if config and config.training.wandb:
            self._wandb = WandbRun(config.training.wandb, folder, identity, settings)
        lines = _kept(folder, start)
        # A step's own values have a loss; those of `add` have none.
        self.scored = any(known['step'] == start and 'loss' not in known for _, known in lines)
        sink = _Bucket if files.remote(folder) else _Disk
        self._sink = sink(folder, [line for line, _ in lines])
        self._events = Events(self._sink.events, start)
        if settings:
            self._events.add_text('config', _preformatted(settings), start)
        if self._usual and start < total:
            print(f'usual loss: {self._usual.origin}', flush=True)
        self._progress = Progress(start, total)
        self._began = self._clock = time.perf_counter()

    def write(self, step: int, values: dict[str, float], work: Work, waited: float) -> None:
        """Writes the values of a step and says them.

        Added are the speeds of the `work` that each step is, the memory it took, seconds left,
        seconds since this process began and the share of the time that was spent waiting for data;
        `waited` is the total of such seconds so far. Of several processes, which all call this, the
        one that waited longest is named: the others wait for it in the next sum over devices.
        """
        now = time.perf_counter()
        per_step = (now - self._clock) / max(1, step - self._last)
        share = min(1.0, (waited - self._waited) / max(1e-9, now - self._clock))
        self._clock, self._last, self._waited = now, step, waited
        speeds, left = work.speeds(per_step), per_step * (self._total - step)
        shares = agreement.gather(np.array([share], np.float32))
        if not self._writes:
            return
        parts = ', '.join(f'{k} {v:.4f}' for k, v in values.items() if k not in _ALWAYS)
        usual = self._usual.beside(step, values['loss']) if self._usual else ''
        rate = f'{speeds["images_per_second"]:.1f} images/s'
        if 'mfu' in speeds:
            rate += f' (MFU {speeds["mfu"]:.2f})'
        times = {'data_wait': share, 'seconds_left': left, 'elapsed_seconds': now - self._began}
        slowest, most = int(shares.argmax()), float(shares.max())
        if len(shares) > 1:
            times |= {'slowest_process': slowest, 'slowest_data_wait': most}
            if most > _SLOW:
                rate += f', process {slowest} waits {most:.0%} for data'
        self._put(step, {**values, **speeds, **speed.memory(), **times})
        self._progress.line(
            step,
            f'loss {values["loss"]:.4f} ({parts}){usual}  '
            f'grad {values["gradient_norm"]:.2f}  {rate}  {_clock(left)} left',
            f'loss {values["loss"]:.4f}{usual}, {rate}',
        )

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes values of a step that say nothing about speed, e.g. {'fid': 7.2}."""
        if self._writes:
            self._put(step, values)
            # A distance that is a rounding error below zero is zero.
            shown = {name: f'{round(value, 6) + 0.0:.5g}' for name, value in values.items()}
            self._progress.line(step, '  '.join(f'{name} {text}' for name, text in shown.items()))

    def picture(self, step: int, image: np.ndarray | None) -> None:
        """Shows the samples of a step, uint8 (H, W, 1 or 3), where pictures are shown."""
        if self._writes and image is not None:
            self._events.add_image('samples', image, step)
            if self._wandb:
                self._wandb.picture(step, image)

    def _put(self, step, values):
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        if self._wandb:
            self._wandb.add(step, values)
        self._sink.add(json.dumps({'step': step, **{k: _finite(v) for k, v in values.items()}}))

    def tick(self, step: int) -> None:
        """A step is done."""
        if self._writes:
            self._progress.tick(step)

    def pause(self, waited: float) -> None:
        """Takes the time since the last line out of the rate, e.g. after sampling."""
        self._clock, self._waited = time.perf_counter(), waited
        if self._writes:
            self._progress.pause()

    def flush(self) -> None:
        """Returns when all lines and events are where they belong."""
        if self._writes:
            self._events.flush()
            self._sink.flush()

    def __enter__(self) -> 'Metrics':
        return self

    def __exit__(self, _, error, __):
        """Closes; what is wrong then hides nothing that was wrong before."""
        try:
            self.close()
        except UserError as failed:
            if error is None:
                raise
            print(f'metrics: {failed}', flush=True)

    def close(self) -> None:
        """Flushes, and ends what was begun; may be called twice."""
        if self._writes:
            self._writes = False
            self._progress.close()
            self._events.close()
            try:
                self._sink.flush()
            finally:
                self._sink.close()
                if self._wandb:
                    self._wandb.close()


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
        self._seen = swap.read(workdir / FILE)
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
            try:
                self._seen = swap.replace(self._workdir / FILE, text, self._seen)
            except swap.Changed:
                raise UserError(f'{self._workdir / FILE}: somebody else writes it') from None
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
    """Lines, and their records, that an earlier process wrote up to the step resumed from."""
    lines = ((line, records.record(line)) for line in records.text(workdir).splitlines())
    return [(line, known) for line, known in lines if known and known['step'] <= start]


def _preformatted(settings):
    """Settings as a block of Markdown."""
    return ''.join(f'    {line}\n' for line in json.dumps(settings, indent=2).splitlines())


def _finite(value):
    return value if math.isfinite(value) else str(value)


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
