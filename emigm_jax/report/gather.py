"""Finds the runs in folders, local or gs://: workdirs of training and results of evaluation."""

import dataclasses
import re

from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.io.paths import absolute
from emigm_jax.report import parse, pictures
from emigm_jax.report.runs import Grid, Run

METRICS, CONFIG, SAMPLES, RESULT = 'metrics.jsonl', 'config.json', 'samples', 'result.json'
_EXPECTED = (
    f'a run is a workdir of `emigm train` ({CONFIG}, {METRICS}), a folder or .json file '
    'of `emigm evaluate`, or a folder of such folders'
)


def gather(paths):
    """Reads runs.

    Args:
      paths: workdirs, results of `emigm evaluate` (a folder or a file), or folders of such folders.

    Returns:
      List of `Run` in the order of the paths, each once, with names that differ.

    Raises:
      UserError: there is no such path, it holds no run, or a file of it cannot be read.
    """
    found = {}
    for path in paths:
        place = absolute(path)
        with files.reported(path):
            for run in _runs(path, place):
                found.setdefault(run.path, run)
    names = _names([run.path for run in found.values()])
    return [dataclasses.replace(r, name=n) for r, n in zip(found.values(), names, strict=True)]


def _runs(path, place):
    if not place.exists():
        raise UserError(f'{path}: no such file or folder; {_EXPECTED}')
    if not place.is_dir():
        measured = parse.evaluation(_object(place), _name(place))
        if measured is None:
            raise UserError(f'{place}: holds no scores; {_EXPECTED}')
        where = place.parent if place.name == RESULT else place
        return [_evaluated(where, [measured])]
    run = _run(place)
    if run is not None:
        return [run]
    folders = [child for child in _children(place) if child.is_dir()]
    single = [run for run in map(_run, folders) if run is not None]
    if not single:
        hint = ''
        if (place / 'settings.json').exists():
            hint = f' (its evaluation has no {RESULT} yet: the same command goes on with it)'
        raise UserError(f'{path}: holds no run{hint}; {_EXPECTED}')
    return [run for run in single if run.trained] + _joined(place, single)


def _run(folder):
    """The run in one folder, or None."""
    config = _config(folder / CONFIG)
    if config is not None or (folder / METRICS).exists():
        return _trained(folder, config or {})
    measured, notes = _measurements(folder)
    return _evaluated(folder, measured, notes) if measured else None


def _config(path):
    """The settings of a training run; None if the file is missing or of something else."""
    if not path.exists():
        return None
    config = _object(path)
    return config if {'model', 'training'} <= config.keys() else None


def _object(path):
    value = files.read_json(path)
    if value is None:
        raise UserError(f'{path}: no such file')
    return value


def _children(folder):
    """What lies in a folder, run-2 before run-10."""
    rank = lambda path: re.sub(r'\d+', lambda digits: digits[0].zfill(20), path.name)
    return sorted((p for p in folder.iterdir() if not p.name.startswith('.')), key=rank)


def _trained(folder, config):
    lines, evaluations, notes = [], [], []
    if (folder / METRICS).exists():
        text = (folder / METRICS).read_bytes().decode('utf-8', 'replace')
        lines, evaluations, notes = parse.metrics(text)
    if not lines and not notes:
        notes = ['no line of training metrics yet']
    settings = parse.flat(config)
    size = parse.image_size(settings)
    measured, more = _measurements(folder)
    for child in _children(folder):
        if child.is_dir() and (child / RESULT).exists():
            found, also = _measurements(child)
            measured, more = measured + found, more + also
    sized = lambda e: dataclasses.replace(e, image_size=size or e.image_size)
    grids, count, unreadable = _grids(folder / SAMPLES)
    return Run(
        name=folder.name,
        path=str(folder),
        settings=settings,
        lines=tuple(lines),
        evaluations=tuple(map(sized, evaluations)),
        measurements=tuple(map(sized, _unlike(measured))),
        grids=tuple(grids),
        grid_count=count,
        notes=(*notes, *more, *unreadable),
    )


def _measurements(folder):
    """([Evaluation], notes) of the result files that lie in a folder."""
    measured, notes = [], []
    for path in _children(folder):
        if path.suffix != '.json' or path.name in (CONFIG, 'settings.json'):
            continue
        try:
            found = parse.evaluation(_object(path), _name(path))
        except UserError as error:
            if path.name == RESULT:
                raise
            notes.append(f'left out: {error}')  # it may be anything
            continue
        if found is not None:
            measured.append(found)
    return measured, notes


def _unlike(measured):
    """Each of some evaluations once: --json writes what is in result.json as well."""
    kept = {}
    for e in measured:
        kept.setdefault(str(dataclasses.replace(e, name='')), e)
    return list(kept.values())


def _name(file):
    """What a file of results is called: result.json by its folder."""
    return file.parent.name if file.name == RESULT else file.stem


def _evaluated(folder, measured, notes=()):
    return Run(
        name=folder.name,
        path=str(folder),
        trained=False,
        measurements=tuple(_unlike(measured)),
        notes=tuple(notes),
    )


def _joined(folder, runs):
    """Evaluations that lie side by side in `folder`, those of the same weights as one run."""
    models = {}
    for run in runs:
        if not run.trained:
            models.setdefault(run.measurements[0].content or run.path, []).append(run)
    joined = []
    for same in models.values():
        measured = [m for run in same for m in run.measurements]
        notes = [note for run in same for note in run.notes]
        path = str(folder) if len(models) == 1 and len(same) > 1 else same[0].path
        joined.append(
            dataclasses.replace(
                same[0], path=path, measurements=tuple(measured), notes=tuple(notes)
            )
        )
    return joined


def _grids(folder):
    """(some of the grids of samples, how many there are, notes on unreadable ones)."""
    if not folder.is_dir():
        return [], 0, []
    found = [p for p in _children(folder) if p.suffix == '.png' and p.stem.isdigit()]
    found.sort(key=lambda p: int(p.stem))
    grids, notes = [], []
    for path in pictures.spaced(found):
        content = path.read_bytes()
        if pictures.readable(content):
            grids.append(Grid(int(path.stem), path.name, content))
        else:
            notes.append(f'left out: {SAMPLES}/{path.name} is no whole PNG')
    return grids, len(found), notes


def _names(paths):
    """The shortest ends of paths by which they differ, one part at least."""
    # Names that are no UTF-8 could be neither printed nor drawn.
    texts = [path.encode('utf-8', 'replace').decode().removesuffix('.json') for path in paths]
    parts = [[p for p in text.split('/') if p] or ['/'] for text in texts]
    depths = [1] * len(parts)
    while True:
        names = ['/'.join(p[-depth:]) for p, depth in zip(parts, depths, strict=True)]
        deeper = [
            min(depth + (names.count(name) > 1), len(p))
            for name, p, depth in zip(names, parts, depths, strict=True)
        ]
        if deeper == depths:
            return names
        depths = deeper
