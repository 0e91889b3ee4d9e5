"""How TensorStore asks a bucket for arrays. Orbax has no public way to say it."""

import contextlib
import functools

# Two minutes, as `patience` has for all other requests.
RETRIES = {'max_retries': 8, 'initial_delay': '1s', 'max_delay': '32s'}
# How long TensorStore waits for what else is read of the same file, to ask for all of it at once.
# Orbax asks for array after array, a few in a millisecond, and has it wait for one.
TOGETHER = '200ms'
_INTERVAL = 'experimental_read_coalescing_interval'


@functools.cache
def bound() -> None:
    """As often as `RETRIES` says, and about once for each file of a few hundred MB.

    TensorStore would ask a bucket that does not answer for a quarter of an hour, and one that does
    up to once for each array.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from orbax.checkpoint._src.serialization import tensorstore_utils as arrays

        for context in (arrays._BASE_TS_CONTEXT, arrays._DEFAULT_OCDBT_TS_CONTEXT):
            context['gcs_request_retries'] = RETRIES
        made = arrays._build_ocdbt_kvstore_tspec

        @functools.wraps(made)
        def patient(*args, **options):
            spec = made(*args, **options)
            return {**spec, _INTERVAL: TOGETHER} if _INTERVAL in spec else spec

        arrays._build_ocdbt_kvstore_tspec = patient
