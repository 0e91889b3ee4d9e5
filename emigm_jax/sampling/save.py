"""A set of generated images as files."""

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from emigm_jax.data import class_names
from emigm_jax.io import npz, paths, png


def save_samples(
    folder: os.PathLike | str,
    images: UInt8[np.ndarray, 'M H W colours'],
    labels: Int[np.ndarray, ' M'],
    seeds: Int[np.ndarray, ' M'],
    known: int,
    saved: Sequence[str] = (),
) -> None:
    """Writes a PNG per image, a grid with the names of the classes, and an npz of all.

    Args:
      folder: local or gs://.
      images: every class with every seed, class by class.
      labels: -1 for the null class.
      seeds: image numbers.
      known: classes that the model knows.
      saved: their names, as its checkpoint has them; (): none, or ImageNet's.
    """
    folder = paths.absolute(folder)
    names = class_names.file_names(labels, known, saved)
    files = [folder / f'class_{n}_seed_{s:06}.png' for n, s in zip(names, seeds, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket takes its time
        list(pool.map(png.save, files, images))
    # One class per row, one seed per column.
    columns = int(np.flatnonzero(np.append(labels[1:] != labels[:1], True))[0]) + 1
    grid = png.grid(png.upscaled(images), columns)
    titles = class_names.titles(labels[::columns], known, saved)
    png.save(folder / 'grid.png', png.labelled(grid, titles))
    arrays = dict(images=images, labels=labels, seeds=seeds)
    arrays['titles'] = np.array(class_names.titles(labels, known, saved))  # of each image
    npz.write(folder / 'samples.npz', arrays)
