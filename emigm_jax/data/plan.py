"""What a latent cache will be, before one picture is read: files, bytes, requests."""

import math
from typing import NamedTuple

import numpy as np

from emigm_jax.data import manifest

BESIDE = 5  # files: settings, labels, names, skipped pictures, manifest
_NAMED = 1000  # objects that a bucket names in one answer


class Plan(NamedTuple):
    """The sizes of a cache of pictures of which all can be read; headers of files left out."""

    shards: int
    picture_bytes: int  # both views
    shard_bytes: int  # of a full one
    bytes: int
    files: int
    requests: int  # to a bucket, by all workers together, beside those that read pictures


def of(pictures: int, raw: tuple[int, ...], dtype: str, shard_rows: int, workers: int = 1) -> Plan:
    """The `Plan` of a cache.

    Args:
      pictures: how many.
      raw: shape of what the tokenizer gives of one, (h, w, c), or (h, w) of codes.
      dtype: of the rows.
      shard_rows: pictures per shard.
      workers: that share the shards.
    """
    each = manifest.VIEWS * math.prod(raw) * np.dtype(dtype).itemsize
    shards = -(-pictures // shard_rows)
    full = min(pictures, shard_rows) * each
    # A shard: one request, or three beyond a megabyte; its description, written and read once.
    asked = shards * ((3 if full > 2**20 else 1) + 2)
    lists = 2 * workers * (1 + 2 * shards // _NAMED)
    return Plan(shards, each, full, pictures * each, 2 * shards + BESIDE, asked + lists)
