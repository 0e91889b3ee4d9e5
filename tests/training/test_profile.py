"""A trace of some steps: where it lies, which steps it has, what is refused."""

import dataclasses

import jax
import pytest
from etils import epath

from emigm_jax.config import load, resuming
from emigm_jax.config.settings import TrainingConfig
from emigm_jax.errors import UserError
from emigm_jax.training import loop, profile
from emigm_jax.training.profile import Profile


def test_a_step_is_traced(tmp_path):
    """By jax's own profiler."""
    step = jax.jit(lambda x: x + 1)
    made = Profile('steps 2 to 2', epath.Path(tmp_path), print)
    for number in (1, 2, 3):
        made.before(number)
        made.after(number, step(number))
    made.close()
    (trace,) = (tmp_path / 'plugins/profile').rglob('*.xplane.pb')
    assert b'PjitFunction' in trace.read_bytes()


@pytest.mark.slow
def test_a_run_writes_the_trace_of_its_steps(tmp_path, capsys):
    config = load.load_config('digits:smoke', ['--config.training.profile=steps 3 to 4'])
    config = load.config_of(
        config, {'training.sample_every': '0 steps', 'training.total': '5 steps'}
    )
    loop.train(config, tmp_path)
    (trace,) = (tmp_path / 'tensorboard/plugins/profile').rglob('*.xplane.pb')
    assert b'train_step' in trace.read_bytes()
    said = capsys.readouterr().out
    assert f'profile of steps 3 to 4: {tmp_path}/tensorboard\n' in said
    assert len(list((tmp_path / 'tensorboard').glob('events*'))) == 1


@pytest.fixture
def traces(monkeypatch):
    """What the profiler was told."""
    told = []

    class Trace:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            told.append('begin')
            epath.Path(self.folder, 'plugins').mkdir()
            epath.Path(self.folder, 'plugins/trace').write_text('x')

        def __exit__(self, *_):
            told.append('end')

    monkeypatch.setattr(profile.jax.profiler, 'trace', Trace)
    return told


@pytest.mark.parametrize(
    ('span', 'ran', 'expected'),
    [
        ('steps 3 to 4', range(1, 9), ['3 begin', '4 end']),
        ('steps 3 to 3', range(1, 9), ['3 begin', '3 end']),
        ('steps 3 to 6', range(5, 9), ['5 begin', '6 end']),  # of a run that goes on
        ('steps 3 to 60', range(1, 9), ['3 begin', '9 end']),  # that ends before
        ('steps 3 to 4', range(5, 9), []),
        ('', range(1, 9), []),
    ],
)
def test_steps_of_a_trace(span, ran, expected, traces, tmp_path):
    made, seen = Profile(span, epath.Path(tmp_path), lambda _: None), []

    def look(step):
        seen.extend(f'{step} {what}' for what in traces)
        traces.clear()

    for step in ran:
        made.before(step)
        look(step)
        made.after(step, None)
        look(step)
    made.close()
    look(ran[-1] + 1)
    made.close()
    assert seen == expected and not traces
    assert (tmp_path / 'plugins/trace').exists() == bool(expected)


@pytest.mark.parametrize(
    'text', ['50', 'steps 5', 'steps 5 to 4', 'steps 0 to 4', 'step 5 to 6', 'steps 5 to 6 s', ' ']
)
def test_refusals(text):
    with pytest.raises(UserError, match="must look like 'steps 50 to 55'"):
        TrainingConfig(profile=text)


def test_a_run_may_go_on_with_another_one():
    config = load.load_config('digits:smoke')
    training = dataclasses.replace(config.training, profile='steps 1 to 2')
    assert not resuming.differences(config, dataclasses.replace(config, training=training))
