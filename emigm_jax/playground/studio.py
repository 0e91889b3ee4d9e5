"""What draws for all visitors: one model, one step at a time, in programs of one shape."""

import functools
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emigm_jax.api.model import stepped
from emigm_jax.errors import UserError
from emigm_jax.parallel import batches
from emigm_jax.playground.painted import Painted
from emigm_jax.playground.settings import Offer, Settings
from emigm_jax.sampling import editing
from emigm_jax.sampling.editing import Blend


class Frame(NamedTuple):
    """Pictures while they are drawn, and what that takes."""

    images: UInt8[np.ndarray, 'M H W 3']
    step: int  # from 1
    steps: int
    revealed: int  # tokens of a picture
    tokens: int
    nfe: int  # transformer evaluations of a picture, at the end
    seconds: float  # of drawing so far, and of waiting for others

    def described(self) -> str:
        """In a line."""
        each = self.seconds / len(self.images)
        return (
            f'step {self.step} of {self.steps} · {self.revealed} of {self.tokens} tokens · '
            f'NFE {self.nfe} · {self.seconds:.2f} s, {each:.2f} s per picture'
        )


@final
class Studio:
    """Draws what the settings of an `Offer` say; visitors take turns, step by step."""

    def __init__(self, offer: Offer):
        self.offer = offer
        self._turn = threading.Lock()

    def sample(self, settings: Settings) -> Iterator[Frame]:
        """Pictures of every class with every seed, a `Frame` whenever tokens are revealed.

        Raises:
          UserError: at the first one, where a setting makes no sense.
        """
        count, labels, seeds = self._rows(settings.classes, settings.seeds)

        def begin():
            make = self.offer.model.with_sampling(self.offer.sampling(settings))
            steps = sum(len(segment.steps) for segment in make.sampler.segments)
            return make.nfe, self._stepped(steps, make.steps(labels, seeds))

        return self._frames(count, begin)

    def edit(self, settings: Settings, on: Painted) -> Iterator[Frame]:
        """As `sample`, of what is painted, for the classes that the picture is completed to."""
        count, labels, seeds = self._rows(settings.edited, settings.seeds)

        def begin():
            make = self.offer.model.with_sampling(self.offer.sampling(settings))
            edit, of, by = editing.prepare(make, on.picture, on.mask, labels, seeds, Blend())
            if not edit.given.masked.any():
                side = edit.pictures.shape[1]
                raise UserError(
                    f'too little is painted: half of one of the {side} x {side} pixels at least'
                )
            steps = editing.count_steps(make, edit)
            return editing.nfe(make, edit), self._stepped(steps, editing.steps(make, edit, of, by))

        return self._frames(count, begin)

    def warm(self) -> None:
        """Has compiled what the first pictures need."""
        start, make, labels, seeds = self._first()
        with self._turn:  # whoever comes earlier waits, and compiles nothing twice
            make.sampler.compile_steps(make.params, labels, seeds)
        for _ in self.sample(start):
            pass

    def warm_edit(self) -> None:
        """Has compiled what an edit of half a picture needs."""
        start, make, labels, seeds = self._first()
        side = make.sampler.model.grid * make.codec.spec.stride
        half = Image.new('L', (side, side))
        half.paste(255, (0, 0, side // 2, side))
        edit, labels, seeds = editing.prepare(make, half, half, labels, seeds, Blend())
        for draw, _ in editing.parts(make, np.asarray(edit.given.masked)):
            # Of a grid of one token all of it is drawn.
            draw.compile_steps(make.params, labels, seeds, edit.given if draw.masked else None)
        for _ in self.edit(start, Painted(half, half)):
            pass

    def _first(self):
        """The settings that the page begins with, what draws, labels and seeds."""
        start = self.offer.start(self.offer.preset)
        make = self.offer.model.with_sampling(self.offer.sampling(start))
        return start, make, *self._rows(start.classes, start.seeds)[1:]

    def _rows(self, labels, seeds) -> tuple[int, np.ndarray, np.ndarray]:
        """How many pictures are asked for, and labels and seeds of as many as programs take."""
        labels, numbers = self.offer.pairs(labels, seeds)
        full = functools.partial(batches.fill, size=self.offer.most)
        return len(labels), full(labels), full(numbers)

    def _stepped(self, steps, made):
        return stepped(self.offer.model.config.model.grid, steps, made)

    def _frames(self, count, begin):
        tokens, start = self.offer.model.config.model.tokens, time.monotonic()
        with self._turn:
            nfe, made = begin()
        seconds = time.monotonic() - start
        while True:
            start = time.monotonic()
            with self._turn:
                step = next(made, None)
            if step is None:
                return
            seconds += time.monotonic() - start
            yield Frame(
                step.images[:count],
                step.number,
                step.steps,
                int(step.revealed[0].sum()),
                tokens,
                nfe,
                seconds,
            )
