"""Draws panels with matplotlib, which is imported here alone. Light and dark are two pictures."""

import dataclasses
import functools
import io
import math
import warnings

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.report import labels
from emigm_jax.report.panels import STEPS

try:
    import matplotlib
    from matplotlib import figure as figures
    from matplotlib import lines, ticker
    from matplotlib.backends import backend_agg
except ImportError as error:
    raise UserError("drawing needs matplotlib: pip install 'emigm_jax[report]'") from error


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    background: str
    ink: str  # text
    muted: str  # axes, published points
    faint: str  # grid lines
    runs: tuple  # a colour per run; after the last one they begin anew, with other dashes


THEMES = {
    'light': Theme(
        '#ffffff',
        '#1d2129',
        '#68707d',
        '#e7e9ee',
        (
            '#1668b5',
            '#c8501a',
            '#11805a',
            '#9c3587',
            '#836a00',
            '#5a50c9',
            '#b02a3c',
            '#3b7483',
        ),
    ),
    'dark': Theme(
        '#171a20',
        '#e4e6ea',
        '#9aa2af',
        '#2b3039',
        (
            '#62b0f2',
            '#f2945a',
            '#4fc79c',
            '#df8cc8',
            '#d5b645',
            '#a5a1fa',
            '#f27d86',
            '#86c2d2',
        ),
    ),
}
DASHES = ('-', (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
WIDTH, HEIGHT = 4.7, 3.1  # inches, without title and legend; shown at 300 to 550 pixels
DPI = 210
NAME_LENGTH = 44  # of a run in a legend; longer ones lose their middle
_SMOOTHED = 200  # points beyond which a line is drawn smoothed, over its own faint self


def png(panel, names, theme):
    """A panel as PNG bytes; `names` of the runs, `theme` of THEMES."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A run may be called anything; a sign that the font lacks is drawn as a box.
        warnings.filterwarnings('ignore', message='Glyph', category=UserWarning)
        # The settings must hold here, too: matplotlib makes ticks when it draws.
        with matplotlib.rc_context(_settings(THEMES[theme])):
            figure(panel, names, theme).savefig(buffer, format='png', dpi=DPI)
    return buffer.getvalue()


def figure(panel, names, theme):
    """A panel as a matplotlib figure."""
    theme = THEMES[theme]
    with matplotlib.rc_context(_settings(theme)):
        shown, columns = _shown(panel), _columns(panel, names)
        drawn = figures.Figure(figsize=size(panel, names), layout='constrained')
        backend_agg.FigureCanvasAgg(drawn)
        drawn.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        axes = drawn.add_subplot()
        # Of the figure, which is wider than the axes.
        drawn.suptitle(panel.title, x=0.02, ha='left', fontsize=10.5, fontweight='bold')
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        _scales(axes, panel)
        for curve in panel.curves:
            _draw(axes, curve, panel, theme)
        for y in panel.levels:
            axes.axhline(y, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        _limits(axes, panel)
        if len(shown) > 1:
            _legend(drawn, [(i, shortened(names[i])) for i in shown], theme, columns)
        if panel.marks:
            _marks(drawn, axes, panel, theme)
    return drawn


def size(panel, names):
    """(width, height) of a panel in inches, its legend included."""
    shown = len(_shown(panel))
    rows = -(-shown // _columns(panel, names)) if shown > 1 else 0
    return WIDTH, HEIGHT + 1.0 * bool(panel.marks) + 0.2 * rows


def _shown(panel):
    return sorted({curve.run for curve in panel.curves})


def _columns(panel, names):
    """Columns of a legend: a line holds about 64 letters, a coloured stroke is 6 wide."""
    longest = max(len(shortened(names[i])) for i in _shown(panel))
    return max(1, min(len(_shown(panel)), 64 // (longest + 6)))


def shortened(name, length=NAME_LENGTH):
    """A name with '…' for its middle if it is longer than `length`."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f'{name[: length - 1 - half]}…{name[-half:]}'


def _settings(theme):
    return {
        'font.size': 9.5,
        'axes.labelcolor': theme.ink,
        'text.color': theme.ink,
        'axes.edgecolor': theme.muted,
        'axes.linewidth': 0.8,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.facecolor': theme.background,
        'figure.facecolor': theme.background,
        'savefig.facecolor': theme.background,
        'axes.grid': True,
        'axes.axisbelow': True,
        'grid.color': theme.faint,
        'grid.linewidth': 0.8,
        'xtick.color': theme.muted,
        'ytick.color': theme.muted,
        'xtick.labelcolor': theme.ink,
        'ytick.labelcolor': theme.ink,
        'xtick.labelsize': 9,
        'ytick.labelsize': 9,
        'text.parse_math': False,
        'axes.formatter.limits': (-3, 5),
        'axes.formatter.useoffset': False,
    }


def colour(theme, run):
    """The colour of the run at a position, in every picture of a theme."""
    return THEMES[theme].runs[run % len(THEMES[theme].runs)]


def _dash(run, theme):
    return DASHES[run // len(theme.runs) % len(DASHES)]


def _draw(axes, curve, panel, theme):
    line = dict(color=theme.runs[curve.run % len(theme.runs)], linestyle=_dash(curve.run, theme))
    if curve.error is not None:
        axes.errorbar(
            curve.x,
            curve.y,
            curve.error,
            fmt='none',
            ecolor=line['color'],
            elinewidth=1,
            capsize=2.5,
        )
    if curve.kind != 'line':
        if curve.kind == 'measured':
            line['linestyle'] = 'none'
        axes.plot(
            curve.x,
            curve.y,
            marker='D',
            markersize=6.5,
            linewidth=1.2,
            zorder=4,
            markeredgecolor=theme.background,
            markeredgewidth=0.8,
            **line,
        )
    elif len(curve.x) > _SMOOTHED:
        axes.plot(curve.x, curve.y, alpha=0.3, linewidth=0.7, **line)
        axes.plot(curve.x, smoothed(curve.y), linewidth=1.7, **line)
    else:
        few = len(curve.x) <= 30
        axes.plot(
            curve.x, curve.y, marker='o' if few else None, markersize=3.2, linewidth=1.7, **line
        )


def smoothed(values):
    """Means over windows of about a fiftieth of the values.

    Windows are centred; the first ones are shorter, for curves are steep there, the last one-sided.
    """
    half = max(1, len(values) // 100)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(0, index - half)
    high = np.minimum(len(values) - 1, 2 * index - low)
    return (total[high + 1] - total[low]) / (high + 1 - low)


def _scales(axes, panel):
    for axis, log, set_scale in (
        (axes.xaxis, panel.log_x, axes.set_xscale),
        (axes.yaxis, panel.log_y, axes.set_yscale),
    ):
        if log:
            set_scale('log')
        if log or (panel.x == STEPS and axis is axes.xaxis):
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: tick(value)))
    if panel.x == STEPS:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def _limits(axes, panel):
    """Room around all that is drawn, and as many ticks on logarithmic axes as there is room for."""
    ys = [panel_y for curve in panel.curves for panel_y in curve.y]
    xs = [panel_x for curve in panel.curves for panel_x in curve.x]
    ys += [mark.y for mark in panel.marks] + list(panel.levels)
    xs += [mark.x for mark in panel.marks]
    for axis, values, log, limits in (
        (axes.xaxis, xs, panel.log_x, axes.set_xlim),
        (axes.yaxis, ys, panel.log_y, axes.set_ylim),
    ):
        low, high = min(values), max(values)
        if log:
            room = (high / low) ** 0.06 if high > low else 1.5
            limits(low / room, high * room)
            decades = math.log10(high / low * room**2)
            subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
            if decades < 0.8:
                subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
            axis.set_major_locator(ticker.LogLocator(subs=subs))
            axis.set_minor_locator(ticker.NullLocator())
        elif panel.whole and axis is axes.yaxis and low >= 0:
            limits(0, high * 1.06 or 1)


def tick(value):
    """A number on an axis: 250k, 1.5M, 0.002, 3e-05."""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            unit = 1e3 if letter == 'k' else size
            return f'{value / unit:g}{letter}'
    return f'{value:.6g}'.replace('-', '\N{MINUS SIGN}')


def _legend(drawn, entries, theme, columns):
    handles = [
        lines.Line2D(
            [], [], color=theme.runs[i % len(theme.runs)], linestyle=_dash(i, theme), linewidth=2.2
        )
        for i, _ in entries
    ]
    legend = drawn.legend(
        handles,
        [' '] * len(entries),
        loc='outside lower left',
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        borderpad=0.2,
        labelspacing=0.35,
        columnspacing=1.4,
    )
    # Set afterwards: matplotlib would leave out names that begin with an underscore.
    for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(name)


def _marks(drawn, axes, panel, theme):
    """Published points in grey, each named where there is room for its name."""
    joined = {}
    for mark in panel.marks:
        if mark.ours:
            joined.setdefault(mark.name, []).append(mark)
    for same in joined.values():
        axes.plot(
            [m.x for m in same],
            [m.y for m in same],
            color=theme.muted,
            linewidth=0.8,
            alpha=0.6,
            zorder=2,
        )
    for ours, marker, size in ((True, 'o', 5), (False, 'x', 4)):
        some = [mark for mark in panel.marks if mark.ours == ours]
        axes.plot(
            [m.x for m in some],
            [m.y for m in some],
            linestyle='none',
            marker=marker,
            markersize=size,
            color=theme.muted,
            zorder=2.5,
        )
    paths = [[(m.x, m.y) for m in same] for same in joined.values() if len(same) > 1]
    paths += [list(zip(curve.x, curve.y, strict=True)) for curve in panel.curves]
    labels.place(
        drawn,
        axes,
        [(m.name, m.x, m.y) for m in panel.marks],
        paths,
        functools.partial(axes.annotate, color=theme.muted, fontsize=7.8),
    )
