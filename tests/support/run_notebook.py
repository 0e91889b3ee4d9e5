"""Executes a notebook in a kernel of its own; what it writes has no run numbers and times.

    python tests/support/run_notebook.py notebooks/masking.ipynb notebooks/masking.ipynb

refreshes committed outputs. Tests start it as a process, in an empty folder: warnings of nbclient
and zmq are not ours, and a kernel leaves nothing behind in the test's own process.
"""

import argparse
import base64
import io
import pathlib
import re

import nbclient
import nbformat
from PIL import Image

LATENCY = 600  # seconds that a cell may take; on a busy machine everything is slow
KEEP = """
import json, pathlib
pathlib.Path('values.json').write_text(json.dumps(dict({})))
"""


def with_settings(notebook, settings):
    """Sets NAME = VALUE in the cell tagged 'parameters'; every name must be there once."""
    (cell,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', ())]
    for name, value in settings.items():
        pattern = rf'^{name} = [^#\n]*?(?=  #|$)'
        cell.source, found = re.subn(pattern, f'{name} = {value!r}', cell.source, flags=re.M)
        if found != 1:
            raise ValueError(f'the settings cell has {found} lines {name} = ...')


def smaller(png):
    """A picture (base64) with a palette: plots have few colours, and a third of the bytes do."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    file = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(file, 'png', optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def clean(notebook):
    """Takes out what differs between runs that print and draw the same."""
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)
        if cell.cell_type == 'code':
            cell.execution_count = None
            for output in cell.outputs:
                if output.output_type == 'execute_result':
                    output.execution_count = None
                if 'image/png' in output.get('data', {}):
                    output.data['image/png'] = smaller(output.data['image/png'])
    notebook.metadata['language_info'] = {'name': 'python'}
    notebook.metadata.pop('widgets', None)


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source')
    parser.add_argument('target')
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE')
    parser.add_argument(
        '--keep',
        default='',
        metavar='NAME=EXPRESSION, ...',
        help='values to be written to values.json at the end',
    )
    arguments = parser.parse_args()
    notebook = nbformat.read(arguments.source, as_version=4)
    if arguments.set:
        with_settings(notebook, dict(pair.split('=', 1) for pair in arguments.set))
    if arguments.keep:
        notebook.cells.append(nbformat.v4.new_code_cell(KEEP.format(arguments.keep)))
    try:
        nbclient.NotebookClient(
            notebook, timeout=LATENCY, kernel_name='python3', coalesce_streams=True
        ).execute()
    finally:  # a notebook that stopped shows where
        if arguments.keep:
            notebook.cells.pop()
        clean(notebook)
        text = nbformat.writes(notebook)
        pathlib.Path(arguments.target).write_text(text + '\n' * (not text.endswith('\n')))


if __name__ == '__main__':
    main()
