"""`emigm prepare latents`: pictures encoded into a cache that training reads."""

import argparse
import re

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'prepare latents',
        'Encodes pictures into a cache that training reads. Run it again to go on after an '
        'interruption.',
        'emigm prepare latents gs://bucket/in256 --folder imagenet/train --tokenizer kl16\n'
        '  emigm prepare latents in256 --tfds imagenet2012 --data-dir tfds --tokenizer kl16\n'
        '  emigm prepare latents in256 --from-npz official_cache --tokenizer kl16',
    )
    parser.add_argument('target', help='the cache, local or gs://')
    shared.add_pictures(parser, '--from-npz', 'FOLDER', 'an official per-image npz cache')
    parser.add_argument('--tokenizer', required=True, help='its checkpoint, from `emigm convert`')
    parser.add_argument(
        '--image-size', type=shared.count, help='pixels per side (KL-16 and VQGAN 256, DC-AE 512)'
    )
    parser.add_argument(
        '--dtype',
        choices=('float16', 'float32'),
        help='of the cache (float16; codes are uint16)',
    )
    parser.add_argument(
        '--compute-dtype',
        choices=('float32', 'bfloat16'),
        help="of the tokenizer's convolutions (as its checkpoint says)",
    )
    parser.add_argument(
        '--batch-size', type=shared.count, default=16, help='pictures at a time per device (16)'
    )
    parser.add_argument(
        '--shard-rows', type=shared.count, default=4096, help='pictures per shard (4096)'
    )
    parser.add_argument(
        '--max-unreadable', type=share, default=0.001, help='share that may be damaged (0.001)'
    )
    parser.add_argument(
        '--worker',
        metavar='I/N',
        help='make only every N-th shard, from the I-th, '
        'counted from 0 (default: as the processes below)',
    )
    parser.add_argument('--dry-run', action='store_true', help='print what would be made and stop')
    shared.add_processes(parser)
    arguments = parser.parse_args(argv)
    shared.check_pictures(parser, arguments)
    if arguments.worker is not None:
        if arguments.coordinator is not None:
            parser.error('--worker is for machines that do not know of each other')
        return _latents(arguments)
    with shared.join(arguments):
        return _latents(arguments)


def share(text: str) -> float:
    """The type of flags that take a share; argparse names it in its errors."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError('must be a share, from 0 to 1')
    return value


def _worker(text):
    if text is None:
        import jax

        return jax.process_index(), jax.process_count()
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--worker must look like '0/4' (the first of four), not {text!r}")
    return int(match[1]), int(match[2])


def _latents(arguments):
    import json
    import time

    from emigm_jax.data import plan, prepare
    from emigm_jax.data import rows as kinds
    from emigm_jax.io import access
    from emigm_jax.io.progress import Bar
    from emigm_jax.tokenizers import codec

    worker = _worker(arguments.worker)
    if not arguments.dry_run:
        access.probe(arguments.target)
    loaded = codec.load(arguments.tokenizer, arguments.compute_dtype, arguments.batch_size)
    dtype = kinds.dtype(loaded.spec, arguments.dtype)
    rows, remarks = _rows(arguments, loaded)
    contents = rows.contents(dtype, arguments.shard_rows)
    raw = loaded.tokenizer.raw_shape(contents.image_size)
    planned = plan.of(len(rows), raw, dtype, arguments.shard_rows, worker[1])
    print(
        f'{len(rows):,} pictures in {len(rows.class_names):,} classes -> {arguments.target}, '
        f'about {planned.bytes / 1e9:.3g} GB: {planned.shards:,} shards of up to '
        f'{planned.shard_bytes / 1e6:.3g} MB, {planned.files:,} files',
        flush=True,
    )
    for line in remarks:
        print(f'  {line}', flush=True)
    if arguments.dry_run:
        print(json.dumps(contents.to_json(), indent=2))
        return 0
    mine, made, began = len(rows) if worker[1] == 1 else None, 0, time.monotonic()
    with Bar(total=mine, unit=' pictures') as bar:

        def report(count, new):
            nonlocal made
            made += count * new
            bar.update(count)

        manifest = prepare.prepare(
            arguments.target, rows, contents, worker, arguments.max_unreadable, report
        )
    seconds = time.monotonic() - began
    pace = f'{made:,} pictures in {seconds:.1f} s, {made / seconds:.1f} a second'
    if manifest is None:
        who = f'worker {worker[0]}/{worker[1]}'
        print(f'{who}: done, {pace}; other workers have shards left to make')
        return 0
    print(
        f'{manifest.count:,} rows in {len(manifest.shards)} shards, '
        f'{manifest.skipped} unreadable pictures (skipped.jsonl) -> {arguments.target}; {pace}'
    )
    return 0


def _rows(arguments, codec):
    """The `prepare.Rows` that the flags name, and lines on what was found there."""
    from emigm_jax.config.settings import DataConfig
    from emigm_jax.data import datasets, survey
    from emigm_jax.data import rows as kinds

    if arguments.from_npz:
        for name in ('image_size', 'compute_dtype'):
            if getattr(arguments, name) is not None:
                raise UserError(f'--{name.replace("_", "-")} goes with --folder and --tfds')
        rows = kinds.OfficialFiles(arguments.from_npz, codec)
        return rows, [f'left out: {rows.left_out} files that are no .npz'] if rows.left_out else []
    if arguments.folder:
        config = DataConfig('folder', arguments.folder)
    else:
        config = DataConfig(
            'tfds',
            arguments.data_dir or '',
            dataset=arguments.tfds,
            split=arguments.split or 'train',
        )
    source = datasets.source(config)
    rows = kinds.Encoded(source, codec, arguments.image_size)
    seen = survey.look(source)
    return rows, survey.found(source, seen) + survey.enlarged(
        seen, rows.image_size, '--image-size '
    )
