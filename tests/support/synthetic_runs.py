"""Folders as `emigm train` and `emigm evaluate` leave them, with invented numbers."""

import json

import numpy as np
from PIL import Image

IMAGENET = {
    'data': {'name': 'latents', 'path': 'in256'},
    'model': {'grid': 16, 'channels': 16, 'width': 768},
    'training': {'batch_size': 100, 'total': '5000 steps'},
    'optimizer': {'ema_decays': [0.9999], 'base_learning_rate': 1e-4},
}


def training_line(step, total, **changes):
    """One line of training; 50 images per second in batches of 100."""
    return {
        'step': step,
        'loss': 1.5 + 300 / (step + 100),
        'mse': 0.5 + 100 / (step + 100),
        'vlb': 1.0 + 200 / (step + 100),
        'mask_ratio': 0.85,
        'gradient_norm': 20 / (step + 10),
        'learning_rate': 4e-4 * min(1.0, step / 1000),
        'data_wait': 0.01,
        'images_per_second': 50.0,
        'mfu': 0.3,
        'seconds_left': 2.0 * (total - step),
        **changes,
    }


def workdir(
    path, steps=(1000, 2000, 3000), total=3000, fids=None, config=IMAGENET, grids=(), **changes
):
    """A workdir.

    Args:
      path: new folder.
      steps: of the lines of training.
      total: steps that the run shall have.
      fids: {step: FID} of evaluations in training.
      config: of config.json; None: no such file.
      grids: steps of the pictures in samples/.
      changes: of all training lines.
    """
    path.mkdir(parents=True)
    lines = [training_line(step, total, **changes) for step in steps]
    for step, fid in (fids or {}).items():
        lines.append(
            {
                'step': step,
                'fid': fid,
                'inception_score': 300 / float(fid),
                'inception_score_std': 0.5,
            }
        )
    lines.sort(key=lambda line: line['step'])
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    if config is not None:
        (path / 'config.json').write_text(json.dumps(config))
    (path / 'samples').mkdir()
    for step in grids:
        pixels = np.random.default_rng(step).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(path / 'samples' / f'{step:08}.png')
    return path


def result(fid, nfe='16x1.2', seconds=0.5, **changes):
    """A result of `emigm evaluate` against statistics of ImageNet at 256 pixels."""
    return {
        'fid': fid,
        'fid_standard_error': 0.05,
        'inception_score': 200.0,
        'inception_score_std': 2.5,
        'precision': 0.75,
        'recall': 0.5,
        'missing': {'sfid': 'the reference has no mu_s and sigma_s, as those of ADM have'},
        'images': 50_000,
        'seconds_per_image': seconds,
        'reference': {'name': 'VIRTUAL_imagenet256_labeled.npz', 'fingerprint': '0123abcd'},
        'settings': {
            'source': 'checkpoint',
            'step': 3000,
            'weights': '0.9999',
            'content': 'weights-a',
            'sampling': {
                'reveal': {'steps': 16, 'guidance': 4.0, 'guidance_from': 0.1, 'guidance_to': 0.3},
                'solver': {'name': 'dpm', 'steps': 8},
            },
            'nfe_as_the_paper_counts': nfe,
            'nfe': 19,
        },
        **changes,
    }


def evaluated(folder, fid, *arguments, **changes):
    """A folder of `emigm evaluate`."""
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text(json.dumps(result(fid, *arguments, **changes)))
    return folder


def pixel_scores(step=900, nfe=6, distance=0.25):
    """What `emigm evaluate --json` writes for a model of the digits."""
    halves = {'accuracy': 0.98, 'frechet_distance': 0.06, 'precision': 0.9, 'recall': 0.91}
    return {
        'accuracy': 0.95,
        'frechet_distance': distance,
        'precision': 0.45,
        'recall': 0.7,
        'real_halves': halves,
        'images': 1000,
        'step': step,
        'weights': '0.99',
        'nfe': nfe,
        'seconds_per_image': 0.01 * nfe,
    }
