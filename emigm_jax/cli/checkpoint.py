"""`emigm checkpoint`: list, look into, copy and export checkpoints, local or gs://."""

from emigm_jax.cli.main import Parser, dispatch
from emigm_jax.errors import LONGEST, UserError, printable

COMMANDS = {
    'ls': (f'{__name__}:ls', 'the checkpoints of a workdir or folder: step, size, date, state'),
    'inspect': (f'{__name__}:inspect', 'what one holds: sizes, config, EMA decays, its origin'),
    'copy': (f'{__name__}:copy', 'to a new folder or bucket, every file compared'),
    'export': (f'{__name__}:export', 'the EMA weights alone, which `emigm sample` takes'),
}


def run(argv: list[str]) -> int:
    """Runs the command."""
    return dispatch('emigm checkpoint', COMMANDS, argv)


def _parser(name, summary, example, step=True):
    parser = Parser(f'checkpoint {name}', summary, f'emigm checkpoint {name} {example}')
    parser.add_argument('source', help='workdir or checkpoint, local or gs://')
    if step:
        parser.add_argument('--step', type=int, help='of a workdir (default: the newest)')
    return parser


def _add_json(parser):
    parser.add_argument(
        '--json',
        metavar='FILE',
        help="write the facts there, too ('-': print them as JSON in place of the table)",
    )


def _show(arguments, value, table):
    """Prints `table` or JSON, and writes the file of --json."""
    import json

    from emigm_jax.io import files

    if arguments.json == '-':
        print(json.dumps(value, indent=2))
        return
    print('\n'.join(printable(line, LONGEST) for line in table))
    if arguments.json:
        files.write_text(arguments.json, json.dumps(value, indent=2) + '\n')


def ls(argv: list[str]) -> int:
    """Runs `emigm checkpoint ls`."""
    parser = _parser(
        'ls',
        'Lists the checkpoints of a workdir or of a folder: step, size, date, finished or not.',
        'gs://bucket/run',
        step=False,
    )
    _add_json(parser)
    arguments = parser.parse_args(argv)

    import dataclasses

    from emigm_jax.checkpoints import inspect

    entries = inspect.entries(arguments.source)
    width = max(len(e.name) for e in entries)
    table = [f'{"checkpoint":<{max(10, width)}}  {"size":>9}  files  written               state']
    table += [
        f'{e.name:<{max(10, width)}}  {_size(e.size):>9}  {e.files:>5}  {e.changed}  '
        f'{"finished" if e.finished else "damaged" if e.damaged else "not finished"}'
        for e in entries
    ]
    _show(arguments, [dataclasses.asdict(e) for e in entries], table)
    return 0


def inspect(argv: list[str]) -> int:
    """Runs `emigm checkpoint inspect`."""
    parser = _parser(
        'inspect',
        'Says what a checkpoint holds: sizes, parameters, config, EMA decays, where it comes from.',
        'runs/digits --against configs/digits.py:best',
    )
    parser.add_argument(
        '--against',
        metavar='CONFIG[:VARIANT]',
        help='print how the config differs from this one, a file or a shipped one',
    )
    _add_json(parser)
    arguments = parser.parse_args(argv)

    from emigm_jax.checkpoints import inspect

    path = inspect.located(arguments.source, arguments.step)
    facts = inspect.facts(path)
    rows = [
        ('checkpoint', facts['path']),
        ('kind', facts['kind']),
        ('step', facts['step']),
        ('written', facts['changed']),
        ('size', f'{_size(facts["size"])} in {facts["files"]} files'),
        ('parameters', facts['parameters'] and f'{facts["parameters"]:,}'),
        *(
            (
                f'  {name}',
                f'{part["numbers"]:,} numbers, {_size(part["bytes"])}, {" ".join(part["dtypes"])}',
            )
            for name, part in facts['arrays'].items()
        ),
        ('EMA decays', ', '.join(facts['ema_decays'])),
        ('sizes of', facts['recipe'] and '{0} {2} at {1} pixels'.format(*facts['recipe'])),
        ('classes', _few(facts['class_names'])),
        ('presets', ', '.join(facts['presets'])),
        *((f'source: {name}', value) for name, value in facts['source'].items()),
        ('data', facts['data'] and f'fingerprint {facts["data"]}'),
        ('written by', ', '.join(f'{n} {v}' for n, v in facts['versions'].items())),
    ]
    width = max(len(title) for title, _ in rows) + 2
    shown = [f'{title:<{width}}{value}' for title, value in rows if value not in (None, '', [])]
    _show(arguments, facts | _differences(arguments, facts, shown), shown)
    return 0


def _few(names, most=12):
    """Names of classes with their labels, some of many."""
    from emigm_jax.data import class_names

    shown = class_names.titles(range(min(most, len(names))), len(names), names)
    return ', '.join(shown) + f', ... ({len(names):,} in all)' * (len(names) > most)


def _differences(arguments, facts, shown):
    """Adds lines on the config to `shown`; returns {'differences': ...} or {}."""
    import json

    from emigm_jax.checkpoints import inspect
    from emigm_jax.config import nested, recipes

    if facts['config'] is None:
        if arguments.against:
            raise UserError(f'{facts["path"]}: has no config to compare, it is a {facts["kind"]}')
        return {}
    if arguments.against:
        from emigm_jax.config.load import load_config

        other, name = load_config(arguments.against), arguments.against
    elif facts['recipe']:
        other, name = recipes.published(*facts['recipe']), 'the published recipe'
    else:
        shown += ['config', *json.dumps(facts['config'], indent=2).splitlines()]
        return {}
    differences = inspect.compared(facts['config'], nested.as_dict(other))
    shown.append(f'config: {name}' + (', but for' if differences else ''))
    shown += [
        f'  {key} = {ours!r} (there {theirs!r})' for key, (ours, theirs) in differences.items()
    ]
    return {'differences': differences}


def copy(argv: list[str]) -> int:
    """Runs `emigm checkpoint copy`."""
    parser = _parser(
        'copy',
        'Copies a checkpoint to a new folder, or the newest step of a workdir into a workdir.\n'
        'Every file is compared with its source; killed, the same command goes on.',
        'runs/digits gs://bucket/digits --step 900',
    )
    parser.add_argument('target', help='must not exist, but for an unfinished copy')
    arguments = parser.parse_args(argv)

    from emigm_jax.checkpoints import copy, inspect, runs
    from emigm_jax.io import paths
    from emigm_jax.io.progress import Bar

    path, target = inspect.located(arguments.source, arguments.step), arguments.target
    if path != paths.absolute(arguments.source):  # from a workdir into a workdir
        target = f'{target.rstrip("/")}/{runs.FOLDER}/{path.name}'
    total = sum(file.size for file in copy.listing(path).values())
    with Bar(total=total, unit='B', unit_scale=True) as bar:
        count, size, kept = copy.copy(path, target, bar.update)
    again = f', {_size(kept)} of them there already' if kept else ''
    print(f'{path} -> {target}: {count} files, {_size(size)}{again}, checksums compared')
    return 0


def export(argv: list[str]) -> int:
    """Runs `emigm checkpoint export`."""
    parser = _parser(
        'export',
        'Writes the EMA weights alone, as a checkpoint that `emigm sample` takes.',
        'gs://bucket/run emigm-b --weights 0.9999',
    )
    parser.add_argument('target', help='must not exist')
    parser.add_argument('--weights', metavar='DECAY', help='EMA to export (default: the first)')
    arguments = parser.parse_args(argv)

    from emigm_jax.checkpoints import inspect

    path = inspect.located(arguments.source, arguments.step)
    print(f'writing {arguments.target}', flush=True)  # as large models take a while
    name = inspect.export(path, arguments.target, arguments.weights or '')
    print(f'{path}: weights {name} -> {arguments.target}')
    return 0


def _size(count):
    for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
        if count < 1000 or unit == 'TB':
            return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.1f} {unit}'
        count /= 1000
