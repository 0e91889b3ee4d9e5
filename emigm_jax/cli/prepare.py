"""`emigm prepare`: latent caches from pictures, the scale of their latents, FID references."""

import dataclasses
import re

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'prepare',
        'latents: encodes pictures into a cache that training reads; run it again to go on after '
        'an\ninterruption. stats: the scale of a cache, 1 / standard deviation, and its error. '
        'reference:\nInception statistics of real pictures, for `emigm evaluate --reference`.',
        'emigm prepare latents gs://bucket/in256 --folder imagenet/train --tokenizer kl16\n'
        '  emigm prepare latents in256 --tfds imagenet2012 --data-dir tfds --tokenizer kl16\n'
        '  emigm prepare latents in256 --from-npz official_cache --tokenizer kl16\n'
        '  emigm prepare stats in256\n'
        '  emigm prepare reference real.npz --folder imagenet/val --image-size 256 --inception '
        'fid-inception',
    )
    parser.add_argument('what', choices=('latents', 'stats', 'reference'))
    parser.add_argument('target', help='the cache, or the reference (.npz), local or gs://')
    group = parser.add_argument_group('reference')
    group.add_argument('--inception', help='its checkpoint, from `emigm convert`')
    group.add_argument(
        '--npz', metavar='FILE', help='pictures in arr_0, in place of --folder or --tfds'
    )
    group.add_argument(
        '--keep-features',
        action='store_true',
        help='for precision, recall and KID (8 kB per picture)',
    )
    group = parser.add_argument_group('latents')
    group.add_argument('--folder', help='folder of class folders of pictures')
    group.add_argument('--tfds', metavar='NAME', help='TFDS data set in array_record form')
    group.add_argument('--from-npz', metavar='FOLDER', help='an official per-image npz cache')
    group.add_argument('--split', help='of the TFDS data set (train)')
    group.add_argument('--data-dir', help='where TFDS data sets lie')
    group.add_argument('--tokenizer', help='its checkpoint, from `emigm convert`')
    group.add_argument('--image-size', type=int, help='pixels per side (KL-16 256, DC-AE 512)')
    group.add_argument('--dtype', choices=('float16', 'float32'), help='of the cache (float16)')
    group.add_argument(
        '--compute-dtype',
        choices=('float32', 'bfloat16'),
        help="of the tokenizer's convolutions (as its checkpoint says)",
    )
    group.add_argument('--batch-size', type=int, help='pictures at a time per device (16)')
    group.add_argument('--shard-rows', type=int, help='pictures per shard (4096)')
    group.add_argument('--max-unreadable', type=float, help='share that may be damaged (0.001)')
    group.add_argument(
        '--worker',
        metavar='I/N',
        help='make only every N-th shard, from the I-th, '
        'counted from 0 (default: as the processes below)',
    )
    group.add_argument('--dry-run', action='store_true', help='print what would be made and stop')
    shared.add_processes(parser)
    arguments = parser.parse_args(argv)
    _check_flags(parser, arguments)
    if arguments.what == 'stats':
        return _stats(arguments.target)
    if arguments.what == 'reference':
        from emigm_jax.cli import prepare_reference

        return prepare_reference.run(parser, arguments)
    chosen = [n for n in ('folder', 'tfds', 'from_npz') if getattr(arguments, n)]
    if len(chosen) != 1:
        parser.error('latents needs one of --folder, --tfds and --from-npz')
    if not arguments.tokenizer:
        parser.error('latents needs --tokenizer')
    for name in ('split', 'data_dir'):
        if getattr(arguments, name) is not None and chosen != ['tfds']:
            parser.error(f'--{name.replace("_", "-")} goes with --tfds')
    if arguments.worker is not None:
        if arguments.coordinator is not None:
            parser.error('--worker is for machines that do not know of each other')
        return _latents(arguments, _with_defaults(arguments))
    with shared.join(arguments):
        return _latents(arguments, _with_defaults(arguments))


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """Flags of `latents` that have defaults."""

    split: str = 'train'
    dtype: str = 'float16'
    batch_size: int = 16
    shard_rows: int = 4096
    max_unreadable: float = 0.001

    def __post_init__(self):
        if not 0.0 <= self.max_unreadable <= 1.0:
            raise UserError('--max-unreadable is a share, from 0 to 1')


def _with_defaults(arguments):
    """The flags with their defaults; None says that one was not given."""
    flags = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(_Defaults)}
    return _Defaults(**{name: value for name, value in flags.items() if value is not None})


# What each kind takes.
_FLAGS = {
    'stats': (),
    'reference': (
        'inception',
        'npz',
        'folder',
        'tfds',
        'split',
        'data_dir',
        'image_size',
        'batch_size',
        'keep_features',
    ),
    'latents': (
        'folder',
        'tfds',
        'from_npz',
        'split',
        'data_dir',
        'tokenizer',
        'image_size',
        'dtype',
        'compute_dtype',
        'batch_size',
        'shard_rows',
        'max_unreadable',
        'worker',
        'coordinator',
        'num_processes',
        'process_id',
        'join_timeout',
        'dry_run',
    ),
}


def _check_flags(parser, arguments):
    for name in ('batch_size', 'shard_rows', 'image_size'):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} must be at least 1')
    for name, value in vars(arguments).items():
        if name in ('what', 'target') or value == parser.get_default(name):
            continue
        if name not in _FLAGS[arguments.what]:
            raise UserError(f'--{name.replace("_", "-")} does not apply to {arguments.what}')


def _worker(text):
    if text is None:
        import jax

        return jax.process_index(), jax.process_count()
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--worker must look like '0/4' (the first of four), not {text!r}")
    return int(match[1]), int(match[2])


def _latents(arguments, flags):
    import json
    import math

    import numpy as np
    import tqdm

    from emigm_jax.data import latents, prepare
    from emigm_jax.io import access
    from emigm_jax.tokenizers import codec

    worker = _worker(arguments.worker)
    if not arguments.dry_run:
        access.probe(arguments.target)
    loaded = codec.load(arguments.tokenizer, arguments.compute_dtype, flags.batch_size)
    rows = _rows(arguments, flags, loaded)
    contents = rows.contents(flags.dtype, flags.shard_rows)
    numbers = math.prod(loaded.tokenizer.raw_shape(contents.image_size))
    gigabytes = len(rows) * latents.VIEWS * numbers * np.dtype(flags.dtype).itemsize / 1e9
    print(
        f'{len(rows):,} pictures in {len(rows.class_names):,} classes -> {arguments.target}, '
        f'about {gigabytes:.3g} GB',
        flush=True,
    )
    if arguments.dry_run:
        print(json.dumps(contents.to_json(), indent=2))
        return 0
    mine = len(rows) if worker[1] == 1 else None
    with tqdm.tqdm(total=mine, unit=' pictures', disable=None) as bar:
        manifest = prepare.prepare(
            arguments.target, rows, contents, worker, flags.max_unreadable, bar.update
        )
    if manifest is None:
        print(f'worker {worker[0]}/{worker[1]}: done; other workers have shards left to make')
        return 0
    print(
        f'{manifest.count:,} rows in {len(manifest.shards)} shards, '
        f'{manifest.skipped} unreadable pictures (skipped.jsonl) -> {arguments.target}'
    )
    return 0


def _rows(arguments, flags, codec):
    """The `prepare.Rows` that the flags name."""
    from emigm_jax.config.settings import DataConfig
    from emigm_jax.data import datasets
    from emigm_jax.data import rows as kinds

    if arguments.from_npz:
        for name in ('image_size', 'compute_dtype'):
            if getattr(arguments, name) is not None:
                raise UserError(f'--{name.replace("_", "-")} does not apply to --from-npz')
        return kinds.OfficialFiles(arguments.from_npz, codec)
    if arguments.folder:
        config = DataConfig('folder', arguments.folder)
    else:
        config = DataConfig(
            'tfds', arguments.data_dir or '', dataset=arguments.tfds, split=flags.split
        )
    return kinds.Encoded(datasets.source(config), codec, arguments.image_size)


def _stats(path):
    import tqdm

    from emigm_jax.data import latents, scale

    measured = scale.measure(
        latents.Cache(path), lambda shards: tqdm.tqdm(shards, unit=' shards', disable=None)
    )
    print(f'images              {measured.images:,}, every shard as its checksum says')
    print(f'mean                {measured.mean:.5f}')
    print(f'scale (1 / std)     {measured.scale:.5f} +- {measured.error:.5f}')
    print(f"tokenizer's scale   {measured.constant:.5f}, {measured.origin}")
    print(
        f'difference          {measured.scale - measured.constant:+.5f}, {measured.deviation:+.1f} '
        'standard errors'
    )
    return 0
