"""What the READMEs name is there: files, functions, commands, flags, settings, links."""

import ast
import contextlib
import importlib
import pathlib
import re
import shlex

import pytest
from test_rooms import ROOMS

from emigm_jax.cli import main
from emigm_jax.config import nested
from emigm_jax.data import class_names

TOP = ('configs', 'emigm_jax', 'launch', 'notebooks', 'tests')
ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ('*.md', '.github/*.md', *(f'{room}/**/*.md' for room in TOP))
    for page in ROOT.glob(pattern)
)
ARCHITECTURE = ROOT / 'emigm_jax/README.md'
FIRST = 'pip install -e . && emigm train --config configs/digits.py --workdir runs/digits'
TESTS = "pip install -e '.[test]' && pytest"


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """The lines of all fenced blocks, those that end in a backslash joined."""
    fenced = re.findall(r'^```[a-z]*\n(.*?)^```', page.read_text(), re.M | re.S)
    return [line for block in fenced for line in re.sub(r'\\\n\s*', '', block).splitlines()]


def anchors(page):
    """What GitHub makes of the headings."""
    prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    titles = re.findall(r'^#+ (.+)$', prose, re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)]+)\)', page.read_text()):
        if target.startswith('https://'):
            continue
        place, _, anchor = target.partition('#')
        file = page.parent / place if place else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_the_two_commands():
    lines = blocks(ROOT / 'README.md')
    assert FIRST in lines and TESTS in lines


def test_classes_have_the_names_that_are_shown():
    (shown,) = re.findall(r"classes=\[\d+, '([a-z ]+)'\]", (ROOT / 'README.md').read_text())
    assert class_names.label(shown, class_names.IMAGENET) == 387


def commands(page):
    """Words after `emigm`, of every line of a block that runs it."""
    for line in blocks(page):
        for part in re.split('&&|-- (?=emigm )', line.split(' # ')[0]):
            if part.strip().startswith('emigm '):
                yield shlex.split(part)[1:]


def flags_of(command, following, capsys):
    """The flags that --help lists, of a subcommand (or of several, a|b) where there are some."""
    module = importlib.import_module(main.COMMANDS[command][0])
    names = following[0].split('|') if hasattr(module, 'COMMANDS') and following else ()
    assert not names or set(names) <= {*module.COMMANDS, '--help'}
    for argv in [[command, name, '--help'] for name in names] or [[command, '--help']]:
        with contextlib.suppress(SystemExit):
            main.main(argv)
    return set(re.findall(r'(?<!\w)--[a-z][a-z-]*', capsys.readouterr().out))


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_flags_and_settings_exist(page, capsys):
    for command, *words in commands(page):
        known = flags_of(command, words[:1], capsys)
        flags = {word.partition('=')[0] for word in words if word.startswith('--')}
        assert {flag for flag in flags if '.' not in flag} <= known, (command, flags - known)
    settings = nested.flatten(nested.as_dict(nested.resolve(nested.defaults())))
    for setting in re.findall(r'--config\.([a-z_]+\.[a-z_.]+)', page.read_text()):
        assert setting.rstrip('.') in settings, setting
    for file in re.findall(r'\b(configs/\w+\.py)', page.read_text()):
        assert (ROOT / file).exists() or file == 'configs/mine.py', file


# --- The architecture ----------------------------------------------------------------------------


def test_the_picture_has_the_rooms_in_their_order():
    picture = next(
        block
        for block in re.findall(r'^```\n(.*?)^```', ARCHITECTURE.read_text(), re.M | re.S)
        if block.startswith('cli ')
    )
    assert tuple(line.split()[0] for line in picture.splitlines()) == ROOMS[::-1]


def names_of(file):
    """Top-level names of a module, and Class.method of its classes."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (
                    f'{node.name}.{part.name}'
                    for part in node.body
                    if isinstance(part, ast.FunctionDef)
                )


def test_every_name_of_the_walk_exists():
    named = re.findall(r'`(\w+/\w+(?:/\w+)*\.py)(?::([\w.]+))?`', ARCHITECTURE.read_text())
    assert len(named) > 25
    for file, function in named:
        root = ROOT if file.startswith(('tests/', 'configs/')) else ROOT / 'emigm_jax'
        assert (root / file).is_file(), file
        assert not function or function in names_of(root / file), f'{file}:{function}'


def test_the_walks_are_short():
    text = ARCHITECTURE.read_text().partition("## A newcomer's walk")[2].partition('\n## ')[0]
    token, seed = text.split('### ')[1:]
    for walk, most in ((token, 10), (seed, 8)):
        hops = [int(number) for number in re.findall(r'^\| (\d+) \|', walk, re.M)]
        assert hops == list(range(1, len(hops) + 1)) and 0 < len(hops) <= most


def test_the_config_that_is_shown_resolves():
    text = (ROOT / 'configs/README.md').read_text()
    sources = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
    (source,) = (source for source in sources if 'def get_config' in source)
    names = {}
    exec(source, names)
    assert nested.resolve(names['get_config']()).model.width == 256
