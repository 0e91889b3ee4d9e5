"""`emigm convert`: official weights in, self-describing checkpoints out, and back."""

from typing import Any

from emigm_jax.cli.main import Parser
from emigm_jax.conversion.options import NULLS, Kind, Options
from emigm_jax.errors import printable


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'convert',
        'Converts official eMIGM, MAR and MaskGIT weights, the tokenizers KL-16, DC-AE and VQGAN,\n'
        'and the Inception network of FID (.pth, .ckpt, .safetensors, Flax msgpack, a Hugging\n'
        'Face folder) without running anything in them; or exports one of our checkpoints with\n'
        'official names (--to safetensors).',
        'emigm convert hf://GSAI-ML/eMIGM/eMIGM_large_256_checkpoint.pth emigm-l-256\n'
        '  emigm convert kl16.ckpt kl16\n'
        '  emigm convert pt_inception-2015-12-05-6726825d.pth fid-inception\n'
        '  emigm convert emigm-l-256 emigm-l-256.safetensors --to safetensors',
    )
    parser.add_argument('source', help='file or folder to read, local, gs:// or hf://')
    parser.add_argument('target', help='what to write, local or gs://; must not exist')
    parser.add_argument('--to', choices=('checkpoint', 'safetensors'), default='checkpoint')
    kinds = list(map(str, Kind))
    parser.add_argument('--kind', choices=kinds, help='what the source is (default: recognised)')
    parser.add_argument(
        '--weights',
        default='',
        metavar='NAME',
        help='an entry of the file, as model_ema or model (default: averaged ones if there are '
        'any); exporting: an EMA decay or params',
    )
    parser.add_argument(
        '--null',
        choices=NULLS,
        default='',
        help="eMIGM's shared token (default mask_token, as the official loader "
        'does; fake_latent is the averaged one)',
    )
    for name, what in (('heads', "attention heads of eMIGM's and MAR's"), ('classes', "MaskGIT's")):
        parser.add_argument(
            f'--{name}', type=int, help=f'{what}, for sizes that were never published'
        )
    parser.add_argument(
        '--allow-non-finite',
        action='store_true',
        help='take NaN and infinity as they are, to look into broken weights',
    )
    parser.add_argument('--dry-run', action='store_true', help='read and check, write nothing')
    arguments = parser.parse_args(argv)
    for name in ('heads', 'classes'):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f'--{name} must be at least 1')
    return _convert(arguments)


def _convert(arguments):
    from emigm_jax.conversion import convert, rules

    names = ('kind', 'null', 'heads', 'classes')
    options = {name: getattr(arguments, name) for name in names}
    paths = arguments.source, arguments.target
    more: dict[str, Any] = dict(
        weights=arguments.weights, allow_non_finite=arguments.allow_non_finite, dry_run=True
    )
    try:
        if arguments.to == 'safetensors':
            Options(**options).refuse('an export', tuple(options))
            done = convert.export(*paths, **more)
        else:
            done = convert.convert(*paths, **options, **more)
    except rules.Misfit as misfit:
        rows = [(problem, printable(name), detail) for problem, name, detail in misfit.rows]
        width = max(len(name) for _, name, _ in rows)
        for problem, name, detail in rows:
            print(f'{problem:<10}  {name:<{width}}  {detail}'.rstrip())
        raise
    print(*done.lines(), sep='\n')
    if arguments.dry_run:
        print('dry run: nothing written')
        return 0
    print(f'writing {arguments.target}', flush=True)  # as large models take a while
    done.save(arguments.target)
    print(f'-> {arguments.target}')
    return 0
