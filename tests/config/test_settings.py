"""Settings declare what they mean and may be; checks and `emigm settings` follow from that."""

import dataclasses

import pytest

from emigm_jax.cli import arguments, main
from emigm_jax.config import catalogue, nested
from emigm_jax.config.load import config_of, load_config
from emigm_jax.config.settings import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
)
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.setting import declared, setting, validate
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.errors import UserError
from emigm_jax.models.config import ModelConfig
from emigm_jax.parallel.sharding import MeshConfig
from support.runs import SMOKE


def test_every_setting_says_what_it_means():
    rows = catalogue.rows()
    values = nested.flatten(nested.as_dict(Config()))
    assert [row.name for row in rows] == list(values)
    assert [row.default for row in rows] == list(values.values())
    assert all(row.meaning and row.allowed for row in rows)
    assert all(catalogue.groups().values())
    top = [f.name for f in dataclasses.fields(Config) if declared(f) is None]
    assert list(arguments.GROUPS) == top


def test_settings_are_plain_frozen_dataclasses():
    config = RevealConfig()
    assert config == RevealConfig(16)
    assert hash(config) == hash(RevealConfig())
    assert dataclasses.replace(config, steps=3).steps == 3
    assert dataclasses.asdict(config)['steps'] == 16
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3
    with pytest.raises(UserError):
        dataclasses.replace(config, steps=0)


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: DataConfig(name='digit'), "did you mean 'digits'"),
        (lambda: DataConfig(patch=-1), 'data.patch must be at least 1, not -1'),
        (lambda: DataConfig(patch=0), 'data.patch = 0 and data.scale = 0 go with folder'),
        (lambda: DataConfig(scale=0.0), 'data.patch = 0 and data.scale = 0 go with folder'),
        (lambda: DataConfig('latents'), "data.name = 'latents' needs data.path"),
        (lambda: ModelConfig(grid=1), 'model.grid must be at least 2, not 1'),
        (lambda: ModelConfig(mlp_ratio=0.0), 'model.mlp_ratio must be at least 0.01, not 0.0'),
        (lambda: ModelConfig(attention_dropout=1.0), 'must be at most 0.99, not 1.0'),
        (lambda: ModelConfig(dtype='half'), 'model.dtype must be one of float32, bfloat16'),
        (lambda: ModelConfig(remat='dot'), "did you mean 'dots'"),
        (lambda: LossConfig(label_drop=1.5), 'loss.label_drop must be at most 1.0, not 1.5'),
        (lambda: MaskingConfig(times='clam'), "did you mean 'clamp'"),
        (lambda: OptimizerConfig(ema_decays=(0.9, 1.0)), 'optimizer.ema_decays must be at most'),
        (lambda: OptimizerConfig(ema_decays=()), 'at least one decay'),
        (lambda: OptimizerConfig(ema_decays=(0.9, 0.5, 0.9)), 'names a decay twice'),
        (lambda: OptimizerConfig(clip=0.0), 'optimizer.clip must be at least'),
        (lambda: OptimizerConfig(beta2=1.0), 'optimizer.beta2 must be at most'),
        (lambda: TrainingConfig(total='long'), "training.total must look like '500 steps'"),
        (lambda: EvaluationConfig(every='1'), 'evaluation.every must look like'),
        (lambda: EvaluationConfig(num_images=3), 'evaluation.num_images must be at least 4'),
        (lambda: RevealConfig(guidance_to=0.0), 'guidance_to must be at least 0.1, not 0.0'),
        (lambda: RevealConfig(schedule='expp'), 'sampling.reveal.schedule must be one of linear'),
        (lambda: SolverConfig(steps=1001), 'sampling.solver.steps must be at most 1000'),
        (lambda: SolverConfig(order=4), 'sampling.solver.order must be at most 3, not 4'),
        (lambda: SolverConfig(temperature=0.5), 'only ddpm draws noise'),
        (lambda: MeshConfig(data=0), 'mesh.data must be at least 1, not 0'),
        (lambda: MeshConfig(tensor=-1), 'mesh.tensor must be at least 1, not -1'),
        (lambda: MeshConfig(data=-1, fsdp=-1), 'cannot both be -1'),
        (lambda: Config(seed=-1), 'seed must be at least 0, not -1'),
        (lambda: Config(seed=2**32), 'seed must be at most 4294967295, not 4294967296'),
        (lambda: SamplingConfig(seed=-1), 'sampling.seed must be at least 0, not -1'),
        (lambda: SamplingConfig(seed=2**32), 'sampling.seed must be at most 4294967295'),
        (lambda: RevealConfig(plan_seed=2**64), 'sampling.reveal.plan_seed must be at most'),
        (lambda: TrainingConfig(total='1.2.3 steps'), "training.total must look like '500 steps'"),
        (lambda: TrainingConfig(total='. steps'), "training.total must look like '500 steps'"),
        (lambda: TrainingConfig(total='nan steps'), "training.total must look like '500 steps'"),
        (lambda: TrainingConfig(total='1e400 steps'), 'training.total must be a finite number'),
        (lambda: Config().steps('total', 2**52), 'training.total in steps must be at most 2147483'),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, says):
    with pytest.raises(UserError) as error:
        make()
    assert says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_every_number_is_finite(value):
    """Whatever its range is, and whether it is one of several."""
    numbers = lambda row: row.default if isinstance(row.default, tuple) else (row.default,)
    kinds = lambda row: {type(number) for number in numbers(row)}
    rows = [row for row in catalogue.rows() if kinds(row) == {float}]
    assert len(rows) > 15
    for row in rows:
        given = (float(value),) if isinstance(row.default, tuple) else float(value)
        with pytest.raises(UserError, match=f'{row.name} must be a finite number, not {value}'):
            config_of(Config(), {row.name: given})
    with pytest.raises(UserError, match=f'clip must be a finite number, not {value}'):
        load_config('digits', [f'--config.optimizer.clip={value}'])


def test_all_misfits_are_told_at_once():
    """Of values, of names, and of settings that do not go together, whatever group they are in."""
    wrong = {
        'data': {'patch': -1, 'scale': 'x'},
        'model': {'width': 50, 'depth': 2},
        'optimizer': {'ema_decays': ('a',), 'clip': 0.0},
        'training': {'batch_size': 6, 'accumulate': 4, 'init_weights': '0.9'},
        'evaluation': {'reference': 'x'},
        'mesh': 3,
    }
    parts = [
        'data.patch must be at least 1, not -1',
        "data.scale must be float, not 'x'",
        "unknown setting model.depth (did you mean 'head_depth'?)",
        "optimizer.ema_decays must be float, not 'a'",
        'optimizer.clip must be at least 1e-12, not 0.0',
        'training.init_weights goes with training.init; '
        'training.accumulate = 4 does not divide training.batch_size = 6',
        'evaluation.reference and evaluation.inception go together',
        'mesh is a group of settings, not 3',
    ]
    with pytest.raises(UserError) as error:
        nested.resolve(wrong)
    assert str(error.value) == '; '.join(parts)
    flags = ['batch_size=0', 'total=long', 'keep=0']
    with pytest.raises(UserError, match=r'batch_size must .*training\.keep must .*total must look'):
        load_config('digits', [f'--config.training.{flag}' for flag in flags])


def test_an_int_beyond_all_floats_is_refused():
    with pytest.raises(UserError, match='guidance must be float, not 1000'):
        config_of(Config(), {'sampling.reveal.guidance': 10**400})


def test_what_stands_beside_a_range():
    assert MeshConfig(data=1, fsdp=-1).fsdp == -1


def test_a_declaration_is_all_that_a_new_setting_needs():
    @dataclasses.dataclass(frozen=True)
    class New:
        """New settings."""

        size: int = setting(3, 'pixels per side', low=2)
        kinds: tuple[str, ...] = ('a',)  # without one nothing is checked

        def __post_init__(self):
            validate(self, 'new')

    (size,) = [declared(f) for f in dataclasses.fields(New) if declared(f)]
    assert (size.meaning, size.low) == ('pixels per side', 2)
    with pytest.raises(UserError, match=r'new\.size must be at least 2, not 1'):
        New(1)


@pytest.mark.parametrize(
    ('pattern', 'names'),
    [
        ('guidance_to', ['sampling.reveal.guidance_from', 'sampling.reveal.guidance_to']),
        ('mesh.', ['mesh.slices', 'mesh.data', 'mesh.fsdp', 'mesh.tensor']),
        ('model.*_depth', [f'model.{n}_depth' for n in ('encoder', 'decoder', 'head')]),
        ('DDIM', ['sampling.solver.name']),
        ('learning rate grows', ['training.warmup']),
        ('gradient norm', ['optimizer.clip']),
    ],
)
def test_finding_settings(pattern, names):
    assert [row.name for row in catalogue.matching(pattern)] == names


@pytest.mark.parametrize(
    ('pattern', 'near'), [('widht', 'model.width'), ('sampling.reveal.step_', 'reveal.steps')]
)
def test_what_no_setting_matches(pattern, near):
    with pytest.raises(UserError, match=f'did you mean .*{near}'):
        catalogue.matching(pattern)


@pytest.mark.parametrize('width', [60, 80, 100, 200])
def test_a_table_is_aligned_and_fits(width):
    lines = catalogue.table(catalogue.matching('training.'), width)
    head, rows = lines[0], [line for line in lines[1:] if line.startswith(('training.', ' '))]
    column = head.index('meaning')
    assert all(line[column] != ' ' == line[column - 1] for line in rows)
    assert all(len(line) <= max(width, column + 28) for line in rows)


def test_a_table_of_a_config_shows_where_it_differs():
    config = dataclasses.replace(Config(), seed=3)
    head, _, _, row = catalogue.table(catalogue.matching('seed')[:1], 100, config)
    assert head.split()[:3] == ['setting', 'value', 'default']
    assert row.split()[:3] == ['seed', '3', '0']


def test_the_command(capsys):
    assert main.main(['settings', 'gradient', 'norm']) == 0
    assert 'optimizer.clip' in capsys.readouterr().out
    command = ['settings', 'model.width', '--config', SMOKE]
    assert main.main([*command, '--config.model.width=64']) == 0
    assert ['model.width', '64', '448'] in [
        line.split()[:3] for line in capsys.readouterr().out.splitlines()
    ]


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['widht'], "did you mean 'model.width'"),
        (['--config.model.width=3'], 'goes with --config'),
        (['--widht'], "unknown argument '--widht'"),
        (['--config', SMOKE, '--config.model.widht=3'], "mean 'model.width'"),
    ],
)
def test_the_command_refuses(flags, says, capsys):
    assert main.main(['settings', *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1
