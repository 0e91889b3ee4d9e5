"""Streaming sums against float64 NumPy, on one device and on eight."""

import functools
import inspect
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import threadpoolctl

from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception_score, scores, statistics
from support.processes import with_devices

BATCH = 64


@pytest.fixture
def rng():
    return np.random.Generator(np.random.Philox(key=0))


def mesh_of(devices):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ('data',), axis_types=auto, devices=jax.devices()[:devices])


def fill_up(rows, size):
    """`Rows` of {name: (B, ...)}, made `size` long by repeating the first one."""
    count = len(next(iter(rows.values())))
    take = np.concatenate([np.arange(count), np.zeros(size - count, np.int64)])
    full = {name: np.asarray(x)[take] for name, x in rows.items()}
    scored = [full.pop(name, None) for name in ('logits', 'split')]
    return statistics.Rows((np.arange(size) < count).astype(np.float32), full, *scored)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def near(one, other):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-4)
    jax.tree.map(close, one, other)


def totals_of(rows, shifts, devices=8, batch=BATCH, order=None):
    """The totals of rows {name: (N, ...)}, taken in `order` and by batches."""
    mesh = mesh_of(devices)
    state, add = statistics.begin(mesh, shifts, 'logits' in rows), statistics.adder(mesh)
    count = len(next(iter(rows.values())))
    order = np.arange(count) if order is None else order
    for start in range(0, count, batch):
        taken = order[start : start + batch]
        state = add(state, fill_up({k: x[taken] for k, x in rows.items()}, batch))
    return statistics.collect(state)


def correlated(rng, count, size):
    """Features whose variances fall over many orders, far from zero mean, as Inception's are."""
    scale = np.exp(-np.arange(size) * 6.0 / size, dtype=np.float32)
    noise = rng.standard_normal((count, size), np.float32) * scale
    return np.float32(0.4) + noise + np.float32(0.3) * np.roll(noise, 7, axis=1)


# On a machine with other work the threads of OpenBLAS mostly wait for each other, in busy loops.
@threadpoolctl.threadpool_limits.wrap(limits=1)
def check_fid(rng, count, batch, compared):
    """Streamed moments of 2048 features, and the FID of the first `compared` of them."""
    features = correlated(rng, count, 2048)
    mean, covariance = scores.mean_and_covariance(correlated(rng, 4000, 2048) * np.float32(1.05))
    totals = totals_of({'pool': features}, {'pool': mean}, jax.device_count(), batch)
    assert statistics.count(totals) == count
    streamed = statistics.moments(totals)
    direct = np.mean(features, 0, np.float64), np.cov(features, rowvar=False, dtype=np.float64)
    np.testing.assert_allclose(streamed[0], direct[0], atol=1e-7)
    np.testing.assert_allclose(streamed[1], direct[1], atol=1e-6)
    first = lambda pair: (pair[0][:compared], pair[1][:compared, :compared])
    (m1, c1), (m2, c2) = first((mean, covariance)), first(direct)
    # Another formula, the eigenvalues of L^T C2 L with C1 = L L^T, good while both are regular
    lower = np.linalg.cholesky(c1)
    trace = np.sqrt(np.linalg.eigvalsh(lower.T @ c2 @ lower)).sum()
    fid = np.square(m1 - m2).sum() + np.trace(c1 + c2) - 2 * trace
    assert scores.frechet_distance(m1, c1, *first(streamed)) == pytest.approx(fid, rel=1e-6)


def test_fid_of_streamed_moments(rng):
    # The last batch is partial. Singular values of all 2048 would take most of the suite's time.
    check_fid(rng, 6001, 512, compared=512)


@pytest.mark.full
def test_fid_of_fifty_thousand(rng):
    check_fid(rng, 50_000, 256, compared=2048)


@pytest.fixture
def some(rng):
    """333 images: five full batches and a partial one."""
    return {
        'pool': correlated(rng, 333, 40),
        'spatial': correlated(rng, 333, 24),
        'logits': 4 * rng.standard_normal((333, 1008), np.float32),
        'split': inception_score.split_of_images(333),
    }


SHIFTS = {'pool': np.full(40, 0.5), 'spatial': np.zeros(24)}


def test_eight_devices_equal_one(some):
    eight, one = (totals_of(some, SHIFTS, devices) for devices in (8, 1))
    assert statistics.count(eight) == 333
    near(eight, one)
    for name in ('pool', 'spatial'):
        direct = scores.mean_and_covariance(some[name])
        for totals in (eight, one):
            mean, covariance = statistics.moments(totals, name)
            np.testing.assert_allclose(mean, direct[0], atol=1e-6)
            np.testing.assert_allclose(covariance, direct[1], atol=1e-6)
    assert statistics.score(eight) == pytest.approx(statistics.score(one), rel=1e-6)


def test_a_step_is_exact_and_needs_no_communication(some):
    mesh = mesh_of(8)
    rows = fill_up({k: x[:60] for k, x in some.items()}, BATCH)
    lowered = statistics.adder(mesh).lower(statistics.begin(mesh, SHIFTS), rows)
    products = [line for line in lowered.as_text().splitlines() if 'dot_general' in line]
    assert products
    assert all(line.count('HIGHEST') == 2 for line in products)
    talk = r'all-(reduce|gather|to-all)|collective-permute|reduce-scatter'
    assert not re.search(talk, lowered.compile().as_text())


def test_rows_of_weight_zero_may_hold_anything(some):
    mesh = mesh_of(8)
    clean = fill_up({k: x[:50] for k, x in some.items()}, BATCH)
    dirty = jax.tree.map(np.copy, clean)
    for array in (*dirty.features.values(), dirty.logits):
        array[50:] = np.nan
    add = statistics.adder(mesh)
    one, two = (
        statistics.collect(add(statistics.begin(mesh, SHIFTS), rows)) for rows in (clean, dirty)
    )
    assert statistics.count(two) == 50
    counts = np.bincount(some['split'][:50], minlength=10)
    np.testing.assert_array_equal(two.sums.splits.counts, counts)
    same(one, two)


def from_logits(logits, splits=None):
    """(mean, standard deviation) from logits (N, C) without bias, in float64.

    Args:
      logits: (N, C), image i in row i.
      splits: (N,) split of each row; None: `inception_score.split_of_images`.
    """
    logits = np.asarray(logits, np.float64)
    splits = inception_score.split_of_images(len(logits)) if splits is None else np.asarray(splits)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    member = (splits[None] == np.arange(inception_score.SPLITS)[:, None]).astype(np.float64)
    return inception_score.from_sums(member.sum(1), member @ p, member @ (p * log_p).sum(1))


def direct_inception_score(logits):
    """The definition, split by split, in float64."""
    logits = logits.astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p = p[np.random.RandomState(2020).permutation(len(p))]
    found = []
    for i in range(10):
        part = p[i * len(p) // 10 : (i + 1) * len(p) // 10]
        divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        found.append(np.exp(divergence.mean()))
    return np.mean(found), np.std(found)


def test_inception_score_in_any_order(some, rng):
    exact = direct_inception_score(some['logits'])
    assert from_logits(some['logits']) == pytest.approx(exact, rel=1e-12)
    rows = {key: some[key] for key in ('logits', 'split')}
    for order, batch in ((None, 64), (rng.permutation(333), 64), (rng.permutation(333), 56)):
        totals = totals_of(rows, {}, batch=batch, order=order)
        assert statistics.score(totals) == pytest.approx(exact, rel=1e-6)


def test_inception_score_depends_on_the_split(some):
    """So that the test above would notice a score without the shuffle."""
    unshuffled = np.arange(333) * 10 // 333
    shuffled = from_logits(some['logits'])
    assert from_logits(some['logits'], unshuffled) != pytest.approx(shuffled, rel=1e-4)


def test_known_inception_scores():
    """Images of 10 classes in equal shares and without doubt score 10; equal images score 1."""
    classes = np.repeat(np.arange(10), 10)
    splits = np.tile(np.arange(10), 10)  # every class in every split
    sure = 200.0 * (classes[:, None] == np.arange(1008))
    assert from_logits(sure, splits) == pytest.approx((10.0, 0.0))
    assert from_logits(np.zeros((100, 1008))) == pytest.approx((1.0, 0.0))


def test_a_run_in_two_parts(some, tmp_path):
    whole = totals_of(some, SHIFTS)
    first = totals_of({k: x[:150] for k, x in some.items()}, SHIFTS)
    statistics.save(tmp_path / 'sums.npz', first)
    second = totals_of({k: x[150:] for k, x in some.items()}, SHIFTS, devices=2)
    held = statistics.load(tmp_path / 'sums.npz')
    same(held, first)
    both = statistics.combine(held, second)
    assert [f.name for f in tmp_path.iterdir()] == ['sums.npz']
    near(both, whole)
    other = totals_of(some, {**SHIFTS, 'pool': np.zeros(40)})
    with pytest.raises(UserError, match='another reference'):
        statistics.combine(first, other)
    with pytest.raises(UserError, match='other metrics'):
        statistics.combine(first, totals_of({'pool': some['pool']}, {'pool': SHIFTS['pool']}))


def test_names_in_the_file_stay(some, tmp_path):
    """So that evaluations go on that were begun before."""
    totals = totals_of(some, SHIFTS)
    statistics.save(tmp_path / 'sums.npz', totals)
    kinds = {f'{kind}_{part}' for kind in SHIFTS for part in ('shift', 'sum', 'outer')}
    with np.load(tmp_path / 'sums.npz') as file:
        assert set(file) == {'count', 'split_count', 'split_p', 'split_plogp'} | kinds
        np.testing.assert_array_equal(file['pool_sum'], totals.sums.moments['pool'].total)
        np.testing.assert_array_equal(file['split_plogp'], totals.sums.splits.entropies)
        torn = {name: file[name] for name in file if name != 'pool_outer'}
    np.savez(tmp_path / 'torn.npz', **torn)
    with pytest.raises(UserError, match='holds no sums'):
        statistics.load(tmp_path / 'torn.npz')
    plain = totals_of({'pool': some['pool']}, {'pool': SHIFTS['pool']})
    statistics.save(tmp_path / 'plain.npz', plain)
    same(statistics.load(tmp_path / 'plain.npz'), plain)


def test_what_cannot_be_computed_says_why(some, tmp_path):
    one = totals_of({k: x[:1] for k, x in some.items()}, SHIFTS)
    with pytest.raises(UserError, match='at least 2 images, not 1'):
        statistics.moments(one)
    with pytest.raises(UserError, match='in all 10 splits'):
        statistics.score(one)
    with pytest.raises(UserError, match='at least 10 images, not 9'):
        inception_score.split_of_images(9)
    plain = totals_of({'pool': some['pool']}, {'pool': SHIFTS['pool']})
    with pytest.raises(UserError, match='were not summed'):
        statistics.moments(plain, 'spatial')
    with pytest.raises(UserError, match='was not summed'):
        statistics.score(plain)
    broken = {k: x.copy() for k, x in some.items()}
    broken['pool'][7, 3], broken['logits'][7, 3] = np.nan, np.nan
    totals = totals_of(broken, SHIFTS)
    with pytest.raises(UserError, match='not finite'):
        statistics.moments(totals)
    with pytest.raises(UserError, match='not finite'):
        statistics.score(totals)
    np.savez(tmp_path / 'else.npz', other=np.zeros(3))
    with pytest.raises(UserError, match='holds no sums'):
        statistics.load(tmp_path / 'else.npz')
    with pytest.raises(UserError, match='no such file'):
        statistics.load(tmp_path / 'missing.npz')


PROCESS = """
import sys
import jax, numpy as np
port, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, process)
from emigm_jax.evaluation import scores, statistics
{fill_up}
features = np.random.Generator(np.random.Philox(key=0)).standard_normal((203, 30), np.float32)
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
state, add = statistics.begin(mesh, {'pool': np.full(30, 0.1)}, False), statistics.adder(mesh)
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
for start in range(0, 203, 16):
    rows = fill_up({'pool': features[start : start + 16]}, 16)
    mine = jax.tree.map(lambda x: x[8 * process : 8 * process + 8], rows)
    local = lambda x: jax.make_array_from_process_local_data(place, x)
    state = add(state, jax.tree.map(local, mine))
totals = statistics.collect(state)
assert statistics.count(totals) == 203
for one, two in zip(statistics.moments(totals), scores.mean_and_covariance(features)):
    np.testing.assert_allclose(one, two, atol=1e-6)
print('agrees')
"""


@pytest.mark.full
def test_two_processes_with_two_devices_each():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    program = PROCESS.replace('{fill_up}', inspect.getsource(fill_up))
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', program, port, str(i)],
            env=with_devices(2),
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        assert 'agrees' in process.communicate(timeout=200)[0]
