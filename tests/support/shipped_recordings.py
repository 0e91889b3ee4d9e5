"""What `emigm verify` compares with, made from tests/golden; as a command it writes the file anew.

PYTHONPATH=.:tests python -m support.shipped_recordings
"""

import pathlib

import numpy as np
from flax import traverse_util

from emigm_jax import verify
from emigm_jax.io.formats import torch_files
from emigm_jax.verify import recordings
from support import golden

FILE = pathlib.Path(verify.__file__).with_name(recordings.FILE)

EMIGM = (
    *('tokens', 'mask', 'labels', 'decoder_out', 'decoder_out_null', 'decoder_out_fully_masked'),
    *('head_x', 'head_t', 'head_noise', 'head_z', 'head_out'),
    *('loss_mse', 'loss_vb', 'loss_total'),
    *('dpm_z_cond', 'dpm_z_uncond', 'dpm_noise', 'dpm_5_cfg1', 'dpm_14_cfg4'),
    *('ddpm_10_temp0.9_cfg1.0', 'ddpm_10_temp0.9_cfg1.0_noises'),
    *(f'sample_K6_{name}' for name in ('settings', 'counts', 'order', 'noise_in_order')),
    'sample_K6_out_nchw',
)
MASKGIT = (
    *('sequence', 'labels', 'logits'),
    *(f'decode8_{name}' for name in ('settings', 'gumbel_codes', 'gumbel_choice', 'final')),
)


def made():
    """{name: array} of the file."""
    tree = torch_files.read(golden.path('maskgit_tiny_checkpoint'))
    return traverse_util.flatten_dict(
        {
            'emigm': {
                'params': golden.checkpoint(golden.TINY, 'emigm_tiny_training.pth'),
                'outputs': _some('emigm_tiny_outputs.npz', EMIGM),
            },
            'maskgit': {
                'params': golden.maskgit_params(golden.MASKGIT_TINY, tree),
                'outputs': _some('maskgit_tiny_outputs.npz', MASKGIT),
            },
            'halton': _some('halton_orders.npz', ['order_16']),
        },
        sep='/',
    )


def _some(file, names):
    data = golden.arrays(file)
    return {name: _narrow(data[name]) for name in names}


def _narrow(array):
    return array.astype(np.int32) if array.dtype == np.int64 else array


if __name__ == '__main__':
    np.savez_compressed(FILE, **made())
