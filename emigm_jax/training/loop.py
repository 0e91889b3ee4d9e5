"""The training loop, read top to bottom."""

import functools
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from typing import NoReturn

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from emigm_jax.checkpoints import runs
from emigm_jax.config import averages, nested
from emigm_jax.config.settings import Config
from emigm_jax.data import datasets, pipeline, sizes
from emigm_jax.data.interface import Dataset
from emigm_jax.io import access, files, paths
from emigm_jax.nn.functional import Functional, Params, parameter_count
from emigm_jax.parallel import agreement, preemption, processes, sharding
from emigm_jax.parallel import batches as spread
from emigm_jax.training import about, grids, initial, program, speed, start
from emigm_jax.training.metrics import EVENTS, Metrics
from emigm_jax.training.profile import Profile
from emigm_jax.training.state import State

# Measures the EMA parameters of a step: {name: score}.
Evaluate = Callable[[Params, int], dict[str, float]]


class NonFinite(Exception):
    """The loss stopped being a number; the last good state has been saved."""


class Preempted(Exception):
    """The run was asked to end; the state has been saved."""


def train(
    config: Config,
    workdir: os.PathLike | str,
    evaluator: Callable[[Config, Dataset], Evaluate] | None = None,
    allow_changes: Collection[str] = (),
) -> State:
    """Trains `config` in `workdir` from where its newest checkpoint left off.

    Every process of a run calls this; the first one writes metrics and pictures.

    Args:
      config: everything that decides the run.
      workdir: local or gs://.
      evaluator: makes what measures the EMA parameters on the way, of a config with all sizes;
        None: no evaluation.
      allow_changes: settings, or groups, in which a run that goes on may differ from its beginning.

    Returns:
      The final state.

    Raises:
      UserError: the workdir, the mesh or the data cannot be used for this config, or another
        training is at work in the workdir.
      NonFinite: a loss or gradient was not finite.
      Preempted: SIGTERM or a maintenance notice came.
    """
    began = time.monotonic()
    access.probe(workdir)
    folder = paths.absolute(workdir)
    start.check_workdir(folder)
    say = functools.partial(print, flush=True) if processes.is_first() else lambda *_: None
    with start.alone(folder, say) as check:
        return _train(config, folder, evaluator, allow_changes, say, check, began)


def _train(config, folder, evaluator, allow_changes, say, check, began):
    """Trains in a folder in which nobody else works, as long as `check` does not raise."""
    first = processes.is_first()
    mesh = sharding.make_mesh(config.mesh)
    data = datasets.dataset(config)
    config = start.as_begun(sizes.fitted(config, data), folder, allow_changes, say)
    batch_size = config.training.batch_size
    steps = functools.partial(config.steps, examples=data.examples)
    total = steps('total')
    contents = f'{config.data.name}, {data.examples} examples of {data.grid**2} tokens'
    say(f'data: {contents}')
    for remark in data.remarks:
        say(f'  {remark}')

    built = program.build(config, mesh, steps('warmup'), total)
    current = start.resumed(config, data, folder, built, allow_changes, say)
    origin, init = None, config.training.init
    if current is None and init:
        names = data.class_names
        origin = agreement.agreed(lambda: initial.origin(config, runs.require(init), names))
    evaluate = evaluator and evaluator(config, data)
    if current is None:
        current = initial.begun(config, built, origin, say) if origin else built.create()
    if first:
        prepare(folder, config, built.net, data.class_names)
    axes = ' x '.join(f'{size} {axis}' for axis, size in mesh.shape.items() if size > 1)
    parameters = parameter_count(built.net.shapes())
    say(f'model: {parameters:,} parameters on {mesh.size} device(s)' + f' ({axes})' * bool(axes))
    at_first = int(current['step'])
    if remark := averages.remark(config.optimizer, str(config.optimizer.ema_decays[0]), total):
        say(remark)

    due = lambda name, at: steps(name) and at % steps(name) == 0
    scored = lambda at: evaluate and (at == total or due('evaluation.every', at))
    identity = lambda: about.write(folder, at_first, parameters, contents, mesh) if first else ''
    make = lambda: Metrics(folder, at_first, total, first, config, identity())
    work = speed.work(batch_size, built.flops, mesh, config.model.dtype)
    before, compiling = None, time.monotonic()
    with ExitStack() as opened:  # and closed, if the step cannot be compiled
        metrics = opened.enter_context(agreement.agreed(make))
        if at_first < total:
            say('compiling the train step')
            built.compile()
            compiling = time.monotonic() - compiling
        else:
            say(f'finished before, at step {total}: a larger --config.training.total goes on')
        opened.pop_all()
    stream = pipeline.batches(
        data, batch_size, config.seed, at_first, total, mesh, config.data.order
    )
    batches = pipeline.Timed(stream)
    with (
        metrics,
        runs.Writer(
            folder, config, steps('keep_every'), data.fingerprint, data.class_names
        ) as writer,
        preemption.Watch() as watch,
        closing(Profile(config.training.profile if first else '', folder / EVENTS, say)) as profile,
    ):

        def measured(at, ema, current):
            try:
                with watch.breaking():
                    scores = evaluate(ema, at)
            except preemption.BrokenOff:
                leave(writer, current, watch, folder)
            metrics.add(at, scores)
            writer.score(at, scores)

        try:
            if at_first and scored(at_first) and not agreement.from_first(metrics.scored):
                ema = first_ema(config, mesh, current)
                measured(at_first, ema, current)  # it was broken off there
            for number, batch in enumerate(batches, at_first):
                at = number + 1
                profile.before(at)
                current, values = built.step(current, batch, np.int32(number))
                profile.after(at, values)
                metrics.tick(at)
                if number == at_first:
                    jax.block_until_ready(values)  # compilation is not part of the rate
                    since = time.monotonic() - began
                    say(f'first step after {since:.1f} s, {compiling:.1f} of them compiling')
                    metrics.pause(batches.seconds)
                # At most one step is queued behind the one that runs: deeper queues hide nothing
                # more and hold memory for every step in them.
                jax.block_until_ready(before)
                before = values
                check()
                leaving, last = watch.due(at), at == total
                scoring = scored(at)
                # What is scored is saved: it may be the best.
                saving = leaving or last or scoring or due('checkpoint_every', at)
                if saving or due('log_every', at):
                    values = {k: float(v) for k, v in values.items()}
                    if not values.pop('finite'):
                        stop_non_finite(writer, current, values)
                    values['learning_rate'] = float(built.rate(number))
                    metrics.write(at, values, work, batches.seconds)
                if leaving:
                    leave(writer, current, watch, folder)
                if saving:  # first, since what comes next takes long and may be broken off
                    metrics.flush()  # no checkpoint is ahead of them
                    writer.save(current)
                showing = steps('sample_every') and (last or due('sample_every', at))
                if showing or scoring:
                    ema = first_ema(config, mesh, current)
                    if showing:
                        metrics.picture(at, grids.draw(config, data, ema, folder, at))
                    if evaluate and scoring:
                        measured(at, ema, current)
                    del ema  # a copy on every device
                    metrics.pause(batches.seconds)
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
    return current


def prepare(
    workdir: epath.Path, config: Config, net: Functional, class_names: Sequence[str] = ()
) -> None:
    """Creates the workdir and writes what people and reports read: config, parameters, classes."""
    table = parameter_overview.get_parameter_overview(net.shapes(), include_stats=False)
    text = json.dumps(nested.as_dict(config), indent=2)
    files.write_text(workdir / 'config.json', text + '\n')
    files.write_text(workdir / 'parameters.txt', table + '\n')
    files.write_json(workdir / 'class_names.json', {runs.CLASS_NAMES: list(class_names)})


def leave(
    writer: runs.Writer, current: State, watch: preemption.Watch, workdir: epath.Path
) -> NoReturn:
    """Saves the state and ends the run, as it was asked to."""
    writer.save(current)
    writer.wait()
    raise Preempted(
        f'{watch.reason}: saved step {int(current["step"])} in {workdir}; the same command goes on '
        'from there'
    )


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
