"""Real pictures in memory, small, for scores in pixels."""

import numpy as np

from emigm_jax.config.settings import DataConfig
from emigm_jax.data import datasets, rows, sources
from emigm_jax.data.pictures import center_crop, shrunk
from emigm_jax.data.sources import Images, Unreadable
from emigm_jax.errors import UserError

MOST = 2000  # pictures that are compared with, evenly spread over all
_LEAST = 8  # of which each half has more than the 3 neighbours of precision and recall


def images(config: DataConfig) -> Images:
    """The pictures of a `DataConfig` of `settings.IN_PIXELS` as `pictures.shrunk` leaves them.

    Raises:
      UserError: they are not where they were, or less than `_LEAST` of them can be read.
    """
    if config.name == 'digits':
        return sources.digits()
    source, size = datasets.source(config), config.image_size
    chosen = np.unique(np.linspace(0, len(source) - 1, MOST).round().astype(int))

    def read(at):
        try:
            example = source.example(int(chosen[at]))
        except Unreadable:  # whoever trained on them has said so
            return None
        return shrunk(center_crop(example.image, size)[None])[0], example.label

    found = [pair for pair in rows.read_all(read, 0, len(chosen)) if pair is not None]
    if len(found) < _LEAST:
        raise UserError(
            f'{config.path}: scores in pixels need at least {_LEAST} pictures, not {len(found)}; '
            "--config.evaluation.every='0 steps' trains without them"
        )
    pictures, labels = zip(*found, strict=True)
    return Images(np.stack(pictures), np.array(labels, np.int32), source.class_names, levels=256)
