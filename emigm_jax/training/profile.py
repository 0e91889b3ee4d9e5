"""A trace of what devices and host do in some steps of a run, beside its events for TensorBoard."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from emigm_jax.config.durations import parse_span
from emigm_jax.io import files


class Profile:
    """Writes WORKDIR/tensorboard/plugins/profile of the steps of `training.profile`.

    Args:
      span: 'steps 50 to 55', or '' for none.
      folder: for events.
      say: tells where it is.
    """

    def __init__(self, span: str, folder: epath.Path, say: Callable[[str], object]):
        self._steps = parse_span('training.profile', span) if span else range(0)
        self._folder, self._say = folder, say
        self._open = contextlib.ExitStack()
        self._recording = False

    def before(self, step: int) -> None:
        """A step is about to begin; what was begun before it has ended."""
        if step in self._steps and not self._recording:
            self._recording = True
            self._open.enter_context(_traced(self._folder))

    def after(self, step: int, values: Any) -> None:
        """A step was begun, which ends with these arrays."""
        if self._recording and step == self._steps[-1]:
            jax.block_until_ready(values)
            self.close()
            self._say(f'profile of steps {self._steps[0]} to {step}: {self._folder}')

    def close(self) -> None:
        """Ends the trace, however far it is; may be called twice."""
        self._recording = False
        self._open.close()


@contextlib.contextmanager
def _traced(folder: epath.Path) -> Iterator[None]:
    """The profiler writes to a disk; what it wrote goes to `folder`, which may be a bucket's."""
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            yield
        for file in sorted(pathlib.Path(scratch).rglob('*')):
            if file.is_file():
                target = folder / file.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.write(target, [file.read_bytes()])
