"""`emigm verify`: does this machine make the numbers that it should?"""

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'verify',
        'Compares this machine with recordings of the official code, its devices with one\n'
        'another, seeds with shipped values and attention with its definition, in about two\n'
        'minutes: in float32 with exact products, then in the precision that one works in.\n'
        'Ends with code 1 if something is off.',
        'emigm verify --json verified.json',
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16'),
        help='of matrix products in the second half; float32: none (bfloat16; CPUs: float32)',
    )
    parser.add_argument('--only', metavar='TEXT', default='', help='parts whose names have it')
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
    shared.add_processes(parser)
    arguments = parser.parse_args(argv)
    if arguments.json:
        from emigm_jax.io import access

        access.probe(arguments.json)
    with shared.join(arguments):
        return _verify(arguments)


def _verify(arguments):
    import jax

    from emigm_jax.io.progress import Bar
    from emigm_jax.parallel import agreement
    from emigm_jax.verify import part, parts

    on_cpu = jax.default_backend() == 'cpu'
    dtype = arguments.dtype or ('float32' if on_cpu else 'bfloat16')
    dtypes = list(dict.fromkeys(('float32', dtype)))
    first = agreement.first()
    chosen = _chosen(parts.parts(), arguments.only)
    if first:
        print(_machine(dtypes), flush=True)
    bar = lambda steps: Bar(steps, unit=' parts', quiet=not first)
    results = list(part.run(chosen, dtypes, bar))
    if first:
        _print(results)
        if arguments.json:
            _write(arguments.json, dtypes, results)
    return int(any(result.off for result in results))


def _chosen(parts, text):
    chosen = [part for part in parts if text in part.name]
    if not chosen:
        raise UserError(
            f'--only {text}: there is no such part; there are '
            f'{", ".join(part.name for part in parts)}'
        )
    return chosen


def _machine(dtypes):
    import jax

    device = jax.devices()[0]
    return (
        f'{device.device_kind} ({device.platform}), {jax.device_count()} device(s), '
        f'jax {jax.__version__}, {" and ".join(dtypes)}'
    )


def _print(results):
    width = max(len(result.part.name) for result in results)
    print(f'{"part":{width}}  {"dtype":8}  {"error":>8}  {"usual":>8}  verdict   of what')
    for result in results:
        error, usual = _number(result.error), _number(result.usual)
        print(
            f'{result.part.name:{width}}  {result.dtype:8}  {error:>8}  {usual:>8}  '
            f'{result.verdict:8}  {result.measured}'
        )
    off = [result for result in results if result.off]
    for result in off:
        print(f'{result.part.name} ({result.dtype}): {result.part.remedy}')
    if off:
        names = ', '.join(f'{result.part.name} ({result.dtype})' for result in off)
        print(f'{len(off)} of {len(results)} parts are off: {names}')
    else:
        print(f'all {len(results)} parts agree')


def _number(value):
    return '-' if value is None else '0' if value == 0 else f'{value:.1e}'


def _write(file, dtypes, results):
    import jax

    from emigm_jax.io import files

    device = jax.devices()[0]
    rows = [
        {
            'part': result.part.name,
            'dtype': result.dtype,
            # JSON has no NaN.
            'error': result.error if result.error == result.error else None,
            'usual': result.usual,
            'verdict': result.verdict,
            'measured': result.measured,
            'seconds': round(result.seconds, 2),
        }
        for result in results
    ]
    machine = {'device': device.device_kind, 'platform': device.platform}
    machine |= {'devices': jax.device_count(), 'jax': jax.__version__, 'dtypes': dtypes}
    files.write_json(file, {**machine, 'agrees': not any(r.off for r in results), 'parts': rows})
