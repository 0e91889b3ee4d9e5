"""Every test runs with strict dtype promotion, warnings as errors, and eight fake devices."""

import atexit
import os
import shutil
import tempfile

# Most of the suite's time is compilation, much of it of the same programs: one cache for all,
# the commands that tests start included. It lives as long as the run, so nothing stale is found.
CACHE = tempfile.mkdtemp(prefix='emigm-tests-')
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

os.environ.update(
    JAX_PLATFORMS='cpu',
    JAX_COMPILATION_CACHE_DIR=CACHE,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.3',
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
    XLA_FLAGS=os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8',
)

import jax

jax.config.update('jax_numpy_dtype_promotion', 'strict')
