"""A run of Weights & Biases beside the files of a workdir; WANDB_MODE=offline keeps it local."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.io import files, paths


class WandbRun:
    """Scalars, pictures and settings in a project.

    Args:
      project: 'PROJECT' or 'ENTITY/PROJECT'.
      workdir: names the run; its own files go there if it is local.
      identity: of the run. One that is known there already is gone on with.
      config: nested settings, shown beside the run.

    Raises:
      UserError: the library is not installed, or refuses.
    """

    def __init__(
        self,
        project: str,
        workdir: os.PathLike | str,
        identity: str,
        config: Mapping[str, Any],
    ):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("training.wandb needs wandb: pip install 'emigm_jax[wandb]'") from error
        folder, (entity, _, name) = paths.absolute(workdir), project.rpartition('/')
        try:
            self._run = wandb.init(
                project=name,
                entity=entity or None,
                name=folder.name,
                id=identity,
                resume='allow',
                config=dict(config),
                dir=None if files.remote(folder) else str(folder),
            )
        except wandb.Error as error:
            raise UserError(f'training.wandb={project}: {" ".join(str(error).split())}') from error
        self._image = wandb.Image
        # Its own counter must grow, but a run that goes on repeats steps.
        self._run.define_metric('*', step_metric='step')

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step."""
        self._run.log({'step': step, **values})

    def picture(self, step: int, image: np.ndarray) -> None:
        """A uint8 image (H, W, 1 or 3) of a step."""
        image = image[..., 0] if image.shape[-1] == 1 else image
        self._run.log({'step': step, 'samples': self._image(image)})

    def close(self) -> None:
        """Returns when all is written, or sent."""
        self._run.finish()
