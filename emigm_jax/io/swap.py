"""One small file that several processes change in turn: it is replaced only as it was last seen.

On gs:// the generation of the object is the condition of each change. On a local disk the content
is compared under a lock of the folder, which other places and a few shared file systems do not
have: there two changes within the same milliseconds may both seem to succeed, and the later one is
found by the next comparison.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from emigm_jax.io import files, gcs


class Seen(NamedTuple):
    """What the file held, and how it is known that nobody has changed it since."""

    text: str  # '' if there is no file
    version: Any


class Changed(Exception):
    """Somebody else was faster: nothing was written."""


def read(path: epath.Path) -> Seen:
    """The file at `path`, local or gs://.

    Raises:
      UserError: it cannot be read.
    """
    with files.reported(path):
        return _read_object(path) if _in_bucket(path) else _read_file(path)


def replace(path: epath.Path, text: str, seen: Seen) -> Seen:
    """Writes `text` and returns it as it is `Seen` then; '' deletes the file.

    Raises:
      Changed: the file is not as it was `seen`.
      UserError: it cannot be written.
    """
    with files.reported(path):
        return (_replace_object if _in_bucket(path) else _replace_file)(path, text, seen)


def _in_bucket(path):
    return str(path).startswith('gs://')


def _read_file(path):
    text = path.read_text() if path.exists() else ''
    return Seen(text, text)


def _replace_file(path, text, seen):
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        if _read_file(path) != seen:
            raise Changed
        if text:
            files.write_text(path, text)
        else:
            path.unlink(missing_ok=True)
    return Seen(text, text)


@contextlib.contextmanager
def _locked(folder) -> Iterator[None]:
    if gcs.remote(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_object(path):
    system, bucket, name = gcs.place(path)
    try:
        headers, content = system.call('GET', 'b/{}/o/{}', bucket, name, alt='media')
    except FileNotFoundError:
        return Seen('', '0')
    return Seen(content.decode('utf-8', 'replace'), headers['x-goog-generation'])


def _replace_object(path, text, seen):
    system, bucket, name = gcs.place(path)
    condition = {'ifGenerationMatch': seen.version}
    try:
        if not text:
            system.call('DELETE', 'b/{}/o/{}', bucket, name, **condition)
            return Seen('', '0')
        made = gcs.upload(system, bucket, name, text.encode(), **condition)
        return Seen(text, made['generation'])
    except (FileExistsError, FileNotFoundError) as error:
        # So it is, too, if what was done was not answered and done again.
        now = _read_object(path)
        if now.text != text:
            raise Changed from error
        return now
