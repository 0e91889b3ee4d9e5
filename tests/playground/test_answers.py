"""What the page of `emigm demo` answers, without a browser and without gradio."""

import dataclasses
import shlex
import socket
import sys
import threading
import urllib.parse

import jax
import numpy as np
import pytest
from PIL import Image

import emigm_jax as em
from emigm_jax.cli import main
from emigm_jax.errors import UserError
from emigm_jax.playground import answers, commands, links
from emigm_jax.playground.painted import Painted, enlarged, painted
from emigm_jax.playground.settings import NULL, Offer
from emigm_jax.playground.studio import Studio
from emigm_jax.tokenizers import codec
from support import golden, small_tokenizers
from support.runs import run, state  # noqa: F401

HERE = 'http://127.0.0.1:7860/?seeds=9#top'
MOST = 4


@pytest.fixture(scope='module')
def studio(run):  # noqa: F811
    return Studio(Offer(em.load(run), MOST))


def changed(studio, **fields):
    start = studio.offer.start('')
    return start.__class__(**vars(start) | fields)


def small(shown):
    """What was enlarged, (M, 8, 8, 3)."""
    return np.stack([np.asarray(image)[::32, ::32] for image in shown.images])


def editor(picture, box, size=None):
    """What an editor says of a picture with a rectangle painted on it."""
    layer = Image.new('RGBA', size or picture.size)
    if box:
        layer.paste((229, 72, 77, 255), box)
    return {'background': picture.convert('RGBA'), 'layers': [layer], 'composite': None}


@pytest.fixture(scope='module')
def digit(studio):
    (image,) = studio.offer.model.sample([5], [7])
    return Image.fromarray(enlarged(image))


def test_pictures_appear_token_by_token(studio):
    settings = changed(studio, classes=(3, NULL), seeds='5,9')
    shown = list(answers.drawn(studio, settings, HERE))
    assert [each.line.split(' · ')[:3] for each in shown] == [
        [f'step {n} of 4', f'{n} of 4 tokens', 'NFE 6'] for n in range(1, 5)
    ]
    images = studio.offer.model.sample([3, None], [5, 9])
    np.testing.assert_array_equal(small(shown[-1]), images)
    for n, each in enumerate(shown, 1):
        grey = (small(each) == 128).all(-1).reshape(4, 2, 4, 2, 4).all((2, 4))
        assert (grey.sum((1, 2)) == 4 - n).all()


def test_settings_that_need_no_other_program_compile_nothing(studio, caplog):
    list(studio.sample(studio.offer.start('')))
    other = changed(studio, classes=(7,), seeds='1-3', guidance=3.5, interval=(0.11, 0.61))
    compiled = lambda: [r for r in caplog.records if 'ompil' in r.getMessage()]
    with jax.log_compiles():
        list(studio.sample(other))
        assert not compiled()
        list(studio.sample(changed(studio, order='raster')))
        assert compiled()


def test_visitors_take_turns(studio):
    settings = changed(studio, classes=(1, 2), seeds='0'), changed(studio, classes=(3,), seeds='4')
    alone = [list(studio.sample(each))[-1].images for each in settings]
    first = studio.sample(settings[0])
    next(first)
    # Another one is served while the first is looking at an unfinished picture.
    served = []
    visitor = threading.Thread(
        target=lambda: served.extend(studio.sample(settings[1])), daemon=True
    )
    visitor.start()
    visitor.join(60)
    np.testing.assert_array_equal(served[-1].images, alone[1])
    np.testing.assert_array_equal(list(first)[-1].images, alone[0])


@pytest.mark.slow
def test_official_weights_and_their_tokenizer(tmp_path):
    """Pictures of latent tokens, one of them painted on and completed."""
    given = golden.path('emigm_tiny_release.pth')
    assert main.main(['convert', str(given), str(tmp_path / 'tiny'), '--heads', '4']) == 0
    codec.save(tmp_path / 'kl16', small_tokenizers.small('kl16'))
    model = em.load(tmp_path / 'tiny', tokenizer=tmp_path / 'kl16', batch_size=1)
    studio = Studio(Offer(model, 1, given={'steps': 2, 'solver_steps': 1}))
    settings = dataclasses.replace(studio.offer.start(''), classes=(3,), seeds='0')
    (*_, drawn) = studio.sample(settings)
    (image,) = drawn.images
    assert image.std() > 0.0
    side = len(image)
    half = Image.new('L', (side, side))
    half.paste(255, (0, 0, side // 2, side))
    (*_, edited) = studio.edit(settings, Painted(Image.fromarray(image), half))
    assert 0 < edited.revealed <= edited.tokens
    changes = (edited.images[0] != image).any(-1).mean(0)
    assert changes[: side // 2].mean() > changes[side // 2 :].mean()


# --- Links and commands --------------------------------------------------------------------------

OTHERS = dict(
    classes=(3, NULL),
    edited=(8, 1),
    seeds='1,4-5',
    steps=3,
    guidance=1.2345678,
    interval=(0.0, 1.0),
    order='halton',
)


@pytest.mark.parametrize('fields', [{}, OTHERS, *({n: v} for n, v in OTHERS.items())])
def test_a_link_restores_the_settings(studio, fields):
    settings = changed(studio, **fields)
    query = links.query(studio.offer, settings)
    assert set(dict(urllib.parse.parse_qsl(query))) == set(fields)
    assert answers.restored(studio, dict(urllib.parse.parse_qsl(query))) == (settings, '')


def test_a_link_is_the_page_with_a_query(studio):
    shown = next(answers.drawn(studio, changed(studio, classes=(3, 7), seeds='0'), HERE))
    assert shown.link == 'http://127.0.0.1:7860/?classes=3,7&seeds=0'


def test_presets_have_links_and_commands(studio):
    own = studio.offer.model
    best = own.sampling(steps=3, guidance=1.5)
    saved = dataclasses.replace(own.saved, presets={'fast': own.sampling(steps=2), 'best': best})
    offer = Offer(em.Model(saved, own.generator), MOST, 'fast', dict(solver_steps=2))
    assert offer.presets == ['', 'fast', 'best']
    for preset, query in (('', 'preset='), ('fast', ''), ('best', 'preset=best')):
        settings = dataclasses.replace(offer.start(preset), seeds='7')
        assert links.query(offer, settings) == '&'.join(filter(None, ['seeds=7', query]))
        fields = dict(urllib.parse.parse_qsl(links.query(offer, settings), keep_blank_values=True))
        assert links.settings(offer, fields) == settings
    assert settings.guidance == 1.5
    words = shlex.split(commands.sample(offer, dataclasses.replace(settings, steps=4)))
    end = ['--seeds', '7', '--preset', 'best', '--solver-steps', '2', '--steps', '4']
    assert words[-8:] == end


@pytest.mark.parametrize(
    ('query', 'says'),
    [
        ({'classes': '3,11'}, 'there is no class 11'),
        ({'classes': 'a cat'}, "'a cat'"),
        ({'steps': 'many'}, 'the link: invalid literal'),
        ({'interval': '1'}, 'the link: not enough values'),
        ({'order': 'confidence'}, "the link: no 'confidence', there are random, halton"),
        ({'preset': 'best'}, "the link: no preset 'best'"),
    ],
)
def test_a_wrong_link_says_so_and_opens_a_new_page(studio, query, says):
    settings, wrong = answers.restored(studio, query)
    assert settings == studio.offer.start('')
    assert says in wrong


def made_by(command, folder, monkeypatch):
    """The pictures that a command of the page makes in a folder, in the order of their names."""
    monkeypatch.chdir(folder)
    program, *words = shlex.split(command)
    assert program == 'emigm'
    assert main.main([*words, '--out', 'out']) == 0
    files = sorted((folder / 'out/images').glob('*.png'))
    return np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])


@pytest.mark.parametrize(
    ('begun', 'fields'),
    [
        ({}, {}),
        pytest.param(
            dict(guidance=3.0, solver='ddim'),
            dict(OTHERS, classes=(3, 5), seeds='0,2'),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_command_makes_the_same_pictures(studio, begun, fields, tmp_path, monkeypatch):
    of = Studio(Offer(studio.offer.model, MOST, '', begun))
    *_, shown = answers.drawn(of, changed(of, **fields), HERE)
    np.testing.assert_array_equal(made_by(shown.command, tmp_path, monkeypatch), small(shown))


ALL = pytest.param((0, 0, 256, 256), marks=pytest.mark.slow)


@pytest.mark.parametrize('box', [(0, 0, 128, 256), (140, 140, 170, 190), ALL])
def test_the_command_makes_the_same_edit(studio, digit, box, tmp_path, monkeypatch):
    settings = changed(studio, edited=(2, 8), seeds='0-1', guidance=1.5)
    *_, shown = answers.edited(studio, settings, HERE, editor(digit, box), tmp_path)
    for file in shown.files:
        (tmp_path / file.rpartition('/')[2]).symlink_to(file)
    np.testing.assert_array_equal(made_by(shown.command, tmp_path, monkeypatch), small(shown))
    inside = np.zeros((8, 8), bool)
    left, top, right, bottom = (edge // 32 for edge in box)
    inside[top : bottom + 1, left : right + 1] = True
    tokens = np.kron(inside.reshape(2, 4, 2, 4).any((1, 3)), np.ones((4, 4), bool))
    kept = (small(shown) == np.asarray(digit)[::32, ::32]).all((0, 3))
    assert kept[~tokens].all()
    assert not kept[tokens].all()


def test_words_that_shells_would_read_otherwise_are_quoted(studio, monkeypatch):
    monkeypatch.setattr(studio.offer.model, 'opened_by', {'checkpoint': "my run's"})
    command = commands.sample(studio.offer, changed(studio, interval=(-0.5, 1.0)))
    words = shlex.split(command)
    assert words[2:4] == ['--checkpoint', "my run's"]
    assert '--interval=-0.5,1' in words


# --- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        (dict(seeds='5-3'), 'seeds: the range 5-3 is reversed'),
        (dict(seeds=''), "seeds must look like '3'"),
        (dict(classes=()), 'there is nothing to draw'),
        (dict(classes=(11,)), 'there is no class 11'),
        (dict(classes=(1, 2), seeds='0-2'), '2 classes with 3 seeds are 6 pictures, 4 at most'),
        (dict(steps=0), 'must be at least 1'),
        (dict(interval=(0.5, 0.1)), 'guidance_to must be at least 0.5'),
        (dict(guidance=float('nan')), 'must be a finite number'),
    ],
)
def test_a_mistake_is_one_line(studio, fields, says):
    with pytest.raises(UserError, match=says):
        next(answers.drawn(studio, changed(studio, **fields), HERE))


def test_nothing_to_edit(studio, digit, tmp_path):
    for said, says in [
        (None, 'there is no picture'),
        ({'background': None, 'layers': [], 'composite': None}, 'there is no picture'),
        (editor(digit, None), 'nothing is painted'),
        (editor(digit, (140, 140, 150, 150)), 'too little is painted: half of one of the 8 x 8'),
    ]:
        with pytest.raises(UserError, match=says):
            next(answers.edited(studio, changed(studio), HERE, said, tmp_path))


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'LA', 'CMYK', 'I;16'])
def test_a_picture_of_any_size_and_mode(studio, mode, tmp_path):
    picture = Image.new(mode if mode != 'I;16' else 'I', (50, 31)).convert('RGBA')
    settings = changed(studio, edited=(2,), seeds='0')
    *_, shown = answers.edited(studio, settings, HERE, editor(picture, (0, 0, 20, 31)), tmp_path)
    assert small(shown).shape == (1, 8, 8, 3)


def test_what_is_painted_counts_and_what_is_transparent_is_white():
    picture = Image.new('RGBA', (4, 2), (0, 0, 0, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    on = painted(editor(picture, (0, 0, 4, 2), size=(8, 4)))  # of another resolution
    assert (on.picture.mode, on.mask.mode, on.mask.size) == ('RGB', 'L', (4, 2))
    assert np.asarray(on.picture)[0, :2].tolist() == [[255] * 3, [10, 20, 30]]
    assert np.asarray(on.mask).tolist() == [[255, 255, 0, 0], [0, 0, 0, 0]]


# --- The command line ----------------------------------------------------------------------------


def test_without_gradio_one_line_says_how_to_get_it(run, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert main.main(['demo', '--checkpoint', str(run)]) == 2
    assert capsys.readouterr().err == (
        "emigm: the page needs gradio: pip install 'emigm_jax[demo]'\n"
    )


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--checkpoint', 'nowhere'), 'nowhere: no such checkpoint or workdir'),
        (('--preset', 'best'), "no preset 'best'"),
        (('--guidance', 'nan'), 'guidance must be a finite number'),
        (('--port', 'TAKEN'), 'Address already in use; --port 0 takes any that is free'),
        (('--port', '99999'), 'the port must be at most 65535'),
        (('--host', 'no.such.host.invalid'), '--host no.such.host.invalid'),
    ],
)
def test_mistakes_of_the_command(run, flags, says, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [port if flag == 'TAKEN' else flag for flag in flags]
        assert main.main(['demo', '--checkpoint', str(run), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1
    assert 'gradio' not in sys.modules
