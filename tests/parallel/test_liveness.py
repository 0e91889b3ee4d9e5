"""Signs of life of many processes, on a simulated clock."""

import pytest

from emigm_jax.benchmark import pods
from emigm_jax.parallel import liveness


def test_a_pod_of_1024_processes_loses_none_by_mistake():
    found = pods.lives(1024, 300.0)
    print(f'{found.calls:.2f} calls per process and beat')
    assert found.calls <= 4
    assert not found.ended


def test_a_dead_one_is_named_by_all_within_a_minute():
    found = pods.lives(1024, 200.0, dies=(700,), at=100.0)
    assert found.ended.keys() == set(range(1024)) - {700}
    times = [when - 100.0 for when, _ in found.ended.values()]
    print(f'named after {min(times):.1f} to {max(times):.1f} s')
    assert 0 < max(times) < 60
    line = 'process 700 of this run has ended or does not answer any more'
    assert {said for _, said in found.ended.values()} == {line}


def test_many_dead_ones_are_counted_and_a_stuck_first_one_is_named():
    found = pods.lives(64, 100.0, dies=range(1, 21), at=10.0)
    assert found.ended[63][1].startswith('processes 1, 2, 3, 4, 5, 6, 7, 8 and 12 more of this run')
    found = pods.lives(64, 100.0, dies=(0,), at=10.0)
    assert {said.partition(' of')[0] for _, said in found.ended.values()} == {'process 0'}
    assert found.ended.keys() == set(range(1, 64))


def test_where_the_coordinator_drowns_the_dead_are_named_late():
    """The simulation feels calls: of 20 a second a beat of all takes longer than a minute."""
    found = pods.lives(1024, 400.0, dies=(700,), at=100.0, rate=20)
    assert min(when for when, _ in found.ended.values()) > 160
    assert all('process 700 ' in said for _, said in found.ended.values())


class Unanswered:
    """A store whose process has ended."""

    def __getattr__(self, name):
        raise RuntimeError('UNAVAILABLE')


def test_without_the_store_a_process_waits_and_then_ends():
    now = [0.0]
    watch = liveness.Watch(Unanswered(), 1, 2, lambda: now[0])
    assert watch.beat() == ''
    now[0] = liveness.SILENCE + 1
    assert watch.beat() == 'process 0 of this run does not answer any more'


@pytest.mark.parametrize('who', [0, 1])
def test_who_leaves_is_not_missed(who):
    store = pods.Store()
    watches = [liveness.Watch(store, i, 2, lambda: store.now) for i in range(2)]
    for watch in watches:
        watch.beat()
    watches[who].beat(leaving=True)
    for _ in range(40):
        store.now += liveness.BEAT
        assert not watches[1 - who].beat()
