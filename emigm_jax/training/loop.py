"""The training loop, read top to bottom."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils

from emigm_jax.checkpoints import runs, store
from emigm_jax.config import nested
from emigm_jax.config.settings import Config, SamplingConfig
from emigm_jax.data import datasets, pipeline, sizes
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import Damaged, UserError
from emigm_jax.io import access, files, paths, png
from emigm_jax.models.emigm import ModelConfig
from emigm_jax.nn.functional import Functional, Params, parameter_count
from emigm_jax.parallel import batches as spread
from emigm_jax.parallel import preemption, processes, sharding
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program
from emigm_jax.training.metrics import Metrics
from emigm_jax.training.state import State

# Measures the EMA parameters of a step: {name: score}.
Evaluate = Callable[[Params, int], dict[str, float]]


class NonFinite(Exception):
    """The loss stopped being a number; the last good state has been saved."""


class Preempted(Exception):
    """The machine is about to be taken away; the state has been saved."""


def train(
    config: Config,
    workdir: os.PathLike | str,
    evaluator: Callable[[Config, Dataset], Evaluate] | None = None,
) -> State:
    """Trains `config` in `workdir` from where its newest checkpoint left off.

    Every process of a run calls this; the first one writes metrics and pictures.

    Args:
      config: everything that decides the run.
      workdir: local or gs://.
      evaluator: makes what measures the EMA parameters on the way, of a config with all sizes;
        None: no evaluation.

    Returns:
      The final state.

    Raises:
      UserError: the workdir, the mesh or the data cannot be used for this config.
      NonFinite: a loss or gradient was not finite.
      Preempted: SIGTERM or a maintenance notice came.
    """
    folder, first = paths.absolute(workdir), processes.is_first()
    access.probe(folder)
    say = functools.partial(print, flush=True) if first else lambda *_: None
    mesh = sharding.make_mesh(config.mesh)
    data = datasets.dataset(config)
    config = sizes.fitted(config, data)
    batch_size = config.training.batch_size
    steps = functools.partial(config.steps, examples=data.examples)
    total = steps('total')
    say(f'data: {config.data.name}, {data.examples} examples of {data.grid**2} tokens')
    for remark in data.remarks:
        say(f'  {remark}')

    built = program.build(config, mesh, steps('warmup'), total)
    current = resumed(config, data, folder, total, built, say)
    evaluate = evaluator and evaluator(config, data)
    if first:
        prepare(folder, config, built.net, data.class_names)
    axes = ' x '.join(f'{size} {axis}' for axis, size in mesh.shape.items() if size > 1)
    say(
        f'model: {parameter_count(built.net.shapes()):,} parameters on {mesh.size} device(s)'
        + f' ({axes})' * bool(axes)
    )
    current = built.create() if current is None else current
    start = int(current['step'])

    due = lambda name, at: steps(name) and at % steps(name) == 0
    metrics, before = Metrics(folder, start, total, writes=first), None
    if start < total:
        say('compiling the train step')
    batches = pipeline.Timed(pipeline.batches(data, batch_size, config.seed, start, total, mesh))
    with (
        runs.Writer(
            folder, config, steps('keep_every'), data.fingerprint, data.class_names
        ) as writer,
        preemption.Watch() as watch,
    ):
        try:
            for number, batch in enumerate(batches, start):
                at = number + 1
                current, values = built.step(current, batch, np.int32(number))
                if number == start:
                    jax.block_until_ready(values)  # compilation is not part of the rate
                    metrics.pause(batches.seconds)
                # At most one step is queued behind the one that runs: deeper queues hide nothing
                # more and hold memory for every step in them.
                jax.block_until_ready(before)
                before = values
                leaving, last = watch.due(at), at == total
                saving = leaving or last or due('checkpoint_every', at)
                if saving or due('log_every', at):
                    values = {k: float(v) for k, v in values.items()}
                    if not values.pop('finite'):
                        stop_non_finite(writer, current, values)
                    values['learning_rate'] = float(built.rate(number))
                    metrics.write(at, values, batch_size, batches.seconds)
                if leaving:
                    writer.save(current)
                    writer.wait()
                    raise Preempted(
                        f'this machine is about to be taken away: saved step {at} in '
                        f'{folder}; the same command goes on from there'
                    )
                showing = steps('sample_every') and (last or due('sample_every', at))
                scoring = evaluate and (last or due('evaluation.every', at))
                scores = None
                if showing or scoring:
                    ema = first_ema(config, mesh, current)
                    if showing and first:
                        sample_grid(config, data, ema, folder, at)
                    if evaluate and scoring:
                        scores = evaluate(ema, at)
                        metrics.add(at, scores)
                    del ema  # a copy on every device
                    metrics.pause(batches.seconds)
                if saving:
                    writer.save(current, scores)
        except KeyboardInterrupt:
            # One of several processes cannot save alone, and between two states there is none.
            if jax.process_count() > 1 or current['step'].is_deleted():
                raise
            writer.save(current)
            print(
                f'interrupted: saved step {int(current["step"])} in {folder}; '
                'the same command goes on from there'
            )
            raise
        finally:
            metrics.close()
    return current


def resumed(
    config: Config,
    data: Dataset,
    workdir: epath.Path,
    total: int,
    built: program.Program,
    say: Callable[[str], None],
) -> State | None:
    """The state of the newest checkpoint that can be read; None if there is none."""
    folders = runs.finished(workdir)
    for number, folder in enumerate(folders):
        saved = state = damage = None
        try:
            saved = runs.saved(store.checkpoint(folder))
            check_resumable(saved, config, data, workdir, total)
            state = saved.restore(built.state)
        except Damaged as error:
            damage = error
        # All processes go on from the same step, or none does.
        if not _anywhere(damage):
            assert saved is not None
            say(f'resumed from step {saved.step} in {folder}')
            return state
        if number + 1 == len(folders):
            raise damage or Damaged(f'{folder}: another process cannot read it')
        say(f'{damage or folder}\ngoing on from the checkpoint before it')
    return None


def _anywhere(condition):
    if jax.process_count() == 1:
        return bool(condition)
    return bool(multihost_utils.process_allgather(np.array(bool(condition))).any())


def check_resumable(
    saved: runs.Saved, config: Config, data: Dataset, workdir: epath.Path, total: int
) -> None:
    """Refuses a workdir whose checkpoint belongs to another config or other data."""
    changes = nested.differences(saved.config, config)
    if changes:
        shown = ', '.join(changes[:4]) + (', ...' if len(changes) > 4 else '')
        raise UserError(
            f'{workdir} holds a checkpoint of another config ({shown}): use another '
            '--workdir, or the config it was made with'
        )
    if saved.data not in ('', data.fingerprint):
        raise UserError(
            f'{workdir} holds a checkpoint that was trained on other data of the same '
            'kind: use another --workdir, or the data it was trained on'
        )
    if saved.step > total:
        raise UserError(
            f'{workdir} is at step {saved.step} already, beyond training.total = '
            f'{config.training.total!r}'
        )


def prepare(
    workdir: epath.Path, config: Config, net: Functional, class_names: Sequence[str] = ()
) -> None:
    """Creates the workdir and writes what people and reports read: config, parameters, classes."""
    table = parameter_overview.get_parameter_overview(net.shapes(), include_stats=False)
    text = json.dumps(nested.as_dict(config), indent=2)
    files.write_text(workdir / 'config.json', text + '\n')
    files.write_text(workdir / 'parameters.txt', table + '\n')
    files.write_json(workdir / 'class_names.json', {runs.CLASS_NAMES: list(class_names)})


def stop_non_finite(writer: runs.Writer, current: State, values: dict[str, float]) -> NoReturn:
    """Saves the last good state (the step left it untouched) and ends the run."""
    writer.save(current)
    raise NonFinite(
        f'the loss or gradient of step {int(current["step"]) + 1} is not finite (now: '
        f'loss {values["loss"]:.4g}, gradient norm {values["gradient_norm"]:.4g}); the state '
        'before it is saved. A lower learning rate, a stronger clip or float32 may help.'
    )


def first_ema(config: Config, mesh: jax.sharding.Mesh, current: State) -> Params:
    """The first EMA parameters, replicated over each process's devices, as sampling wants them."""
    ema = current['ema'][str(config.optimizer.ema_decays[0])]
    return spread.place(sharding.gathered(mesh, ema))


def sample_grid(config: Config, data: Dataset, ema: Params, workdir: epath.Path, at: int) -> None:
    """Writes WORKDIR/samples/STEP.png, one class per column."""
    if data.codec is None:
        return  # latents without their tokenizer have no pictures
    count, columns = config.training.sample_images, min(data.classes, 10)
    tokens = sampler(config.model, config.sampling)(
        ema, np.arange(count) % columns % data.classes, np.arange(count)
    )
    pictures = png.upscaled(np.asarray(data.codec.decode(tokens)))
    png.save(workdir / 'samples' / f'{at:08}.png', png.grid(pictures, columns))


@functools.lru_cache(maxsize=1)
def sampler(model: ModelConfig, config: SamplingConfig) -> Sampler:
    """One compiled sampler per setting, kept between grids."""
    return Sampler(model, config)
