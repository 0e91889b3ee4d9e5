"""The page: where things stand on it, and which answer belongs to which button."""

import functools
import inspect
import pathlib
import time
from collections.abc import Callable
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from emigm_jax.errors import LONGEST, UserError, printable
from emigm_jax.parallel import backend
from emigm_jax.playground import answers
from emigm_jax.playground.settings import Offer, Settings
from emigm_jax.playground.studio import Studio

VISITORS = 8  # who are served at a time; others wait in line
KEPT = 3600  # seconds that a visitor's pictures are kept
SEEN = 0.6  # seconds in which pictures appear, or longer
PAINT = '#e5484d'
# Fonts of the visitor's own machine: nothing is fetched.
FONTS: dict[str, Any] = dict(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
CSS = """
.gradio-container { max-width: 1360px !important; margin: auto !important }
#drawn .grid-wrap, #redrawn .grid-wrap { overflow: visible; min-height: 0; max-height: none }
#drawn, #redrawn { min-height: 90px }
.thumbnail-item img { image-rendering: pixelated }
.line { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums }
"""


def look() -> dict[str, Any]:
    """How it looks: arguments of whatever serves a page."""
    theme = gr.themes.Default(primary_hue='blue', neutral_hue='slate', **FONTS)
    return dict(theme=theme, css=CSS, footer_links=[])


def build(studio: Studio, folder: pathlib.Path) -> Any:
    """The page as `gradio.Blocks`.

    Args:
      studio: draws.
      folder: where pictures and masks that a visitor may fetch are written.
    """
    offer = studio.offer
    start = offer.start(offer.preset)
    with gr.Blocks(title='emigm', analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f'# emigm\n{_about(offer)}')
        with gr.Row():
            with gr.Column(scale=2, min_width=250):
                controls = _controls(offer, start)
                draw = gr.Button('draw', variant='primary', elem_id='draw')
                stop = gr.Button('stop', elem_id='stop')
            with gr.Column(scale=3, min_width=350):
                gr.Markdown('### Pictures\nClick one to paint on it.')
                drawn = _pictures('drawn')
                texts = _texts('drawn')
            with gr.Column(scale=3, min_width=350):
                gr.Markdown(
                    '### Edit\nPaint over what is to be drawn anew, or drop a picture first.'
                )
                editor = _editor()
                controls['edited'] = _classes(offer, start.edited, 'Drawn anew as', 'edited')
                edit = gr.Button('edit', variant='primary', elem_id='edit')
                edited = _pictures('redrawn')
                edited_texts = _texts('redrawn')
                files = gr.File(
                    label='Files of the command', file_count='multiple', interactive=False
                )
        inputs = set(controls.values())
        settings = lambda values: _settings(controls, values)

        def on_draw(values, request: gr.Request):
            for shown in _paced(answers.drawn(studio, settings(values), _address(request))):
                yield dict(zip([drawn, *texts], shown, strict=False))

        def on_edit(values, request: gr.Request):
            on, address = values[editor], _address(request)
            for shown in _paced(answers.edited(studio, settings(values), address, on, folder)):
                yield dict(zip([edited, *edited_texts, files], shown, strict=False))

        def on_load(request: gr.Request):
            if not request.query_params:
                return gr.skip()
            found, wrong = answers.restored(studio, dict(request.query_params))
            if wrong:
                gr.Warning(wrong, duration=None)
            return _values(controls, found)

        def on_preset(name):
            kept = ('classes', 'edited', 'seeds')
            values = _values(controls, offer.start(name))
            return {c: v for c, v in values.items() if c not in [controls[k] for k in kept]}

        def on_choice(pictures, event: gr.SelectData):
            return pictures[event.index][0]

        quiet = dict(show_progress='hidden', api_visibility='private')
        shared = quiet | dict(show_progress='minimal')
        both = [
            gr.on(
                [draw.click, controls['seeds'].submit],
                _told(on_draw),
                inputs,
                [drawn, *texts],
                show_progress_on=drawn,
                **shared,
            ),
            edit.click(_told(on_edit), {*inputs, editor}, [edited, *edited_texts, files], **shared),
        ]
        stop.click(None, cancels=both)
        drawn.select(_told(on_choice), drawn, editor, **quiet)
        controls['preset'].input(
            _told(on_preset), controls['preset'], list(controls.values()), **quiet
        )
        page.load(_told(on_load), None, list(controls.values()), **quiet)
    return page.queue(default_concurrency_limit=VISITORS)


def _about(offer):
    make, model = offer.model.generator, offer.model
    tokens, side = make.sampler.model.tokens, make.sampler.model.grid * make.codec.spec.stride
    return (
        f'`{printable(model.opened_by["checkpoint"])}`, step {model.saved.step}, weights '
        f'{make.weights}; {side} x {side} pixels as {tokens} tokens'
    )


def _classes(offer, labels, title, name):
    return gr.Dropdown(
        offer.classes, value=list(labels), multiselect=True, label=title, elem_id=name
    )


def _controls(offer: Offer, start: Settings) -> dict[str, Any]:
    """{field of `Settings`: what sets it}; an interval has two, `low` and `high`."""
    reveals = [offer.own(preset).reveal for preset in offer.presets]
    most = max(offer.model.config.model.tokens, *(reveal.steps for reveal in reveals))
    guided = offer.guided
    slider = functools.partial(gr.Slider, interactive=True)
    controls = {
        'classes': _classes(offer, start.classes, 'Classes', 'classes'),
        'seeds': gr.Textbox(start.seeds, label='Seeds', info='0, 3 or 0-3', elem_id='seeds'),
        'preset': gr.Dropdown(
            [(name or 'as the checkpoint says', name) for name in offer.presets],
            value=start.preset,
            label='Preset',
            visible=len(offer.presets) > 1,
        ),
        'steps': slider(1, most, start.steps, step=1, label='Steps', elem_id='steps'),
        'guidance': slider(
            0,
            max(10.0, start.guidance),
            start.guidance,
            step=0.05,
            label='Guidance',
            info='1 switches it off',
            visible=guided,
            elem_id='guidance',
        ),
    }
    with gr.Row(visible=guided):
        bound = functools.partial(gr.Number, step=0.05, min_width=80)
        controls['low'] = bound(start.interval[0], label='Guided from', elem_id='low')
        controls['high'] = bound(start.interval[1], label='to', elem_id='high')
    controls['order'] = gr.Dropdown(offer.orders, value=start.order, label='Order')
    return controls


def _pictures(name):
    return gr.Gallery(
        show_label=False,
        columns=4,
        height='max-content',
        format='png',
        type='pil',
        object_fit='contain',
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=name,
    )


def _texts(name):
    """How far it is, a link and a command."""
    line = gr.Markdown(elem_classes='line', elem_id=f'{name}-line')
    copied = functools.partial(gr.Textbox, buttons=['copy'], interactive=False, max_lines=3)
    command = copied(label='As a command', elem_id=f'{name}-command')
    link = copied(label='As a link', elem_id=f'{name}-link')
    return [line, link, command]


def _editor():
    return gr.ImageEditor(
        show_label=False,
        type='pil',
        format='png',
        image_mode='RGBA',
        sources=['upload', 'clipboard'],
        brush=gr.Brush(default_size=32, colors=[PAINT], default_color=PAINT, color_mode='fixed'),
        layers=False,
        transforms=(),
        canvas_size=(256, 256),
        height=340,
        buttons=[],
        elem_id='editor',
    )


def _settings(controls, values) -> Settings:
    fields: dict[str, Any] = {name: values[control] for name, control in controls.items()}
    interval = fields.pop('low'), fields.pop('high')
    fields |= {name: tuple(fields[name]) for name in ('classes', 'edited')}
    return Settings(interval=interval, **fields)


def _values(controls, settings: Settings) -> dict[Any, Any]:
    """{control: what shows a setting}."""
    low, high = settings.interval
    fields: dict[str, Any] = vars(settings) | {'low': low, 'high': high}
    fields |= {name: list(fields[name]) for name in ('classes', 'edited')}
    return {control: fields[name] for name, control in controls.items()}


def _paced(frames):
    """The same, slowly enough to be seen."""
    for shown in frames:
        yield shown
        time.sleep(SEEN / max(shown.steps, 4))


def _address(request):
    """Of the page as its visitor has it, be there a proxy or not."""
    return request.headers.get('referer') or f'http://{request.headers.get("host", "")}/'


def _told(answer: Callable[..., Any]) -> Callable[..., Any]:
    """An answer whose mistakes show in the page, and those that are ours in the terminal, too."""

    @functools.wraps(answer)
    def once(*arguments):
        try:
            return answer(*arguments)
        except Exception as error:
            raise _error(error) from error

    @functools.wraps(answer)
    def steps(*arguments):
        try:
            yield from answer(*arguments)
        except Exception as error:
            raise _error(error) from error

    return steps if inspect.isgeneratorfunction(answer) else once


def _error(error):
    theirs = str(error) if isinstance(error, UserError | OSError) else backend.explained(error)
    text = printable(theirs or repr(error), LONGEST)
    return gr.Error(text, duration=None, print_exception=not theirs)
