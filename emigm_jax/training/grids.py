"""The grid of samples of a step: each process draws a share of it, the first one writes it."""

import numpy as np
from etils import epath

from emigm_jax.config.settings import Config
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.io import png
from emigm_jax.nn.functional import Params
from emigm_jax.parallel import agreement, batches, exchange
from emigm_jax.sampling import save
from emigm_jax.sampling.sampler import sampler

MOST_CLASSES = 10  # in a grid


def draw(
    config: Config, data: Dataset, ema: Params, workdir: epath.Path, at: int
) -> np.ndarray | None:
    """Writes WORKDIR/samples/STEP.png: a few classes, as `emigm sample` shows them.

    All processes call it, and none draws more than its part, spread over its devices. What draws is
    compiled by the first call.

    Args:
      ema: parameters, on the devices of each process.

    Returns:
      The picture; None where there is none, and on all processes but the first.
    """
    codec = data.codec
    if codec is None:
        return None  # latents without their tokenizer have no pictures
    count = config.training.sample_images
    classes = min(data.classes, MOST_CLASSES, count)
    each = count // classes
    labels, seeds = np.repeat(np.arange(classes), each), np.tile(np.arange(each), classes)
    size = agreement.padded(len(labels))
    [mine] = agreement.pieces(0, len(labels), size)
    rows = slice(mine.start, mine.stop)
    tokens = sampler(config.model, config.sampling)(ema, labels[rows], seeds[rows])
    try:
        pictures = agreement.agreed(lambda: codec.decode(tokens))
    except UserError as error:  # what is trained is finite, and may get over it
        if agreement.first():
            print(f'no grid of step {at}: {error}', flush=True)
        return None
    pictures = exchange.to_first(batches.fill(pictures, agreement.share(size)))
    if pictures is None:
        return None
    grid = save.class_grid(pictures[: len(labels)], labels, data.classes, data.class_names)
    png.save(workdir / 'samples' / f'{at:08}.png', grid)
    return grid
