"""What is timed, what is recorded of it, and what a comparison of records says."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.benchmark import records, search, timing
from emigm_jax.cli import main
from emigm_jax.errors import UserError

STEP = {'images_per_second': 10.0, 'fastest_step': 1.0, 'slowest_step': 2.0}


def row(batch=4, name='digits', settings=None, **figures):
    return records.Row(name, batch, settings or {'model.remat': 'none'}, {**STEP, **figures})


def record(*rows, command='train'):
    return records.record(command, rows)


def program(batch):
    run, x = jax.jit(jnp.sin), jnp.zeros((batch, 1000), jnp.float32)
    return timing.Program(lambda: run.lower(x), (x,), lambda _: (x,), 3e12, 'float32')


def test_the_median_counts_and_the_warm_up_does_not(monkeypatch):
    # Compilation, the warm-up, three steps: when each begins and ends.
    times = iter(np.cumsum([0, 7, 0, 100, 0, 1, 0, 5, 0, 2]))
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(times)))
    monkeypatch.setattr(timing, 'time', clock)
    monkeypatch.setattr(timing, '_matmul_peak', lambda dtype, precision: 6e12)
    figures = timing.measure(program, 8, 3)
    assert figures['compile_seconds'] == 7
    names = ('fastest_step', 'seconds_per_step', 'slowest_step', 'images_per_second')
    assert [figures[name] for name in names] == [1, 2, 5, 4]
    assert figures['tflops_per_second'] == 12
    assert figures['of_matmul_peak'] == 2 / jax.device_count()


def test_what_does_not_fit_is_not_run():
    with pytest.raises(timing.TooLarge):
        timing.measure(program, 8, 1, 8 * 4000)
    # A row of the input and one of the output.
    assert timing.measure(lambda b: program(b)._replace(flops=0), 8, 1, 2 * 8 * 4000)


def failing(error):
    def measure(batch):
        if batch > 12:
            raise error
        return {'images_per_second': float(batch)}

    return measure


NO_MEMORY = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')


@pytest.mark.parametrize('error', [timing.TooLarge(), NO_MEMORY])
def test_a_batch_is_doubled_while_it_fits(error):
    found = list(search.fitting(failing(error), 3, 100))
    assert found == [(n, {'images_per_second': float(n)}) for n in (3, 6, 12)]
    assert [n for n, _ in search.fitting(failing(error), 1, 5)] == [1, 2, 4]


def test_other_failures_are_no_lack_of_memory():
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
        list(search.fitting(failing(jax.errors.JaxRuntimeError('INTERNAL: no')), 8, 100))


def test_a_comparison_knows_chance(tmp_path, capsys):
    old = record(row(), row(8), row(16), row(32), row(64), row(256))
    new = record(
        row(images_per_second=9.0, slowest_step=4.0),
        row(8, fastest_step=0.5, slowest_step=0.9, images_per_second=20.0),
        row(16, fastest_step=2.5, slowest_step=3.0, images_per_second=5.0),
        row(32, slowest_step=1.0),
        row(64, fastest_step=0.5, slowest_step=1.5, images_per_second=12.0),
        row(128),
    )
    files = tmp_path / 'old.json', tmp_path / 'new.json'
    for each, file in zip((old, new), files, strict=True):
        each.save(file)
        assert records.load(file) == each
    assert main.main(['benchmark', 'compare', *map(str, files)]) == 0
    _, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[5:] for line in lines] == [
        ['0.900', 'within', 'the', 'spread'],
        ['2.000', 'faster'],
        ['0.500', 'slower'],
        ['1.000', 'spread', 'unknown'],
        ['1.200', 'within', 'the', 'spread'],
    ]
    assert last == 'rows in one record only: 2'


def test_a_comparison_says_what_else_differs():
    new = dataclasses.replace(record(row(settings={'model.remat': 'full'})), jax='9.9')
    lines = records.comparison(record(row()), new)
    assert lines[0] == f'jax: {jax.__version__} -> 9.9'
    assert lines[1] == 'digits, batch 4: model.remat none -> full'


def test_records_of_different_things_are_not_compared():
    with pytest.raises(UserError, match='of train, the other of sample'):
        records.comparison(record(row()), record(row(), command='sample'))
    with pytest.raises(UserError, match='in common'):
        records.comparison(record(row(4)), record(row(8)))


@pytest.mark.parametrize(
    'change',
    [
        lambda value: value.pop('rows'),
        lambda value: value.update(rows=3),
        lambda value: value.update(rows=[[]]),
        lambda value: value.update(command=7),
        lambda value: value.update(more=7),
        lambda value: value['rows'][0].update(figures={'images_per_second': 'many'}),
        lambda value: value['rows'][0].update(figures=[]),
        lambda value: value['rows'][0].update(name=None),
    ],
)
def test_what_is_no_record_is_one_line(change, tmp_path):
    value = json.loads(json.dumps(dataclasses.asdict(record(row()))))
    change(value)
    file = tmp_path / 'record.json'
    file.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r'record\.json: is no record of a benchmark'):
        records.load(file)


def test_a_table_has_a_line_per_row_and_no_empty_column():
    lines = records.table([row(), row(8, tflops_per_second=2.0)])
    assert [line.split() for line in lines] == [
        ['batch', 'images/s', 'fastest', 'slowest', 'TFLOP/s'],
        ['digits', '4', '10', '1', '2'],
        ['digits', '8', '10', '1', '2', '2'],
    ]
