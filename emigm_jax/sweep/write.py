"""What people read of a sweep: its table, its measurements and a picture of each score."""

import os

from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths
from emigm_jax.sweep import figure, figure_text, run, table


def write(sweep: Sweep, folder: os.PathLike | str) -> str:
    """Writes what a folder holds of a sweep; a summary in a few lines.

    table.md, scores.csv and SCORE.png; of a figure figure-NAME.md, .csv and .png.

    Raises:
      UserError: nothing was measured there, or the folder cannot be written.
    """
    scored, lacking = run.scored(sweep, folder)
    if not scored:
        raise UserError(f'{folder}: holds no measurement of this sweep')
    place = paths.absolute(folder)
    if sweep.figure is None:
        text, lines, stems = table.markdown(scored), table.table(scored), ('table', 'scores')
        panels, names = table.panels(scored)
    else:
        text, lines = figure_text.markdown(sweep, scored), figure_text.table(scored)
        stems = (f'figure-{sweep.figure.name}',) * 2
        panels, names = figure.drawn(sweep, scored)
    remark = f'{lacking} measurements of this sweep are not there yet'
    text += f'\n{remark}\n' * bool(lacking and sweep.figure)  # which would mislead whoever reads it
    written, remarks = [f'{stems[0]}.md', f'{stems[1]}.csv'], []
    for name, content in zip(written, (text, lines), strict=True):
        files.write_text(place / name, content)
    try:
        from emigm_jax.report import plots
    except UserError as error:  # matplotlib is an extra
        panels, remarks = [], [f'no pictures: {error}']
    for panel in panels:
        with files.replacing(place / f'{panel.name}.png') as file:
            file.write(plots.png(panel, names))
        written.append(f'{panel.name}.png')
    remarks += [remark] * bool(lacking and not sweep.figure)
    return '\n'.join([text, *remarks, f'{", ".join(written)} -> {place}'])
