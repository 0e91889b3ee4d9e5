"""Masked image generation in JAX: eMIGM (arXiv 2503.07197), MAR and their family.

    import emigm_jax as em

    em.train('configs/digits.py', 'runs/digits')
    model = em.load('runs/digits')
    images = model.sample(classes=[3, 7], seeds=range(8))  # uint8 (16, H, W, 3)
    em.evaluate(model).scores

and `em.tune`, `em.convert`, `em.export`, `em.fid`, `em.bits_per_dim`, `em.demo`. `help` of each
says shapes, units, errors and an example.
"""

import importlib
from typing import TYPE_CHECKING

from emigm_jax.errors import UserError as UserError

if TYPE_CHECKING:
    from emigm_jax.api.bits import bits_per_dim as bits_per_dim
    from emigm_jax.api.evaluate import evaluate as evaluate
    from emigm_jax.api.model import Model as Model
    from emigm_jax.api.model import Step as Step
    from emigm_jax.api.model import load as load
    from emigm_jax.api.train import train as train
    from emigm_jax.conversion.convert import convert as convert
    from emigm_jax.conversion.convert import export as export
    from emigm_jax.evaluation.evaluate import fid as fid
    from emigm_jax.evaluation.evaluator import Work as Work
    from emigm_jax.evaluation.result import Result as Result
    from emigm_jax.playground.server import demo as demo
    from emigm_jax.tuning.tune import Effort as Effort
    from emigm_jax.tuning.tune import Tuned as Tuned
    from emigm_jax.tuning.tune import tune as tune

__version__ = '0.2.0'

# Public names and where they live: nothing heavy is imported before it is asked for.
_PUBLIC = {
    'Effort': 'emigm_jax.tuning.tune',
    'Model': 'emigm_jax.api.model',
    'Step': 'emigm_jax.api.model',
    'Result': 'emigm_jax.evaluation.result',
    'Tuned': 'emigm_jax.tuning.tune',
    'Work': 'emigm_jax.evaluation.evaluator',
    'bits_per_dim': 'emigm_jax.api.bits',
    'convert': 'emigm_jax.conversion.convert',
    'demo': 'emigm_jax.playground.server',
    'evaluate': 'emigm_jax.api.evaluate',
    'export': 'emigm_jax.conversion.convert',
    'fid': 'emigm_jax.evaluation.evaluate',
    'load': 'emigm_jax.api.model',
    'train': 'emigm_jax.api.train',
    'tune': 'emigm_jax.tuning.tune',
}
__all__ = ['UserError', *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return [*globals(), *_PUBLIC]
