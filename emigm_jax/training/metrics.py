"""Metrics of a run: JSON lines, TensorBoard events and one progress line."""

import json
import math
import pathlib
import time

import tensorboardX

FILE = 'metrics.jsonl'


class Metrics:
    """Writes scalars by step. On resuming, lines beyond the resumed step are dropped."""

    def __init__(self, workdir, start, total):
        workdir = pathlib.Path(workdir)
        self._file = workdir / FILE
        kept = []
        if self._file.exists():
            kept = [line for line in self._file.read_text().splitlines() if _step(line) <= start]
        replacement = self._file.with_suffix('.tmp')
        replacement.write_text(''.join(line + '\n' for line in kept))
        replacement.rename(self._file)
        # purge_step tells TensorBoard to forget later events of a run that was cut off.
        self._events = tensorboardX.SummaryWriter(
            str(workdir / 'tensorboard'), purge_step=start + 1, write_to_disk=True
        )
        self._clock, self._last, self._total = time.perf_counter(), start, total
        self._waited = 0.0

    def write(self, step, values, images_per_step, waited):
        """Writes {name: float} of a step and prints a line.

        Added are images/s, seconds left and the share of the time that was spent waiting for data;
        `waited` is the total of such seconds so far.
        """
        now = time.perf_counter()
        per_step = (now - self._clock) / max(1, step - self._last)
        values['data_wait'] = min(1.0, (waited - self._waited) / max(1e-9, now - self._clock))
        self._clock, self._last, self._waited = now, step, waited
        rate, left = images_per_step / per_step, per_step * (self._total - step)
        values = {**values, 'images_per_second': rate, 'seconds_left': left}
        self._record(step, values)
        print(
            f'step {step}/{self._total}  loss {values["loss"]:.4f} (mse {values["mse"]:.4f}, '
            f'vlb {values["vlb"]:.4f})  grad {values["gradient_norm"]:.2f}  '
            f'{rate:.1f} images/s  {_clock(left)} left',
            flush=True,
        )

    def add(self, step, values):
        """Writes {name: float} of a step in a line of their own, and prints them; {}: nothing."""
        if not values:
            return
        self._record(step, values)
        shown = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
        print(f'step {step}/{self._total}  {shown}', flush=True)

    def _record(self, step, values):
        line = {'step': step, **{k: _finite(v) for k, v in values.items()}}
        with self._file.open('a') as f:
            f.write(json.dumps(line) + '\n')
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def pause(self, waited):
        """Takes the time since the last line out of the rate, e.g. after sampling."""
        self._clock, self._waited = time.perf_counter(), waited

    def close(self):
        """Flushes the events."""
        self._events.close()


def read(workdir):
    """All metrics of a run as a list of dicts."""
    return [json.loads(line) for line in (pathlib.Path(workdir) / FILE).read_text().splitlines()]


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
