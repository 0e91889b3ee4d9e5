"""Where checkpoints lie: files, which are memory-mapped, and folders in Hugging Face's style.

A file on gs:// is first copied to an unnamed temporary file, so there must be room for it; one on
hf:// comes from the cache of huggingface_hub, file by file of a folder.
"""

import contextlib
import mmap
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.io import bounded, files, hub, paths
from emigm_jax.io.progress import Bar

# Of transformers and hub mixins, of diffusers, and what both wrote before safetensors.
_WEIGHTS = (
    'model.safetensors',
    'diffusion_pytorch_model.safetensors',
    'pytorch_model.bin',
    'diffusion_pytorch_model.bin',
)
_INDEX = '.index.json'
INDEX = tuple(f'{ending}{_INDEX}' for ending in ('.safetensors', '.bin'))  # how indices end
_FILE = re.compile(r'\w[\w.-]*')  # the name of a file in the same folder, not hidden


def map_file(path: os.PathLike | str) -> mmap.mmap:
    """A read-only map of a file; arrays that are made from it keep it alive."""
    place = hub.file(path) if hub.on_hub(path) else path
    try:
        if place is None:
            raise FileNotFoundError
        with _fetched(path) if files.remote(place) else open(paths.absolute(place), 'rb') as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError(f'{path}: the file is empty, fetch it again')
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such file or folder') from error
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror or error}') from error


@contextlib.contextmanager
def _fetched(path):
    """A local copy of a file in a bucket; a memory map of it outlives it."""
    with tempfile.TemporaryFile() as copy:
        try:
            _fetch(paths.absolute(path), copy)
        except (UserError, OSError):
            raise
        except Exception as error:  # a bucket's library has many
            reason = f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'
            raise UserError(f'{path}: cannot be reached ({reason})') from error
        yield copy


def _fetch(source, copy):
    size = source.stat().length
    bar = Bar(total=size, unit='B', unit_scale=True, desc=f'fetching {source}')
    with bar, source.open('rb') as file:
        while piece := file.read(2**24):
            copy.write(piece)
            bar.update(len(piece))
    copy.flush()


def is_folder(path: os.PathLike | str) -> bool:
    """Whether `path` is a folder; of hf:// nothing in it is fetched."""
    return hub.is_folder(path) if hub.on_hub(path) else paths.absolute(path).is_dir()


def exists(path: os.PathLike | str) -> bool:
    """Whether there is anything at `path`; on hf://, a file."""
    return hub.file(path) is not None if hub.on_hub(path) else paths.absolute(path).exists()


def read_json(path: os.PathLike | str) -> dict[str, Any]:
    """The JSON object in a file; raises UserError if it is missing or no object."""
    try:
        content = bounded.parsed(map_file(path)[:])
    except ValueError as error:
        raise UserError(f'{path}: is not valid JSON: {error}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: holds no JSON object')
    return content


def read_folder(folder: str, read: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """The arrays, by name, of a folder with one file of weights, or with an index of several.

    Args:
      folder: its path.
      read: path of a file -> what is in it.

    Raises:
      UserError: none of them is there, the index is malformed, or tensors are missing.
    """
    for name in _WEIGHTS:
        single = os.path.join(folder, name)
        if exists(single):
            return read(single)
        if exists(f'{single}{_INDEX}'):
            return read_shards(f'{single}{_INDEX}', read)
    raise UserError(
        f'{folder}: the folder holds none of {", ".join(_WEIGHTS)}, nor an index of them '
        f'(*{_INDEX}); name the file itself'
    )


def read_shards(index: str, read: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """The arrays, by name, of the files beside `index` that it lists; arguments as `read_folder`.

    Raises:
      UserError: it is no index, it names something outside its folder, or tensors are missing.
    """
    places = read_json(index).get('weight_map')
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise UserError(f'{index}: has no weight_map of files')
    outside = sorted(name for name in places.values() if not _FILE.fullmatch(name))
    if outside:
        raise UserError(f'{index}: names a file outside its folder: {outside[0][:200]!a}')
    folder = index.rpartition('/')[0] or '.'
    shards = {name: read(os.path.join(folder, name)) for name in sorted(set(places.values()))}
    foreign = sorted(name for name, shard in shards.items() if not isinstance(shard, dict))
    if foreign:
        raise UserError(f'{index}: names a file without a table of tensors: {foreign[0]}')
    missing = sorted(name for name, file in places.items() if name not in shards[file])
    if missing:
        raise UserError(f'{index}: {len(missing)} tensors are not in their files: {missing[0]}')
    return {name: shards[file][name] for name, file in places.items()}
