"""Finds the runs in folders, local or gs://: workdirs of training and results of evaluation."""

import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from emigm_jax.errors import UserError, printable
from emigm_jax.io import files
from emigm_jax.io.paths import absolute
from emigm_jax.report import parse
from emigm_jax.report.runs import Grid, Run

METRICS, CONFIG, SAMPLES, RESULT = 'metrics.jsonl', 'config.json', 'samples', 'result.json'
CLASSES = 'class_names.json'
_T = TypeVar('_T')
CHOSEN = 6  # grids of samples that a run shows
_EXPECTED = (
    f'a run is a workdir of `emigm train` ({CONFIG}, {METRICS}), a folder or .json file '
    'of `emigm evaluate`, or a folder of such folders'
)


def gather(paths: Iterable[os.PathLike | str]) -> list[Run]:
    """Reads runs.

    Args:
      paths: workdirs, results of `emigm evaluate` (a folder or a file), or folders of such folders.

    Returns:
      The runs in the order of the paths, each once, with names that differ.

    Raises:
      UserError: there is no such path, it holds no run, or a file of it cannot be read.
    """
    runs = {}
    for path in paths:
        with files.reported(path):
            for run in _runs(path, absolute(path)):
                runs.setdefault(run.path, run)
    names = _names(list(runs))
    return [dataclasses.replace(r, name=n) for r, n in zip(runs.values(), names, strict=True)]


def _runs(path, place):
    if not place.exists():
        raise UserError(f'{path}: no such file or folder; {_EXPECTED}')
    if not place.is_dir():
        measured = _evaluation(place)
        if measured is None:
            raise UserError(f'{place}: holds no scores; {_EXPECTED}')
        origin = place.parent if place.name == RESULT else place
        return [_evaluated(origin, [measured], [])]
    run = _run(place)
    if run is not None:
        return [run]
    runs = [_run(child) for child in _children(place) if child.is_dir()]
    runs = [run for run in runs if run is not None]
    if not runs:
        hint = ''
        if (place / 'settings.json').exists():
            hint = f' (its evaluation has no {RESULT} yet: the same command goes on with it)'
        raise UserError(f'{path}: holds no run{hint}; {_EXPECTED}')
    return [run for run in runs if run.trained] + _joined(place, runs)


def _run(folder):
    """The run in one folder, or None."""
    config = files.read_json(folder / CONFIG) or {}
    config = config if {'model', 'training'} <= config.keys() else {}  # or of something else
    if not config and not (folder / METRICS).exists():
        measured, notes = _measurements([folder])
        return _evaluated(folder, measured, notes) if measured else None
    text = (folder / METRICS).read_bytes() if (folder / METRICS).exists() else b''
    lines, evaluations, notes = parse.metrics(text.decode('utf-8', 'replace'))
    if not lines and not notes:
        notes = ['no line of training metrics yet']
    results = [child for child in _children(folder) if (child / RESULT).exists()]
    measured, left_out = _measurements([folder, *results])
    grids, count, unreadable = _grids(folder / SAMPLES)
    settings = parse.flat(config)
    size = parse.image_size(settings)
    sized = lambda e: dataclasses.replace(e, image_size=size or e.image_size)
    return Run(
        folder.name,
        str(folder),
        settings=settings,
        lines=tuple(lines),
        evaluations=tuple(map(sized, evaluations)),
        measurements=tuple(map(sized, measured)),
        grids=tuple(grids),
        grid_count=count,
        class_names=_class_names(folder),
        notes=(*notes, *left_out, *unreadable),
    )


def _class_names(folder):
    names = (files.read_json(folder / CLASSES) or {}).get('class_names')
    return tuple(printable(str(name)) for name in names) if isinstance(names, list) else ()


def _evaluated(folder, measured, notes):
    return Run(folder.name, str(folder), False, measurements=tuple(measured), notes=tuple(notes))


def _measurements(folders):
    """([Evaluation], notes) of the result files in folders."""
    measured, notes = {}, []
    for path in (path for folder in folders for path in _children(folder)):
        if path.suffix != '.json' or path.name in (CONFIG, CLASSES, 'settings.json'):
            continue
        try:
            evaluation = _evaluation(path)
        except UserError as error:
            if path.name == RESULT:
                raise
            notes.append(f'left out: {error}')  # it may be anything
            continue
        if evaluation is not None:
            # Each once: --json writes what is in result.json as well.
            measured.setdefault(str(dataclasses.replace(evaluation, name='')), evaluation)
    return list(measured.values()), notes


def _evaluation(path):
    """What a file says, or None. It is called as the file, result.json as its folder."""
    name = path.parent.name if path.name == RESULT else path.stem
    return parse.evaluation(files.read_json(path) or {}, name)


def _joined(folder, runs):
    """Evaluations side by side in `folder`, those of the same weights as one run."""
    models = {}
    for run in runs:
        if not run.trained:
            models.setdefault(run.measurements[0].content or run.path, []).append(run)
    joined = []
    for same in models.values():
        path = folder if len(models) == 1 and len(same) > 1 else same[0].path
        measured = [e for run in same for e in run.measurements]
        notes = [note for run in same for note in run.notes]
        joined.append(_evaluated(absolute(path), measured, notes))
    return joined


def _children(folder):
    """What is in a folder, run-2 before run-10."""
    rank = lambda path: re.sub(r'\d+', lambda digits: digits[0].zfill(20), path.name)
    return sorted((p for p in folder.iterdir() if not p.name.startswith('.')), key=rank)


def _grids(folder):
    """(some of the grids of samples, how many there are, notes on unreadable ones)."""
    if not folder.is_dir():
        return [], 0, []
    paths = [p for p in _children(folder) if p.suffix == '.png' and p.stem.isdigit()]
    paths.sort(key=lambda path: int(path.stem))
    grids = [Grid(int(p.stem), p.name, p.read_bytes()) for p in spaced(paths)]
    readable = [grid for grid in grids if _readable(grid.content)]
    notes = [f'left out: {SAMPLES}/{g.name} is no whole PNG' for g in grids if g not in readable]
    return readable, len(paths), notes


def spaced(items: Sequence[_T]) -> list[_T]:
    """At most CHOSEN of a sequence, evenly spaced, the first and the last among them."""
    places = {round(place) for place in np.linspace(0, len(items) - 1, CHOSEN)}
    return [items[place] for place in sorted(places)] if items else []


def _readable(content):
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def _names(paths):
    """The shortest ends of paths by which they differ, one part at least."""
    # Names that are no UTF-8 could be neither printed nor drawn.
    texts = [path.encode('utf-8', 'replace').decode().removesuffix('.json') for path in paths]
    parts = [pathlib.PurePosixPath(text).parts for text in texts]

    def shortest(own):
        ends = (own[-depth:] for depth in range(1, len(own)))
        return next((end for end in ends if [p[-len(end) :] for p in parts].count(end) == 1), own)

    return ['/'.join(shortest(own)) for own in parts]
