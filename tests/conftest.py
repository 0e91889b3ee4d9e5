"""Tests run with strict dtype promotion, warnings as errors, and eight fake devices."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib import metadata

# The fixtures `bucket`, `faults` and `hub`.
pytest_plugins = ('support.gcs', 'support.faulty_gcs', 'support.hub')

# Most of the suite's time is compilation of small programs that run once or twice, so the compiler
# is told not to polish them. `pytest -m full` runs full-size networks as users do, on one device.
QUICK_COMPILATION = (
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
)
# Of jax 0.10 alone: a flag that is unknown ends the process. Half of the compiler's time is in the
# first, a tenth in the second.
OLD_COMPILATION = (
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
)


# Files that take the longest are begun first, so that no worker waits for another at the end.
LONGEST = (
    *('test_full_size', 'test_online'),
    *('test_distributed', 'test_sharding', 'test_bits', 'test_verify', 'test_evaluate'),
    *('test_fine_tuning', 'test_codes', 'test_data_end_to_end', 'test_api', 'test_cli'),
    *('test_training', 'test_kernels', 'test_gcs_end_to_end', 'test_accumulation', 'test_tune'),
    *('test_start', 'test_golden_emigm', 'test_tokenizers', 'test_answers', 'test_learned'),
    *('test_editing', 'test_sampling', 'test_model', 'test_categorical_head', 'test_notebooks'),
    *('test_three_commands', 'test_faults_end_to_end', 'test_checkpoint_command'),
)
MOST_WORKERS = 4  # each may take 5 GB


def pytest_xdist_auto_num_workers(config):
    return min(MOST_WORKERS, os.cpu_count() or 1)


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def _take_cores(worker):
    """Each worker has its own: threads that wait for the cores of another cost both."""
    number, count = int(worker['workerid'].removeprefix('gw')), worker['workercount']
    if hasattr(os, 'sched_getaffinity'):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::count] or cores)


def pytest_configure(config):
    gc.set_threshold(100_000)  # tracing makes many objects, of which few are garbage
    if 'PYTEST_XDIST_WORKER' in os.environ:
        _take_cores(config.workerinput)
        return  # the environment is that of the process that started this one
    full = config.option.markexpr == 'full'
    devices, quick = (1, []) if full else (8, list(QUICK_COMPILATION))
    if quick and metadata.version('jaxlib').startswith('0.10.'):
        quick += OLD_COMPILATION
    # Many tests compile the same programs: one cache for all, commands that tests start included.
    # It lives as long as the run, or as what began several and said where it is.
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    if not cache:
        cache = tempfile.mkdtemp(prefix='emigm-tests-')
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ.update(
        # Memory in pages of 2 MB: most of what the system does here is to hand out pages.
        GLIBC_TUNABLES=os.environ.get('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'),
        JAX_PLATFORMS='cpu',
        JAX_NUMPY_DTYPE_PROMOTION='strict',
        JAX_COMPILATION_CACHE_DIR=cache,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.3',
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
        XLA_FLAGS=' '.join(
            [
                os.environ.get('XLA_FLAGS', ''),
                f'--xla_force_host_platform_device_count={devices}',
                *quick,
            ]
        ),
    )
