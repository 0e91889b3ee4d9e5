"""The measurements that a sweep asks for: of which run, made with what, in which files."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from emigm_jax.config import nested, sweeps
from emigm_jax.config.settings import Config
from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError
from emigm_jax.evaluation.result import Result
from emigm_jax.io import files

RUNS, SCORES = 'runs', 'scores'
# Settings that change neither weights nor averages of them: they name no run.
_IDLE = (
    *('seed', 'sampling.', 'evaluation.', 'mesh.', 'data.local_copy', 'data.verify'),
    *(f'training.{name}' for name in ('log_every', 'sample_every', 'sample_images', 'profile')),
    *(f'training.{name}' for name in ('wandb', 'checkpoint_every', 'keep')),
)
# Settings that decide what is measured of given weights.
_MEASURED = ('sampling.', *(f'evaluation.{n}' for n in ('reference', 'inception', 'metrics')))


class Task(NamedTuple):
    """One measurement."""

    point: str
    seed: int
    config: Config  # of the run
    options: dict[str, Any]  # of sampling
    look: str = ''
    share: float = 1.0  # of the training, after which it is made
    shared: bool = False  # whether the run is named by its settings

    @property
    def run(self) -> str:
        """The folder of the run, in `RUNS`."""
        if not self.shared:
            return f'{self.point}-{self.seed}'
        return f'{_digest(self.config, but=_IDLE)}-{self.seed}'

    def identity(self, num_images: int) -> dict[str, Any]:
        """All that decides the scores, of a shared run beside its folder."""
        if not self.shared:
            digest = _digest(self.config)
            return {'config': digest, 'options': self.options, 'num_images': num_images}
        config = sweeps.with_options(self.config, self.options)
        digest = _digest(config, only=_MEASURED)
        return {'measured': digest, 'share': self.share, 'num_images': num_images}

    def file(self, folder: epath.Path, num_images: int) -> epath.Path:
        """Where its result lies in the folder of the sweep."""
        name = sweeps.text(self.options)
        if self.shared:
            name = hashlib.sha256(json.dumps(self.identity(num_images)).encode()).hexdigest()[:16]
        return folder / SCORES / self.run / f'{name}.json'

    def read(self, folder: epath.Path, num_images: int) -> tuple[Result, Mapping[str, Any]] | None:
        """A result that was made with these settings, and what stands beside it.

        Raises:
          UserError: the file is that of something else.
        """
        file = self.file(folder, num_images)
        try:
            value = files.read_json(file)
            if value is None or any(
                value.get(name) != part
                for name, part in json.loads(json.dumps(self.identity(num_images))).items()
            ):
                return None
            return Result.from_json(value['result']), value
        except (UserError, KeyError, AttributeError) as error:
            raise UserError(f'{file}: is no measurement of a sweep; remove it') from error


@functools.cache
def _digest(config, only=('',), but=()):
    """Of settings: without defaults, so that runs outlive settings that are added later."""
    flat = lambda config: nested.flatten(nested.as_dict(config))
    plain, chosen = flat(Config()), lambda name: name.startswith(only) and not name.startswith(but)
    kept = {k: v for k, v in flat(config).items() if v != plain[k] and chosen(k)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def tasks(sweep: Sweep) -> Iterator[Task]:
    """All measurements of a sweep, in its order."""
    shares = sweep.figure.shares() if sweep.figure else (1.0,)
    for (point, seed), config in sweep.runs().items():
        for share in shares:
            for look, options in sweep.looked(point):
                yield Task(point, seed, config, options, look, share, sweep.figure is not None)
