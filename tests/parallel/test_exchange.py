"""What processes add up and hand to the first one, and how much each receives for it."""

import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emigm_jax.benchmark import traffic
from emigm_jax.parallel import exchange
from support.processes import free_port, with_devices

AXES, AUTO = (exchange.PROCESS, exchange.DEVICE), (AxisType.Auto,) * 2


@pytest.mark.parametrize('processes', [2, 64, 256])
def test_a_process_receives_twice_the_sums_however_many_there_are(processes):
    numbers = 2048 * 2049 + 2023 * 2024 + 10 * 1010 + 1  # pool, spatial, splits, count
    share = traffic.of_sums(processes, 4, numbers) / (8 * numbers)
    print(f'{processes} processes: {share:.4f} times the totals')
    assert 1 < share <= 3


def spread(array, *spec):
    """An array over four stand-ins of processes with two devices each."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), AXES, axis_types=AUTO)
    return mesh, jax.device_put(array, NamedSharding(mesh, P(*spec)))


def test_slices_reach_those_who_add_them_up():
    every = np.arange(4 * 4 * 2 * 3, dtype=np.uint32).reshape(4, 4, 2, 3)
    mesh, given = spread(every, exchange.PROCESS, None, exchange.DEVICE)
    found = exchange.dealt(mesh, given)
    np.testing.assert_array_equal(found, every)
    for shard in found.addressable_shards:  # all that is meant for one process, with it
        assert shard.data.shape == (4, 1, 1, 3)
    mesh, given = spread(every[0], exchange.PROCESS, exchange.DEVICE)
    found = exchange.shared(mesh, given)
    np.testing.assert_array_equal(found, every[0])
    assert {shard.data.shape for shard in found.addressable_shards} == {(4, 1, 3)}


def test_the_first_process_gets_the_rows_and_no_other():
    rows = np.arange(4 * 2 * 5, dtype=np.uint8).reshape(4, 2, 5)
    mesh, given = spread(rows, exchange.PROCESS, exchange.DEVICE)
    found = np.asarray(exchange.handed_over(mesh, given)).reshape(4, 4, 2, 5)
    np.testing.assert_array_equal(found[0], rows)
    assert not found[1:, 1:].any()
    pod = AbstractMesh((256, 4), AXES, axis_types=AUTO)
    operand = jax.ShapeDtypeStruct((256, 4, 3), np.uint8)
    program = jax.make_jaxpr(functools.partial(exchange.handed_over, pod))(operand).jaxpr
    (mapped,) = (inner for eqn in program.eqns for inner in core.jaxprs_in_params(eqn.params))
    sent = [eqn.params['perm'] for eqn in mapped.eqns if 'perm' in eqn.params]
    assert sent == [((other, 0),) for other in range(1, 256)]
    assert {eqn.primitive.name for eqn in mapped.eqns} == {'ppermute', 'concatenate'}


PROCESS = """
import sys
import jax, numpy as np
port, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f'127.0.0.1:{port}', 3, process)
from emigm_jax.parallel import exchange
values = [np.random.default_rng(i).standard_normal((7, 11)) for i in range(3)]
rows = [np.random.default_rng(i).integers(256, size=(4, 2, 3)).astype(np.uint8) for i in range(3)]
tree = {'outer': values[process], 'count': np.float64(process + 0.1)}
found = exchange.summed(tree)
np.testing.assert_array_equal(found['outer'], values[0] + values[1] + values[2])
assert found['count'].shape == () and found['count'] == 0.1 + 1.1 + 2.1
handed = exchange.to_first(rows[process])
assert handed is None if process else (handed == np.concatenate(rows)).all()
print('agrees')
"""


@pytest.mark.slow
def test_three_processes_with_two_devices_each():
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PROCESS, port, str(i)],
            env=with_devices(2),
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    for process in processes:
        assert 'agrees' in process.communicate(timeout=200)[0]
