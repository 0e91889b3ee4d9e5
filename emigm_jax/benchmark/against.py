"""The official PyTorch code beside ours: same machine, weights, batch and settings, in turns.

A user's clone of it runs in another process (`official_code`), a step whenever ours has rested.
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from emigm_jax.benchmark import official_code, timing
from emigm_jax.config import nested
from emigm_jax.config.settings import Config
from emigm_jax.conversion import models
from emigm_jax.data import sizes
from emigm_jax.errors import UserError, printable

# Settings that only our code has, by what is measured, with the value that the official one means.
_OFFICIALLY: dict[str, dict[str, Any]] = {
    'train': {
        'loss.masking.distribution': 'bernoulli',
        'loss.masking.times': 'clamp',
        'training.accumulate': 1,
    },
    'sample': {
        'sampling.reveal.order': 'random',
        'sampling.reveal.rule': 'bernoulli',
        'sampling.reveal.times': 'uniform',
        'sampling.solver.order': 3,
    },
}
_STRATEGIES = {'log-exp': 'log'}  # schedules that are called otherwise there
_SOLVERS = {'dpm': 'dpm-solver', 'ddpm': 'ddpm'}
_PIXELS = 16  # per token and side, which decide nothing here


def beside(folder: str, python: str, what: str, config: Config) -> Callable[[int], timing.Beside]:
    """The official code, to be timed in turns with ours.

    Args:
      folder: a clone of github.com/ML-GSAI/eMIGM.
      python: the interpreter that runs it, with torch and timm.
      what: 'train' or 'sample'.
      config: all settings.

    Returns:
      A function of the batch size.

    Raises:
      UserError: there is no such clone, or it has no such settings; later: it does not run.
    """
    place = pathlib.Path(folder).absolute()
    if not (place / 'models/emigm.py').is_file():
        raise UserError(
            f'{folder}: --against names a clone of github.com/ML-GSAI/eMIGM, and it has no '
            'models/emigm.py'
        )
    config = sizes.without_data(config)
    asked = {**_asked(what, config), 'folder': str(place)}
    return lambda batch: functools.partial(
        _official, python, {**asked, 'batch': batch}, config.model
    )


@contextlib.contextmanager
def _official(python, asked, model, program) -> Iterator[Callable[[], float]]:
    """Takes a step and returns its seconds; it begins with the weights of `program`."""
    with tempfile.TemporaryDirectory() as own:
        asked = {**asked, 'weights': f'{own}/weights.npz'}
        ours: dict[str, Any] = models.official(model, jax.tree.map(np.asarray, program.params))
        np.savez(asked['weights'], **ours)
        (pathlib.Path(own) / 'asked.json').write_text(json.dumps(asked))
        with open(f'{own}/errors', 'w+') as errors:
            command = [python, official_code.__file__, f'{own}/asked.json']
            pipe = subprocess.PIPE
            try:
                process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=errors, text=True
                )
            except OSError as error:
                raise UserError(f'--against-python {python}: {error.strerror}') from error
            with process:
                try:
                    yield _served(process, errors, asked['folder'], python)
                finally:
                    process.kill()


def _served(process, errors, folder, python):
    def answer():
        line = process.stdout.readline()
        if not line:
            process.wait()
            errors.seek(0)
            last = errors.read().strip() or f'it ended with code {process.returncode}'
            raise UserError(
                f'{folder}: does not run by {python}: {printable(last.splitlines()[-1])}; '
                '--against-python names one that has torch and timm'
            )
        return line

    def step():
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            os.write(process.stdin.fileno(), b'\n')  # nothing stays behind to be flushed
        return float(answer())

    print(f'beside it {folder}: {answer().strip()}', flush=True)
    return step


def _asked(what, config):
    """What `official_code` is told."""
    model, reveal, solver = config.model, config.sampling.reveal, config.sampling.solver
    flat = nested.flatten(nested.as_dict(config))
    expected = {'model.trunk': 'mae', 'model.head': 'diffusion', **_OFFICIALLY[what]}
    if what == 'sample' and solver.name == 'ddpm':
        del expected['sampling.solver.order']
    for name, value in expected.items():
        if flat[name] != value:
            raise UserError(
                f'--against: the official eMIGM has {name} = {value!r} alone, not {flat[name]!r}'
            )
    if solver.name not in _SOLVERS:
        raise UserError(f'--against: the official eMIGM has no solver {solver.name!r}')
    masking, optimizer = config.loss.masking, config.optimizer
    schedule = masking.schedule if what == 'train' else reveal.schedule
    arguments = dict(
        img_size=model.grid * _PIXELS,
        vae_stride=_PIXELS,
        vae_embed_dim=model.channels,
        encoder_embed_dim=model.width,
        encoder_depth=model.encoder_depth,
        encoder_num_heads=model.heads,
        decoder_embed_dim=model.width,
        decoder_depth=model.decoder_depth,
        decoder_num_heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        label_drop_prob=config.loss.label_drop,
        use_unsup_cfg=model.shared_null,
        cfg_t_min=reveal.guidance_from,
        cfg_t_max=reveal.guidance_to,
        class_num=model.classes,
        attn_dropout=model.attention_dropout,
        proj_dropout=model.projection_dropout,
        buffer_size=model.buffer,
        diffloss_d=model.head_depth,
        diffloss_w=model.head_width,
        mask_strategy=_STRATEGIES.get(schedule, schedule),
        use_weighted_loss=masking.weight == 'mdm',
        use_mae=model.mae,
        clamp_t_min=masking.t_min,
        num_sampling_steps=str(solver.steps),
        sampling_algo=_SOLVERS[solver.name],
        diffusion_batch_mul=config.loss.copies,
        grad_checkpointing=model.remat != 'none',
    )
    return dict(
        what=what,
        dtype=model.dtype,
        arguments=arguments,
        optimizer=dict(
            weight_decay=optimizer.weight_decay,
            betas=[optimizer.beta1, optimizer.beta2],
            clip=optimizer.clip,
            ema_decay=optimizer.ema_decays[0],
        ),
        sampling=dict(
            num_iter=reveal.steps, cfg=reveal.guidance, cfg_schedule=reveal.guidance_schedule
        ),
    )
