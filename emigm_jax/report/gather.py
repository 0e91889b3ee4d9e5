"""Finds and reads the runs in folders, local or gs://: workdirs, and results of evaluation."""

import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from emigm_jax.errors import UserError, printable
from emigm_jax.evaluation.result import Result
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.io import files
from emigm_jax.io.paths import absolute
from emigm_jax.report.runs import Evaluation, Grid, Run, evaluation, flat, image_size
from emigm_jax.training import records

CONFIG, ABOUT, SAMPLES, RESULT = 'config.json', 'about.json', 'samples', 'result.json'
CLASSES = 'class_names.json'
_T = TypeVar('_T')
CHOSEN = 6  # grids of samples that a run shows
_EXPECTED = (
    f'a run is a workdir of `emigm train` ({CONFIG}, {records.FILE}), a folder or .json file '
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
        if (measured := _evaluation(place)) is None:
            raise UserError(f'{place}: holds no scores; {_EXPECTED}')
        return [_evaluated(place.parent if place.name == RESULT else place, [measured], [])]
    if run := _run(place):
        return [run]
    runs = [run for child in _children(place) if child.is_dir() and (run := _run(child))]
    if not runs:
        hint = f' (its evaluation has no {RESULT} yet: the same command goes on with it)'
        hint *= (place / 'settings.json').exists()
        raise UserError(f'{path}: holds no run{hint}; {_EXPECTED}')
    return [run for run in runs if run.trained] + _joined(place, runs)


def _run(folder):
    """The run in one folder, or None."""
    config = files.read_json(folder / CONFIG) or {}
    config = config if {'model', 'training'} <= config.keys() else {}  # or of something else
    if not config and not (folder / records.FILE).exists():
        measured, notes = _measurements([folder])
        return _evaluated(folder, measured, notes) if measured else None
    results = [child for child in _children(folder) if (child / RESULT).exists()]
    measured, left_out = _measurements([folder, *results])
    lines, evaluations, notes = training(records.text(folder))
    grids, count, unreadable = _grids(folder / SAMPLES)
    settings = flat(config)
    size = image_size(settings)
    sized = lambda e: e._replace(image_size=size or e.image_size)
    return Run(
        folder.name,
        str(folder),
        settings=settings,
        about=files.read_json(folder / ABOUT) or {},
        lines=tuple(lines),
        evaluations=tuple(map(sized, evaluations)),
        measurements=tuple(map(sized, measured)),
        grids=tuple(grids),
        grid_count=count,
        class_names=_class_names(folder),
        notes=(*notes, *left_out, *unreadable),
    )


def training(text: str) -> tuple[list[dict[str, Any]], list[Evaluation], list[str]]:
    """(lines of training, evaluations, notes) of metrics.jsonl; of lines of a step the last counts.

    Args:
      text: of the file, perhaps of a run that goes on, or was killed while it wrote.
    """
    parsed, broken, torn = records.parse(text)
    lines, evaluations, unbounded = {}, {}, {}
    for values in parsed:
        step = values['step']
        if 'loss' in values:
            lines[step] = values
        if scores := {name: values[name] for name in SCORES if name in values}:
            evaluations[step] = evaluation(Result(scores, 0, settings={'step': step}))
        for name in (name for name, value in values.items() if not math.isfinite(value)):
            unbounded.setdefault(name, set()).add(step)
    notes = [f'the last line of {records.FILE} is cut off and left out'] * torn
    if broken:
        nouns, verb = ('line', 'is') if broken == 1 else ('lines', 'are')
        notes.append(f'{broken} {nouns} of {records.FILE} cannot be read and {verb} left out')
    for name, steps in unbounded.items():
        times = 'once' if len(steps) == 1 else f'{len(steps)} times, first'
        notes.append(f'{name} is not finite {times} at step {min(steps):,}')
    by_step = lambda items: [items[step] for step in sorted(items)]
    if not lines and not notes:
        notes = ['no line of training metrics yet']
    return by_step(lines), by_step(evaluations), notes


def _class_names(folder):
    names = (files.read_json(folder / CLASSES) or {}).get('class_names')
    return tuple(printable(str(name)) for name in names) if isinstance(names, list) else ()


def _evaluated(folder, measured, notes):
    return Run(folder.name, str(folder), False, measurements=tuple(measured), notes=tuple(notes))


def _measurements(folders):
    """([Evaluation], notes) of the result files in folders."""
    measured, notes = [], []
    for path in (path for folder in folders for path in _children(folder)):
        if path.suffix != '.json' or path.name in (CONFIG, ABOUT, CLASSES, 'settings.json'):
            continue
        try:
            found = _evaluation(path)
        except UserError as error:
            if path.name == RESULT:
                raise
            notes.append(f'left out: {error}')  # it may be anything
            continue
        # Each once: --json writes what is in result.json as well.
        if found and all(found.result != other.result for other in measured):
            measured.append(found)
    return measured, notes


def _evaluation(path):
    """What a file says, or None. It is called as the file, result.json as its folder."""
    value = files.read_json(path) or {}
    try:
        result = Result.from_json(value)
    except UserError:
        return None  # of something else
    name = path.parent.name if path.name == RESULT else path.stem
    return evaluation(result, name) if result.scores or result.missing else None


def _joined(folder, runs):
    """Evaluations side by side in `folder`, those of the same weights as one run."""
    models = {}
    for run in runs:
        if not run.trained:
            content = run.measurements[0].result.settings.get('content')
            models.setdefault(str(content or run.path), []).append(run)
    joined = []
    for same in models.values():
        path = folder if len(models) == 1 and len(same) > 1 else same[0].path
        measured, notes = (
            sum((getattr(r, k) for r in same), ()) for k in ('measurements', 'notes')
        )
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
    paths = [p for p in _children(folder) if p.suffix == '.png' and p.stem.isdecimal()]
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
        with Image.open(io.BytesIO(content), formats=['PNG']) as picture:
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
