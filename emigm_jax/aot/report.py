"""What a compilation says, for people and as JSON."""

from collections.abc import Iterator
from typing import Any

from emigm_jax.aot import chips, roofline
from emigm_jax.aot.chips import Topology
from emigm_jax.aot.program import Compiled

_GIB = chips.GIB


def figures(compiled: Compiled, topology: Topology) -> dict[str, Any]:
    """Everything that is printed, as plain values; bytes and FLOPs per device unless said."""
    hbm = topology.chip.hbm
    memory = {name: here for name, (here, _) in compiled.state.items()}
    return {
        'topology': topology.name,
        'slices': topology.slices,
        'devices': topology.chips,
        'hosts': topology.hosts,
        'hbm_bytes': hbm,
        'state_bytes': memory,
        'state_bytes_of_all_devices': {name: total for name, (_, total) in compiled.state.items()},
        'state_times_devices': share(compiled, topology),
        'temporary_bytes': compiled.temporary,
        'code_bytes': compiled.code,
        'total_bytes': compiled.total,
        'model_flops_of_all_devices': compiled.model_flops,
        **compiled.costs._asdict(),
        'reported_flops': compiled.reported_flops,
        'collectives': [{**row._asdict(), 'sent': row.sent} for row in compiled.collectives],
        'largest': [
            dict(zip(('bytes', 'array', 'count', 'origin'), row, strict=True))
            for row in compiled.largest
        ],
        'compile_seconds': compiled.seconds,
        'estimates': {kind: _estimate(compiled, topology, kind) for kind in chips.CHIPS},
    }


def share(compiled: Compiled, topology: Topology) -> float:
    """State of a device x devices / state in all: 1 if nothing is held twice."""
    here = sum(here for here, _ in compiled.state.values())
    return here * topology.chips / sum(total for _, total in compiled.state.values())


def _estimate(compiled, topology, kind):
    other = roofline.alike(topology, kind)
    seconds = roofline.estimate(other, compiled.costs, compiled.collectives)
    mfu = lambda s: roofline.utilisation(other, compiled.model_flops, s)
    return {
        'topology': other.name,
        **seconds._asdict(),
        'bound': seconds.bound,
        'overlapped': seconds.overlapped,
        'serial': seconds.serial,
        'mfu_overlapped': mfu(seconds.overlapped),
        'mfu_serial': mfu(seconds.serial),
        'fits': compiled.total <= other.chip.hbm,
    }


def lines(values: dict[str, Any]) -> Iterator[str]:
    """`figures` as lines of text."""
    size = lambda b: f'{b / _GIB:9.3f} GiB'
    slices = f'{values["slices"]} slices of ' if values['slices'] > 1 else ''
    yield (
        f'{slices}{values["topology"]}: {values["devices"]} devices on {values["hosts"]} '
        f'host(s), compiled in {values["compile_seconds"]:.0f} s'
    )
    yield ''
    yield 'memory of a device'
    for name, here in values['state_bytes'].items():
        total = values['state_bytes_of_all_devices'][name]
        yield f'  {name:<22}{size(here)}   of {total / _GIB:.3f} GiB'
    yield f'  {"activations and such":<22}{size(values["temporary_bytes"])}'
    yield f'  {"program":<22}{size(values["code_bytes"])}'
    of = values['total_bytes'] / values['hbm_bytes']
    room = size(values['hbm_bytes']).strip()
    yield f'  {"in all":<22}{size(values["total_bytes"])}   {of:.0%} of {room}'
    parts = values['devices'] / values['state_times_devices']
    yield f'  a device holds {"all" if parts < 1.01 else f"1 / {parts:.4g}"} of the state'
    yield '  largest arrays that the program makes:'
    for row in values['largest']:
        times = f' ({row["count"]} of them)' if row['count'] > 1 else ''
        yield f'  {size(row["bytes"])}  {row["array"]}{times}  {_short(row["origin"])}'
    yield ''
    yield 'work of a device per step'
    products, reported = values['products'], values['reported_flops']
    model = values['model_flops_of_all_devices'] / values['devices']
    yield f'  {products / 1e12:9.3f} TFLOP of matrix products in the program, loops multiplied out'
    yield f'  {model / 1e12:9.3f} TFLOP by the formula of the model; MFU is counted on these'
    yield f'  {reported / 1e12:9.3f} TFLOP by the compiler: a loop once, element-wise work, too'
    yield f'  {values["vector"] / 1e12:9.3f} T element-wise operations, random bits included'
    yield f'  {values["traffic"] / 1e9:9.3f} GB to and from HBM'
    yield ''
    yield 'collectives per step     devices    count       arrays   sent by a device'
    for row in values['collectives']:
        kind = row['kind'] + (' (dcn)' if row['between_slices'] else '')
        yield (
            f'  {kind:<24}{row["devices"]:>6}{row["count"]:>9}{row["payload"] / 1e9:>10.3f} GB'
            f'{row["sent"] / 1e9:>13.3f} GB'
        )
    if not values['collectives']:
        yield '  none'
    yield ''
    yield 'estimate, ms        compute  vector     hbm     ici     dcn  step between      MFU'
    for row in values['estimates'].values():
        parts = ''.join(f'{1e3 * row[n]:8.1f}' for n in ('compute', 'vector', 'hbm', 'ici', 'dcn'))
        shape = row['topology'] + ('' if row['fits'] else '*')
        yield (
            f'  {shape:<15}{parts}  {1e3 * row["overlapped"]:7.1f} and {1e3 * row["serial"]:.1f}'
            f'  {row["mfu_serial"]:.2f}-{row["mfu_overlapped"]:.2f}'
        )
    if not all(row['fits'] for row in values['estimates'].values()):
        yield '  * this program does not fit into the memory of that chip'
    yield '  step: the longest part if all overlap, their sum if nothing does'


def _short(origin):
    parts = origin.split('/')
    return '/'.join(parts if len(parts) < 5 else [parts[0], '...', *parts[-3:]])
