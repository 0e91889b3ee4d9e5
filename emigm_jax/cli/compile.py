"""`emigm compile`: will it fit, and how fast can it be, on TPUs that are not there."""

import json

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'compile',
        'Compiles the train step or the sampler of a config for a TPU topology, without a TPU, and '
        'prints memory,\nFLOPs, collectives and a roofline estimate. Needs the extra '
        'emigm_jax[aot]. A mesh that the config names\n(--config.mesh.fsdp=64) is compiled as it '
        'is; without one, meshes are tried, fastest first, with\nremat=dots, then accumulation and '
        'remat=full, until the train step fits.',
        'emigm compile --config configs/imagenet256.py:size=h --topology v5e:16x16\n'
        '  emigm compile sample --config configs/imagenet256.py:size=h --topology v5e:4x4 '
        '--batch-size 128',
    )
    parser.add_argument('what', nargs='?', default='train', choices=('train', 'sample'))
    shared.add_config(parser)
    parser.add_argument(
        '--topology', required=True, metavar='CHIP:AxB[xC]', help='v4:2x2x4, v5e:16x16, v6e:8x8 ...'
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        help="sample: images over all devices (8 per device); train: config's",
    )
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the topology and what would be tried, and stop',
    )
    arguments, config = shared.parse_with_config(parser, argv)
    if arguments.batch_size is not None and arguments.what == 'train':
        parser.error('--batch-size goes with sample; write --config.training.batch_size=...')

    _platform()
    from emigm_jax.aot import chips
    from emigm_jax.data import sizes
    from emigm_jax.io import paths

    config = sizes.without_data(config)
    topology = chips.topology(arguments.topology, config.mesh.slices)
    batch = 8 * topology.chips if arguments.batch_size is None else arguments.batch_size
    if arguments.what == 'sample' and (batch < 1 or batch % topology.chips):
        raise UserError(f'--batch-size {batch} must be a multiple of the {topology.chips} devices')
    if arguments.json and not paths.absolute(arguments.json).parent.is_dir():
        raise UserError(f'--json {arguments.json}: no such folder')
    if arguments.dry_run:
        _describe(arguments.what, config, topology, batch)
        return 0
    work = (
        _train(config, topology) if arguments.what == 'train' else _sample(config, topology, batch)
    )
    return _finish(work, topology, arguments)


def _describe(what, config, topology, batch):
    from emigm_jax.aot import search

    print(
        f'{topology.name}: {topology.chips} devices on {topology.hosts} host(s), '
        f'{topology.chip.hbm / 2**30:.2f} GiB each'
    )
    if what == 'sample':
        print(f'would compile the sampler for {batch} images, {batch // topology.chips} per device')
        return
    for remat, accumulate, candidates in search.plan(config, topology):
        for candidate in candidates[:3]:
            tried = search.with_settings(config, topology, candidate.mesh, remat, accumulate)
            print(f'would try {search.described(tried, topology)}')


def _platform():
    import jax

    # Only the compiler of libtpu is wanted: arrays, such as keys, are made on the CPU.
    jax.config.update('jax_platforms', 'cpu')


def _train(config, topology):
    from emigm_jax.aot import program, search
    from emigm_jax.parallel import sharding

    plan = search.plan(config, topology)
    devices = program.devices(topology)
    if len(plan) == 1:  # a mesh of the config's: refuse before the long work
        sharding.make_mesh(config.mesh, devices)
    last = None
    for last in search.search(config, topology, devices, lambda text: print(text, flush=True)):
        if last.compiled is None:
            print(
                f'  does not fit: needs {last.needed / 2**30:.2f} of '
                f'{topology.chip.hbm / 2**30:.2f} GiB'
            )
    if last is None or last.compiled is None:
        return None, []
    return last.compiled, last.flags


def _sample(config, topology, batch):
    from emigm_jax.aot import program
    from emigm_jax.parallel import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(topology.slices), program.devices(topology))
    print(f'compiling the sampler for {batch} images', flush=True)
    try:
        return program.sample(config, mesh, batch), []
    except program.TooLarge as error:
        print(f'  does not fit: needs {error.needed / 2**30:.2f} GiB')
        return None, []


def _finish(work, topology, arguments):
    from emigm_jax.aot import report
    from emigm_jax.io import files

    compiled, flags = work
    if compiled is None:
        help_ = {
            'train': 'more chips, a smaller --config.training.batch_size, '
            '--config.training.accumulate=2 or --config.model.remat=full',
            'sample': 'a smaller --batch-size, or more chips',
        }[arguments.what]
        raise UserError(f'nothing that was tried fits into {topology.name}; try {help_}')
    values = {
        'what': arguments.what,
        'config': arguments.config,
        'flags': flags,
        **report.figures(compiled, topology),
    }
    print()
    for line in report.lines(values):
        print(line)
    if arguments.what == 'train':
        print(f'\nsuggested: {" ".join(flags) if flags else "the config as it is"}')
    if arguments.json:
        files.write_text(arguments.json, json.dumps(values, indent=2) + '\n')
    return 0
