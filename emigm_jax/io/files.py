"""Files that are written whole or not at all, local or gs://, with failures in one line."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from emigm_jax.errors import UserError
from emigm_jax.io import bounded, gcs, hub
from emigm_jax.io.gcs import remote
from emigm_jax.io.paths import absolute

_PARTIAL = '.partial'
_AT_ONCE = 2**20  # bytes that go to a bucket in one request, where a file takes two or more
_SETTINGS = 'settings.json'  # of a claimed folder


@contextlib.contextmanager
def reported(path: os.PathLike | str) -> Iterator[None]:
    """Turns failures of a file system or a bucket into one line that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not gcs.failure(error):
            raise
        reason = getattr(error, 'strerror', None) or gcs.brief(error)
        raise gcs.line(f'{path}: {reason}', error) from error


@contextlib.contextmanager
def replacing(path: os.PathLike | str) -> Iterator[IO[bytes]]:
    """A file to write into, which appears at `path` when the block ends without an exception.

    Local files get a temporary name and are renamed. On gs:// an object appears when it is closed;
    what was there before stays until then, and for good where that fails.

    Raises:
      UserError: the place cannot be written (full disk, no permission).
    """
    hub.check_not_target(path)
    path = absolute(path)
    with reported(path):
        if remote(path):
            import fsspec

            system, name = fsspec.core.url_to_fs(str(path))
            f = system.open(name, 'wb')
            try:
                yield f
            except BaseException:  # closing would make an object of what was written so far
                f.closed = True
                raise
            f.close()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f'.{path.name}.{os.getpid()}{_PARTIAL}'
        try:
            with open(partial, 'wb') as f:
                yield f
                f.flush()
                os.fsync(f.fileno())  # a rename must not outlive the data it names
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial)


def _upload(path, data):
    hub.check_not_target(path)
    path = absolute(path)
    with reported(path):
        gcs.upload(*gcs.place(path), data)


def write(path: os.PathLike | str, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes chunks to `path`, whole or not at all; raises as `replacing`."""
    size = lambda: sum(memoryview(chunk).nbytes for chunk in chunks)
    if str(path).startswith('gs://') and isinstance(chunks, list) and 0 < size() <= _AT_ONCE:
        return _upload(path, b''.join(chunks))
    with replacing(path) as f:
        for chunk in chunks:
            f.write(chunk)


def is_partial(path: os.PathLike | str) -> bool:
    """Whether a file has the name that `write` gives until it is whole."""
    name = str(path).rpartition('/')[2]
    return name.startswith('.') and name.endswith(_PARTIAL)


def write_text(path: os.PathLike | str, text: str) -> None:
    """Writes a string, whole or not at all."""
    write(path, [text.encode()])


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes JSON-like `value`, the same bytes for the same value."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + '\n')


def content(path: os.PathLike | str) -> bytes | None:
    """The bytes of a file, local or gs://; None if there is none. It is not asked about first.

    Raises:
      UserError: it cannot be read.
    """
    path = absolute(path)
    with reported(path):
        try:
            if not remote(path):
                return path.read_bytes()
            import fsspec

            system, name = fsspec.core.url_to_fs(str(path))
            return system.cat_file(name)
        except (FileNotFoundError, NotADirectoryError):
            return None


def read_json(path: os.PathLike | str) -> dict[str, Any] | None:
    """The JSON object in `path`; None if there is no such file.

    Raises:
      UserError: it cannot be read or is no JSON object.
    """
    path = absolute(path)
    read = content(path)
    if read is None:
        return None
    try:
        value = bounded.parsed(read)
    except ValueError as error:
        raise UserError(f'{path}: is no JSON ({error})') from error
    if not isinstance(value, dict):
        raise UserError(f'{path}: is no JSON object')
    return value


def claim(
    folder: os.PathLike | str,
    settings: Mapping[str, Any],
    what: str,
    write: bool = True,
    remedy: str = 'choose another folder, or delete it',
) -> None:
    """Makes `folder` that of `settings` (JSON-like), or checks that it is already.

    Args:
      folder: local or gs://.
      settings: written to settings.json there, and compared with what is there.
      what: the folder's content, for messages.
      write: False only checks.
      remedy: what to do where it is that of other settings, for messages.

    Raises:
      UserError: it holds something else, or `what` of other settings.
    """
    folder = absolute(folder)
    existing, settings = read_json(folder / _SETTINGS), json.loads(json.dumps(settings))
    if existing is None:
        with reported(folder):
            if folder.exists() and any(not p.name.startswith('.') for p in folder.iterdir()):
                raise UserError(f'{folder}: holds something else; choose another folder')
        if write:
            write_json(folder / _SETTINGS, settings)
        return
    for name in dict.fromkeys((*settings, *existing)):  # as written: the plainest come first
        if existing.get(name) != settings.get(name):
            raise UserError(
                f'{folder}: holds {what} with {name} = {_brief(existing.get(name))}, not '
                f'{_brief(settings.get(name))}; {remedy}'
            )


def claimed(folder: os.PathLike | str) -> bool:
    """Whether `claim` has made a folder that of some settings."""
    file = absolute(folder) / _SETTINGS
    with reported(file):
        return file.exists()


def unclaim(folder: os.PathLike | str) -> None:
    """Takes back what `claim` did."""
    file = absolute(folder) / _SETTINGS
    with reported(file):
        file.unlink(missing_ok=True)


def _brief(value):
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + '...'


def sha256(path: os.PathLike | str, size: int = 2**22) -> str:
    """Hex digest of a file's content, read in pieces of `size` bytes."""
    digest = hashlib.sha256()
    with reported(path), absolute(path).open('rb') as f:
        while piece := f.read(size):
            digest.update(piece)
    return digest.hexdigest()


def text_hash(lines: Iterable[str]) -> str:
    """Short hex digest of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode('utf-8', 'surrogateescape') + b'\n')
    return digest.hexdigest()[:16]
