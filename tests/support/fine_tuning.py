"""Digits 0 to 4, then other digits with and without those weights: prints the scores as JSON.

python -m support.fine_tuning WORKDIR
"""

import json
import pathlib
import sys

import numpy as np

from emigm_jax.api import train
from emigm_jax.config.load import config_of
from emigm_jax.data import sources
from emigm_jax.training import loop, metrics

STEPS = {'before': 300, 'after': 100}
# Half as wide as the default, and a rate that stays, as the runs differ in length.
SETTINGS = {
    'model.width': 64,
    'model.head_width': 96,
    'model.head_depth': 2,
    'model.unroll': False,  # compiles sooner
    'optimizer.base_learning_rate': 3e-3 * 256 / 64,
    'optimizer.lr_schedule': 'constant',
    'optimizer.ema_decays': (0.98,),
    'optimizer.ema_warmup': True,
    'training.batch_size': 64,
    'training.warmup': '20 steps',
    'training.sample_every': '0 steps',
    'sampling.solver.steps': 8,
    'evaluation.every': '1000 steps',  # and after the last one
    'evaluation.num_images': 500,
    'evaluation.batch_size': 250,
}
NAMES = ('accuracy', 'frechet_distance', 'precision', 'recall')


def only(digits, classes):
    """Some classes of the digits, numbered from 0."""
    kept = np.isin(digits.labels, classes)
    labels = np.searchsorted(classes, digits.labels[kept]).astype(np.int32)
    names = tuple(map(str, classes))
    return digits._replace(images=digits.images[kept], labels=labels, class_names=names)


def scores(workdir, classes, steps, **begin):
    """The scores of a run on some classes, after its last step."""
    digits = only(DIGITS, list(classes))
    sources.digits = lambda: digits
    settings = {f'training.{name}': value for name, value in begin.items()}
    settings['training.total'] = f'{steps} steps'
    loop.train(config_of('digits', {**SETTINGS, **settings}), workdir, train.evaluator)
    last = metrics.read(workdir)[-1]
    return {name: last[name] for name in NAMES}


DIGITS = sources.digits()

if __name__ == '__main__':
    place = pathlib.Path(sys.argv[1])
    first, after = str(place / '0-4'), STEPS['after']
    scores(first, range(5), STEPS['before'])
    copies = ','.join(f'{i}={i}' for i in range(5))  # the other five are new
    found = {
        '5-9': {
            'from scratch': scores(place / '5-9', range(5, 10), after),
            'from 0-4': scores(place / '5-9 after 0-4', range(5, 10), after, init=first),
        },
        '0-9': {
            'from scratch': scores(place / '0-9', range(10), after),
            'from 0-4': scores(
                place / '0-9 after 0-4', range(10), after, init=first, init_classes=copies
            ),
        },
    }
    print(json.dumps(found))
