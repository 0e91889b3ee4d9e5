"""`emigm verify`: it passes here, and what is broken is named."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.cli import main
from emigm_jax.cli.verify import _number
from emigm_jax.nn import attention
from emigm_jax.verify import attention as of_attention
from emigm_jax.verify import meshes, part, recordings, seeds
from emigm_jax.verify import parts as table
from emigm_jax.verify.part import Finding, Part
from support import processes, shipped_recordings


def verify(*flags):
    return main.main(['verify', *flags])


# --- Recordings ----------------------------------------------------------------------------------


def test_what_is_shipped_is_what_was_recorded():
    made = shipped_recordings.made()
    with np.load(shipped_recordings.FILE) as shipped:
        assert set(shipped.files) == set(made)
        for name, array in made.items():
            assert shipped[name].dtype == array.dtype, name
            np.testing.assert_array_equal(shipped[name], array, err_msg=name)
    assert shipped_recordings.FILE.stat().st_size < 900_000


def test_the_file_is_part_of_the_package():
    text = (pathlib.Path(__file__).parents[2] / 'pyproject.toml').read_text()
    assert f'"emigm_jax.verify" = ["{recordings.FILE}"]' in text


# --- The command ---------------------------------------------------------------------------------


def test_official_parts_agree(tmp_path, capsys):
    file = tmp_path / 'verified.json'
    assert verify('--only', 'official', '--json', str(file)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f'cpu (cpu), 8 device(s), jax {jax.__version__}, float32'
    assert shown[-1] == 'all 5 parts agree'
    found = json.loads(file.read_text())
    assert found['agrees'] and found['devices'] == 8 and found['dtypes'] == ['float32']
    assert [row['part'] for row in found['parts']] == [
        p.name for p in table.PARTS if 'official' in p.name
    ]
    for row, line in zip(found['parts'], shown[2:], strict=False):
        assert 0 < row['error'] <= row['usual'] <= 1e-3 and row['verdict'] == 'ok'
        assert line.startswith(row['part']) and f'{row["error"]:.1e}' in line


@pytest.mark.parametrize('text', ['seeds', 'attention'])  # all of them: below, in minutes
def test_other_parts_agree(text, capsys):
    assert verify('--only', text) == 0
    assert 'OFF' not in capsys.readouterr().out


@pytest.mark.slow
def test_all_parts_agree_in_both_precisions(capsys):
    code = verify('--dtype', 'bfloat16')
    shown = capsys.readouterr().out
    assert code == 0, shown
    for name in ('step: data 8', 'step: fsdp 8', 'step: tensor 8', 'images: one device, all'):
        assert f'\n{name}' in shown
    mixed = [line for line in shown.splitlines() if 'data 2 x fsdp 2 x tensor 2' in line]
    assert [line.split()[9] for line in mixed] == ['float32', 'bfloat16']


@pytest.mark.slow
def test_two_processes_verify_together(tmp_path):
    command = ['verify', '--only', 'step: fsdp 2 x']
    run = processes.Run(tmp_path / 'run', command, count=2, devices=2)
    assert run.codes() == [0, 0], run.output()
    assert 'cpu (cpu), 4 device(s)' in run.output()
    assert 'step: fsdp 2 x tensor 2' in run.output() and 'parts agree' in run.output()
    assert 'verdict' not in run.output(1)  # one of them speaks


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--dtype', 'float16'), "invalid choice: 'float16'"),
        (('--json', '/proc/x/y.json'), '/proc/x/y.json: cannot be reached or written'),
        (('--only', 'atention'), 'there is no such part; there are official: trunk, '),
        (('--weights', 'x'), 'unrecognized arguments'),
    ],
)
def test_refusals(flags, says, capsys):
    assert verify(*flags) == 2
    line = capsys.readouterr().err
    assert line.startswith('emigm: ') and says in line and line.count('\n') == 1


# --- What is off ---------------------------------------------------------------------------------


def test_another_recording_is_named(monkeypatch, capsys, tmp_path):
    params, outputs = recordings.emigm()
    broken = outputs | {'head_out': outputs['head_out'] + 0.01}
    monkeypatch.setattr(recordings, 'emigm', lambda: recordings.Recording(params, broken))
    monkeypatch.setattr(table, 'parts', lambda: table.PARTS[:3])
    file = tmp_path / 'verified.json'
    assert verify('--json', str(file)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == '1 of 3 parts are off: official: diffusion head (float32)'
    found = json.loads(file.read_text())
    assert not found['agrees']
    assert [row['verdict'] for row in found['parts']] == ['ok', 'OFF', 'ok']


def test_another_dropout_is_named(monkeypatch, capsys):
    def other(x, rate, key):
        if key is None:
            return x
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)

    monkeypatch.setattr(attention, 'dropout', other)
    assert verify('--only', 'attention') == 1
    shown = capsys.readouterr().out
    assert shown.endswith('1 of 4 parts are off: attention with dropout (float32)\n')
    assert 'attention with dropout (float32): attention drops other weights' in shown


def test_attention_that_sees_what_is_hidden_is_off(monkeypatch):
    attend = attention.attend
    blind = lambda q, k, v, softmax, lengths, key: attend(q, k, v, softmax, None, key)
    monkeypatch.setattr(attention, 'attend', blind)
    assert of_attention.plain('float32').error > 0.1


def test_another_generator_is_named(monkeypatch):
    monkeypatch.setattr(seeds.randomness, 'key', lambda seed: jax.random.key(seed + 1))
    found = seeds.integers('float32')
    assert found.error > 0 and 'bits' in found.measured and 'dropout' in found.measured
    assert seeds.normal('float32').error > 0.1


def test_a_part_that_raises_is_off_and_the_others_run(monkeypatch, capsys, tmp_path):
    def fails(dtype):
        raise RuntimeError('no\nluck')

    def broken(dtype):
        return Finding(float('nan'), 'nothing')

    usual = {'float32': 1.0}
    rows = [
        Part('first', fails, usual, 'look here'),
        Part('second', broken, usual, 'look there'),
        Part('third', lambda dtype: Finding(7.0, 'what may be'), {'float32': None}, ''),
    ]
    monkeypatch.setattr(table, 'parts', lambda: rows)
    file = tmp_path / 'verified.json'
    assert verify('--json', str(file)) == 1
    shown = capsys.readouterr().out
    assert 'RuntimeError: no luck' in shown and 'first (float32): look here' in shown
    assert shown.endswith('2 of 3 parts are off: first (float32), second (float32)\n')
    found = json.loads(file.read_text())['parts']
    assert [row['verdict'] for row in found] == ['OFF', 'OFF', 'reported']
    assert [row['error'] for row in found] == [None, None, 7.0]


def test_limits_of_a_platform(monkeypatch):
    usual = {'float32': 1e-4, ('gpu', 'float32'): 1e-3}
    row = Part('it', lambda dtype: Finding(5e-4, ''), usual, '')
    assert [r.off for r in part.run([row], ['float32', 'bfloat16'])] == [True]
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert [r.off for r in part.run([row], ['float32'])] == [False]


def test_products_of_float32_are_exact_in_the_first_pass():
    seen = []
    row = Part(
        'it',
        lambda dtype: seen.append(jax.config.jax_default_matmul_precision) or Finding(0.0, ''),
        {'float32': 0.0, 'bfloat16': 0.0},
        '',
    )
    list(part.run([row], ['float32', 'bfloat16']))
    assert seen == ['highest', 'default']


# --- Meshes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('devices', 'found'),
    [
        (1, ['data 1']),
        (3, ['data 3', 'fsdp 3', 'tensor 3']),
        (
            4,
            [
                'data 4',
                'fsdp 4',
                'tensor 4',
                *(
                    f'{a} 2 x {b} 2'
                    for a, b in (('data', 'fsdp'), ('data', 'tensor'), ('fsdp', 'tensor'))
                ),
            ],
        ),
        (8, ['data 8', 'fsdp 8', 'tensor 8', 'data 2 x fsdp 2 x tensor 2']),
        (256, ['data 256', 'fsdp 256', 'tensor 256', 'data 4 x fsdp 8 x tensor 8']),
    ],
)
def test_meshes_of_so_many_devices(devices, found):
    assert [meshes.title(sizes) for sizes in meshes.shapes(devices)] == found


def test_gradients_that_differ_are_off():
    gradients = {'a': np.ones(4), 'b': np.full(2, 1e-9)}
    assert meshes._apart(gradients, gradients) == 0
    # What is almost nothing is compared with the largest.
    assert meshes._apart({**gradients, 'b': np.zeros(2)}, gradients) < 1e-5
    assert meshes._apart({**gradients, 'a': np.array([1, 1, 1, 1.1])}, gradients) > 0.05


def test_steps_are_compared_with_one_device_and_with_themselves():
    one = 2.0, {'kernel': np.ones(4, np.float32)}
    far = 2.1, one[1]
    bit = 2.0, {'kernel': np.nextafter(one[1]['kernel'], np.float32(2))}
    sizes, step = {'data': 8}, meshes.Steps()

    def error(check, *results):
        step._results = {('', 'float32'): iter([one]), ('data 8', 'float32'): iter(results)}
        return check(sizes, 'float32').error

    assert error(step.on, one) == error(step.twice, one, one) == 0
    assert 0 < error(step.on, bit) < 1e-6 < 0.04 < error(step.on, far)
    assert error(step.twice, one, bit) == error(step.twice, far, one) == 1


def test_numbers_of_the_table():
    assert [_number(x) for x in (None, 0.0, 0.00123)] == ['-', '0', '1.2e-03']
