"""State that all processes hold whole is read once, by all of them together."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.checkpoints import store
from support.processes import free_port, with_devices

PROCESSES = 4
SIZE = 2**18  # numbers of an array
PROCESS = """
import pathlib, sys
import jax, numpy as np
folder, port, process = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f'127.0.0.1:{port}', 4, process)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from emigm_jax.checkpoints import store
from emigm_jax.errors import Damaged
from emigm_jax.parallel import exchange
exchange._ROUND = 2**20  # several rounds
mesh = Mesh(np.array(jax.devices()), ('data',))
place = lambda leaf, spec: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

def abstract(stored):
    placed = jax.tree.map(lambda leaf: place(leaf, P()), stored.tree)
    return {**placed, 'sharded': place(stored.tree['sharded'], P('data'))}

def received():
    fields = dict(line.split(': ') for line in open('/proc/self/io').read().splitlines())
    return int(fields['rchar'])

warm = store.checkpoint(folder / 'warm')  # what is imported is read as well
warm.load_by_all(jax.tree.map(lambda leaf: place(leaf, P()), warm.tree))
stored = store.checkpoint(folder / 'whole')
before = received()
found = stored.load_by_all(abstract(stored))
print('read:', received() - before)
wanted = np.load(folder / 'wanted.npz')
for name, array in found.items():
    assert array.is_fully_replicated == (name != 'sharded')
    for shard in array.addressable_shards:
        whole = wanted[name].view(array.dtype).reshape(array.shape)
        assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes(), name
stored = store.checkpoint(folder / 'cut')
try:
    stored.load_by_all(abstract(stored))
except Damaged as error:
    print('error:', error)
"""


@pytest.mark.slow
def test_four_processes_read_once(tmp_path):
    rng = np.random.default_rng(0)
    tree = {f'large{i}': rng.standard_normal((512, SIZE // 512), np.float32) for i in range(9)}
    tree |= {
        'half': rng.standard_normal((31, 7)).astype(jnp.bfloat16),
        'special': np.array([-0.0, np.nan, np.inf], np.float32),
        'step': np.array(7, np.int32),
        'flags': np.array([True, False, True]),
        'sharded': rng.standard_normal((8, 128), np.float32),
    }
    np.savez(tmp_path / 'wanted.npz', **{k: v.reshape(-1).view(np.uint8) for k, v in tree.items()})
    store.save(tmp_path / 'warm', {'x': np.ones(3, np.float32)}, {'x': 1})
    for name in ('whole', 'cut'):
        store.save(tmp_path / name, tree, {'x': 1})
    largest = max((tmp_path / 'cut').rglob('d/*'), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: SIZE * 2])
    command = [sys.executable, '-c', PROCESS, tmp_path, str(free_port())]
    processes = [
        subprocess.Popen([*command, str(i)], env=with_devices(2), stdout=subprocess.PIPE, text=True)
        for i in range(PROCESSES)
    ]
    told = []  # other lines are of the library that they talk by
    for process in processes:
        lines = process.communicate(timeout=200)[0].splitlines()
        told.append(dict(line.split(': ', 1) for line in lines if line.startswith(('read', 'err'))))
    assert not any(process.returncode for process in processes)
    whole = sum(file.stat().st_size for file in (tmp_path / 'whole').rglob('*'))
    share = sum(int(lines['read']) for lines in told) / whole
    print(f'{PROCESSES} processes read {share:.2f} times the bytes of the checkpoint')
    assert share < 1.2
    # One of them met what is cut off; nobody waits for the others.
    (error,) = {lines['error'] for lines in told}  # of the one that met it; nobody waits for him
    assert 'is damaged' in error
