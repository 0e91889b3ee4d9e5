"""Whether a place, local or gs://, can be read and written, found out before any work is done."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator

from emigm_jax.errors import UserError
from emigm_jax.io import gcs, hub
from emigm_jax.io.paths import absolute


def probe(path: os.PathLike | str, write: bool = True) -> None:
    """Raises UserError, and says what is missing, unless there is access to `path`.

    Args:
      path: file or folder, local or gs://; need not exist.
      write: also whether new files and folders can be made there; none are left.
    """
    if write:
        hub.check_not_target(path)
    path = absolute(path)
    with reachable(path):
        if str(path).startswith('gs://'):
            gcs.probe(path, write)
        if gcs.remote(path) or not write:
            return
        existing = next(p for p in (path, *path.parents) if p.exists())
        if existing != path:
            # Apart, since the other processes of a run try the same path at this moment.
            with tempfile.TemporaryDirectory(prefix='.probe-', dir=existing) as apart:
                os.makedirs(os.path.join(apart, path.relative_to(existing)))
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def reachable(path: os.PathLike | str) -> Iterator[None]:
    """Turns failures of reading or writing below `path` into one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or gcs.brief(error)
        raise gcs.line(f'{path}: cannot be reached or written ({reason})', error) from error
    except Exception as error:  # a bucket's library has many
        reason = gcs.brief(error)
        raise gcs.line(f'{path}: cannot be reached or written ({reason})', error) from error
