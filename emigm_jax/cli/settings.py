"""`emigm settings`: what can be set, what it may be and what it means."""

import shutil

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser

_WIDTH = 110  # of a pipe or a file


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'settings',
        'Lists every setting with its default, what it means and what it may be.',
        'emigm settings guidance\n'
        '  emigm settings learning rate\n'
        "  emigm settings 'model.*_depth' --config configs/digits.py:best",
    )
    parser.add_argument(
        'pattern',
        nargs='*',
        metavar='PATTERN',
        help='part of a name, a glob of names, or words of what is meant (default: all)',
    )
    shared.add_config(parser, required=False)
    arguments, config = shared.parse_with_any_config(parser, argv)

    from emigm_jax.config import catalogue

    shown = catalogue.matching(' '.join(arguments.pattern))
    width = shutil.get_terminal_size((_WIDTH, 0)).columns
    print('\n'.join(catalogue.table(shown, width, config)))
    return 0
