"""`emigm train`: trains a config in a workdir, or goes on where it stopped."""

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'train',
        'Trains a config in a workdir. The same command goes on from the newest checkpoint.',
        'emigm train --config configs/digits.py --workdir runs/digits',
    )
    shared.add_config(parser)
    parser.add_argument('--workdir', help='folder of checkpoints, metrics and samples')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the resolved config and stop; sizes that only the data tell stay 0',
    )
    parser.add_argument(
        '--allow-changes',
        default='',
        metavar='NAMES',
        help='settings or groups in which a run that goes on may differ from its beginning:\n'
        'training.batch_size,optimizer',
    )
    shared.add_processes(parser)
    arguments, config = shared.parse_with_config(parser, argv)
    from emigm_jax.config import resuming

    allowed = tuple(name.strip() for name in arguments.allow_changes.split(',') if name.strip())
    resuming.check_names(allowed)
    if arguments.dry_run:
        from emigm_jax.data import sizes

        shared.print_config(sizes.known(config))
        return 0
    if not arguments.workdir:
        parser.error('--workdir is required')

    with shared.join(arguments):
        return _train(config, arguments.workdir, allowed)


def _train(config, workdir, allowed):
    from emigm_jax.api.train import train
    from emigm_jax.parallel import processes

    code = shared.code_of_training(lambda: train(config, workdir, allow_changes=allowed))
    if not code and processes.is_first():
        print(f'done: checkpoints, metrics and samples are in {workdir}')
    return code
