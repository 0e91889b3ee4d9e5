"""The page: one HTML file that needs nothing else. No script, no address, pictures embedded."""

import base64
import importlib.resources
import io
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from PIL import Image

from emigm_jax.config import published
from emigm_jax.errors import UserError
from emigm_jax.report import panels, plots, tables, write
from emigm_jax.report.panels import Panel
from emigm_jax.report.runs import Run

try:
    import jinja2
    import markupsafe
except ImportError as error:
    raise UserError("a page needs jinja2: pip install 'emigm_jax[report]'") from error

LARGEST, EARLIER = 1600, 420  # pixels per side of the newest grid of samples, of others
_PNG_BYTES = 400_000  # a PNG beyond it is embedded as JPEG


class Picture(NamedTuple):
    """A picture on the page, and as a file beside it."""

    file: str  # its name
    content: bytes  # PNG
    alt: str
    caption: str
    size: tuple[int, int]  # width and height on the page, pixels
    source: str  # what the page embeds


def build(
    runs: list[Run], date: str, progress: Callable[[list[Panel]], Iterable[Panel]] = iter
) -> tuple[str, dict[str, bytes]]:
    """A report.

    Args:
      runs: at least one.
      date: when it was written.
      progress: iterates over the list of panels while they are drawn.

    Returns:
      (HTML text, {file name: PNG} of the pictures to be written beside it).
    """
    names = [run.name for run in runs]
    over_steps, training = panels.over_steps(runs), panels.training(runs)
    scores = over_steps + panels.against_cost(runs)
    figures = [_figure(panel, names) for panel in progress(scores + training)]
    samples = [[_sample(i, run, grid) for grid in run.grids] for i, run in enumerate(runs)]
    files = {picture.file: picture.content for picture in sum(samples, figures)}
    sizes = {e.image_size for run in runs for e in run.scored if 'fid' in e.scores}
    text = _template().render(
        title=f'Report of {names[0]}' if len(names) == 1 else f'Report of {len(names)} runs',
        date=date,
        meta=(write.FILES, ' '.join(sorted(files))),
        colours=plots.COLOURS,
        runs=runs,
        over_steps=over_steps,
        score_figures=figures[: len(scores)],
        training_figures=figures[len(scores) :],
        samples=samples,
        tables=tables,
        published=[size for size in sorted(published.OTHERS) if size in sizes],
    )
    return text, files


def _template():
    assert __package__
    source = importlib.resources.files(__package__).joinpath('page.html.jinja').read_text('utf-8')
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # Names may be broken after the signs that join their parts.
    environment.filters['breakable'] = lambda text: markupsafe.Markup(
        re.sub(r'([_./-])', r'\1<wbr>', str(markupsafe.escape(text)))
    )
    return environment.from_string(source)


def _figure(panel, names):
    content, (width, height) = plots.png(panel, names), plots.size(panel, names)
    shown = ', '.join(dict.fromkeys(names[c.run] for c in panel.curves if c.run is not None))
    size, alt = (round(96 * width), round(96 * height)), f'{panel.title}: {shown}'
    source = _source(content, 'png')
    return Picture(f'{panel.name}.png', content, alt, panel.caption, size, source)


def _sample(index, run, grid):
    """A grid of samples, of which the newest one of a run is large."""
    content, kind, size = small(grid.content, LARGEST if grid is run.grids[-1] else EARLIER)
    slug = re.sub(r'[^A-Za-z0-9.-]', '_', run.name)[:24]
    file = f'samples_{index + 1}_{slug}_{grid.step:08}.png'
    alt = f'Samples of {run.name} at step {grid.step}'
    caption = f'Step {grid.step:,}{", reduced" if kind == "jpeg" else ""}'
    return Picture(file, grid.content, alt, caption, size, _source(content, kind))


def _source(content, kind):
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def small(content: bytes, side: int) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes, 'png' or 'jpeg', (width, height)) of a PNG: as it is, or a JPEG within `side`."""
    with Image.open(io.BytesIO(content), formats=['PNG']) as picture:
        if max(picture.size) <= side and len(content) <= _PNG_BYTES:
            return content, 'png', picture.size
        picture = picture.convert('L' if picture.mode in ('1', 'L', 'I', 'I;16') else 'RGB')
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, 'jpeg', quality=88)
    return buffer.getvalue(), 'jpeg', picture.size
