"""A folder of class folders, as ImageNet comes: CLASS/FILE.JPEG, labels in order of the names."""

import os
from typing import final

import numpy as np
from etils import epath

from emigm_jax.data.pictures import decode
from emigm_jax.data.sources import Example, Source, Unreadable
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths

ENDINGS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.gif')


def read(root: epath.Path, name: str, label: int) -> Example:
    """What is in file `name` below `root`; raises `Unreadable`."""
    try:
        data = (root / name).read_bytes()
    except OSError as error:
        raise Unreadable(name, error.strerror or str(error)) from error
    return Example(decode(data, name), label, name)


@final
class ImageFolder(Source):
    """See `sources.Source`. Files below a class folder, however deep, in order of their names.

    Hidden files and files with other endings are left out.

    Raises:
      UserError: no such folder, no class folders in it, or one without pictures.
    """

    kind = 'folder'

    def __init__(self, path: os.PathLike | str):
        self._root = paths.absolute(path)
        with files.reported(self._root):
            if not self._root.is_dir():
                raise UserError(f'{path}: no such folder')
            classes = _remote(self._root) if files.remote(self._root) else _local(str(self._root))
        if not classes:
            raise UserError(f'{path}: holds no class folders (it should hold CLASS/PICTURE.jpg)')
        for name, pictures in classes.items():
            if not pictures:
                raise UserError(
                    f'{path}: the class folder {name} holds no pictures '
                    f'({", ".join(ENDINGS)}); fill or remove it'
                )
        self.class_names = tuple(sorted(classes))
        self._names, self._sizes = [], []
        labels = []
        for label, name in enumerate(self.class_names):
            for file, size in sorted(classes[name]):
                self._names.append(f'{name}/{file}')
                self._sizes.append(size)
                labels.append(label)
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """'CLASS/FILE' of picture i."""
        return self._names[i]

    def example(self, i: int) -> Example:
        """`Example` i; raises `Unreadable`."""
        return read(self._root, self._names[i], int(self._labels[i]))

    def fingerprint(self) -> str:
        """Digest of the names and sizes of all files, in order."""
        return files.text_hash(
            f'{name} {size}' for name, size in zip(self._names, self._sizes, strict=True)
        )


def below(root: os.PathLike | str) -> list[tuple[str, int]]:
    """('PATH/FILE', bytes) of all pictures below a folder, sorted.

    Raises:
      UserError: no such folder, or no pictures in it.
    """
    root = paths.absolute(root)
    with files.reported(root):
        if not root.is_dir():
            raise UserError(f'{root}: no such folder')
        if files.remote(root):
            pictures = sorted(_listed(root))
        else:
            pictures = sorted(_below(str(root), ''))
    if not pictures:
        raise UserError(f'{root}: holds no pictures ({", ".join(ENDINGS)})')
    return pictures


def _is_picture(name):
    return not name.startswith('.') and name.lower().endswith(ENDINGS)


def _local(root):
    """{class: [(path below it, bytes)]}; scandir lists ImageNet in seconds."""
    with os.scandir(root) as entries:
        classes = [e.name for e in entries if e.is_dir() and not e.name.startswith('.')]
    return {name: list(_below(os.path.join(root, name), '')) for name in classes}


def _below(folder, prefix):
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith('.'):
                yield from _below(entry.path, f'{prefix}{entry.name}/')
            elif _is_picture(entry.name) and entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


def _remote(root):
    """As `_local`, of a bucket: one listing of everything below the folder."""
    classes = {}
    for path, size in _listed(root):
        name, _, file = path.partition('/')
        if file and not name.startswith('.'):
            classes.setdefault(name, []).append((file, size))
    return classes


def _listed(root):
    import fsspec

    system, place = fsspec.core.url_to_fs(str(root))
    for path, about in system.find(place, detail=True).items():
        if _is_picture(path.rsplit('/', 1)[-1]):
            yield path[len(place) :].lstrip('/'), about['size']
