"""The page: one HTML file that needs nothing else. No script, no address, pictures embedded."""

import base64
import html
import re
import string

from emigm_jax.report import panels, pictures, plots, tables
from emigm_jax.report.style import CSS

FILES = 'emigm-report-files'  # meta entry that lists the PNG files written beside the page

# The policy forbids a browser to load anything from elsewhere, whatever a run is called.
_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<meta name="$files_entry" content="$files">
<title>$title</title>
<style>$css</style>
</head>
<body>
<header><h1>$title</h1>
<p class="muted">Written by emigm report, $made.</p></header>
<main>
$body
</main>
</body>
</html>
""")


def build(runs, made, progress=lambda: None):
    """A report.

    Args:
      runs: list of `Run`.
      made: when, as text.
      progress: called after each picture.

    Returns:
      (HTML text, {file name: PNG bytes} to lie beside it).
    """
    names, files = [run.name for run in runs], {}
    absent = panels.absent(runs)

    def figure(panel):
        themes = {theme: plots.png(panel, names, theme) for theme in plots.THEMES}
        progress()
        files[f'{panel.name}.png'] = themes['light']
        return _figure(panel, names, themes)

    quality = ''.join(map(figure, panels.over_steps(runs) + panels.against_cost(runs)))
    curves = ''.join(map(figure, panels.training(runs)))
    body = [
        _section('Runs', _table(tables.overview(runs)) + _paths(runs) + _notes(runs)),
        _section(
            'Scores', _said(absent, 'scores', 'steps', 'fid') + _grid(quality) + _scores(runs)
        ),
        _section('Samples', _said(absent, 'samples') + _samples(runs, files)),
        _section('Training', _said(absent, 'training') + _grid(curves)),
        _section('Settings', _settings(runs)),
        _section('Published figures', _paper(runs)),
    ]
    title = f'Report of {names[0]}' if len(names) == 1 else f'Report of {len(names)} runs'
    page = _PAGE.substitute(
        title=html.escape(title),
        made=html.escape(made),
        css=CSS.substitute(colours=_colours()),
        files_entry=FILES,
        files=html.escape(' '.join(sorted(files))),
        body='\n'.join(body),
    )
    return page, files


def count(runs):
    """How many pictures `build` draws."""
    return sum(
        len(part(runs)) for part in (panels.over_steps, panels.against_cost, panels.training)
    )


def _colours():
    """CSS of the colour of each run."""
    light, dark = (plots.THEMES[name].runs for name in ('light', 'dark'))
    rules = lambda colours: ''.join(f'.c{i}{{--run:{c}}}' for i, c in enumerate(colours))
    return f'{rules(light)}@media (prefers-color-scheme:dark){{{rules(dark)}}}'


def _section(title, content):
    return f'<section><h2>{title}</h2>{content}</section>' if content else ''


def _said(absent, *parts):
    return ''.join(f'<p class="said">{html.escape(absent[p])}</p>' for p in parts if p in absent)


def _grid(figures):
    return f'<div class="figures">{figures}</div>' if figures else ''


def _data(content, kind='image/png'):
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _figure(panel, names, themes):
    shown = ', '.join(dict.fromkeys(names[curve.run] for curve in panel.curves))
    caption = f'{panel.caption} ' if panel.caption else ''
    width, height = (round(96 * inches) for inches in plots.size(panel, names))
    return (
        '<figure><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(themes["dark"])}">'
        f'<img alt="{html.escape(panel.title)}: {html.escape(shown)}" width="{width}" '
        f'height="{height}" src="{_data(themes["light"])}"></picture>'
        f'<figcaption>{html.escape(caption)}<span class="file">{panel.name}.png</span>'
        '</figcaption></figure>'
    )


def _breakable(text):
    """Escaped text that may be broken after the signs that join names."""
    return re.sub(r'([_./-])', r'\1<wbr>', html.escape(text))


def _chip(run):
    return f'<span class="chip c{run % len(plots.THEMES["light"].runs)}"></span>'


def _table(table):
    right = lambda i: ' class="number"' if i in table.numbers else ''
    heads = ''.join(f'<th{right(i)}>{html.escape(h)}</th>' for i, h in enumerate(table.heads))
    rows = []
    for index, row in enumerate(table.rows):
        run = table.runs[index] if table.runs else None
        chip, kind = ('', '') if run is None else (_chip(run), ' class="run"')
        first = f'<th scope="row"{kind}>{chip}{_breakable(row[0])}</th>'
        rest = ''.join(f'<td{right(i)}>{html.escape(c)}</td>' for i, c in enumerate(row) if i)
        rows.append(f'<tr>{first}{rest}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div>'
    )


def _details(summary, content):
    return f'<details><summary>{html.escape(summary)}</summary>{content}</details>'


def _list(lines):
    return f'<ul>{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul>'


def _paths(runs):
    return _details('Where they lie', _list(f'{run.name}: {run.path}' for run in runs))


def _notes(runs):
    lines = [f'{run.name}: {note}' for run in runs for note in run.notes]
    return f'<h3>Noticed while reading</h3>{_list(lines)}' if lines else ''


def _scores(runs):
    table, missing = tables.scores(runs), tables.not_computed(runs)
    shown = '' if table is None else _table(table)
    return shown + (f'<h3>Not computed</h3>{_list(missing)}' if missing else '')


def _samples(runs, files):
    """Per run: the newest grid large, earlier ones small above it. Adds the PNGs to `files`."""
    parts = []
    for index, run in enumerate(runs):
        if not run.grids:
            continue
        earlier = ''.join(
            _sample(index, run, grid, pictures.EARLIER, files) for grid in run.grids[:-1]
        )
        rest = run.grid_count - len(run.grids)
        left_out = f' {rest} grids in between are not shown.' if rest else ''
        parts.append(
            f'<h3>{_chip(index)}{html.escape(run.name)}</h3>'
            f'{_sample(index, run, run.grids[-1], pictures.LARGEST, files, "newest")}'
            + (
                f'<p class="muted">Earlier ones.{left_out}</p><div class="strip">{earlier}</div>'
                if earlier
                else ''
            )
        )
    without = [run.name for run in runs if run.trained and not run.grids]
    if parts and without:
        parts.append(
            f'<p class="said">No pictures in samples/ of {html.escape(", ".join(without))}.</p>'
        )
    return ''.join(parts)


def _sample(index, run, grid, side, files, kind='earlier'):
    content, mime, (width, height), reduced = pictures.small(grid.content, side)
    file = f'samples_{index + 1}_{_slug(run.name)}_{grid.step:08}.png'
    files[file] = grid.content
    note = ', reduced' if reduced else ''
    return (
        f'<figure class="{kind}"><img alt="Samples of {html.escape(run.name)} at step {grid.step}" '
        f'width="{width}" height="{height}" src="{_data(content, mime)}">'
        f'<figcaption>Step {grid.step:,}{note} <span class="file">{file}</span></figcaption>'
        '</figure>'
    )


def _slug(name):
    """A name as part of a file name."""
    return ''.join(c if c.isascii() and (c.isalnum() or c in '-.') else '_' for c in name)[:24]


def _settings(runs):
    differing, shared = tables.settings(runs)
    known = [run for run in runs if run.settings]
    if not known:
        return '<p class="said">None of these runs has a config.json.</p>'
    if len(known) == 1:
        return _details(f'All settings of {known[0].name}', _table(shared)) if shared else ''
    if differing is None:
        parts = '<p class="said">No setting differs between these runs.</p>'
    else:
        parts = f'<p>Settings that differ between the runs.</p>{_table(differing)}'
    if shared:
        parts += _details(f'{len(shared.rows)} settings that they share', _table(shared))
    return parts


def _paper(runs):
    sizes = {
        e.image_size
        for run in runs
        for e in run.evaluations + run.measurements
        if 'fid' in e.scores
    }
    return ''.join(
        _details(
            f'ImageNet at {size} pixels, as arXiv 2503.07197 (v3) gives them',
            _table(tables.paper(size)),
        )
        for size in sorted(sizes & set(tables.published.OTHERS))
    )
