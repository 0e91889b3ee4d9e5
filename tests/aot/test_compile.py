"""`emigm compile`: the reader of programs, the roofline, the search for a mesh, its refusals."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from emigm_jax.aot import chips, collectives, costs, hlo, program, roofline, search
from emigm_jax.cli import main
from emigm_jax.config import nested, recipes
from emigm_jax.errors import UserError
from emigm_jax.parallel.sharding import MeshConfig
from emigm_jax.sampling.sampler import Sampler

ROOT = pathlib.Path(__file__).parents[2]
TINY = f'--config={ROOT}/configs/imagenet256.py:size=xs,tiny'

# As a TPU's compiler writes it: no trip counts, groups along mesh axes, an all-reduce and a slice
# fused into a reduce-scatter, a convolution of which one tap per batch entry falls on data.
TPU = """HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%scattered (p: f32[64,16]) -> f32[8,16] {
  %p = f32[64,16]{1,0:T(8,128)} parameter(0)
  %ar = f32[64,16]{1,0:T(8,128)} all-reduce(%p), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %cut = f32[8,16]{1,0:T(8,128)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={8,16}
}

%body (c: (s32[], bf16[16,16], f32[4,8,16])) -> (s32[], bf16[16,16], f32[4,8,16]) {
  %c = (s32[]{:T(128)}, bf16[16,16]{1,0:T(8,128)(2,1)}, f32[4,8,16]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %w = bf16[16,16]{1,0:T(8,128)(2,1)} get-tuple-element(%c), index=1
  %gs = (bf16[16,16]{1,0:T(8,128)(2,1)}, bf16[64,16]{1,0:T(8,128)(2,1)}) all-gather-start(%w), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %gd = bf16[64,16]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%gs)
  %x = f32[4,8,16]{2,1,0:T(8,128)} get-tuple-element(%c), index=2
  %y = f32[4,8,16]{2,1,0:T(8,128)} convolution(%x, %x), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf
  ROOT %out = (s32[]{:T(128)}, bf16[16,16]{1,0:T(8,128)(2,1)}, /*index=2*/f32[4,8,16]{2,1,0:T(8,128)}) tuple(%next, %w, %y)
}

%condition (c.1: (s32[], bf16[16,16], f32[4,8,16])) -> pred[] {
  %c.1 = (s32[]{:T(128)}, bf16[16,16]{1,0:T(8,128)(2,1)}, f32[4,8,16]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (w0: bf16[16,16], x0: f32[4,8,16], g0: f32[64,16]) -> (f32[8,16], f32[3]) {
  %w0 = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(0)
  %x0 = f32[4,8,16]{2,1,0:T(8,128)} parameter(1)
  %g0 = f32[64,16]{1,0:T(8,128)} parameter(2)
  %start = s32[]{:T(128)} constant(2)
  %t = (s32[]{:T(128)}, bf16[16,16]{1,0:T(8,128)(2,1)}, f32[4,8,16]{2,1,0:T(8,128)}) tuple(%start, %w0, %x0)
  %loop = (s32[]{:T(128)}, bf16[16,16]{1,0:T(8,128)(2,1)}, f32[4,8,16]{2,1,0:T(8,128)}) while(%t), condition=%condition, body=%body
  %all-reduce-scatter.1 = f32[8,16]{1,0:T(8,128)} fusion(%g0), kind=kCustom, calls=%scattered
  %v = (f32[3]{0:T(128)}, pred[5]{0:T(512)}) custom-call(%g0), custom_call_target="x"
  %v0 = f32[3]{0:T(128)} get-tuple-element(%v), index=0
  %v1 = pred[5]{0:T(512)} get-tuple-element(%v), index=1
  %both = (f32[3]{0:T(128)}, pred[5]{0:T(512)}) all-reduce(%v0, %v1), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %moved = f32[8,16]{1,0:T(8,128)} collective-permute(%all-reduce-scatter.1), source_target_pairs={{0,1},{1,0}}
  ROOT %result = (f32[8,16]{1,0:T(8,128)}, f32[3]{0:T(128)}) tuple(%moved, %v0)
}
"""  # noqa: E501


def rows(module, slices=1):
    return {(c.kind, c.devices): c for c in collectives.collectives(module, slices)}


def test_collectives_of_a_recorded_program():
    found = rows(hlo.parse(TPU))
    assert set(found) == {
        ('all-gather', 4),
        ('reduce-scatter', 8),
        ('all-reduce', 2),
        ('collective-permute', 2),
    }
    gather = found['all-gather', 4]
    assert gather.count == 5  # from 2 to 7; its -done is not counted
    assert gather.payload == 5 * 64 * 16 * 2
    assert gather.sent == gather.payload * 3 / 4
    scatter = found['reduce-scatter', 8]
    assert (scatter.count, scatter.payload) == (1, 64 * 16 * 4)
    assert scatter.sent == 64 * 16 * 4 * 7 / 8
    both = found['all-reduce', 2]
    assert (both.count, both.payload, both.sent) == (1, 3 * 4 + 5, 3 * 4 + 5)
    assert found['collective-permute', 2].sent == 8 * 16 * 4


def test_collectives_between_slices():
    """Devices 0-3 and 4-7 are slices: {0,4} crosses, the gather along 'b' does not."""
    found = rows(hlo.parse(TPU), slices=2)
    assert {kind for (kind, _), c in found.items() if c.between_slices} == {
        'all-reduce',
        'reduce-scatter',
    }


# As libtpu writes a program of two slices: four devices of one, and transfers to the other.
SLICES = """HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=4

ENTRY %main (g: f32[8,16]) -> f32[8,16] {
  %g = f32[8,16]{1,0:T(8,128)} parameter(0)
  %within = f32[8,16]{1,0:T(8,128)} all-reduce(%g), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %token = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.5_0"}
  %out = (f32[8,16]{1,0:T(8,128)}, u32[], token[]) send(%within, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %in = (f32[8,16]{1,0:T(8,128)}, u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%out), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %received = (f32[8,16]{1,0:T(8,128)}, token[]) recv-done(%in), channel_id=3, is_host_transfer=true
  ROOT %sum = f32[8,16]{1,0:T(8,128)} get-tuple-element(%received), index=0
}
"""  # noqa: E501


def test_transfers_between_slices():
    found = collectives.collectives(hlo.parse(SLICES), slices=2)
    within = collectives.Collective('all-reduce', 4, False, 1, 512.0)
    between = collectives.Collective('all-reduce', 2, True, 1, 512.0)
    assert found == [within, between]
    assert (within.sent, between.sent) == (2 * 512 * 3 / 4, 512)


def test_a_collective_in_a_chain_of_fusions_counts_once():
    gather = (
        '  ROOT %g = f32[8,16]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], '
        'dimensions={0}, frontend_attributes={chain_id="2"}'
    )
    part = '%part.N (p: f32[1,16]) -> f32[8,16] {\n  %p = f32[1,16]{1,0} parameter(0)\n' + gather
    calls = '  %f.N = f32[8,16]{1,0} fusion(%x), kind=kCustom, calls=%part.N\n'
    text = 'HloModule m, num_partitions=8\n\n'
    text += ''.join(part.replace('.N', f'.{n}') + '\n}\n\n' for n in range(3))
    text += 'ENTRY %main (x: f32[1,16]) -> f32[8,16] {\n  %x = f32[1,16]{1,0} parameter(0)\n'
    text += ''.join(calls.replace('.N', f'.{n}') for n in range(3)) + '}\n'
    ((row),) = collectives.collectives(hlo.parse(text))
    assert (row.kind, row.count, row.payload) == ('all-gather', 1, 8 * 16 * 4)


@pytest.mark.parametrize(
    ('text', 'members'),
    [
        ('replica_groups={{0,2},{1,3}}', [0, 2]),
        ('replica_groups=[2,4]<=[8]', [0, 1, 2, 3]),
        ('replica_groups=[4,2]<=[2,4]T(1,0)', [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", list(range(8))),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [0, 2, 4, 6]),
        ('replica_groups={}', list(range(8))),
        ('source_target_pairs={{0,1},{1,5}}', [1, 5]),
    ],
)
def test_groups(text, members):
    assert list(collectives.group(text, 8)) == members


def test_products_of_a_recorded_program():
    found = costs.costs(hlo.parse(TPU))
    # (8 x 16) (16 x 8) for each of 4 batch entries, written as a window of which one tap counts;
    # its result type, 8 x 16 entries per batch entry, is what the text says.
    assert found.products == 5 * 4 * 2 * 8 * 16 * 16


def test_kernels_count_what_they_say():
    text = """HloModule m, num_partitions=1

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %place = f32[3,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %k = f32[8,128]{1,0:T(8,128)} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"1234","bytes_accessed":"8192"}}}
}
"""  # noqa: E501
    found = costs.costs(hlo.parse(text))
    assert (found.products, found.traffic) == (1234.0, 2 * 8 * 128 * 4)


def test_traffic_counts_slices_not_stacks():
    text = """HloModule m, num_partitions=1

%fused (a: f32[20,8,128], i: s32[], s: f32[20,8,128]) -> f32[20,8,128] {
  %a = f32[20,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %s = f32[20,8,128]{2,1,0:T(8,128)} parameter(2)
  %z = s32[]{:T(128)} constant(0)
  %layer = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%a, %i, %z, %z), dynamic_slice_sizes={1,8,128}
  ROOT %u = f32[20,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%s, %layer, %i, %z, %z)
}

ENTRY %main (p: f32[20,8,128], i0: s32[], q: f32[20,8,128]) -> f32[20,8,128] {
  %p = f32[20,8,128]{2,1,0:T(8,128)} parameter(0)
  %i0 = s32[]{:T(128)S(6)} parameter(1)
  %q = f32[20,8,128]{2,1,0:T(8,128)} parameter(2)
  %f = f32[20,8,128]{2,1,0:T(8,128)} fusion(%p, %i0, %q), kind=kLoop, calls=%fused
  %c = (f32[20,8,128]{2,1,0:T(8,128)S(1)}, f32[20,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%f)
  ROOT %d = f32[20,8,128]{2,1,0:T(8,128)S(1)} copy-done(%c)
}
"""  # noqa: E501
    layer, stack = 8 * 128 * 4, 20 * 8 * 128 * 4
    # One layer read, one written, then the whole read into the core's memory.
    assert costs.costs(hlo.parse(text)).traffic == 2 * layer + stack


def test_a_program_of_eight_devices():
    """Layers gathered in a loop: bytes by hand, trip counts as a CPU's compiler writes them."""
    mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))
    cut = NamedSharding(mesh, P(None, 'x'))
    rows_cut, whole = NamedSharding(mesh, P('x')), NamedSharding(mesh, P())

    def run(w, x):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    shape = lambda s, sharding: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding)
    lowered = jax.jit(run).lower(shape((6, 32, 32), cut), shape((16, 32), rows_cut))
    module = hlo.parse(lowered.compile().as_text())
    assert module.devices == 8
    found = rows(module)
    # All layers at once, or one at a time: the same bytes.
    assert found['all-gather', 8].payload == 6 * 32 * 32 * 4
    assert found['all-reduce', 8].payload == 4
    assert costs.costs(module).products == 6 * 2 * 2 * 32 * 32  # 2 rows on each device


def test_chips_agree_with_their_published_pods():
    # "ICI bandwidth (bidirectional, per chip)", GB/s, of the tables of Cloud TPU.
    both_ways = {kind: chip.link * 2 * 2 * chip.axes for kind, chip in chips.CHIPS.items()}
    assert both_ways['v5e'] == 400e9
    assert both_ways['v5p'] == 1200e9
    assert both_ways['v6e'] == 800e9
    for chip in chips.CHIPS.values():
        assert chip.config == ('megacore' if chip.cores == 2 else 'default')


@pytest.mark.parametrize(
    ('name', 'devices', 'hosts', 'rings'),
    [
        ('v5e:16x16', 256, 64, (True, True)),
        ('v5e:8x16', 128, 32, (False, True)),
        ('v4:2x2x4', 16, 4, (False, False, True)),
        ('v5e:1x1', 1, 1, ()),
        ('v6e:2x4', 8, 2, (False, False)),
    ],
)
def test_topologies(name, devices, hosts, rings):
    found = chips.topology(name)
    assert (found.name, found.chips, found.hosts, found.rings) == (name, devices, hosts, rings)
    assert chips.topology(name, 2).chips == 2 * devices


def test_roofline_by_hand():
    topology = chips.topology('v5e:16x16')
    work = costs.Costs(products=197e12, vector=0.61e12, traffic=0.819e11)
    travel = [
        collectives.Collective('all-gather', 256, False, 1, 256e9),  # both rings: 200 GB/s
        collectives.Collective('all-reduce', 16, False, 1, 16e9),  # one ring: 100 GB/s
        collectives.Collective('all-reduce', 2, True, 1, 6.25e9),
    ]
    found = roofline.estimate(topology, work, travel)
    assert found.compute == pytest.approx(1.0)
    assert found.vector == pytest.approx(0.1)
    assert found.hbm == pytest.approx(0.1)
    assert found.ici == pytest.approx(255 / 200 + 2 * 15 / 100)
    assert found.dcn == pytest.approx(1.0)
    assert found.bound == 'ici'
    assert found.overlapped == found.ici
    assert found.serial == pytest.approx(sum(found))
    mfu = roofline.utilisation(topology, 0.5 * 256 * 197e12, 2.0)
    assert mfu == pytest.approx(0.25)


def test_open_axes_carry_half():
    assert roofline.bandwidth(chips.topology('v5e:8x8'), 64) == 2 * 50e9
    assert roofline.bandwidth(chips.topology('v5e:8x8'), 8) == 50e9
    assert roofline.bandwidth(chips.topology('v5e:16x16'), 256) == 4 * 50e9
    assert roofline.alike(chips.topology('v5e:8x8'), 'v4').name == 'v4:4x4x4'
    assert roofline.alike(chips.topology('v4:2x2x4'), 'v6e').name == 'v6e:4x4'


def huge(**training):
    config = recipes.published('emigm', 256, 'h')
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def test_meshes_in_order():
    levels = search.plan(huge(), chips.topology('v5e:16x16'))
    assert [level[:2] for level in levels[:4]] == [
        ('dots', 1),
        ('dots', 2),
        ('full', 1),
        ('full', 2),
    ]
    for _, accumulate, found in levels:
        assert found == sorted(found, key=lambda c: c.seconds)
        for candidate in found:
            mesh = candidate.mesh
            assert mesh.data * mesh.fsdp * mesh.tensor == 256
            assert 2048 % (mesh.data * mesh.fsdp * accumulate * 4) == 0
    best = levels[0][2][0]
    assert best.mesh == MeshConfig(1, 8, 32, 1)  # H updates 15 GB of state where it is not cut
    assert best.state == pytest.approx(942_401_824 * 16 / 32)


def test_a_mesh_of_the_config_is_the_only_one():
    config = dataclasses.replace(huge(), mesh=MeshConfig(fsdp=64))
    ((remat, accumulate, found),) = search.plan(config, chips.topology('v5e:16x16'))
    assert (remat, accumulate, len(found)) == ('none', 1, 1)
    assert found[0].mesh == MeshConfig(fsdp=64)


class Fake:
    """Stands for the compiler: says what a program takes."""

    def __init__(self, takes):
        self.takes, self.tried = takes, []

    def train(self, config, mesh):
        key = config.model.remat, config.training.accumulate, mesh.shape['tensor']
        self.tried.append(key)
        needs = self.takes[config.model.remat] / config.training.accumulate
        if needs > 15.75:
            raise program.TooLarge(needs * chips.GIB)
        return dataclasses.make_dataclass('Made', ['total'])(needs * chips.GIB)


@pytest.mark.parametrize(
    ('takes', 'settings'),
    [
        ({'none': 62, 'dots': 12, 'full': 9}, ('dots', 1, 1)),
        ({'none': 62, 'dots': 30, 'full': 15}, ('dots', 2, 1)),
        ({'none': 90, 'dots': 60, 'full': 30}, ('full', 2, 1)),
        ({'none': 900, 'dots': 600, 'full': 500}, None),
    ],
)
def test_search_tries_until_one_fits(takes, settings, monkeypatch):
    fake = Fake(takes)
    monkeypatch.setattr(search.program, 'train', fake.train)
    monkeypatch.setattr(search.sharding, 'make_mesh', lambda config, devices: devices(config))
    mesh = lambda config: dataclasses.make_dataclass('Mesh', ['shape'])({'tensor': config.tensor})
    attempts = list(search.search(huge(), chips.topology('v5e:8x8'), mesh, lambda text: None))
    last = attempts[-1]
    if settings is None:
        assert last.compiled is None
        assert len(attempts) == len(
            search.plan(huge(), chips.topology('v5e:8x8'))
        )  # no other mesh would help
        return
    assert fake.tried[-1] == settings
    assert all(a.compiled is None for a in attempts[:-1])
    assert f'--config.model.remat={settings[0]}' in last.flags
    assert any(f.startswith('--config.mesh.fsdp=') for f in last.flags)


def test_refusals_of_the_compiler_are_read():
    gib = 2**30
    read = program.needed
    assert (
        read(
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (18.43G) exceeds available HBM (15.75G).'
        )
        == 18.43 * gib
    )
    assert (
        read(
            'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.00G of 15.75G hbm.'
        )
        == 30 * gib
    )
    with pytest.raises(RuntimeError, match='the compiler failed'):
        read('INTERNAL: something else')


def command(*flags):
    return ['compile', *map(str, flags)]


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        ((TINY,), '--topology'),
        ((TINY, '--topology', 'v5x:4x4'), "no TPU 'v5x'"),
        ((TINY, '--topology', 'v5e'), 'v5e:4x4'),
        ((TINY, '--topology', 'v5e:3x3'), 'even'),
        ((TINY, '--topology', 'v4:4x4'), 'v4 has 3 axes'),
        ((TINY, '--topology', 'v5e:16x16'), 'must be a multiple of 512'),
        ((TINY, '--topology', 'v5e:2x2', '--config.mesh.fsdp=3'), 'do not make up 4 device'),
        ((TINY, '--topology', 'v5e:2x2', '--batch-size', 8), 'training.batch_size'),
        (('sample', TINY, '--topology', 'v5e:2x2', '--batch-size', 6), 'multiple of the 4'),
        (('sample', TINY, '--topology', 'v5e:2x2', '--batch-size', 0), 'multiple of the 4'),
        ((TINY, '--topology', 'v5e:2x2', '--json', '/nowhere/x.json'), 'no such folder'),
    ],
)
def test_refusals(flags, says, capsys, monkeypatch):
    monkeypatch.setattr(program, 'devices', lambda topology: jax.devices()[: topology.chips])
    assert main.main(command(*flags)) == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert '\n' not in message


def test_libtpu_is_named_where_it_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(program.importlib.util, 'find_spec', lambda name: None)
    assert main.main(command(TINY, '--topology', 'v5e:2x2')) == 2
    assert 'emigm_jax[aot]' in capsys.readouterr().err


def test_flags_of_stacks_are_those_that_the_library_knows(tmp_path):
    library = tmp_path / 'libtpu.so'
    library.write_bytes(b'\x7fELF\0FLAGS_fibers_default_thread_stack_size\0more')
    assert program.deep_stacks('', library) == ['--fibers_default_thread_stack_size=4194304']
    library.write_bytes(library.read_bytes() + b'\0FLAGS_default_thread_stack_size\0')
    assert len(program.deep_stacks('', library)) == 2
    # What the user asks for holds.
    assert program.deep_stacks('--default_thread_stack_size=9', library) == [
        '--fibers_default_thread_stack_size=4194304'
    ]


def test_dry_run(capsys):
    flags = (f'--config={ROOT}/configs/imagenet256.py:size=h', '--topology', 'v5e:16x16')
    assert main.main(command(*flags, '--dry-run')) == 0
    out = capsys.readouterr().out
    assert '256 devices on 64 host(s)' in out
    assert out.index('fsdp 32, remat dots') < out.index('remat full, accumulate 2')
    assert main.main(command('sample', *flags, '--dry-run')) == 0
    assert '2048 images, 8 per device' in capsys.readouterr().out


def tiny():
    return nested.resolve(recipes.recipe('emigm', 256, 'size=xs,tiny'))


@pytest.mark.slow
def test_report_of_a_real_program(tmp_path, capsys, monkeypatch):
    """The whole command with eight CPU devices in place of TPUs."""
    monkeypatch.setattr(program, 'devices', lambda topology: jax.devices()[: topology.chips])
    file = tmp_path / 'figures.json'
    flags = (TINY, '--topology', 'v5e:2x2', '--config.mesh.data=1', '--config.mesh.fsdp=4')
    assert main.main(command(*flags, '--json', file)) == 0
    out = capsys.readouterr().out
    values = json.loads(file.read_text())
    assert values['state_times_devices'] <= 1.05
    assert values['products'] * 4 >= 0.95 * values['model_flops_of_all_devices']
    assert {row['kind'] for row in values['collectives']} >= {'all-gather', 'all-reduce'}
    for kind, row in values['estimates'].items():
        assert kind in out
        assert row['overlapped'] <= row['serial']
    flags = ('sample', TINY, '--topology', 'v5e:2x2', '--batch-size', 4)
    assert main.main(command(*flags, '--json', file)) == 0
    values = json.loads(file.read_text())
    assert values['collectives'] == []  # images know nothing of one another
    assert values['products'] * 4 >= 0.95 * values['model_flops_of_all_devices']


def test_sampler_lowers_for_a_mesh():
    """What is lowered has the shapes of what runs."""
    config = tiny()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('data',))
    sampler = Sampler(config.model, config.sampling, mesh)
    lowered = sampler.lower(4)
    tokens = jax.tree.leaves(lowered.out_info)
    assert [t.shape for t in tokens] == [(4, 256, 16)]


def test_topology_of_a_wrong_kind_is_an_error_of_the_user():
    with pytest.raises(UserError, match='did you mean'):
        chips.topology('v5f:4x4')
