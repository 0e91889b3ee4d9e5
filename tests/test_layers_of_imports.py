"""Imports point downwards only, and nothing pulls in TensorFlow or torch."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / 'emigm_jax'

# Lower numbers may not import higher ones; equal ones may import each other.
LEVELS = {
    'errors': 0, 'buckets': 1, 'distributed': 1, 'preemption': 1, 'sharding': 1, 'spread': 1,
    'paths': 1, 'storage': 1, 'files': 2, 'copying': 2,
    'core': 1,
    'nn': 2,
    'models': 3, 'tokenizers': 3, 'images': 3, 'flops': 3,
    'sampling': 4,
    'config': 5, 'training': 5, 'data': 5, 'recipes': 6, 'inspection': 6,
    'evaluation': 6, 'convert': 6,
    'aot': 6,
    'report': 7,
    'cli': 8,
}  # fmt: skip
FORBIDDEN = ('tensorflow.', 'torch.', 'clu.metric_writers.')
PURE = ('core',)  # knows no Flax


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def part(module):
    pieces = module.split('.')
    return pieces[1] if pieces[0] == 'emigm_jax' and len(pieces) > 1 else None


def test_imports_point_downwards():
    wrong = []
    for file in PACKAGE.rglob('*.py'):
        relative = file.relative_to(PACKAGE)
        own = relative.parts[0].removesuffix('.py')
        if own == '__init__':
            continue
        for module in imports(file):
            if f'{module}.'.startswith(FORBIDDEN) or (own in PURE and module.startswith('flax')):
                wrong.append(f'{relative} imports {module}')
            other = part(module)
            if other and other != own and LEVELS[other] > LEVELS[own]:
                wrong.append(f'{relative} ({own}) imports {module}')
    assert not wrong


def test_every_file_is_short():
    long = {
        str(f): n for f in PACKAGE.rglob('*.py') if (n := len(f.read_text().splitlines())) > 350
    }
    assert not long
