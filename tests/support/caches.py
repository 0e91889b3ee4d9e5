"""Latent caches made of numbers that are a function of the row."""

import dataclasses
import hashlib
import pathlib
import time

import numpy as np

from emigm_jax.data import prepare
from emigm_jax.data.manifest import Contents, Maker, Origin
from emigm_jax.data.prepare import Row, Rows, Skipped

SHAPE = (4, 4, 6)  # moments of 3 channels
CONTENTS = Contents(Origin('made', '0', 50), Maker('kl16', '0', 3, 16), 64, 'float16', 8)


class Made(Rows):
    """Rows that are a function of their index; every seventh is unreadable."""

    class_names = ('a', 'b', 'c')

    def __init__(self, total=50, pause=0.0):
        self.total, self.pause = total, pause
        self.asked = []

    def __len__(self):
        return self.total

    @staticmethod
    def views(i):
        return np.random.default_rng(i).standard_normal((2, *SHAPE)).astype(np.float32)

    def contents(self, dtype, shard_rows):
        return dataclasses.replace(CONTENTS, dtype=dtype, shard_rows=shard_rows)

    def rows(self, start, stop):
        self.asked.append(start)
        for i in range(start, stop):
            time.sleep(self.pause)
            yield (
                Skipped(f'{i}.png', 'torn') if i % 7 == 3 else Row(i % 3, f'{i}.png', self.views(i))
            )


V = 16  # codes of `Coded`
CODED = dataclasses.replace(CONTENTS, tokenizer=Maker('vqgan', '0', 0, 16, codes=V), dtype='uint16')


class Coded(Made):
    """As `Made`, of codes on a grid of 4 x 4."""

    @staticmethod
    def views(i):
        return np.random.default_rng(i).integers(V, size=(2, 4, 4), dtype=np.int32)


GOOD = [i for i in range(50) if i % 7 != 3]


def make(path, rows=None, **changes):
    contents = dataclasses.replace(CONTENTS, **changes)
    return prepare.prepare(path, rows or Made(), contents, max_unreadable=0.2)


def make_coded(path, rows=None):
    return prepare.prepare(path, rows or Coded(), CODED, max_unreadable=0.2)


def contents(path):
    """{relative name: digest} of everything below a folder."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(pathlib.Path(path).rglob('*'))
        if file.is_file()
    }
