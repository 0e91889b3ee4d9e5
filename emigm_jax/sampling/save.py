"""A set of generated images as files: FOLDER/images/*.png, a grid or sheet, and an npz of all."""

import concurrent.futures
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from emigm_jax.data import class_names
from emigm_jax.io import files, npz, paths, png
from emigm_jax.sampling import edit_sheet
from emigm_jax.sampling.editing import Edit

IMAGES, GRID, ARRAYS = 'images', 'grid.png', 'samples.npz'
SHEET = 'sheet.png'  # of edits


def check(folder: os.PathLike | str, settings: Mapping[str, Any], overwrite: bool = False) -> None:
    """Raises UserError where images of these settings would be mixed with others.

    Args:
      folder: local or gs://; need not exist.
      settings: JSON-like, all that decides the images.
      overwrite: whether images of other settings there are to go.
    """
    place = paths.absolute(folder) / IMAGES
    if not (overwrite and files.claimed(place)):
        remedy = 'choose another --out, or clear it with --overwrite'
        files.claim(place, settings, 'pictures', write=False, remedy=remedy)


def begin(folder: os.PathLike | str, settings: Mapping[str, Any], overwrite: bool = False) -> None:
    """As `check`, and makes the folder one of these settings; images of others there are gone."""
    check(folder, settings, overwrite)
    folder = paths.absolute(folder)
    place = folder / IMAGES
    with files.reported(folder):
        if overwrite and files.claimed(place):
            beside = (folder / name for name in (GRID, SHEET, ARRAYS))
            for path in (*place.glob('*.png'), *beside):
                path.unlink(missing_ok=True)
            files.unclaim(place)  # last, so that what is left when this fails is known as ours
    files.claim(place, settings, 'pictures')


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
    _save_images(folder, images, class_names.file_names(labels, known, saved), seeds)
    png.save(folder / GRID, class_grid(images, labels, known, saved))
    titles = np.array(class_names.titles(labels, known, saved))  # of each image
    npz.write(folder / ARRAYS, dict(images=images, labels=labels, seeds=seeds, titles=titles))


def save_edits(
    folder: os.PathLike | str,
    edit: Edit,
    images: UInt8[np.ndarray, 'M H W colours'],
    labels: Int[np.ndarray, ' M'],
    seeds: Int[np.ndarray, ' M'],
    known: int,
    saved: Sequence[str] = (),
) -> None:
    """Writes a PNG per image, and a sheet of them beside the picture of which they are edits.

    Args as in `save_samples`.
    """
    folder = paths.absolute(folder)
    _save_images(folder, images, class_names.file_names(labels, known, saved), seeds)
    titles = class_names.titles(labels[:: _columns(labels)], known, saved)
    png.save(folder / SHEET, edit_sheet.sheet(edit, images, titles))


def _columns(labels):
    """Seeds of a class."""
    return int(np.flatnonzero(np.append(labels[1:] != labels[:1], True))[0]) + 1


def _save_images(folder, images, names, seeds):
    named = [f'class_{n}_seed_{s:06}.png' for n, s in zip(names, seeds, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket takes its time
        list(pool.map(png.save, [folder / IMAGES / name for name in named], images))


def class_grid(
    images: UInt8[np.ndarray, 'M H W colours'],
    labels: Int[np.ndarray, ' M'],
    known: int,
    saved: Sequence[str] = (),
) -> UInt8[np.ndarray, 'height width colours']:
    """One picture to look at: a class per row, with its name where it has one, a seed per column.

    Args:
      images: every class with every seed, class by class.
      labels: -1 for the null class.
      known: classes that the model knows.
      saved: their names, as in `save_samples`.
    """
    columns = _columns(labels)
    grid = png.grid(png.upscaled(images), columns)
    return png.labelled(grid, class_names.titles(labels[::columns], known, saved))
