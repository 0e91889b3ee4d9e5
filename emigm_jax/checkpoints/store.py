"""Checkpoint folders: one tree of arrays and a JSON description, written whole or not at all.

Orbax writes to a temporary name and renames at the end (on gs:// it marks the end), so a killed
process leaves nothing that looks like a checkpoint.
"""

import abc
import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any, final

import jax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath

import emigm_jax
from emigm_jax.checkpoints import begun, dealt, descriptions, requests
from emigm_jax.errors import Damaged, UserError
from emigm_jax.io import access, bounded, gcs, hub, listings, progress
from emigm_jax.io.paths import absolute
from emigm_jax.parallel import backend, processes

MARK = '_CHECKPOINT_METADATA'  # what Orbax puts into every finished checkpoint
COMMIT_MARK = 'commit_success.txt'  # and last of all where nothing can be renamed
UNFINISHED = 'orbax-checkpoint-tmp'  # in the name of what Orbax has begun to write


def is_checkpoint(path: os.PathLike | str) -> bool:
    """Whether a finished checkpoint lies at `path` (local or gs://)."""
    if hub.on_hub(path):  # without the whole of a folder that may be something else
        return hub.is_folder(path) and hub.file(f'{path}/{MARK}') is not None
    path = absolute(path)
    with access.reachable(path), listings.once(path):
        return (path / mark(path)).exists()


def mark(path: os.PathLike | str) -> str:
    """The file that makes a folder at `path` a finished checkpoint."""
    return COMMIT_MARK if gcs.remote(path) else MARK


def check_free(path: os.PathLike | str) -> None:
    """Raises UserError unless a new checkpoint can be written to `path`; leaves nothing there.

    What an export that was cut off left in a bucket is no hindrance: `save` clears it.
    """
    hub.check_not_target(path)
    # Orbax's threads would wait for minutes for a place that cannot be written.
    path = absolute(path)
    with access.reachable(path):
        if not gcs.remote(path) and path.exists():
            raise UserError(taken(path))
        access.probe(path)
        _check_free(path)


def _check_free(path):
    if path.exists() and not begun.cut_off(path, mark(path)):
        raise UserError(taken(path))


def taken(path: os.PathLike | str) -> str:
    """What to tell about a target that exists."""
    return f'{path}: exists already; choose another target or delete it'


# A replicated array may be cut so that each of its devices writes a part, by a program that is
# compiled for its shape. This is only worth it for parts of so many bytes.
_WORTH_CUTTING = 2**20


def writing() -> ocp.Context:
    """How Orbax writes checkpoints here."""
    context = ocp.Context()
    # Threads would wait for a folder for five minutes, and the process for them, if none is made.
    context.asynchronous.create_directories_asynchronously = False
    context.array.saving.min_slice_bytes_for_replica_parallel = _WORTH_CUTTING
    return context


def save(path: os.PathLike | str, tree: dict[str, Any], description: Mapping[str, Any]) -> None:
    """Writes a new checkpoint.

    Args:
      path: folder that does not exist yet, local or gs://.
      tree: of arrays, nested.
      description: JSON-like.

    Raises:
      UserError: something is there already, or the place cannot be written.
    """
    check_free(path)
    path = absolute(path)
    context = writing()
    # Nobody changes the arrays while they are written, so no second copy of them is needed.
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = 2**30
    described: dict[str, Any] = {'versions': versions(), **description}
    with begun.alone(path, mark(path)):
        _check_free(path)  # nobody else was faster
        with writable(path, lambda: _remains(path)), context:
            ocp.save(path, tree, custom_metadata=described)


def _remains(path):
    """What a failed writing left of a checkpoint, where there was nothing before."""
    return [path] if gcs.remote(path) else path.parent.glob(f'{path.name}*{UNFINISHED}*')


def versions() -> dict[str, str]:
    """What writes a checkpoint here, for its description."""
    return {
        'emigm_jax': emigm_jax.__version__,
        'orbax': metadata.version('orbax-checkpoint'),
        'jax': jax.__version__,
    }


# Arrays are compressed, those of zeros to nothing: optimizers begin with twice as many zeros as
# there are weights. Files of a few bytes could stand for more than any memory holds.
_DENSEST, _SPARE = 100, 2**28  # times the bytes of the files, bytes

_READS = 3  # of what a bucket says about a checkpoint, until it is damaged

# Array metadata, nested -> jax.ShapeDtypeStruct of the same, with shardings.
Place = Callable[[Any], Any]


def _on_one_device(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(one, tree)


@final
@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: what it says about itself, read once, and the way to its arrays."""

    path: epath.Path
    description: dict[str, Any]  # JSON-like
    tree: dict[str, Any]  # of array metadata (shape, dtype), as the arrays are nested

    def load(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """All arrays; `abstract` has shapes and placement, or `ocp.PLACEHOLDER` for none."""
        with readable(self.path), listings.once(self.path):
            self._check_room(abstract)
            return ocp.load(self.path, abstract)

    def load_by_all(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """`load`, where all processes call it with the same; what all hold is read once."""
        return dealt.load(self.load, abstract)

    def _check_room(self, abstract):
        """Raises ValueError if the arrays are far larger than weights with files of this size."""
        if gcs.remote(self.path):  # where it would take more requests
            return
        arrays = [leaf for leaf in jax.tree.leaves(abstract) if hasattr(leaf, 'shape')]
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)
        there = [file.stat().st_size for file in pathlib.Path(self.path).rglob('*')]
        if size > _SPARE + _DENSEST * sum(there):
            raise ValueError(f'arrays of {size:,} bytes in files of {sum(there):,}')

    def load_part(self, *keys: str, place: Place | None = None) -> Any:
        """The subtree under `keys` as arrays on the default device, or where `place` says."""
        place = place or _on_one_device

        def abstract(node, keys):
            if not keys:
                return place(node)
            skipped = {k: jax.tree.map(lambda _: ocp.PLACEHOLDER, v) for k, v in node.items()}
            return {**skipped, keys[0]: abstract(node[keys[0]], keys[1:])}

        with readable(self.path):
            part = abstract(self.tree, keys)
        part = self.load(part)
        for key in keys:
            part = part[key]
        return part


def checkpoint(path: os.PathLike | str) -> Checkpoint:
    """The `Checkpoint` at `path`, local or gs://; its arrays are not read.

    Raises:
      Damaged: nothing finished lies there, or it cannot be read.
    """
    path = absolute(path)
    with readable(path):
        for left in reversed(range(_READS if gcs.remote(path) else 1)):
            try:
                with listings.once(path):
                    described, metadata_ = _described(path), ocp.metadata(path)
                if not isinstance(metadata_.metadata, dict):  # None: Orbax has logged why
                    for file in path.glob('*/_METADATA'):
                        file.read_bytes()  # if it does not come, that is the reason
                    raise ValueError('its tree of arrays cannot be read')
                return Checkpoint(path, described, metadata_.metadata)
            except Exception as error:
                if not left or gcs.failure(error) or gcs.passing(error):
                    raise
            time.sleep(1)  # Orbax takes an answer that did not come for one that is damaged
    raise AssertionError


def description(path: os.PathLike | str) -> dict[str, Any]:
    """What a finished checkpoint says about itself, JSON-like; nothing else of it is read.

    Raises:
      Damaged: that is cut off.
    """
    path = absolute(path)
    with readable(path):
        return _described(path)


def _described(path):
    """As Orbax reads it, which takes one that is cut off for one that says nothing."""
    text = (path / MARK).read_text()
    try:
        described = bounded.parsed(text)['custom_metadata']
    except (ValueError, KeyError, TypeError):
        reason = f'{MARK} is cut off or damaged, {len(text)} characters are there'
        raise ValueError(reason) from None
    return descriptions.checked(described)


class Silence:
    """Until `end` nothing is printed of reads and writes that nobody waits for any more."""

    def __init__(self):
        self._report = sys.unraisablehook
        sys.unraisablehook = self._filtered

    def _filtered(self, unraisable):
        code = getattr(unraisable.object, 'cr_code', None)
        read = code is not None and 'orbax' in code.co_filename
        if not read and str(unraisable.exc_value) != 'Event loop is closed':
            self._report(unraisable)

    def end(self) -> None:
        """Everything is printed again."""
        sys.unraisablehook = self._report


class _quiet(abc.ABC):
    """Around calls of Orbax: what goes wrong there is raised, and not printed as well.

    TensorStore has hundreds of reads or writes under way when the first one fails; they fail too,
    or end after Orbax has closed its event loop. Orbax would log a traceback in each of its
    threads, and Python print one for each beside our line, at any time until they are collected.
    """

    _doing = ''  # said of the path when it takes long

    def __init__(self, path: os.PathLike | str):
        self._path = path

    def __enter__(self):
        requests.bound()
        self._note = progress.waiting(f'{self._path}: {self._doing}', processes.is_first)
        self._note.__enter__()
        logging.getLogger('absl').addFilter(_not_of_orbax)  # for good: its threads outlive the call
        self._silence = Silence()

    def __exit__(self, _, error, __):
        self._note.__exit__(None, None, None)
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            self._silence.end()
            return
        logging.getLogger('asyncio').setLevel(logging.CRITICAL)
        raise self._explained(error) from error

    @abc.abstractmethod
    def _explained(self, error: Exception) -> UserError:
        """The one line for what went wrong."""


def _not_of_orbax(record):
    return 'orbax' not in pathlib.PurePath(record.pathname).parts


class readable(_quiet):
    """Turns the many exceptions of a damaged checkpoint into one line."""

    _doing = 'still being read'

    def _explained(self, error):
        if reason := backend.missing():
            return UserError(reason)
        cause = error  # Orbax tells which slice, TensorStore which array
        while cause.__cause__ is not None:
            cause = cause.__cause__
        away = gcs.failure(cause) or gcs.passing(error) or isinstance(error, MemoryError)
        if away and not isinstance(cause, FileNotFoundError):
            return gcs.line(f'{self._path}: cannot be read ({gcs.brief(error)})', error)
        return Damaged(
            f'{self._path}: the checkpoint is damaged or of another kind '
            f'({gcs.brief(cause)}); if it is a step of a run, delete this folder to go on '
            'from an earlier one'
        )


class writable(_quiet):
    """Turns what goes wrong while a checkpoint is written into one line with the reason.

    Args:
      path: what the line names.
      remains: finds what a failed writing leaves, to be removed.
    """

    _doing = 'still being written'

    def __init__(self, path: os.PathLike | str, remains: Callable[[], Iterable[epath.Path]]):
        super().__init__(path)
        self._remains = remains

    def _explained(self, error):
        # Threads that are still at work may make a folder again that has just gone. What does not
        # answer is not asked again: the next process to write there begins with this.
        for _ in range(0 if gcs.passing(error) else 5):
            with contextlib.suppress(OSError):
                for path in list(self._remains()):
                    path.rmtree(missing_ok=True)
            time.sleep(0.1)
        return gcs.line(f'{self._path}: cannot be written ({gcs.brief(error)})', error)
