"""Measures sampling settings of a model. What was measured is a file, and is not measured again."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from emigm_jax.api.evaluate import generated
from emigm_jax.api.model import Model
from emigm_jax.config import nested, sweeps
from emigm_jax.config.settings import IN_PIXELS, SamplingConfig
from emigm_jax.data import real
from emigm_jax.errors import UserError
from emigm_jax.evaluation import evaluate, evaluator
from emigm_jax.evaluation.evaluator import Evaluator, Work
from emigm_jax.evaluation.in_pixels import InPixels
from emigm_jax.evaluation.result import Result
from emigm_jax.io import files, paths
from emigm_jax.io.progress import Bar
from emigm_jax.tokenizers.codec import NonFinite
from emigm_jax.tuning import space

FILES = MEASUREMENTS, _UNFINISHED = 'measurements', 'unfinished'  # in its folder
# A batch is drawn so often, and for so long, after the first; the fastest counts: whatever else
# the machine does makes it slower.
_LEAST_TIMES, _LEAST_SECONDS, _MOST_SECONDS = 8, 2.0, 30.0


class Against(NamedTuple):
    """What images are compared with: files, or nothing for pixels."""

    reference: os.PathLike | str | None = None
    inception: os.PathLike | str | None = None

    @property
    def score(self) -> str:
        """The name of the score; less is better."""
        return 'fid' if self.reference else 'frechet_distance'


def against(
    model: Model, reference: os.PathLike | str | None, inception: os.PathLike | str | None
) -> Against:
    """What was asked for, or else what the evaluation settings of the model say.

    Raises:
      UserError: there is nothing that its images could be compared with.
    """
    settings = model.config.evaluation
    if (reference is None) != (inception is None):
        raise UserError('reference and inception go together')
    if reference is None and settings.reference:
        reference, inception = settings.reference, settings.inception
    if reference is None and model.config.data.name not in IN_PIXELS:
        raise UserError(
            f'{model.saved.path}: needs a reference and inception (only models of '
            f'{", ".join(IN_PIXELS)} are scored in pixel space)'
        )
    return Against(reference, inception)


class Lab:
    """A `search.Lab` of a model, in a folder that is its own.

    Args:
      model: what draws.
      compared: what its images are compared with.
      folder: local or gs://, of an earlier search in the same model, or new.
      say: gets a line for each time that was measured.

    Raises:
      UserError: the folder holds something else.
    """

    def __init__(
        self,
        model: Model,
        compared: Against,
        folder: os.PathLike | str,
        say: Callable[[str], object],
    ):
        self._model, self._compared, self._say = model, compared, say
        self._folder, make = paths.absolute(folder), model.generator
        self._evaluator = _evaluator(model, compared, say)
        about = {name: part for name, part in make.about().items() if name != 'sampling'}
        place = lambda path: path and str(paths.absolute(path))
        devices = jax.local_devices()
        settings = {
            **about,
            'reference': place(compared.reference),
            'inception': place(compared.inception),
            'batch_size': make.batch_size,
            'devices': f'{len(devices)} {devices[0].device_kind}',
        }
        files.claim(self._folder, settings, 'measurements of a model')

    def cost(self, way: SamplingConfig) -> float:
        """FLOPs per image."""
        return self._model.with_sampling(way).sampler.flops

    def nfe(self, way: SamplingConfig) -> int:
        """Network evaluations per image."""
        return self._model.with_sampling(way).nfe

    def seconds(self, way: SamplingConfig) -> float:
        """Per image, of a whole batch that becomes pictures, when everything is compiled.

        Settings that are one program take equally long, so that is measured once.
        """
        make = self._model.with_sampling(way)
        file = self._file(f'seconds-{files.text_hash([repr(make.sampler.program)])}')
        value = self._read(file, lambda value: float(value['seconds']))
        if value is None:
            value = _seconds(make, self._model.classes)
            files.write_json(file, {'seconds': value})
            chosen = space.differences(way, self._model.config.sampling)
            self._say(f'{value:.3g} s per image: {sweeps.text(chosen)}')
        return value

    def scores(self, ways: Sequence[SamplingConfig], images: int) -> list[float]:
        """Of so many images of each, image i from seed i; inf where they are not finite."""
        bar = Bar(ways, unit=' settings', desc=f'{images} images of each', leave=False)
        measured = [self.result(way, images) for way in bar]
        name = self._compared.score
        return [math.inf if each is None else each.scores[name] for each in measured]

    def result(self, way: SamplingConfig, images: int) -> Result | None:
        """All scores; None if the images are not finite."""
        key = f'{files.text_hash([str(sorted(_chosen(way).items()))])}-{images}'
        file, of_result = self._file(key), lambda value: value['result'] and _result(value)
        value = self._read(file, lambda value: (of_result(value),))
        if value is None:
            with contextlib.suppress(NonFinite):
                value = (self._measured(way, images, self._folder / _UNFINISHED / key),)
            value = value or (None,)
            kept = value[0] and value[0].to_json()
            files.write_json(file, {'sampling': _chosen(way), 'images': images, 'result': kept})
        return value[0]

    def _file(self, name):
        return self._folder / MEASUREMENTS / f'{name}.json'

    def _read(self, file, convert):
        """What a file says; None if there is none."""
        try:
            value = files.read_json(file)
            return None if value is None else convert(value)
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f'{file}: is no measurement of settings; remove it') from error

    def _measured(self, way, images, unfinished):
        made, about = generated(self._model.saved, self._model.with_sampling(way), images)
        size = self._model.generator.batch_size
        if not self._compared.reference:  # which is soon done
            return evaluator.measure(self._evaluator, made, Work(size, about=about))
        result = evaluator.measure(self._evaluator, made, Work(size, unfinished, about=about))
        unfinished.rmtree(missing_ok=True)
        return result


def _evaluator(model, compared, say) -> Evaluator:
    if compared.reference is None or compared.inception is None:
        return InPixels(real.images(model.config.data))
    made, _ = generated(model.saved, model.generator, 4)  # which tell their size
    work = Work(model.generator.batch_size, say=say)
    return evaluate.against(made, *compared, metrics=('fid',), work=work)


def _chosen(way) -> dict[str, Any]:
    """Without defaults, so that measurements outlive settings that are added later."""
    flat = lambda config: nested.flatten(nested.as_dict(config))
    plain = flat(SamplingConfig())
    return {name: value for name, value in flat(way).items() if value != plain[name]}


def _result(value):
    return Result.from_json(value['result'])


def _seconds(make, classes):
    seeds = np.arange(make.batch_size)
    seconds = []
    while (len(seconds) <= _LEAST_TIMES or sum(seconds[1:]) < _LEAST_SECONDS) and (
        sum(seconds[1:]) < _MOST_SECONDS
    ):
        start = time.perf_counter()
        with contextlib.suppress(NonFinite):  # which takes as long
            make.batch(seeds % classes, seeds)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / make.batch_size
