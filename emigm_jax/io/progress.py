"""What long work says of itself: a bar on a terminal, a line every so often in a pipe or a file."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

PERIOD = 20.0  # seconds until the first line, and between two
_LINE = '{desc}{percentage:.0f}%, {n_fmt} of {total_fmt}{unit}, {elapsed} so far, {remaining} left'


@contextlib.contextmanager
def waiting(text: str, speaks: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Says `text` and for how long, every so often while the block lasts, if `speaks()`."""
    over, began = threading.Event(), time.monotonic()

    def tell():
        while not over.wait(PERIOD) and speaks():
            seconds = time.monotonic() - began
            print(f'{text}, {seconds:.0f} s so far', file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class Bar(tqdm.tqdm):
    """As tqdm, whose arguments it takes, on standard error; work that is soon done prints no line.

    Args:
      iterable: what is gone through; None: `update` says what is done.
      total: how much there is, unless the iterable tells.
      unit: what is counted, with a space before it.
      quiet: nothing is shown, as by all but one of several processes.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        total: int | None = None,
        unit: str = ' images',
        quiet: bool = False,
        **options: Any,
    ):
        file = sys.stderr
        self._lines = file is not None and not file.isatty()
        if self._lines:
            options['desc'] = f'{options["desc"]}: ' if options.get('desc') else ''
            options |= dict(mininterval=PERIOD, maxinterval=PERIOD, delay=PERIOD, bar_format=_LINE)
        silent = quiet or file is None
        super().__init__(iterable, total=total, unit=unit, file=file, disable=silent, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Called by tqdm whenever there is something new to show."""
        if not self._lines:
            return super().display(msg, pos)
        self.fp.write(f'{self}\n')
        self.fp.flush()
        return True

    def close(self) -> None:
        """Ends the bar; of lines, the last one says that all is done."""
        if self._lines and not self.disable:
            if self.last_print_t >= self.start_t + self.delay and self.n > self.last_print_n:
                self.display()
            self.sp = None  # tqdm would end its line
        super().close()
