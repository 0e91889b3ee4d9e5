"""How long a bucket is asked that does not answer: gcsfs with more patience, which says so."""

import asyncio
import math
import sys
import time
from typing import Any

import gcsfs

from emigm_jax.io import gcs

ROUNDS = 4  # of gcsfs's own six tries within half a minute; two minutes in all
PAUSE = 5.0  # seconds between two rounds
AFTER = 60.0  # seconds after a request was given up, in which others get one round
PERIOD = 20.0  # seconds between two lines about it, whatever number of requests waits


class Patient(gcsfs.GCSFileSystem):
    """Google Cloud Storage; a request that fails for a passing reason is made again for a while."""

    # Of all requests: when a line was printed last, and when one was given up.
    _told = _given_up = -math.inf

    async def _request(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        # Whoever ends since nothing answers does not wait as long again for each thing to close.
        rounds = 1 if time.monotonic() - self._given_up < AFTER else ROUNDS
        for left in reversed(range(rounds)):
            try:
                return await super()._request(method, path, *args, **options)
            except Exception as error:
                if not gcs.passing(error):
                    raise
                if not left:
                    Patient._given_up = time.monotonic()
                    raise
                self._tell(error)
            await asyncio.sleep(PAUSE)

    @classmethod
    def _tell(cls, error):
        if time.monotonic() - cls._told >= PERIOD:
            cls._told = time.monotonic()
            print(
                f'gs:// does not answer ({gcs.brief(error)}); trying again',
                file=sys.stderr,
                flush=True,
            )
