"""A cache is as it was planned; what the README says of a hundred million pictures is the plan."""

import dataclasses
import pathlib

import numpy as np
import pytest

from emigm_jax.checkpoints import copy
from emigm_jax.data import plan, prepare
from support.caches import CODED, CONTENTS, Coded, Made

README = pathlib.Path(__file__).parents[2] / 'configs/README.md'
MILLIONS = 100_000_000


class Readable(Made):
    """None of them is damaged."""

    def rows(self, start, stop):
        for i in range(start, stop):
            yield prepare.Row(i % 3, f'{i}.png', self.views(i))


class Codes(Readable):
    """Likewise, of codes."""

    views = staticmethod(Coded.views)


@pytest.mark.parametrize('rows', [Readable, Codes])
@pytest.mark.parametrize(('pictures', 'size'), [(50, 8), (48, 8), (3, 8)])
def test_a_cache_is_as_planned(rows, pictures, size, tmp_path):
    contents = CODED if rows is Codes else CONTENTS
    contents = dataclasses.replace(contents, shard_rows=size)
    made = prepare.prepare(tmp_path / 'c', rows(pictures), contents)
    planned = plan.of(pictures, made.shape, contents.dtype, size)
    assert planned.shards == len(made.shards)
    assert planned.files == len(copy.listing(tmp_path / 'c'))
    header = 128
    assert planned.bytes == sum(shard.bytes - header for shard in made.shards)
    assert planned.shard_bytes == made.shards[0].bytes - header
    assert planned.picture_bytes * pictures == planned.bytes


@pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')
@pytest.mark.parametrize('side', [4, 200])  # of rows: a shard is one request, or three
def test_a_bucket_is_asked_as_planned(side, bucket, faults):
    contents = dataclasses.replace(CONTENTS, shard_rows=8)

    class Sized(Readable):
        @staticmethod
        def views(i):
            return np.zeros((2, side, side, 6), np.float32)

    asked = []
    for shards in (2, 6):
        faults.asked.clear()
        prepare.prepare(f'{bucket}/{shards}', Sized(8 * shards), contents)
        asked.append(len(faults.asked))
    planned = [plan.of(8 * n, (side, side, 6), 'float16', 8).requests for n in (2, 6)]
    assert asked[1] - asked[0] == planned[1] - planned[0]
    assert 0 <= asked[1] - planned[1] <= 15  # settings, labels, names and the like


def test_the_readme_says_what_is_planned():
    text = README.read_text()
    for raw, dtype in (((16, 16, 32), 'float16'), ((16, 16), 'uint16')):
        planned = plan.of(MILLIONS, raw, dtype, 4096, 8)
        said = (
            f'{planned.picture_bytes // 256} bytes | {planned.picture_bytes:,} bytes | '
            f'{planned.bytes / 1e9:,.1f} GB | {planned.shard_bytes / 1e6:.1f} MB |'
        )
        assert said in text
        counted = f'{planned.shards:,} shards, {planned.files:,} objects'
        assert counted in text
        assert f'{planned.requests:,} requests' in text
