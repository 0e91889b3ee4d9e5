"""From a folder of pictures to samples and an FID against it, by the commands of the README."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.evaluation import inception
from support import narrow_inception
from support.pictures import png, scene

README = (pathlib.Path(__file__).parents[2] / 'README.md').read_text()


def commands(places):
    """The three commands, at smoke sizes, on the places of this test."""
    section = README.partition('## Start: a folder of your own')[2].partition('\n## ')[0]
    (block,) = re.findall(r'^```\n(.*?)^```', section, re.M | re.S)
    for old, new in places.items():
        assert old in block
        block = block.replace(old, new)
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.mark.slow
def test_from_a_folder_to_samples_and_scores(tmp_path, capsys, monkeypatch):
    narrow_inception.install(monkeypatch.setattr)
    inception.save(tmp_path / 'fid', narrow_inception.random_weights())
    rng = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / 'pictures' / ('cat', 'dog')[i % 2] / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(Image.fromarray(scene(rng, 10 + i % 3, 12))))
    out, scores = tmp_path / 'samples', tmp_path / 'scores.json'
    train, sample, evaluate = commands(
        {
            '--config folder ': '--config folder:smoke ',
            'PICTURES': str(tmp_path / 'pictures'),
            'runs/mine': str(tmp_path / 'run'),
            '0-7 --out samples/': f'0-1 --out {out} --batch-size 16',
            'fid-inception': f'{tmp_path}/fid --num-images 16 --batch-size 16 --json {scores} '
            f'--out {tmp_path}/fid_of_mine',
        }
    )
    assert main.main(train) == 0
    printed = capsys.readouterr().out
    assert '24 pictures in 2 classes: cat (12), dog (12)' in printed
    assert '--config.data.image_size=10 --config.data.patch=2' in printed
    assert runs.require(tmp_path / 'run').class_names == ('cat', 'dog')
    assert main.main(sample) == 0
    pictures = {file.name for file in out.rglob('class_*.png')}
    assert pictures == {
        f'class_000{n}_{name}_seed_00000{seed}.png'
        for n, name in enumerate(('cat', 'dog'))
        for seed in (0, 1)
    }
    assert main.main(evaluate) == 0
    assert json.loads(scores.read_text())['fid'] > 0
    assert (tmp_path / 'pictures.fid-10.npz').exists()
    # Without the reference, pixels are compared.
    at = evaluate.index('--reference')
    assert main.main([*evaluate[:at], *evaluate[at + 4 :]]) == 0
    result = json.loads(scores.read_text())
    assert result['frechet_distance'] > 0 and set(result['accuracy_by_class']) == {'cat', 'dog'}
    # The same command goes on, and has nothing left to do.
    assert main.main(train) == 0
    assert 'resumed from step 8' in capsys.readouterr().out
