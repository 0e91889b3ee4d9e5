"""The one way in which a set of images is measured, whatever it is compared with."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from emigm_jax.errors import whole
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.evaluation.measure import Progress
from emigm_jax.evaluation.result import Result
from emigm_jax.io.progress import Bar
from emigm_jax.parallel import agreement


@dataclasses.dataclass(frozen=True)
class Work:
    """How a set of images is gone through."""

    batch_size: int = 64  # images at a time, on all processes together
    # Local or gs://, from which an interrupted run goes on; None: it does not.
    folder: os.PathLike | str | None = None
    keep_images: bool = False  # in FOLDER/images, for an npz of them
    # JSON-like facts of the images for the result; None: a fingerprint.
    about: dict[str, Any] | None = None
    bar: Callable[..., Bar] = functools.partial(Bar, quiet=True)  # of images, and of metrics
    say: Callable[[str], object] = lambda line: None  # gets a line for the user now and then

    def __post_init__(self):
        whole('batch_size', self.batch_size, low=1)


class Gathered(NamedTuple):
    """What an `Evaluator` knows of images when it has gone through them."""

    done: int  # images that were made this time, by all processes; the others were there
    result: Callable[[], Result]  # for the first process, which needs no other to compute it


class Evaluator(Protocol):
    """Measures one set of images after another. All processes call its methods."""

    def gather(self, images: ImageSet, work: Work, progress: Progress) -> Gathered:
        """Goes through the images once.

        Raises:
          UserError: an image cannot be read, or `work.folder` is of another measurement.
        """
        ...

    def prepare(self, work: Work) -> None:
        """Makes what is needed of the real images, unless it is there."""


def measure(evaluator: Evaluator, images: ImageSet, work: Work | None = None) -> Result:
    """The `Result` of the images, on all processes.

    Raises:
      UserError: as `Evaluator.gather`, on all processes.
    """
    result = _gone_through(evaluator, images, work or Work())
    value = agreement.from_first(agreement.by_first(lambda: result().to_json()))
    assert value is not None
    return Result.from_json(value)


def measure_and_leave(evaluator: Evaluator, images: ImageSet, work: Work) -> Result | None:
    """As `measure`, of the last work in common: the other processes do not wait for the scores.

    Returns:
      the `Result` on the first process; None on the others, which have left the run.
    """
    result, first = _gone_through(evaluator, images, work), agreement.first()
    agreement.leave()
    return result() if first else None


def _gone_through(evaluator, images, work) -> Callable[[], Result]:
    """Goes through the images; what computes their `Result` on the first process."""
    start = time.perf_counter()
    with work.bar(total=len(images)) as bar:
        gathered = evaluator.gather(images, work, bar.update)
    seconds = (time.perf_counter() - start) / gathered.done if gathered.done else None
    evaluator.prepare(work)

    def result():
        work.say('computing the metrics')
        return dataclasses.replace(gathered.result(), seconds_per_image=seconds)

    return result
