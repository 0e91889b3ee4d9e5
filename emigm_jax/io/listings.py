"""What lies in a folder of a bucket: listed once for all that is asked within a block.

etils and Orbax ask about each file whether it is there, which takes a bucket two or three requests
each time, and read a description again for everything that it says.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from emigm_jax.io import gcs

ANSWER = 1000  # objects that a bucket names in one answer
SMALL = 2**20  # bytes of a file whose content is kept as well

Entry = dict[str, Any]  # of a file or a folder, as gcsfs describes it
# (folder, **options) -> (objects, names of folders, which end in '/')
List = Callable[..., Awaitable[tuple[list[Entry], list[str]]]]

_open: list['Listing'] = []  # of all blocks, of any thread


class Listing:
    """What is known of a folder and all below, in gcsfs's terms: 'BUCKET/NAME', without gs://.

    As long as one answer names all objects, it is all that is asked; of more than that, each folder
    on the way to what is asked for is listed when it is met.
    """

    def __init__(self, root: str):
        self.root, self._lock = root, asyncio.Lock()
        self.forget()

    def covers(self, path: str) -> bool:
        """Whether `path` is the folder or below it."""
        return f'{path}/'.startswith(f'{self.root}/')

    def forget(self) -> None:
        """The next question is asked anew: something was written."""
        self._few: bool | None = None  # whether one answer names all; None: not asked yet
        self._folders: dict[str, list[Entry]] = {}
        self.contents: dict[str, asyncio.Future[Any]] = {}

    def entries(self, folder: str) -> list[Entry]:
        """What lies in a folder.

        Raises:
          KeyError: it is not known.
          FileNotFoundError: it is known that there is no such thing.
        """
        if folder in self._folders:
            return self._folders[folder]
        if folder != self.root and self._entry(folder) is None:
            raise FileNotFoundError(folder)
        raise KeyError(folder)

    def _entry(self, path):
        """That of a file or folder, None if there is none; raises as `entries`."""
        siblings = self.entries(path.rpartition('/')[0])
        return next((entry for entry in siblings if entry['name'] == path), None)

    def small(self, path: str) -> bool:
        """Whether a file is known to be there and so small that its content is kept."""
        with contextlib.suppress(KeyError, FileNotFoundError):
            entry = path != self.root and self._entry(path)
            return bool(entry) and entry['type'] == 'file' and entry['size'] <= SMALL
        return False

    async def look(self, listed: List, path: str) -> None:
        """Finds out whether there is a `path`, and, if it ends in '/', what lies in it."""
        async with self._lock:
            if self._few is None:
                objects, _ = await listed(self.root, delimiter='', max_results=ANSWER)
                self._few = len(objects) < ANSWER
                self._folders = _tree(self.root, objects) if self._few else {}
            if self._few:
                return
            folder = self.root
            for name in path[len(self.root) + 1 :].split('/'):
                if folder not in self._folders:
                    objects, below = await listed(folder)
                    bucket = folder.partition('/')[0]
                    found = [*objects, *({'name': f'{bucket}/{each}'} for each in below)]
                    self._folders |= _tree(folder, found)
                folder = f'{folder}/{name}'
                if (self._entry(folder) or _folder(''))['type'] != 'directory' or not name:
                    return


def _folder(name):
    return {'name': name, 'size': 0, 'storageClass': 'DIRECTORY', 'type': 'directory'}


def _tree(root: str, objects: Iterable[Entry]) -> dict[str, list[Entry]]:
    """{folder: its entries} of objects below `root`; a name that ends in '/' is a folder's."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in objects:
        name = entry['name'].rstrip('/')
        if name != entry['name']:
            entry = _folder(name)
        while name != root:
            parent = name.rpartition('/')[0]
            found.setdefault(parent, {}).setdefault(name, entry)
            entry, name = _folder(parent), parent
    return {folder: list(entries.values()) for folder, entries in found.items()}


def covering(path: str) -> Listing | None:
    """The `Listing` of an open block around `path`, if there is one."""
    return next((listing for listing in _open if listing.covers(path)), None)


def forget() -> None:
    """All that is known is asked anew."""
    for listing in _open:
        listing.forget()


@contextlib.contextmanager
def once(folder: os.PathLike | str) -> Iterator[None]:
    """Within the block what lies below `folder` is taken from one listing, if it is on gs://.

    For folders that nobody else writes to meanwhile, or where what they add is not missed; what
    this process writes through etils is seen. Inside another such block it is part of that one.
    """
    path = str(folder).partition('gs://')[2].rstrip('/')
    if not path or not gcs.remote(folder) or covering(path):
        yield
        return
    listing = Listing(path)
    _open.append(listing)
    try:
        yield
    finally:
        _open.remove(listing)
