"""A folder of class folders, as ImageNet comes: CLASS/FILE.JPEG, labels in order of the names."""

import os
from typing import final

import numpy as np
from etils import epath

from emigm_jax.data import listing, pictures
from emigm_jax.data.sources import Example, Source, Unreadable
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths


def read(root: epath.Path, name: str, size: int, label: int) -> Example:
    """What is in file `name` below `root`, of `size` bytes; raises `Unreadable`."""
    if size > pictures.LARGEST:
        raise Unreadable(name, f'has {size / 1e9:.1f} GB')
    try:
        data = (root / name).read_bytes()
    except OSError as error:
        raise Unreadable(name, error.strerror or str(error)) from error
    return Example(pictures.decode(data, name), label, name)


@final
class ImageFolder(Source):
    """See `sources.Source`. Files below a class folder, however deep, in order of their names.

    `listing.below` tells pictures from other files. Pictures without any class folder are one
    class, called like the folder; beside class folders they are passed over.

    Raises:
      UserError: no such folder, no pictures in it, or a class folder without any.
    """

    kind = 'folder'

    def __init__(self, path: os.PathLike | str):
        self._root = paths.absolute(path)
        listed = listing.below(self._root)
        passed_over = dict(listed.passed_over)
        classes = {name: [] for name in listed.folders}
        for name, size in listed.pictures:
            first, slash, _ = name.partition('/')
            if slash:
                classes[first].append((name, size))
            elif classes:
                key = 'outside of class folders'
                passed_over[key] = passed_over.get(key, 0) + 1
        if not classes and listed.pictures:
            classes = {self._root.name: listed.pictures}
        self.passed_over = passed_over
        others = listing.described(passed_over)
        beside = f'; what lies there: {others}' if others else ''
        if not classes:
            raise UserError(
                f'{path}: holds no class folders (it should hold CLASS/PICTURE.jpg) and no '
                f'pictures{beside}'
            )
        for name, held in classes.items():
            if not held:
                raise UserError(
                    f'{path}: the class folder {name} holds no pictures; fill or remove it{beside}'
                )
        self.class_names = tuple(sorted(classes))
        self._names, self._sizes = [], []
        labels = []
        for label, name in enumerate(self.class_names):
            for file, size in sorted(classes[name]):
                self._names.append(file)
                self._sizes.append(size)
                labels.append(label)
        self._labels = np.array(labels, np.int32)
        self.class_counts = [len(classes[name]) for name in self.class_names]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """'CLASS/FILE' of picture i."""
        return self._names[i]

    def example(self, i: int) -> Example:
        """`Example` i; raises `Unreadable`."""
        return read(self._root, self._names[i], self._sizes[i], int(self._labels[i]))

    def fingerprint(self) -> str:
        """Digest of the names and sizes of all files, in order."""
        return files.text_hash(
            f'{name} {size}' for name, size in zip(self._names, self._sizes, strict=True)
        )
