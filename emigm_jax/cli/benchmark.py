"""`emigm benchmark`: speed, FLOPs, memory and compile time, recorded and compared."""

import functools
import sys

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser, dispatch
from emigm_jax.errors import UserError

COMMANDS = {
    'train': (f'{__name__}:train', 'training steps on random data'),
    'sample': (f'{__name__}:sample', 'generation of tokens with random weights'),
    'decode': (f'{__name__}:decode', "a tokenizer's decoder: tokens to pictures"),
    'evaluate': (f'{__name__}:evaluate', "Inception's features of pictures"),
    'data': (f'{__name__}:data', 'reading the training data, and how long steps wait for it'),
    'scale': (f'{__name__}:scale', 'what pods and large data cost, shown by fakes'),
    'compare': (f'{__name__}:compare', 'two records: what became faster, what is chance'),
}
# Groups of settings that decide how long a step of each takes.
_DECIDE = {
    'train': ('model', 'loss', 'optimizer', 'mesh', 'training.accumulate'),
    'sample': ('model', 'sampling'),
    'data': ('data',),
}
_MOST = 4096  # images, of --find-batch


def run(argv: list[str]) -> int:
    """Runs the command."""
    return dispatch('emigm benchmark', COMMANDS, argv)


def train(argv: list[str]) -> int:
    """Runs `emigm benchmark train`."""
    return _steps('train', argv, '--config imagenet256:size=xs --batch-size 4,8 --json xs.json')


def sample(argv: list[str]) -> int:
    """Runs `emigm benchmark sample`."""
    return _steps('sample', argv, '--config imagenet256:size=l --batch-size 8 --find-batch 512')


def _steps(what, argv, example):
    parser = Parser(
        f'benchmark {what}',
        f'Measures {COMMANDS[what][1]}. FLOPs are counted from shapes (matrix products,\n2 per '
        'multiply-add); "of peak" compares with a large matrix product timed in the same run.',
        f'emigm benchmark {what} {example}',
    )
    shared.add_config(parser, several=True)
    _add_steps(parser)
    parser.add_argument(
        '--against',
        metavar='FOLDER',
        help='a clone of the official repository, ML-GSAI/eMIGM: each of our steps is followed by '
        'one of its model class, with the same weights, sizes and settings',
    )
    parser.add_argument(
        '--against-python',
        metavar='PYTHON',
        default=sys.executable,
        help='what runs it, with torch and timm (this Python)',
    )
    arguments, overrides = shared.parse(parser, argv)

    from emigm_jax.benchmark import against, steps

    configs = _configs(arguments, overrides)
    build = {'train': steps.train, 'sample': steps.sample}[what]
    subjects = [
        (name, _settings(what, config), functools.partial(build, config))
        for name, config in configs.items()
    ]
    if not arguments.against:
        return _measure(what, subjects, arguments)
    place = arguments.against, arguments.against_python
    besides = {name: against.beside(*place, what, each) for name, each in configs.items()}
    return _measure(what, subjects, arguments, besides)


def decode(argv: list[str]) -> int:
    """Runs `emigm benchmark decode`."""
    parser = Parser(
        'benchmark decode',
        "Measures a tokenizer's decoder alone, from random tokens on the device to uint8 pictures\n"
        'there, at most 16 of them at a time, as in sampling.',
        'emigm benchmark decode --tokenizer kl16 --tokenizer dc_ae --batch-size 16,64',
    )
    shared.add_config(parser, required=False, several=True)
    parser.add_argument(
        '--tokenizer',
        action='append',
        default=[],
        help='kl16, dc_ae or vqgan in their published sizes with random weights, or a checkpoint; '
        'may be repeated. --config stands for the pixels of its data',
    )
    parser.add_argument(
        '--image-size', type=shared.count, help='pixels per side (as published, or of the data)'
    )
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of its convolutions')
    _add_steps(parser)
    arguments, overrides = shared.parse(parser, argv)
    arguments.config = arguments.config or []
    if not arguments.config + arguments.tokenizer:
        parser.error('one of --tokenizer, --config is needed')
    if overrides and not arguments.config:
        parser.error(f'{overrides[0]} goes with --config')
    if arguments.dtype and not arguments.tokenizer:
        parser.error('--dtype goes with --tokenizer')

    from emigm_jax.benchmark import images

    codecs = {name: images.learned_codec(name, arguments.dtype) for name in arguments.tokenizer}
    configs = _configs(arguments, overrides)
    codecs |= {name: images.pixel_codec(name, config.data) for name, config in configs.items()}
    subjects = []
    for name, codec in codecs.items():
        side = arguments.image_size or images.side(codec)
        about = {'tokenizer': repr(codec.tokenizer), 'image_size': str(side)}
        subjects.append((name, about, functools.partial(images.decode, codec, side)))
    return _measure('decode', subjects, arguments)


def evaluate(argv: list[str]) -> int:
    """Runs `emigm benchmark evaluate`."""
    parser = Parser(
        'benchmark evaluate',
        'Measures what scores wait for: the features of Inception, of random uint8 pictures on\n'
        'the device.',
        'emigm benchmark evaluate --image-size 256 --batch-size 64,256',
    )
    parser.add_argument('--inception', help='its converted checkpoint (default: random weights)')
    parser.add_argument(
        '--image-size', type=shared.count, default=256, help='pixels per side (256)'
    )
    _add_steps(parser)
    arguments = parser.parse_args(argv)

    from emigm_jax.benchmark import images

    params, side = images.inception_params(arguments.inception), arguments.image_size
    build = functools.partial(images.evaluate, params, side)
    return _measure('evaluate', [('inception', {'image_size': str(side)}, build)], arguments)


def data(argv: list[str]) -> int:
    """Runs `emigm benchmark data`."""
    parser = Parser(
        'benchmark data',
        'Measures how fast the training data of a config are read.',
        'emigm benchmark data --config configs/imagenet256.py:size=xs --config.data.name=latents '
        '--config.data.path=CACHE',
    )
    shared.add_config(parser, several=True)
    _add(parser, "images per batch (the config's)", 'batches (50)')
    parser.add_argument(
        '--train-steps',
        type=shared.count,
        default=0,
        help='also time so many real steps, and how long they wait',
    )
    arguments, overrides = shared.parse(parser, argv)

    from emigm_jax.benchmark.data import measure
    from emigm_jax.benchmark.records import Row

    rows = []
    for name, config in _configs(arguments, overrides).items():
        for batch in arguments.batch_size or [config.training.batch_size]:
            figures = measure(config, batch, arguments.repeats or 50, arguments.train_steps)
            rows.append(Row(name, batch, _settings('data', config), figures))
    return _show('data', rows, arguments.json)


def scale(argv: list[str]) -> int:
    """Runs `emigm benchmark scale`."""
    parser = Parser(
        'benchmark scale',
        'Counts and simulates, on this machine alone, what a pod of a thousand processes and data\n'
        'of a hundred million images cost: a minute or two. Exits with 1 if something is over its '
        'bound.',
        'emigm benchmark scale',
    )
    parser.parse_args(argv)

    from emigm_jax.aot import microbatches
    from emigm_jax.benchmark import records
    from emigm_jax.benchmark.scale import Figure, figures

    what = f'{microbatches.DEVICES} devices, {microbatches.ACCUMULATE} microbatches: summed over'
    found = [
        *figures(),
        Figure(f'{what} devices, of the gradients', microbatches.on_fake_devices(), 1.1, 'x'),
    ]
    cells = [['', 'found', 'at most', '', '']]
    for each in found:
        over = '' if each.good else 'over'
        cells.append([each.what, f'{each.value:.4g}', f'{each.most:g}', each.unit, over])
    print('\n'.join(records.aligned(cells)))
    return 0 if all(each.good for each in found) else 1


def compare(argv: list[str]) -> int:
    """Runs `emigm benchmark compare`."""
    parser = Parser(
        'benchmark compare',
        'Prints the ratios of the figures of two records of --json, and which differences are\n'
        'within the spread: where the steps of one take as long as steps of the other.',
        'emigm benchmark compare old.json new.json',
    )
    parser.add_argument('old', metavar='OLD', help='a record, local or gs://')
    parser.add_argument('new', metavar='NEW', help='another one of the same command')
    arguments = parser.parse_args(argv)

    from emigm_jax.benchmark import records

    old, new = records.load(arguments.old), records.load(arguments.new)
    print('\n'.join(records.comparison(old, new)))
    return 0


def _configs(arguments, overrides):
    """{name: settings} of the --config flags."""
    from emigm_jax.config.load import load_config

    return {name: load_config(name, overrides) for name in arguments.config}


def _settings(what, config):
    """{name: value} of the settings that decide."""
    from emigm_jax.config import nested

    flat = nested.flatten(nested.as_dict(config))
    return {
        name: str(value)
        for name, value in flat.items()
        if any(f'{name}.'.startswith(f'{group}.') for group in _DECIDE[what])
    }


def _add(parser, batch_size, repeats):
    parser.add_argument(
        '--batch-size', type=shared.counts, metavar='N[,N...]', help=f'{batch_size}; 1,4,8: of each'
    )
    parser.add_argument('--repeats', type=shared.count, help=repeats)
    parser.add_argument('--json', metavar='FILE', help='write a record there, for `compare`')


def _add_steps(parser):
    _add(parser, 'images per step (8 per device)', 'timed steps after one to warm up (3)')
    parser.add_argument(
        '--find-batch',
        type=shared.count,
        nargs='?',
        const=_MOST,
        metavar='MOST',
        help='double the batch size (from 1 per device) while it fits into memory and is at most '
        f'MOST ({_MOST}), and name the fastest',
    )


def _measure(what, subjects, arguments, besides=None):
    """Times each subject, which is (name, settings, batch size -> Program), and shows all.

    besides: {name: batch size -> what is timed in turns with it}.
    """
    import jax

    from emigm_jax.benchmark import search, timing
    from emigm_jax.benchmark.records import Row

    repeats, devices, most = arguments.repeats or 3, jax.device_count(), arguments.find_batch
    batches = arguments.batch_size or [devices * (1 if most else 8)]
    if most and (len(batches) > 1 or batches[0] > most):
        raise UserError(f'--find-batch {most} starts at a single --batch-size that is no larger')
    memory = search.memory() if most else None
    rows, remarks = [], []
    for name, settings, build in subjects:

        def measure(batch, name=name, build=build):
            print(f'{name}, batch {batch}: compiling, then {repeats} timed steps', flush=True)
            other = besides and besides[name](batch)
            return timing.measure(build, batch, repeats, memory, other)

        if most:
            found = list(search.fitting(measure, batches[0], most))
            remarks.append(_found(name, found, batches[0], most))
        else:
            found = [(batch, measure(batch)) for batch in batches]
        rows += [Row(name, batch, settings, figures) for batch, figures in found]
    code = _show(what, rows, arguments.json)
    print('\n'.join(remarks), end='\n' * bool(remarks))
    return code


def _found(name, found, first, most):
    """What a search for the batch size says."""
    if not found:
        raise UserError(f'{name}: a batch of {first} does not fit into memory')
    largest, _ = found[-1]
    fastest, figures = max(found, key=lambda each: each[1]['images_per_second'])
    end = f'MOST is {most}' if 2 * largest > most else f'{2 * largest} does not fit'
    return (
        f'{name}: the largest batch is {largest} ({end}), '
        f'the fastest {fastest} ({figures["images_per_second"]:.4g} images/s)'
    )


def _show(what, rows, file):
    from emigm_jax.benchmark import records

    record = records.record(what, rows)
    print(f'{record.device}, {record.devices} in all, jax {record.jax}')
    if len(rows) == 1:
        (row,) = rows
        for name, value in {'name': row.name, 'batch_size': row.batch_size, **row.figures}.items():
            print(f'{name:28} {value:.4g}' if isinstance(value, float) else f'{name:28} {value}')
    else:
        print('\n'.join(records.table(rows)))
    if file:
        record.save(file)
    return 0
