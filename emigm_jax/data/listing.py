"""What lies below a folder, local or in a bucket: pictures, and all else counted."""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from emigm_jax.data import pictures
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths

_SHOWN = 8  # kinds of files that are named


class Listing(NamedTuple):
    """Pictures are files with an ending of `pictures.ENDINGS`, or that begin as pictures do."""

    pictures: list[tuple[str, int]]  # ('PATH/FILE', bytes)
    folders: list[str]  # that lie in it, hidden ones left out
    passed_over: dict[str, int]  # kind of file: how many; the kind is an ending or a word


def below(root: os.PathLike | str) -> Listing:
    """What lies below a folder, however deep; hidden files and folders are passed over.

    Raises:
      UserError: no such folder, or one in it that cannot be read.
    """
    path = paths.absolute(root)
    with files.reported(path):
        if not path.is_dir():
            raise UserError(f'{root}: no such folder')
        return remote(path) if files.remote(path) else local(str(path))


def described(passed_over: Mapping[str, int]) -> str:
    """'.txt 3, hidden 1' of what was passed over; '' if nothing was."""
    counts = sorted(passed_over.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in counts[_SHOWN:])
    return ', '.join(
        [f'{kind} {count:,}' for kind, count in counts[:_SHOWN]] + [f'others {rest:,}'] * bool(rest)
    )


def _kind(name):
    """What a file that is passed over is counted as."""
    ending = pictures.ending(name)
    if not ending:
        return 'no ending'
    return ending if ending[1:].isalnum() and len(ending) <= 10 else 'odd endings'


def local(root: str) -> Listing:
    """See `below`; scandir lists ImageNet in seconds."""
    passed_over = collections.Counter()
    found = list(_walk(root, '', passed_over, ()))
    with os.scandir(root) as entries:
        folders = [e.name for e in entries if _is(e, e.is_dir) and not e.name.startswith('.')]
    return Listing(found, folders, dict(passed_over))


def _is(entry, question):
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _walk(folder, prefix, passed_over, above) -> Iterator[tuple[str, int]]:
    here = os.stat(folder)
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        passed_over['links in a circle'] += 1
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                passed_over['hidden'] += 1
            elif _is(entry, entry.is_dir):
                deeper = f'{prefix}{entry.name}/'
                yield from _walk(entry.path, deeper, passed_over, (*above, identity))
            elif _is(entry, entry.is_file):
                size, known = entry.stat().st_size, entry.name.lower().endswith(pictures.ENDINGS)
                if known or pictures.begins_as_picture(_head(entry.path), entry.name):
                    yield prefix + entry.name, size
                else:
                    passed_over[_kind(entry.name)] += 1
            elif entry.is_symlink() and entry.name.lower().endswith(pictures.ENDINGS):
                yield prefix + entry.name, 0  # leads nowhere, which its reader will say
            else:
                passed_over['broken links' if entry.is_symlink() else 'no files'] += 1


def _head(path):
    try:
        with open(path, 'rb') as f:
            return f.read(pictures.HEAD)
    except OSError:
        return b''


def remote(root: os.PathLike | str) -> Listing:
    """See `below`; one listing of everything, and the heads of files with odd names."""
    import fsspec

    system, place = fsspec.core.url_to_fs(str(root))
    found, odd, passed_over = [], [], collections.Counter()
    for path, about in system.find(place, detail=True).items():
        name = path[len(place) :].lstrip('/')
        if any(part.startswith('.') for part in name.split('/')):
            passed_over['hidden'] += 1
        elif name.lower().endswith(pictures.ENDINGS):
            found.append((name, about['size']))
        else:
            odd.append((path, name, about['size']))
    for (_, name, size), head in zip(odd, _heads(system, odd), strict=True):
        if pictures.begins_as_picture(head, name):
            found.append((name, size))
        else:
            passed_over[_kind(name)] += 1
    folders = sorted({name.partition('/')[0] for name, _ in found if '/' in name})
    return Listing(found, folders, dict(passed_over))


def _heads(system, odd) -> Iterable[bytes]:
    stops = [min(size, pictures.HEAD) for _, _, size in odd]
    names = [path for path, _, _ in odd]
    heads = system.cat_ranges(names, [0] * len(odd), stops, on_error='return')
    return (head if isinstance(head, bytes) else b'' for head in heads)
