"""Files of a run (metrics.jsonl, config.json, result.json) as plain data; damage becomes notes."""

import json
import math
import re
from typing import Any

from emigm_jax.config import published
from emigm_jax.report.runs import SCORES, Evaluation

_KNOWN = (*SCORES, 'fid_standard_error', 'inception_score_std', 'kid_std')
# Channels of the tokens that published models at 256 and 512 pixels have (KL-16, DC-AE).
_SIZES = {16: 256, 32: 512}


def number(value: object) -> float | None:
    """A float of a JSON value; training writes 'nan' and 'inf' as text. None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # JSON's integers have no bound
        return None


def metrics(text: str) -> tuple[list[dict[str, float]], list[Evaluation], list[str]]:
    """The lines of metrics.jsonl.

    Args:
      text: of the file, perhaps of a run that goes on, or was killed while it wrote.

    Returns:
      (lines of training as {'step': int, name: value} by step, evaluations by step, notes). Of
      several lines of one step the last one counts.
    """
    parsed = [_line(line) for line in text.split('\n') if line.strip()]
    torn = bool(parsed) and parsed[-1] is None and not text.endswith('\n')
    broken = parsed.count(None) - torn
    lines, evaluations, unbounded = {}, {}, {}
    for values in filter(None, parsed):
        step = values['step']
        if 'loss' in values:
            lines[step] = values
        if (scored := evaluation(values, '')) is not None:
            evaluations[step] = scored
        for name in (name for name, value in values.items() if not math.isfinite(value)):
            unbounded.setdefault(name, set()).add(step)
    notes = ['the last line of metrics.jsonl is cut off and left out'] if torn else []
    if broken:
        nouns, verb = ('line', 'is') if broken == 1 else ('lines', 'are')
        notes.append(f'{broken} {nouns} of metrics.jsonl cannot be read and {verb} left out')
    for name, steps in unbounded.items():
        times = 'once' if len(steps) == 1 else f'{len(steps)} times, first'
        notes.append(f'{name} is not finite {times} at step {min(steps):,}')
    by_step = lambda items: [items[step] for step in sorted(items)]
    return by_step(lines), by_step(evaluations), notes


def _line(text):
    """{'step': int, name: float} of a line; None if it is damaged."""
    try:
        values = _dict(json.loads(text))
    except ValueError:
        return None
    step = values.pop('step', None)
    if type(step) is not int:
        return None
    numbers = {name: number(value) for name, value in values.items()}
    return {'step': step, **{name: x for name, x in numbers.items() if x is not None}}


def evaluation(result: dict[str, Any], name: str) -> Evaluation | None:
    """An evaluation of any origin, or None if the JSON object is of something else.

    Args:
      result: result.json, what --json of the digits wrote, or a line of metrics.jsonl.
      name: of the evaluation.
    """
    parts = ('settings', 'reference', 'missing', 'real_halves')
    settings, reference, missing, real = (_dict(result.get(part)) for part in parts)
    if not (result.keys() & SCORES.keys() or missing):
        return None
    facts = {**result, **settings}
    text = lambda value: str(value or '')
    nfe, label = _nfe(facts)
    images = _positive(result.get('images'))
    return Evaluation(
        scores=_scores(result),
        step=facts['step'] if type(facts.get('step')) is int else None,
        name=name,
        nfe=nfe,
        nfe_label=label,
        seconds=_positive(result.get('seconds_per_image')),
        images=None if images is None else int(images),
        reference=text(reference.get('name')),
        weights=text(facts.get('weights')),
        sampling=_sampling(_dict(settings.get('sampling'))),
        content=text(settings.get('content')),
        image_size=_size_in(text(reference.get('name'))),
        real=_scores(real),
        missing={str(metric): str(why) for metric, why in missing.items()},
    )


def _dict(value):
    return value if isinstance(value, dict) else {}


def _scores(values):
    scores = {name: number(values.get(name)) for name in _KNOWN}
    return {name: x for name, x in scores.items() if x is not None and math.isfinite(x)}


def _positive(value):
    value = number(value)
    return value if value is not None and 0 < value < math.inf else None


def _nfe(facts):
    """(evaluations per image, label); the paper's way of counting goes before our own."""
    for label in (facts.get('nfe_as_the_paper_counts'), facts.get('nfe')):
        try:
            nfe = _positive(published.evaluations(label))
        except ValueError:
            continue
        return nfe, label if isinstance(label, str) else f'{label:g}'
    return None, ''


def _size_in(name):
    """The image size in a reference's name, such as VIRTUAL_imagenet256_labeled.npz."""
    sizes = set(re.findall(r'(?<!\d)(256|512)(?!\d)', name))
    return int(sizes.pop()) if len(sizes) == 1 else None


def _sampling(sampling):
    """Sampling settings in a few words."""
    reveal, solver = _dict(sampling.get('reveal')), _dict(sampling.get('solver'))
    guidance = reveal.get('guidance')
    words = [f'K = {reveal.get("steps")}'] if reveal else []
    if guidance == 1.0:
        words.append('no guidance')
    elif guidance is not None:
        interval = f'({reveal.get("guidance_from")}, {reveal.get("guidance_to")}]'
        words.append(f'guidance {guidance} in {interval}')
    return ', '.join(words + ([f'{solver.get("name")} {solver.get("steps")}'] if solver else []))


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested settings as {dotted name: value}."""
    pairs = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        pairs |= flat(value, f'{prefix}{name}.') if nested else {f'{prefix}{name}': value}
    return pairs


def image_size(settings: dict[str, Any]) -> int | None:
    """Pixels per side of the pictures of a run with these flat settings; None if unknown."""
    source = settings.get('data.name')
    if source in ('folder', 'tfds'):
        return settings.get('data.image_size')
    encoded = source in ('latents', 'synthetic') and settings.get('model.grid') == 16
    return _SIZES.get(settings.get('model.channels', 0)) if encoded else None
