"""Draws panels with matplotlib, which is imported here alone."""

import functools
import io
import math
import warnings
from typing import Any

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.report.panels import STEPS, Map, Panel

try:
    import matplotlib
    from matplotlib import figure as figures
    from matplotlib import lines, path, ticker
    from matplotlib.backends import backend_agg
except ImportError as error:
    raise UserError("drawing needs matplotlib: pip install 'emigm_jax[report]'") from error


BACKGROUND, INK, MUTED, FAINT = '#ffffff', '#1d2129', '#68707d', '#e7e9ee'
# A colour per run; after the last one they begin anew, with other dashes.
COLOURS = '#1668b5', '#c8501a', '#11805a', '#9c3587', '#836a00', '#5a50c9', '#b02a3c', '#3b7483'
DASHES = ('-', (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
_DASHED = (0, (4, 3))
_EDGE = dict(markeredgewidth=0.8, markeredgecolor=BACKGROUND)
_DIAMONDS = dict(marker='D', markersize=6.5, linewidth=1.2, zorder=4, **_EDGE)
KINDS = {
    'line': dict(linewidth=1.7, markersize=3.2),
    'usual': dict(linewidth=1.2, linestyle=_DASHED, zorder=1),
    'measured': dict(_DIAMONDS, linestyle='none'),
    'joined': _DIAMONDS,
    'ours': dict(marker='o', markersize=5, linewidth=0.6, zorder=2.5),
    'other': dict(marker='x', markersize=4, linestyle='none', zorder=2.5),
}
_STYLE: dict[Any, Any] = {  # the keys of matplotlib, a type of which not all versions have
    'font.size': 9.5,
    **dict.fromkeys(('axes.spines.top', 'axes.spines.right'), False),
    **dict.fromkeys(('text.color', 'axes.labelcolor', 'xtick.labelcolor', 'ytick.labelcolor'), INK),
    **dict.fromkeys(('axes.edgecolor', 'xtick.color', 'ytick.color'), MUTED),
    'axes.grid': True,
    'grid.color': FAINT,
    'axes.formatter.limits': (-3, 5),
    'axes.formatter.useoffset': False,
    'text.parse_math': False,  # a $ in a name is no formula
}
WIDTH, HEIGHT = 4.7, 3.1  # inches, without title and legend; shown at 300 to 550 pixels
DPI = 210
NAME_LENGTH = 44  # of a run in a legend; longer ones lose their middle
_SMOOTHED = 200  # points beyond which a line is drawn smoothed, over its own faint self
# Values in a decade that have a tick on a logarithmic axis, by the decades it spans at most
_TICKS = {0.8: (1, 1.5, 2, 3, 4, 5, 7), 2.5: (1, 2, 5), 4: (1, 3), math.inf: (1,)}
_ROOM = 3.5  # points between a name and what it must not cover
# Where a name is put, in points from its point, best first
_PLACES = (6, 0), (-6, 0), (0, 5), (0, -5), (5, 4), (5, -4), (-5, 4), (-5, -4)
_ALIGNED = {1: ('left', 'bottom'), 0: ('center', 'center'), -1: ('right', 'top')}  # by its sign


def png(panel: Panel | Map, names: list[str]) -> bytes:
    """A panel as PNG; `names` of the runs."""
    draw = (
        functools.partial(table, panel)
        if isinstance(panel, Map)
        else functools.partial(figure, panel, names)
    )
    buffer = io.BytesIO()
    # The style must hold here, too: matplotlib makes ticks when it draws.
    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        # A run may be called anything; a sign that the font lacks is drawn as a box.
        warnings.filterwarnings('ignore', message='Glyph', category=UserWarning)
        draw().savefig(buffer, format='png', dpi=DPI)
    return buffer.getvalue()


@matplotlib.rc_context(_STYLE)
def figure(panel: Panel, names: list[str]) -> figures.Figure:
    """A panel as a matplotlib figure."""
    drawing = figures.Figure(figsize=size(panel, names))
    backend_agg.FigureCanvasAgg(drawing)
    drawing.set_layout_engine('constrained', w_pad=0.06, h_pad=0.06)
    # The title is the figure's, which is wider than the axes.
    drawing.suptitle(panel.title, x=0.02, ha='left', fontsize=10.5, fontweight='bold')
    axes = drawing.add_subplot(xlabel=panel.x, ylabel=panel.y)
    _scale(axes, panel)
    for curve in panel.curves:
        _draw(axes, curve)
    for y in panel.levels:
        axes.axhline(y, color=MUTED, linewidth=1, linestyle=_DASHED, zorder=1)
    if len(_runs(panel)) > 1:
        _legend(drawing, panel, names)
    _name_points(drawing, axes, panel)
    return drawing


@matplotlib.rc_context(_STYLE)
def table(drawn: Map) -> figures.Figure:
    """A map as a matplotlib figure: the better, the darker; values and standard errors."""
    rows, columns = (sorted({pair[i] for pair in drawn.values}) for i in (0, 1))
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), (value, _) in drawn.values.items():
        values[rows.index(row), columns.index(column)] = value
    drawing = figures.Figure(figsize=(WIDTH, HEIGHT))
    backend_agg.FigureCanvasAgg(drawing)
    drawing.set_layout_engine('constrained', w_pad=0.06, h_pad=0.06)
    title = f'{drawn.title}\n{drawn.score}'
    drawing.suptitle(title, x=0.02, ha='left', fontsize=10.5, fontweight='bold')
    axes = drawing.add_subplot(ylabel=drawn.axes[0], xlabel=drawn.axes[1])
    axes.grid(False)
    values = -values if drawn.less else values
    low, span = np.nanmin(values), np.ptp(values[~np.isnan(values)]) or 1.0
    # From a blue that is told from white to one on which ink is read.
    shades = dict(vmin=low - 0.2 * span, vmax=low + 2.2 * span)
    axes.imshow(values, cmap='Blues', aspect='auto', **shades)
    for name, ticks in (('y', rows), ('x', columns)):
        axes.set(
            **{f'{name}ticks': range(len(ticks)), f'{name}ticklabels': map('{:g}'.format, ticks)}
        )
    for (row, column), (value, error) in drawn.values.items():
        text = f'{value:.3f}' + ('' if math.isnan(error) else f'\n± {error:.3f}')
        at = (columns.index(column), rows.index(row))
        axes.annotate(text, at, ha='center', va='center', fontsize=7.5)
    return drawing


def size(panel: Panel, names: list[str]) -> tuple[float, float]:
    """(width, height) of a panel in inches, its legend included."""
    count = len(_runs(panel))
    rows = -(-count // _columns(panel, names)) if count > 1 else 0
    return WIDTH, HEIGHT + 1.0 * any(curve.name for curve in panel.curves) + 0.2 * rows


def _runs(panel):
    return sorted({curve.run for curve in panel.curves if curve.run is not None})


def _columns(panel, names):
    """Columns of a legend: a line holds about 64 letters, a coloured stroke is 6 wide."""
    longest = max(len(shortened(names[i])) for i in _runs(panel))
    return max(1, min(len(_runs(panel)), 64 // (longest + 6)))


def shortened(name: str, length: int = NAME_LENGTH) -> str:
    """A name with '…' for its middle if it is longer than `length`."""
    half = (length - 1) // 2
    return name if len(name) <= length else f'{name[: length - 1 - half]}…{name[-half:]}'


def stroke(run: int | None) -> dict[str, Any]:
    """Colour and dashes of the run at a position, in every picture; None: published points."""
    if run is None:
        return dict(color=MUTED)
    turn, index = divmod(run, len(COLOURS))
    return dict(color=COLOURS[index], linestyle=DASHES[turn % len(DASHES)])


def _legend(drawing, panel, names):
    runs = _runs(panel)
    handles = [lines.Line2D([], [], linewidth=2.2, **stroke(run)) for run in runs]
    labels = [shortened(names[run]) for run in runs]
    stroke_length = 1.6 if max(runs) < len(COLOURS) else 2.8  # that dashes are seen
    style = dict(
        frameon=False,
        fontsize=8.5,
        handlelength=stroke_length,
        columnspacing=1.4,
        labelspacing=0.35,
    )
    drawing.legend(handles, labels, loc='outside lower left', ncols=_columns(panel, names), **style)


def _scale(axes, panel):
    """Scales and ticks, before anything is drawn: as many ticks as fit on logarithmic axes."""
    values = {
        'x': [x for curve in panel.curves for x in curve.x],
        'y': [*(y for curve in panel.curves for y in curve.y), *panel.levels],
    }
    for name in ['x'] * panel.log_x + ['y'] * panel.log_y:
        axes.set(**{f'{name}scale': 'log', f'{name}margin': 0.06})
        decades = math.log10(max(values[name]) / min(values[name]))
        ticks = next(ticks for most, ticks in _TICKS.items() if decades < most)
        axis = getattr(axes, f'{name}axis')
        axis.set_major_locator(ticker.LogLocator(subs=ticks))
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter('{x:g}')
    if panel.from_zero and min(values['y']) >= 0:
        axes.set_ylim(0, max(values['y']) * 1.06 or 1)
    if panel.x == STEPS:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))


def _draw(axes, curve):
    style = {**stroke(curve.run), **KINDS[curve.kind]}
    if curve.error is not None:
        bars = dict(fmt='none', ecolor=style['color'], elinewidth=1, capsize=2.5)
        axes.errorbar(curve.x, curve.y, curve.error, **bars)
    y = curve.y
    if curve.kind == 'line' and len(y) > _SMOOTHED:
        axes.plot(curve.x, y, **{**style, 'alpha': 0.3, 'linewidth': 0.7})
        y = smoothed(y)
    elif curve.kind == 'line' and len(y) <= 30:
        style['marker'] = 'o'
    axes.plot(curve.x, y, **style)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means (n,) over windows of about a fiftieth of the (n,) values.

    Windows are centred; the first ones are shorter, for curves are steep there, the last one-sided.
    """
    half = max(1, len(values) // 100)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(0, index - half)
    high = np.minimum(len(values) - 1, 2 * index - low)
    return (total[high + 1] - total[low]) / (high + 1 - low)


def _name_points(drawing, axes, panel):
    """Names published points once each, where the name covers neither points nor lines."""
    drawing.draw_without_rendering()
    frame, room, written = axes.get_window_extent(), _ROOM * drawing.dpi / 72, {}
    paths = [path.Path(axes.transData.transform(np.stack([c.x, c.y], 1))) for c in panel.curves]

    def free(box):
        wide = box.padded(room)
        return (
            min(box.x0 - frame.x0, box.y0 - frame.y0, frame.y1 - box.y1) >= 0
            and box.x1 <= frame.x1 + 0.02 * frame.width
            and not any(box.overlaps(other) for other in written.values())
            and not any(wide.count_contains(p.vertices) for p in paths)
            and not any(p.intersects_bbox(box, filled=False) for p in paths)
        )

    names = [(c.name, xy) for c in panel.curves if c.name for xy in zip(c.x, c.y, strict=True)]
    write = functools.partial(axes.annotate, textcoords='offset points', color=MUTED)
    for name, point in names:
        for x, y in () if name in written else _PLACES:
            (ha, _), (_, va) = _ALIGNED[np.sign(x)], _ALIGNED[np.sign(y)]
            text = write(name, point, (x, y), ha=ha, va=va, fontsize=7.8)
            text.set_in_layout(False)  # lest the axes shrink to make room for it
            box = text.get_window_extent()
            if free(box):
                written[name] = box
                break
            text.remove()
