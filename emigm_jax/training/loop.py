"""The training loop, read top to bottom."""

import functools
import json
import pathlib

import jax
import numpy as np
from clu import parameter_overview

from emigm_jax import config as configs
from emigm_jax import images
from emigm_jax.data import datasets, pipeline
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.nn.functional import parameter_count
from emigm_jax.sampling import Sampler
from emigm_jax.training import checkpoint, state, step
from emigm_jax.training.metrics import Metrics


class NonFinite(Exception):
    """The loss stopped being a number; the last good state has been saved."""


def train(config, workdir, evaluator=None):
    """Trains `config` in `workdir` from where its newest checkpoint left off.

    Args:
      config: `Config`.
      workdir: folder.
      evaluator: makes evaluate(EMA params, step) -> {name: float} of the data; None: no evaluation.

    Returns:
      The final state.

    Raises:
      UserError: the workdir cannot be used for this config.
      NonFinite: a loss or gradient was not finite.
    """
    workdir = pathlib.Path(workdir)
    data = datasets.dataset(config)
    batch_size = config.training.batch_size
    steps = functools.partial(config.steps, examples=data.examples)
    total = steps('total')

    print(f'data: {config.data.name}, {data.examples} examples of {data.grid**2} tokens')
    saved = checkpoint.find(workdir)
    check_resumable(saved, config, data, workdir, total)
    evaluate = evaluator and evaluator(data)
    net = emigm.network(config.model)
    prepare(workdir, config, net)

    rate = state.learning_rate(config.optimizer, batch_size, steps('warmup'), total)
    tx = state.optimizer(config.optimizer, rate)
    create = functools.partial(state.create, net, config.optimizer, tx)
    print(f'model: {parameter_count(net.shapes()):,} parameters on {jax.device_count()} device(s)')

    if saved is None:
        current = jax.jit(create)(jax.random.key(config.seed))
    else:
        current = checkpoint.restore(saved, abstract(create))
        print(f'resumed from step {saved.step} in {saved.path}')
    start = int(current['step'])

    train_step = jax.jit(
        functools.partial(
            step.train_step, net, config.model, config.loss, config.optimizer, tx,
            config.seed, config.training.accumulate,
        ),
        donate_argnums=0,
    )  # fmt: skip
    due = lambda name, at: steps(name) and at % steps(name) == 0
    metrics, before = Metrics(workdir, start, total), None
    if start < total:
        print('compiling the train step', flush=True)

    batches = pipeline.Timed(pipeline.batches(data, batch_size, config.seed, start, total))
    with checkpoint.Writer(workdir, config, data.fingerprint) as writer:
        try:
            for number, batch in enumerate(batches, start):
                at = number + 1
                current, values = train_step(current, batch, np.int32(number))
                if number == start:
                    jax.block_until_ready(values)  # compilation is not part of the rate
                    metrics.pause(batches.seconds)
                # At most one step is queued behind the one that runs: deeper queues hide nothing
                # more and hold memory for every step in them.
                jax.block_until_ready(before)
                before = values
                saving = due('checkpoint_every', at) or at == total
                if due('log_every', at) or saving or at == total:
                    values = {k: float(v) for k, v in values.items()}
                    if not values.pop('finite'):
                        stop_non_finite(writer, current, values)
                    values['learning_rate'] = float(rate(number))
                    metrics.write(at, values, batch_size, batches.seconds)
                if saving:
                    writer.save(current)
                if due('sample_every', at) or (at == total and steps('sample_every')):
                    sample_grid(config, data, current, workdir)
                    metrics.pause(batches.seconds)
                if evaluate and (due('evaluation.every', at) or at == total):
                    ema = current['ema'][str(config.optimizer.ema_decays[0])]
                    metrics.add(at, evaluate(ema, at))
                    metrics.pause(batches.seconds)
        except KeyboardInterrupt:
            if current['step'].is_deleted():  # interrupted between two states
                raise
            writer.save(current)
            print(f'interrupted: saved step {int(current["step"])} in {workdir}; '
                  'the same command goes on from there')  # fmt: skip
            raise
        finally:
            metrics.close()
    return current


def check_resumable(saved, config, data, workdir, total):
    """Refuses a workdir whose checkpoint belongs to another config or other data."""
    if saved is None:
        return
    changes = configs.differences(saved.config, config)
    if changes:
        shown = ', '.join(changes[:4]) + (', ...' if len(changes) > 4 else '')
        raise UserError(f'{workdir} holds a checkpoint of another config ({shown}): use another '
                        '--workdir, or the config it was made with')  # fmt: skip
    if saved.data not in ('', data.fingerprint):
        raise UserError(f'{workdir} holds a checkpoint that was trained on other data of the same '
                        'kind: use another --workdir, or the data it was trained on')  # fmt: skip
    if saved.step > total:
        raise UserError(f'{workdir} is at step {saved.step} already, beyond training.total = '
                        f'{config.training.total!r}')  # fmt: skip


def prepare(workdir, config, net):
    """Creates the workdir and writes the config and a table of parameters for people to read."""
    try:
        (workdir / 'samples').mkdir(parents=True, exist_ok=True)
        text = json.dumps(configs.as_dict(config), indent=2)
        (workdir / 'config.json').write_text(text + '\n')
        table = parameter_overview.get_parameter_overview(net.shapes(), include_stats=False)
        (workdir / 'parameters.txt').write_text(table + '\n')
    except OSError as error:
        raise UserError(f'{workdir}: cannot write there ({error.strerror}); '
                        'choose another --workdir') from error  # fmt: skip


def abstract(create):
    """Shapes and placement of the train state on the default device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        jax.eval_shape(create, jax.random.key(0)),
    )


def stop_non_finite(writer, current, values):
    """Saves the last good state (the step left it untouched) and ends the run."""
    writer.save(current)
    raise NonFinite(
        f'the loss or gradient of step {int(current["step"]) + 1} is not finite (now: '
        f'loss {values["loss"]:.4g}, gradient norm {values["gradient_norm"]:.4g}); the state '
        'before it is saved. A lower learning rate, a stronger clip or float32 may help.'
    )


def sample_grid(config, data, current, workdir):
    """Writes WORKDIR/samples/STEP.png, drawn with the first EMA weights, one class per column."""
    if data.tokenizer is None:
        return  # synthetic latents have no pictures
    ema = current['ema'][str(config.optimizer.ema_decays[0])]
    count, columns = config.training.sample_images, min(data.classes, 10)
    tokens = sampler(config.model, config.sampling)(
        ema, np.arange(count) % columns % data.classes, np.arange(count)
    )
    pictures = images.upscaled(np.asarray(data.tokenizer.decode(tokens)))
    at = int(current['step'])
    images.save(workdir / 'samples' / f'{at:08}.png', images.grid(pictures, columns))


@functools.lru_cache(maxsize=1)
def sampler(model, config):
    """One compiled sampler per setting, kept between grids."""
    return Sampler(model, config)
