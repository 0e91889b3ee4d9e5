"""Access to hf://, the Hugging Face Hub, to read: files come into the cache of huggingface_hub.

hf://USER/REPO/PATH, hf://USER/REPO@REVISION/PATH and hf://datasets/USER/REPO/PATH, as the library
itself writes them. It downloads, resumes what was interrupted, and finds what it has without a
network; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are its settings.
"""

import contextlib
import glob
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from emigm_jax.errors import UserError
from emigm_jax.io import gcs

_FORM = re.compile(
    r'hf://(?:(?P<kind>model|dataset|space)s/)?(?P<repo>[\w.-]+/[\w.-]+)'
    r'(?:@(?P<revision>[^/]+))?(?:/(?P<inside>.*))?'
)
# {hf://...: its local path} of what this process was given: asked for once, and never written to.
_copies: dict[str, str] = {}


class _Place(NamedTuple):
    repo: str
    inside: str  # path of a file or folder in the repository; '': all of it
    where: dict[str, Any]  # repo_type and revision, as the library's functions want them


def on_hub(path: os.PathLike | str) -> bool:
    """Whether `path` is hf://."""
    return str(path).startswith('hf://')


def check_not_target(path: os.PathLike | str) -> None:
    """Raises UserError if `path` is hf://, or below what was fetched from there."""
    if on_hub(path) or not {*_copies.values()}.isdisjoint(_lineage(str(path))):
        raise UserError(f'{path}: cannot be written, hf:// is only read; choose a local folder')


def _lineage(path):
    while path not in ('', os.sep):
        yield path
        path = os.path.dirname(path)


def fetched(path: os.PathLike | str) -> str:
    """The local path of a file or folder on hf://, with all that is in it.

    Raises:
      UserError: there is no such thing, no access to it, or no huggingface_hub.
    """
    local = file(path) or _known(path)
    if local is None:
        place = _parsed(path)
        with _explained(path, place) as hub:
            below = f'{glob.escape(place.inside)}/*' if place.inside else None
            root = hub.snapshot_download(place.repo, allow_patterns=below, **place.where)
        local = os.path.join(root, place.inside).rstrip(os.sep)
        if not os.path.exists(local):
            raise UserError(_missing(path, place))
        _copies[str(path)] = local
    return local


def _known(path):
    local = _copies.get(str(path))
    return local if local is not None and os.path.exists(local) else None


def file(path: os.PathLike | str) -> str | None:
    """The local path of a file on hf://; None if the repository has no such file.

    Raises UserError as `fetched`.
    """
    found = _found(path, _parsed(path))
    return None if found is None or os.path.isdir(found) else found


def _found(path, place):
    """The local path of a file; of a folder only without a network; None: no such file."""
    if not place.inside or _known(path):
        return _known(path)
    with _explained(path, place) as hub:
        try:
            local = hub.hf_hub_download(place.repo, place.inside, **place.where)
            if os.path.isfile(local):
                _copies[str(path)] = local
            return local
        except hub.errors.LocalEntryNotFoundError:  # no network; the cache knows what is not there
            known = hub.try_to_load_from_cache(place.repo, place.inside, **place.where)
            if known is not hub._CACHED_NO_EXIST:
                raise
        except hub.errors.EntryNotFoundError:
            pass
    return None


def is_folder(path: os.PathLike | str) -> bool:
    """Whether `path` on hf:// is a folder. Raises UserError as `fetched`, if it is no file, too."""
    place = _parsed(path)
    found = _found(path, place)
    if found is not None:
        return os.path.isdir(found)
    if place.inside:
        with _explained(path, place) as hub:
            next(iter(hub.list_repo_tree(place.repo, place.inside, **place.where)))
    return True


def _parsed(path):
    match = _FORM.fullmatch(str(path))
    parts = ((match and match['inside']) or '').strip('/').split('/')
    if match is None or {'.', '..'} & {*parts} or ('' in parts and len(parts) > 1):
        raise UserError(f'{path}: is no place on the Hub; write hf://USER/REPOSITORY/FILE')
    revision = match['revision']
    where = {'repo_type': match['kind'], 'revision': revision and unquote(revision)}
    return _Place(match['repo'], '/'.join(parts), where)


def _missing(path, place):
    return f'{path}: the repository {place.repo} has no file or folder {place.inside!r}'


@contextlib.contextmanager
def _explained(path: os.PathLike | str, place: _Place) -> Iterator[Any]:
    """Gives the library, and turns what it raises into one line."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors, utils
        from huggingface_hub.utils import logging as library
    except ImportError as error:
        raise UserError(
            f"{path}: hf:// needs huggingface_hub (pip install 'emigm_jax[hf]')"
        ) from error
    # What goes wrong is said in one line, here; and bars are for those who look.
    library.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    # A later row may be the parent of an earlier one.
    reasons = (
        (
            errors.GatedRepoError,
            f'{place.repo} is open to those who are let in: ask on its page, then `hf auth login`',
        ),
        (
            errors.RepositoryNotFoundError,
            f'there is no repository {place.repo}, or it is private: `hf auth login`, or HF_TOKEN',
        ),
        (errors.RevisionNotFoundError, f'{place.repo} has no revision {place.where["revision"]}'),
        (errors.HFValidationError, f'{place.repo} is no name of a repository'),
    )
    try:
        yield huggingface_hub
    except (UserError, StopIteration):
        raise
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        offline = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else ''
        raise UserError(
            f'{path}: is not in the cache, and the Hub cannot be reached '
            f'({offline or gcs.brief(cause)}); check the network'
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(_missing(path, place)) from error
    except Exception as error:
        fitting = (reason for kind, reason in reasons if isinstance(error, kind))
        reason = next(fitting, getattr(error, 'strerror', None) or gcs.brief(error))
        raise UserError(f'{path}: {reason}') from error
