"""`emigm report`: runs and evaluations on one page, with their pictures as files."""

from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'report',
        'Shows runs beside each other and beside the paper: FID over steps, against NFE and against'
        '\nseconds per image, samples, curves of training, settings that differ. Writes report.html'
        '\n(one file, pictures embedded) and the pictures as PNG files.',
        'emigm report runs/a runs/b --out report/\n'
        '  emigm report gs://bucket/run evaluation/ --out gs://bucket/report',
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='RUN',
        help='workdir of `emigm train`, folder or .json file of '
        '`emigm evaluate`, or a folder of such folders; local or gs://',
    )
    parser.add_argument('--out', default='report', help='folder of the report (report)')
    arguments = parser.parse_args(argv)

    import datetime
    import functools

    from emigm_jax.io.progress import Bar
    from emigm_jax.report import gather, page, write

    write.check(arguments.out)
    runs = gather.gather(arguments.runs)
    date = datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')
    progress = functools.partial(Bar, unit=' figures')
    text, pictures = page.build(runs, date, progress)
    write.write(arguments.out, text, pictures)
    for run in runs:
        for note in run.notes:
            print(f'{run.name}: {note}')
    many = lambda count, word: f'{count} {word}{"s" if count != 1 else ""}'
    print(
        f'{many(len(runs), "run")}, {many(len(pictures), "picture")} -> '
        f'{arguments.out.rstrip("/")}/{write.PAGE}'
    )
    return 0
