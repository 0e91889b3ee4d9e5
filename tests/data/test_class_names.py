"""Names of classes: shown, typed, saved, and warned about where they are numbers."""

import json
import os
import types

import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import inspect, runs
from emigm_jax.cli import arguments, main
from emigm_jax.data import class_names
from emigm_jax.errors import UserError
from emigm_jax.io import npz, png
from emigm_jax.report import gather, tables
from emigm_jax.sampling.save import save_samples
from support.runs import state  # noqa: F401

ANIMALS = ('Cat', 'dog, big', 'owl')
NUMBERS = ('0', '1', '10', '2')
ODD = (os.fsdecode(b'caf\xe9'), 'a/b c', 'x' * 90, '\u732b')


def test_titles_and_file_names():
    labels = [-1, 0, 1, 2]
    assert class_names.titles(labels, 3, ANIMALS) == ['no class', '0 Cat', '1 dog, big', '2 owl']
    assert class_names.file_names(labels, 3, ANIMALS) == [
        'null',
        '0000_Cat',
        '0001_dog_big',
        '0002_owl',
    ]
    assert class_names.titles(range(4), 4, NUMBERS) == ['0', '1', "2 '10'", "3 '2'"]
    assert class_names.file_names([2], 4, NUMBERS) == ['0002_10']
    assert class_names.titles([3], 10, ()) == ['3'] and class_names.file_names([3], 10) == ['0003']
    assert class_names.file_names(range(4), 4, ODD) == [
        '0000_caf_xe9', '0001_a_b_c', '0002_' + 'x' * 40, '0003_\u732b'
    ]  # fmt: skip
    assert class_names.titles([0], 4, ODD) == [r'0 caf\xe9']


def test_names_of_imagenet_stand_for_its_codes():
    codes = tuple(f'n{i:08}' for i in range(1000))
    assert class_names.known(1000, codes) == class_names.known(1000) == class_names.imagenet()
    assert class_names.titles([207], 1000, codes) == ['207 golden retriever']
    assert class_names.label('n00000003', 1000, codes) == 3
    assert class_names.label('golden retriever', 1000, codes) == 207
    own = tuple(f'thing {i}' for i in range(1000))
    assert class_names.known(1000, own) == own
    assert class_names.known(3, ('a', 'b')) == ()  # of something else


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('3', [3]),
        ('0-2,5', [0, 1, 2, 5]),
        ('cat', ['cat']),
        ('cat,0', ['cat', 0]),
        ('owl, dog, big ,1', ['owl', 'dog, big', 1]),
        ('none,owl', [None, 'owl']),
        ('name:10,10', ['10', 10]),
        ('name:none,none', ['none', None]),
        ('dog', ['dog']),  # refused by who knows the labels
    ],
)
def test_what_a_flag_stands_for(text, found):
    assert class_names.chosen(text, (*ANIMALS, '10'), 11) == found


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('5-3', 'the range 5-3 is reversed'),
        ('0-99999999999', 'there is no class 99999999999, only 0 to 10'),
        ('11', 'there is no class 11, only 0 to 10$'),
        ('12', 'there is no class 12, only 0 to 10; name:12 is the class that is called so'),
        ('3,,4', "must look like '3'"),
        ('name:', "must look like '3'"),
    ],
)
def test_flags_that_stand_for_nothing(text, says):
    with pytest.raises(UserError, match=says):
        class_names.chosen(text, (*ANIMALS, '12'), 11)


def test_a_name_gives_its_label():
    assert [class_names.label(n, 3, ANIMALS) for n in ('Cat', 'cat', 'OWL')] == [0, 0, 2]
    assert class_names.label('10', 4, NUMBERS) == 2
    assert class_names.label('cat', 2, ('Cat', 'cat')) == 1
    with pytest.raises(UserError, match=r"no class is called 'cap' \(did you mean 'cat'"):
        class_names.label('cap', 3, ANIMALS)
    with pytest.raises(UserError, match='have no names, only 0 to 4'):
        class_names.label('cat', 5)


def test_numbers_in_another_order_are_warned_about(capsys):
    said = class_names.in_another_order(NUMBERS)
    assert 'label 2 is called 10, label 3 is called 2' in said and 'name:10' in said
    assert 'label 0 is called 1,' in class_names.in_another_order(('1', '2', '3'))
    assert 'label 1 is called 7' in class_names.in_another_order(('0', '7', 'x'))
    for names in ((), ('0', '1', '2'), ANIMALS, ('0', 'x')):
        assert class_names.in_another_order(names) == ''
    saved = types.SimpleNamespace(class_names=NUMBERS)
    model = types.SimpleNamespace(saved=saved, class_names=NUMBERS, classes=4)
    assert arguments.classes('2', model) == [2]
    assert 'label 2 is called 10' in capsys.readouterr().err
    assert arguments.classes('name:10', model) == ['10']
    assert arguments.classes('all', model) == 'all' and arguments.classes('', model) is None
    assert not capsys.readouterr().err


def test_names_in_files_and_grids(tmp_path):
    images = np.zeros((6, 8, 8, 1), np.uint8)
    labels = np.repeat([2, 0, -1], 2)
    save_samples(tmp_path, images, labels, np.tile([0, 1], 3), 4, ODD)
    names = {file.name for file in tmp_path.rglob('class_*.png')}
    assert {'class_0000_caf_xe9_seed_000001.png', 'class_null_seed_000000.png'} < names
    titles = npz.members(tmp_path / 'samples.npz')['titles'].read()
    assert titles[2] == r'0 caf\xe9' and titles[4] == 'no class'
    with Image.open(tmp_path / 'grid.png') as grid:
        assert grid.width > 2 * 66 + 60  # the longest of the titles stands beside it


def test_titles_of_grids_are_letters_that_can_be_drawn():
    titled = lambda *titles: png.labelled(np.zeros((60, 60, 1), np.uint8), titles)
    np.testing.assert_array_equal(titled('0 été', '1 Größe'), titled('0 ete', '1 Gro?e'))


def test_names_live_in_checkpoints_and_reports(state, tmp_path, capsys):  # noqa: F811
    config, tree = state
    names = (*ANIMALS, *ODD, '0', '1', '10')
    with runs.Writer(tmp_path, config, data='x', class_names=names) as writer:
        writer.save(tree)
    assert runs.require(tmp_path).class_names == names
    inspect.export(tmp_path, tmp_path / 'exported')
    assert runs.require(tmp_path / 'exported').class_names == names
    assert main.main(['checkpoint', 'inspect', str(tmp_path)]) == 0
    line = next(li for li in capsys.readouterr().out.splitlines() if li.startswith('classes'))
    assert '0 Cat, 1 dog, big, 2 owl, 3 caf\\xe9, ' in line
    (tmp_path / 'class_names.json').write_text(json.dumps({'class_names': list(names)}))
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0}\n')
    shown = tables.overview(gather.gather([tmp_path]))
    assert shown.heads[-1] == 'classes'
    assert shown.rows[0][-1].startswith(r'10: Cat, dog, big, owl, caf\xe9, ')
