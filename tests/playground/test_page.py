"""The page of `emigm demo` in a real browser, which may ask nobody but the server for anything."""

import importlib.util
import re
import shlex
import signal
import socket
import urllib.parse

import pytest

from support import browser
from support.processes import Run
from support.runs import run, state  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('gradio') is None,
        reason="no gradio: pip install -e '.[test,demo]'",
    ),
    pytest.mark.skipif(
        not (browser.BINARY and browser.DRIVER),
        reason='no chromium and chromedriver: apt-get install chromium chromium-driver',
    ),
]
SEEDS = '#seeds textarea, #seeds input'


@pytest.fixture(scope='module')
def server(run, tmp_path_factory):  # noqa: F811
    """The address of a page, and its process."""
    words = 'demo', '--checkpoint', str(run), '--port', '0', '--batch-size', '4'
    process = Run(tmp_path_factory.mktemp('page') / 'demo', words, devices=1)
    process.await_text('(Ctrl-C ends it)')
    yield re.search(r'http://\S+', process.output())[0], process
    process.processes[0].send_signal(signal.SIGINT)
    assert process.codes(60) == [128 + signal.SIGINT]
    # Visitors' mistakes are told on the page alone.
    note, page, end = process.output().splitlines()
    assert note.startswith('after 10 steps') and page.startswith('http') and 'interrupted' in end


@pytest.fixture(scope='module')
def window():
    with browser.Browser() as opened:
        yield opened


def told(window):
    """What the page says went wrong; then it is closed."""
    text = window.until(lambda: window.one('.toast-body').text)  # which fades in
    window.driver.execute_script("document.querySelector('.toast-close').click()")
    window.until(lambda: not window.all('.toast-body'))
    return text


def test_it_listens_on_this_machine_alone(server):
    place = urllib.parse.urlsplit(server[0])
    socket.create_connection((place.hostname, place.port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.2', place.port))


def test_a_visit(server, window):
    url, _ = server
    window.open(url)
    frames = window.frames('#draw', 'drawn')
    assert [frame.split(' · ')[1] for frame in frames] == [f'{n} of 4 tokens' for n in (1, 2, 3, 4)]
    window.until(lambda: len(window.all('#drawn .thumbnail-item')) == 4)
    assert shlex.split(window.value('#drawn-command textarea'))[4:] == (
        ['--classes', '0,1', '--seeds', '0-1']
    )

    window.click('#drawn .thumbnail-item', 2)
    window.until(lambda: window.all('#editor canvas'))
    # The picture is on the canvas as soon as there is something to edit.
    window.click('#edit')
    assert 'nothing is painted' in told(window)
    window.paint('#editor canvas', [((0.32, 0.2), (0.32, 0.8)), ((0.4, 0.2), (0.4, 0.8))])
    window.choose('#edited', '7')
    frames = window.frames('#edit', 'redrawn')
    assert len(frames) == 2 and 'step 2 of 2 · 4 of 4 tokens' in frames[-1]
    command = shlex.split(window.value('#redrawn-command textarea'))
    assert command[4:] == (
        ['--picture', 'picture.png', '--mask', 'mask.png', '--classes', '0,7', '--seeds', '0-1']
    )
    window.until(lambda: len(window.all('#redrawn .thumbnail-item')) == 4)

    window.type(SEEDS, '5-3')
    window.click('#draw')
    assert 'seeds: the range 5-3 is reversed' in told(window)
    window.type(SEEDS, '4')
    window.frames('#draw', 'drawn')
    link = f'{url}?edited=0,7&seeds=4'
    window.until(lambda: window.value('#drawn-link textarea, #drawn-link input') == link)
    window.open(link)
    window.until(lambda: window.value(SEEDS) == '4')
    assert {'0', '7'} < set(window.one('#edited').text.split())
    window.open(f'{url}?steps=none')
    assert 'the link: invalid literal' in told(window)
    strangers = [u for u in window.requests() if not u.startswith((url, 'data:', 'blob:'))]
    assert not strangers and len(window.urls) > 10


def test_two_visitors_at_once(server, window):
    url, _ = server
    window.open(url)
    window.driver.execute_script(browser.WATCH, 'drawn-line')
    window.click('#draw')
    first = window.driver.current_window_handle
    window.driver.switch_to.new_window('tab')
    window.open(url)
    assert window.frames('#draw', 'drawn')[-1].startswith('step 4 of 4')
    window.driver.close()
    window.driver.switch_to.window(first)
    window.until(lambda: window.one('#drawn-line').text.startswith('step 4 of 4'))
