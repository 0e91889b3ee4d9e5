"""What a training run writes and says: lines, a bar, pictures, settings, the usual loss, W&B."""

import dataclasses
import io
import json
import sys
import types

import jax
import numpy as np
import pytest

from emigm_jax.config import curves, nested, resuming
from emigm_jax.config.load import load_config
from emigm_jax.config.settings import Config, DataConfig, ModelConfig
from emigm_jax.errors import UserError
from emigm_jax.io import paths
from emigm_jax.parallel import agreement
from emigm_jax.training import about, metrics
from emigm_jax.training.metrics import Metrics
from emigm_jax.training.speed import Work

BESIDE = {'mask_ratio': 0.7, 'gradient_norm': 0.25, 'learning_rate': 1e-3}
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def values(loss=0.5):
    return {'loss': loss, 'mse': 0.4, 'vlb': 0.1, **BESIDE}


@pytest.mark.parametrize(
    ('parts', 'shown'),
    [
        ({'mse': 0.4, 'vlb': 0.1}, 'mse 0.4000, vlb 0.1000'),
        ({'cross_entropy': 0.5}, 'cross_entropy 0.5000'),
    ],
)
def test_the_parts_of_a_loss_are_those_of_its_head(tmp_path, capsys, parts, shown):
    made = Metrics(tmp_path, 0, 10)
    made.write(2, {'loss': 0.5, **parts, **BESIDE}, Work(16), 0.0)
    made.close()
    assert capsys.readouterr().out.startswith(f'step 2/10  loss 0.5000 ({shown})  grad 0.25  ')


def test_the_process_that_others_wait_for_is_named(tmp_path, monkeypatch, capsys):
    """In the line of the very steps in which it was slow."""
    others = np.float32([0.02, 0.63, 0.01])
    monkeypatch.setattr(agreement, 'gather', lambda mine: np.concatenate([mine, others]))
    made = Metrics(tmp_path, 0, 10)
    made.write(2, values(), Work(16), 0.0)
    monkeypatch.setattr(agreement, 'gather', lambda mine: np.concatenate([mine, others * 0]))
    made.write(4, values(), Work(16), 0.0)
    made.close()
    slow, well = metrics.read(tmp_path)
    assert (slow['data_wait'], slow['slowest_process']) == (0.0, 2)
    assert slow['slowest_data_wait'] == pytest.approx(0.63)
    assert well['slowest_data_wait'] == 0.0
    first, second = capsys.readouterr().out.splitlines()
    assert ', process 2 waits 63% for data' in first
    assert 'waits' not in second


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(tmp_path, monkeypatch):
    def run(out, err):
        monkeypatch.setattr(sys, 'stdout', out)
        monkeypatch.setattr(sys, 'stderr', err)
        made = Metrics(tmp_path, 4, 10)
        for step in (5, 6):
            made.tick(step)
        made.write(6, values(), Work(16), 0.0)
        made.pause(0.0)
        made.add(6, {'fid': 7.25})
        made.close()
        return out.getvalue(), err.getvalue()

    out, err = run(Terminal(), Terminal())
    assert out == 'step 6/10  fid 7.25\n'  # above the bar
    assert '| 6/10 [' in err and 'loss 0.5000, ' in err and ' images/s]' in err
    for terminals in ((io.StringIO(), Terminal()), (Terminal(), io.StringIO())):
        out, err = run(*terminals)
        assert [line[:11] for line in out.splitlines()] == ['step 6/10  '] * 2
        assert 'images/s' in out and ' left' in out and err == ''


def test_a_score_that_is_a_rounding_error_below_zero_is_zero(tmp_path, capsys):
    made = Metrics(tmp_path, 0, 10)
    made.add(3, {'fid': -1e-7, 'kid': -0.25, 'bad': float('nan')})
    made.close()
    assert capsys.readouterr().out == 'step 3/10  fid 0  kid -0.25  bad nan\n'
    assert metrics.read(tmp_path)[0]['fid'] == -1e-7  # as it is


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of TensorBoard's reader
def test_tensorboard_has_pictures_and_settings(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    made = Metrics(tmp_path, 0, 10, config=Config())
    made.picture(3, PICTURE)
    made.picture(4, None)  # of data without pictures
    made.close()
    found = event_accumulator.EventAccumulator(str(tmp_path / metrics.EVENTS))
    found.Reload()
    (image,) = found.Images('samples')
    assert (image.step, image.width, image.height) == (3, 4, 4)
    (text,) = found.Tensors('config/text_summary')
    assert '"base_learning_rate": 0.0001' in text.tensor_proto.string_val[0].decode()


# The usual loss


def digits(**training):
    config = load_config('digits')
    model = dataclasses.replace(config.model, grid=2, channels=16, classes=10)  # as derived
    training = dataclasses.replace(config.training, **training)
    return dataclasses.replace(config, model=model, training=training)


def flat(config):
    return nested.flatten(nested.as_dict(config))


def test_a_shipped_recipe_is_known_by_its_settings():
    known = curves.reference(flat(digits()))
    assert known and 'digits' in known.origin
    saved = json.loads(json.dumps(nested.as_dict(digits())))  # as config.json has it
    assert curves.reference(nested.flatten(saved)) == known
    free = dataclasses.replace(digits(keep=7, log_every='3 steps'), seed=5)
    assert curves.reference(flat(free)) == known
    assert curves.reference(flat(digits(batch_size=64))) is None
    assert curves.reference(flat(load_config('digits:best'))) is None
    assert curves.reference({}) is None


def test_real_latents_of_the_published_recipes_have_levels():
    real = Config(data=DataConfig('latents', path='in256'), model=ModelConfig(grid=16, channels=16))
    real = dataclasses.replace(real, seed=1)
    known = curves.reference(flat(real))
    assert known and known.levels == (1.74, 0.25) and 'LTH14/mar#20' in known.origin
    assert known.beside(100, 1.9) == ''
    assert known.beside(100, 3.0) == ', usual at most 1.74 (far above)'
    synthetic = dataclasses.replace(real, data=DataConfig('synthetic'))
    assert curves.reference(flat(synthetic)) is None


def test_the_line_shows_the_usual_loss_and_marks_one_far_above(tmp_path, capsys):
    made = Metrics(tmp_path, 0, 900, config=digits())
    known = curves.reference(flat(digits()))
    assert known is not None
    step, usual = known.steps[3], known.losses[3]
    made.write(step, values(usual * 1.2), Work(16), 0.0)
    made.write(step + 1, values(usual * 1.7), Work(16), 0.0)
    made.write(step + 2, values(float('nan')), Work(16), 0.0)
    made.close()
    said, fine, far, nan = capsys.readouterr().out.splitlines()
    assert said == f'usual loss: {known.origin}'
    assert f'), usual {usual:.4f}  grad' in fine
    assert ' (far above)  grad' in far and ' (far above)  grad' in nan
    assert known.beside(10**6, 9.0) == known.beside(0, 9.0) == ''  # beyond what is known


def test_the_recorded_run_stays_near_its_own_curve():
    known = curves.reference(flat(digits()))
    assert known is not None
    assert len(known.steps) == len(known.losses) >= 18 and known.steps[-1] == 900
    assert list(known.steps) == sorted(known.steps)
    # Single steps scatter around their neighbours by less than what is called far above.
    smooth = np.convolve(known.losses, np.ones(3) / 3, 'valid')
    assert (np.array(known.losses[1:-1]) / smooth).max() < 1.2


# About a run


def test_about_a_run(tmp_path, monkeypatch):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    monkeypatch.setattr(sys, 'argv', ['/x/emigm_jax/__main__.py', 'train', '--workdir', 'my run'])
    write = lambda start: about.write(paths.absolute(tmp_path), start, 1234567, 'digits', mesh)
    read = lambda: json.loads((tmp_path / about.FILE).read_text())
    first = write(0)
    told = read()
    assert (told['parameters'], told['data'], told['id']) == ('1,234,567', 'digits', first)
    assert told['devices'] == '8 x cpu' and told['version'].startswith('emigm_jax ')
    assert told['command'] == "emigm train --workdir 'my run'"
    (tmp_path / about.FILE).write_text(json.dumps({**told, 'began': 'then'}))
    assert write(5) == first and read()['began'] == 'then'  # it goes on
    assert write(0) != first and read()['began'] != 'then'  # it is another run


# W&B


def wandb_config(project='group/digits'):
    training = dataclasses.replace(Config().training, wandb=project)
    return dataclasses.replace(Config(), training=training)


def test_wandb_gets_numbers_pictures_and_settings(tmp_path, monkeypatch):
    calls = []

    class Run:
        def __getattr__(self, name):
            return lambda *args, **named: calls.append((name, args, named))

    stand_in = types.ModuleType('wandb')
    stand_in.Error = ValueError
    stand_in.Image = lambda image: ('image', image.shape)
    stand_in.init = lambda **named: calls.append(('init', (), named)) or Run()
    monkeypatch.setitem(sys.modules, 'wandb', stand_in)
    made = Metrics(tmp_path, 2, 10, config=wandb_config(), identity='4f')
    made.write(3, values(), Work(16), 0.0)
    made.add(3, {'fid': 7.25})
    made.picture(3, PICTURE)
    made.picture(4, PICTURE[..., :1])
    made.close()
    (_, _, begun), defined, (_, (line,), _), *rest = calls
    assert (begun['entity'], begun['project'], begun['id']) == ('group', 'digits', '4f')
    assert (begun['resume'], begun['dir'], begun['name']) == ('allow', str(tmp_path), tmp_path.name)
    assert begun['config']['optimizer']['base_learning_rate'] == 1e-4
    assert defined == ('define_metric', ('*',), {'step_metric': 'step'})
    assert (line['step'], line['loss']) == (3, 0.5)
    assert rest == [
        ('log', ({'step': 3, 'fid': 7.25},), {}),
        ('log', ({'step': 3, 'samples': ('image', (4, 4, 3))},), {}),
        ('log', ({'step': 4, 'samples': ('image', (4, 4))},), {}),
        ('finish', (), {}),
    ]
    stand_in.init = lambda **_: (_ for _ in ()).throw(ValueError('no\n key'))
    with pytest.raises(UserError, match=r'^training.wandb=group/digits: no key$'):
        Metrics(tmp_path, 0, 10, config=wandb_config())


@pytest.mark.slow  # it starts a process of its own
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    made = Metrics(tmp_path, 0, 10, config=wandb_config('digits'), identity='0a1b2c3d')
    made.write(2, values(), Work(16), 0.0)
    made.picture(2, PICTURE)
    made.close()
    wandb.teardown()  # ends the process, which writes the rest
    (folder,) = (tmp_path / 'wandb').glob('offline-run-*-0a1b2c3d')
    assert len(list((folder / 'files/media/images').glob('samples_*.png'))) == 1
    written = (folder / 'run-0a1b2c3d.wandb').read_bytes()
    assert b'base_learning_rate' in written and b'gradient_norm' in written


def test_without_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match=r"pip install 'emigm_jax\[wandb\]'"):
        Metrics(tmp_path, 0, 10, config=wandb_config())
    Metrics(tmp_path, 0, 10, config=Config()).close()  # nobody asked for it


def test_wandb_changes_nothing_that_is_resumed():
    assert not resuming.differences(Config(), wandb_config())
