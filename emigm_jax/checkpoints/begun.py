"""Checkpoints that are written to a bucket one by one: what was cut off is known, and goes.

Nothing is renamed in a bucket. What a killed export leaves lies where its checkpoint would, without
the mark of the end; so nobody takes it for one, but nobody else could tell whose it is, either.

    .NAME.begun/lease.json   who is writing NAME, beside it; as in a workdir
    .NAME.begun/unfinished   NAME, unless it has its mark, is what an export left
"""

import contextlib
from collections.abc import Iterator

from etils import epath

from emigm_jax.io import files, gcs, lease


def _sign(path):
    return path.parent / f'.{path.name}.begun/unfinished'


def cut_off(path: epath.Path, mark: str) -> bool:
    """Whether what lies at `path` is no checkpoint, without its `mark`, and an export left it."""
    if not gcs.remote(path):
        return False  # it has a temporary name there
    with files.reported(path):
        return _sign(path).exists() and not (path / mark).exists()


@contextlib.contextmanager
def alone(path: epath.Path, mark: str) -> Iterator[None]:
    """Around the writing of a checkpoint at `path`; in a bucket of what was cut off there is gone.

    What fails in the block and leaves something there is cleared by the next one.

    Raises:
      UserError: another process writes there, or the place cannot be written.
    """
    if not gcs.remote(path):
        yield
        return
    sign = _sign(path)
    with lease.held(sign.parent, print, 'export', 'target'):
        with files.reported(path):
            if cut_off(path, mark):
                path.rmtree(missing_ok=True)
            files.write_text(sign, 'an export begins')
        try:
            yield
        except BaseException as error:
            if not gcs.passing(error):  # what does not answer is not asked again
                _end(sign, path.exists)
            raise
        _end(sign)


def _end(sign, left=lambda: False):
    """Removes the sign, if nothing is `left` of what it stands for."""
    with contextlib.suppress(Exception):
        if not left():
            sign.unlink()
