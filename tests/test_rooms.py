"""Imports point downwards only, and nothing pulls in TensorFlow or torch."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / 'emigm_jax'

# Rooms from the ground up: each may import those before it, none after it.
ROOMS = (
    'errors',
    'core',
    'io',
    'parallel',
    'nn',
    'models',
    'config',
    'checkpoints',
    'tokenizers',
    'data',
    'sampling',
    'training',
    'evaluation',
    'conversion',
    'verify',
    'benchmark',
    'aot',
    'report',
    'api',
    'playground',
    'sweep',
    'tuning',
    'cli',
)
FORBIDDEN = ('tensorflow.', 'torch.', 'clu.metric_writers.')
PURE = ('core',)  # knows no Flax
# It measures images, whoever made them: what makes them comes from the caller.
FOREIGN = {'evaluation': ('sampling', 'tokenizers', 'data.datasets', 'checkpoints.runs')}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def modules():
    """{module: names it imports, wherever in the file}."""
    found = {}
    for file in PACKAGE.rglob('*.py'):
        parts = file.relative_to(PACKAGE.parent).with_suffix('').parts
        found['.'.join(parts).removesuffix('.__init__')] = set(imports(file))
    return found


def room(module):
    return module.split('.')[1]


def test_imports_point_downwards():
    wrong = []
    for module, imported in modules().items():
        if module in (PACKAGE.name, f'{PACKAGE.name}.__main__'):
            continue
        for name in imported:
            pure = room(module) in PURE and name.startswith('flax')
            if pure or f'{name}.'.startswith(FORBIDDEN):
                wrong.append(f'{module} imports {name}')
            ours = name.startswith(f'{PACKAGE.name}.') and room(name) != '__version__'
            if ours and ROOMS.index(room(name)) > ROOMS.index(room(module)):
                wrong.append(f'{module} imports {name}')
    assert not wrong


def test_evaluation_knows_no_model():
    for module, imported in modules().items():
        for name in FOREIGN.get(module.partition('.')[2].partition('.')[0], ()):
            foreign = f'{PACKAGE.name}.{name}.'
            assert not [other for other in imported if f'{other}.'.startswith(foreign)], module


def test_no_import_leads_back():
    """Not within a room either, and not from inside a function."""
    known = modules()
    graph = {module: imported & known.keys() for module, imported in known.items()}
    done = set()

    def visit(module, path):
        if module in path:
            raise AssertionError(' -> '.join([*path[path.index(module) :], module]))
        if module not in done:
            for other in sorted(graph[module] - {PACKAGE.name}):
                visit(other, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_every_room_has_its_place():
    loose = {f.stem for f in PACKAGE.glob('*.py')} - {'__init__', '__main__', 'errors'}
    rooms = {f.parent.name for f in PACKAGE.glob('*/__init__.py')}
    assert not loose and rooms == set(ROOMS) - {'errors'}


def test_every_file_is_short():
    long = {
        str(f): n for f in PACKAGE.rglob('*.py') if (n := len(f.read_text().splitlines())) > 350
    }
    assert not long


def test_every_function_has_few_parameters():
    many = {}
    for file in PACKAGE.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                if len({*names} - {'self', 'cls'}) > 7:
                    many[f'{file}: {node.name}'] = names
    assert not many
