"""What jax says when there is no device, or not enough memory on it, in one line."""

import os

import jax

from emigm_jax.io import gcs

_NO_MEMORY = 'RESOURCE_EXHAUSTED'


def missing() -> str:
    """Why jax has no device to work on; '' if it has one."""
    try:
        jax.local_devices()
    except Exception as error:  # of plugins, or an assertion where a platform has none at all
        asked = os.environ.get('JAX_PLATFORMS', '')
        why = f' for JAX_PLATFORMS={asked}' * bool(asked)
        return (
            f'jax finds no device{why} ({gcs.brief(error)}); see "Install" in the README, or unset '
            'JAX_PLATFORMS'
        )
    return ''


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device has not enough memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and _NO_MEMORY in str(error)


def explained(error: BaseException) -> str:
    """The line for an exception that the machine is to blame for; '' for any other."""
    if out_of_memory(error):
        what = ' '.join(str(error).split()).partition(f'{_NO_MEMORY}: ')[2][:120]
        return (
            f'out of memory ({what}): sampling and evaluating take a smaller --batch-size, '
            'training --config.training.accumulate=2, --config.model.remat=dots or a smaller '
            '--config.training.batch_size'
        )
    return missing()
