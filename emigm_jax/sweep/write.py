"""What people read of a sweep: table.md, scores.csv and a picture of each score."""

import os

from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths
from emigm_jax.sweep import run, table


def write(sweep: Sweep, folder: os.PathLike | str) -> str:
    """Writes what a folder holds of a sweep; a summary in a few lines.

    Raises:
      UserError: nothing was measured there, or the folder cannot be written.
    """
    scored, lacking = run.scored(sweep, folder)
    if not scored:
        raise UserError(f'{folder}: holds no measurement of this sweep')
    place = paths.absolute(folder)
    text = table.markdown(scored)
    files.write_text(place / 'table.md', text)
    files.write_text(place / 'scores.csv', table.table(scored))
    written, remarks = ['table.md', 'scores.csv'], []
    panels, names = table.panels(scored)
    try:
        from emigm_jax.report import plots
    except UserError as error:  # matplotlib is an extra
        panels, remarks = [], [f'no pictures: {error}']
    for panel in panels:
        with files.replacing(place / f'{panel.name}.png') as file:
            file.write(plots.png(panel, names))
        written.append(f'{panel.name}.png')
    remarks += [f'{lacking} measurements of this sweep are not there yet'] * bool(lacking)
    return '\n'.join([text, *remarks, f'{", ".join(written)} -> {place}'])
