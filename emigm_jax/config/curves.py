"""Is my loss normal? Losses of shipped recipes, to stand beside those of a run.

`curves.json` holds one run of the digits' recipe. Of the published recipes no numbers by step are
known; what is stated is where the loss begins and where it levels off.
"""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FILE = 'curves.json'
FAR = ' (far above)'
_FACTOR = 1.5  # times the usual loss is far above it; single steps of a good run stay below


class Reference(NamedTuple):
    """The loss of a recipe over training: a curve, or levels where no curve is known."""

    origin: str  # in a few words
    settings: Mapping[str, Sequence[Any]]  # {dotted name: values} that the loss depends on
    steps: Sequence[int] = ()
    losses: Sequence[float] = ()
    levels: Sequence[float] = ()  # where the loss begins, where it levels off

    def beside(self, step: int, loss: float) -> str:
        """', usual ...' of a step, marked if `loss` is far above; '' if nothing is known."""
        if self.steps and self.steps[0] <= step <= self.steps[-1]:
            usual = float(np.interp(step, self.steps, self.losses))
            return f', usual {usual:.4f}' + FAR * (not loss <= _FACTOR * usual)
        if self.levels and not loss <= _FACTOR * self.levels[0]:
            return f', usual at most {self.levels[0]:g}{FAR}'
        return ''


# A network that predicts no noise yet has mse 1 and vlb 0.74 on latents of variance 1. That MAR's
# loss soon levels off near 0.25, while FID goes on falling, is reported in LTH14/mar#20. It holds
# for pictures as KL-16 encodes them, whatever the size of the network.
_KL16 = Reference(
    'begins near 1.74; near 0.25 it levels off while FID goes on falling (LTH14/mar#20, of MAR)',
    {'data.name': ('latents', 'folder', 'tfds'), 'model.grid': (16,), 'model.channels': (16,)},
    levels=(1.74, 0.25),
)


def reference(settings: Mapping[str, Any]) -> Reference | None:
    """What the loss of a run with these flat settings {dotted name: value} can be held against."""
    assert __package__
    text = importlib.resources.files(__package__).joinpath(FILE).read_text('utf-8')
    for known in (*(Reference(**fields) for fields in json.loads(text)), _KL16):
        if all(settings.get(name) in values for name, values in known.settings.items()):
            return known
    return None
