"""How a bucket is asked: gcsfs with more patience, which says so, and with fewer questions."""

import asyncio
import math
import sys
import time
from typing import Any

import gcsfs
from fsspec.dircache import DirCache

from emigm_jax.io import gcs, listings

ROUNDS = 4  # of gcsfs's own six tries within half a minute; two minutes in all
PAUSE = 5.0  # seconds between two rounds
AFTER = 60.0  # seconds after a request was given up, in which others get one round
PERIOD = 20.0  # seconds between two lines about it, whatever number of requests waits


class _Known(DirCache):
    """What gcsfs looks into before it asks a bucket: the listings of blocks that are open."""

    def __init__(self):
        super().__init__(use_listings_cache=False)

    def __getitem__(self, folder):
        if (listing := listings.covering(folder)) is None:
            raise KeyError(folder)
        return listing.entries(folder)

    def __contains__(self, folder):
        return False  # gcsfs would put right what it wrote: all is forgotten then

    def __delitem__(self, folder):
        """Nothing is kept here."""


class Patient(gcsfs.GCSFileSystem):
    """Google Cloud Storage; a request that fails for a passing reason is made again for a while.

    Within `listings.once` it is asked once.
    """

    # Of all requests: when a line was printed last, and when one was given up.
    _told = _given_up = -math.inf

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.dircache = _Known()

    def _name(self, path: str) -> str:
        return str(self._strip_protocol(path)).rstrip('/')

    async def _look(self, path, inside=''):
        path = self._name(path)
        if listing := listings.covering(path):
            await listing.look(self._do_list_objects, path + inside)

    async def _info(self, path: str, *args: Any, **options: Any) -> Any:
        await self._look(path)
        return await super()._info(path, *args, **options)

    async def _list_objects(self, path: str, *args: Any, **options: Any) -> Any:
        await self._look(path, '/')
        return await super()._list_objects(path, *args, **options)

    async def _cat_file_sequential(
        self, path: str, start: Any = None, end: Any = None, **options: Any
    ) -> Any:
        name, read = self._name(path), super()._cat_file_sequential
        listing = listings.covering(name)
        if listing is None or not listing.small(name):
            return await read(path, start=start, end=end, **options)
        if (reading := listing.contents.get(name)) is None:
            reading = listing.contents[name] = asyncio.ensure_future(read(path, **options))
        try:
            return (await asyncio.shield(reading))[start:end]
        except BaseException:  # the next one who wants it tries again
            listing.contents.pop(name, None)
            raise

    async def _request(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        # Whoever ends since nothing answers does not wait as long again for each thing to close.
        rounds = 1 if time.monotonic() - self._given_up < AFTER else ROUNDS
        for left in reversed(range(rounds)):
            try:
                answer = await super()._request(method, path, *args, **options)
                if method != 'GET':
                    listings.forget()
                return answer
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
