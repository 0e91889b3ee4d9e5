"""Access to gs://: how it is set up here, and what is wrong when it fails, in one line.

Bytes go two ways to a bucket: etils (checkpoint folders, pictures, tables) and fsspec (rows of a
cache) through gcsfs, arrays through TensorStore; both find the same credentials.
"""

import errno
import functools
import importlib.util
import logging
import os
import re
import uuid
from typing import Any

from emigm_jax.errors import Unavailable, UserError

WRITER, READER = 'roles/storage.objectAdmin', 'roles/storage.objectViewer'
_LIBRARIES = ('gcsfs', 'google', 'aiohttp', 'requests', 'tensorflow')
_TENSORSTORE_ERROR = re.compile(r"os_error_code='(\d+)'")
# What may work a little later: of HTTP, of systems, and in what TensorStore says.
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_PASSING_ERRNO = tuple(
    getattr(errno, name)
    for name in (
        *('ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'EPIPE', 'ETIMEDOUT', 'ESTALE'),
        *('EHOSTUNREACH', 'EHOSTDOWN', 'ENETUNREACH', 'ENETDOWN', 'ENETRESET', 'EAGAIN'),
    )
)
_PASSING_TEXT = re.compile(r'All \d+ retry attempts failed|\b(?:UNAVAILABLE|DEADLINE_EXCEEDED)\b')
_REFUSED = re.compile(r'\b(?:PERMISSION_DENIED|UNAUTHENTICATED)\b')
_TENSORSTORE_FACT = re.compile(r" \[(\w+)='((?:[^'\\]|\\.)*)'\]")
_LOGIN = (
    'no credentials were found: run `gcloud auth application-default login`, or set '
    'GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account'
)


def remote(path: os.PathLike | str) -> bool:
    """Whether `path` is not on a local disk."""
    return '://' in str(path)


@functools.cache
def set_up() -> None:
    """Chooses how gs:// is reached, before the first path is: called by `paths.absolute`.

    etils would import TensorFlow wherever it is installed, for seconds and for all memory of a GPU.
    gcsfs would remember listings for as long as the process lives, and miss what TensorStore and
    other hosts write; it would log tracebacks of what it raises as well, as fsspec would, and give
    up after half a minute.
    """
    for name in ('gcsfs', 'fsspec'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault('EPATH_USE_TF', 'false')
    import fsspec.config

    fsspec.config.conf.setdefault('gs', {}).setdefault('use_listings_cache', False)
    for protocol in ('gs', 'gcs'):
        fsspec.register_implementation(protocol, 'emigm_jax.io.patience.Patient', clobber=True)


def through_tensorflow() -> bool:
    """Whether etils sends gs:// through TensorFlow in spite of `set_up`."""
    from etils.epath import gpath

    try:
        return gpath._is_tf_installed()
    except AttributeError:  # another etils: it has always gone by what is installed
        return importlib.util.find_spec('tensorflow') is not None


def failure(error: BaseException) -> bool:
    """Whether an exception is one of those that a bucket's libraries raise (few are OSErrors)."""
    of_library = type(error).__module__.partition('.')[0] in _LIBRARIES
    return isinstance(error, OSError) or of_library or bool(_REFUSED.search(str(error)))


def passing(error: BaseException) -> bool:
    """Whether what failed may work a little later: no answer, too many requests, a lost network."""
    cause = error
    while cause is not None:
        if isinstance(cause, Unavailable | TimeoutError | ConnectionError):
            return True
        if isinstance(cause, OSError) and cause.errno in _PASSING_ERRNO:
            return True
        if _code(cause) in _PASSING_STATUS or _PASSING_TEXT.search(str(cause)):
            return True
        if _dropped(cause) or getattr(cause, 'retryable', None) is True:  # as google.auth has it
            return True
        cause = cause.__cause__
    return False


def _dropped(error):
    """Whether a connection ended before its answer did, as aiohttp and requests say it."""
    room, name = type(error).__module__.partition('.')[0], type(error).__name__
    return room in ('aiohttp', 'requests') and ('Connect' in name or name in _DROPPED)


_DROPPED = ('ClientPayloadError', 'ChunkedEncodingError', 'ProxyError', 'ClientOSError')


def line(text: str, error: BaseException) -> UserError:
    """The exception that tells a user `text`: `Unavailable`, if what was behind it may pass."""
    return (Unavailable if passing(error) else UserError)(text)


def place(path: os.PathLike | str) -> tuple[Any, str, str]:
    """(file system of gcsfs, bucket, name in it) of a path on gs://."""
    import fsspec

    system, found = fsspec.core.url_to_fs(str(path))
    bucket, _, name = found.partition('/')
    return system, bucket, name


def upload(system: Any, bucket: str, name: str, data: bytes, **conditions: str) -> dict[str, Any]:
    """Makes an object of `data` in one request, under `conditions`; returns what is said of it."""
    return system.call(
        *('POST', system.base.replace('/storage/v1/', '/upload/storage/v1/') + f'b/{bucket}/o'),
        data=data,
        headers={'Content-Type': 'application/octet-stream'},
        json_out=True,
        **{'uploadType': 'media', 'name': name, **conditions},
    )


def probe(path: os.PathLike | str, write: bool = True) -> None:
    """Tries to list, and to write and delete beside `path`; nothing stays behind.

    Args:
      path: gs://BUCKET/...; need not exist.
      write: False only lists.

    Raises:
      UserError: what is missing, and what to do.
    """
    try:
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path}: gs:// needs gcsfs (pip install 'emigm_jax[gcs]')") from error
    set_up()
    import fsspec

    bucket, _, name = str(path).partition('://')[2].partition('/')
    if not bucket:
        raise UserError(f'{path}: names no bucket; write gs://BUCKET/FOLDER')
    system = fsspec.filesystem('gs')
    with _explained(path, bucket, system, 'list', WRITER if write else READER):
        system.call('GET', 'b/{}/o', bucket, prefix=name, maxResults=1, json_out=True)
    if write:
        # Beside the path: in a bucket with real folders one would stay behind inside.
        object_ = f'{bucket}/{name.rstrip("/")}.probe-{uuid.uuid4().hex}'
        with _explained(path, bucket, system, 'write', WRITER):
            system.pipe_file(object_, b'')
        left = f' (the empty gs://{object_} stays behind)'
        with _explained(path, bucket, system, 'delete', WRITER, left):
            system.rm_file(object_)
    if through_tensorflow():
        _probe_tensorflow(path)


class _explained:
    """Turns what a bucket answers into one line."""

    def __init__(self, path, bucket, system, verb, role, after=''):
        self._attempt = path, bucket, system, verb, role, after

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        path, bucket, system, verb, role, after = self._attempt
        code, anonymous = _code(error), system.credentials.credentials is None
        if anonymous and code in (401, 403):
            reason = f'{_LOGIN} (without, there is no permission to {verb})'
        elif code == 401:
            reason = (
                'the credentials are no longer valid; run `gcloud auth application-default '
                'login` again'
            )
        elif code == 403:
            reason = f'no permission to {verb} objects in gs://{bucket}; grant {role} there to '
            reason += _who(system) + after
        elif code == 404:
            reason = (
                f'there is no bucket gs://{bucket}, or nobody may see it: check the name, or '
                f'make it: `gcloud storage buckets create gs://{bucket}`'
            )
        else:
            reason = f'cannot {verb} objects in gs://{bucket} ({brief(error)})'
        raise line(f'{path}: {reason}', error) from error


def _code(error):
    """HTTP status of an exception of gcsfs, or None."""
    if isinstance(error, FileNotFoundError):
        return 404
    if isinstance(error, OSError) and str(error).startswith('Forbidden'):
        return 403
    code = getattr(error, 'code', None) or getattr(error, 'status', None)
    try:
        return None if code is None else int(code)
    except (TypeError, ValueError):
        return None


def _who(system):
    """The account whose credentials are used, as far as they tell."""
    email = getattr(system.credentials.credentials, 'service_account_email', None)
    return email if email and email != 'default' else 'the account in use'


def brief(error: BaseException) -> str:
    """An exception in one short line: the system's reason, where one is behind it."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and type(cause).__module__ == 'builtins' and cause.strerror:
            return cause.strerror
        if code := _TENSORSTORE_ERROR.search(str(cause)):
            return os.strerror(int(code[1]))
        cause = cause.__cause__
    text = _TENSORSTORE_FACT.sub(_shown, ' '.join(str(error).split()))
    if len(text) > 160:  # the reason stands at the end
        text = f'{text[:80]} ... {text[-75:]}'
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def _shown(fact):
    return f' (HTTP {fact[2]})' if fact[1] == 'http_response_code' else ''


def _probe_tensorflow(path):
    from etils import epath

    try:
        epath.Path(str(path)).exists()
    except Exception as error:
        raise UserError(
            f'{path}: gcsfs reaches it, but etils goes through TensorFlow, which is installed here '
            f'and fails ({brief(error)}); set EPATH_USE_TF=false, or uninstall tensorflow'
        ) from error
