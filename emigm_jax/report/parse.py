"""Texts of a run (metrics.jsonl, config.json, result.json) as plain data; damage becomes notes."""

import json
import math
import re

from emigm_jax.config import published
from emigm_jax.report.runs import SCORES, Evaluation

_BESIDE = ('fid_standard_error', 'inception_score_std', 'kid_std')
# Channels of the tokens that published models at 256 and 512 pixels have (KL-16, DC-AE).
_SIZES = {16: 256, 32: 512}


def number(value):
    """A float of a JSON value, 'nan' and 'inf' written as text included; None if it is none."""
    if isinstance(value, str) and re.fullmatch(r'-?(nan|inf(inity)?)', value.strip().lower()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON knows integers without end
        return None


def metrics(text):
    """The lines of metrics.jsonl.

    Args:
      text: of the file, perhaps of a run that goes on, or was killed while it wrote.

    Returns:
      (lines of training as {'step': int, name: float} by step, `Evaluation`s by step, notes). Of
      several lines of one step the last one counts.
    """
    lines, evaluations, broken, unbounded = {}, {}, [], {}
    texts = [line for line in text.split('\n') if line.strip()]
    for index, line in enumerate(texts):
        values = _line(line)
        if values is None:
            broken.append(index)
            continue
        step = values['step']
        for name, value in values.items():
            if not math.isfinite(value):
                unbounded.setdefault(name, set()).add(step)
        if values.keys() & SCORES.keys():
            evaluations[step] = _in_training(step, values)
        if 'loss' in values:
            lines[step] = values
    notes = []
    if broken and broken[-1] == len(texts) - 1 and not text.endswith('\n'):
        broken.pop()
        notes.append('the last line of metrics.jsonl is cut off and left out')
    if broken:
        lines_are = (
            'line of metrics.jsonl cannot be read and is'
            if len(broken) == 1
            else ('lines of metrics.jsonl cannot be read and are')
        )
        notes.append(f'{len(broken)} {lines_are} left out')
    for name, steps in unbounded.items():
        times = 'once' if len(steps) == 1 else f'{len(steps)} times, first'
        notes.append(f'{name} is not finite {times} at step {min(steps):,}')
    by_step = lambda found: [found[step] for step in sorted(found)]
    return by_step(lines), by_step(evaluations), notes


def _line(text):
    try:
        held = json.loads(text)
    except ValueError:
        return None
    if not isinstance(held, dict) or type(held.get('step')) is not int:
        return None
    values = {name: number(value) for name, value in held.items() if name != 'step'}
    return {'step': held['step'], **{k: v for k, v in values.items() if v is not None}}


def _in_training(step, values):
    return Evaluation(
        scores=_scores(values),
        step=step,
        seconds=_positive(values.get('seconds_per_image')),
        images=_count(values.get('images')),
    )


def _scores(values):
    known = ((name, number(values.get(name))) for name in (*SCORES, *_BESIDE))
    return {name: v for name, v in known if v is not None and math.isfinite(v)}


def _positive(value):
    value = number(value)
    return value if value is not None and 0 < value < math.inf else None


def _count(value):
    value = _positive(value)
    return None if value is None else int(value)


def evaluation(result, name):
    """The `Evaluation` of a result of `emigm evaluate`, or None if that is something else.

    Args:
      result: JSON object: result.json, or what --json of the digits wrote.
      name: how it is called.
    """
    missing = _dict(result.get('missing'))
    if not (result.keys() & SCORES.keys() or missing):
        return None
    settings = _dict(result.get('settings'))
    reference = str(_dict(result.get('reference')).get('name') or '')
    value = lambda key: settings.get(key, result.get(key))
    label = str(value('nfe_as_the_paper_counts') or '')
    try:
        nfe = _positive(published.evaluations(label))
    except ValueError:
        label, nfe = '', _positive(value('nfe'))
    step = value('step')
    return Evaluation(
        scores=_scores(result),
        step=step if type(step) is int else None,
        name=name,
        nfe=nfe,
        nfe_label=label or ('' if nfe is None else f'{nfe:g}'),
        seconds=_positive(result.get('seconds_per_image')),
        images=_count(result.get('images')),
        reference=reference,
        weights=str(value('weights') or ''),
        sampling=_sampling(_dict(settings.get('sampling'))),
        content=str(settings.get('content') or ''),
        image_size=_size_in(reference),
        real=_scores(_dict(result.get('real_halves'))),
        missing={str(k): str(v) for k, v in missing.items()},
    )


def _dict(value):
    return value if isinstance(value, dict) else {}


def _size_in(name):
    """The image size in a reference's name, such as VIRTUAL_imagenet256_labeled.npz."""
    found = set(re.findall(r'(?<!\d)(256|512)(?!\d)', name))
    return int(found.pop()) if len(found) == 1 else None


def _sampling(sampling):
    """Sampling settings in a few words."""
    reveal, solver = _dict(sampling.get('reveal')), _dict(sampling.get('solver'))
    words = []
    if reveal:
        words.append(f'K = {reveal.get("steps")}')
        guidance = reveal.get('guidance')
        if guidance == 1.0:
            words.append('no guidance')
        elif guidance is not None:
            interval = f'({reveal.get("guidance_from")}, {reveal.get("guidance_to")}]'
            words.append(f'guidance {guidance} in {interval}')
    if solver:
        words.append(f'{solver.get("name")} {solver.get("steps")}')
    return ', '.join(words)


def flat(tree, prefix=''):
    """Nested settings as {dotted name: value}."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f'{prefix}{name}.')
        else:
            found[f'{prefix}{name}'] = value
    return found


def image_size(settings):
    """Pixels per side of the pictures of a run with these flat settings; None if unknown."""
    if settings.get('data.name') in ('folder', 'tfds'):
        return settings.get('data.image_size')
    if settings.get('data.name') in ('latents', 'synthetic') and settings.get('model.grid') == 16:
        return _SIZES.get(settings.get('model.channels'))
    return None
