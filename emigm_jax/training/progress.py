"""What a person sees of a training run: a bar on a terminal, lines anywhere else."""

import sys

import tqdm

_BAR = '{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]'


class Progress:
    """A bar over the steps of a run if somebody looks at it, else one line after the other.

    Args:
      start: the step that is resumed from.
      total: steps of the whole run.
    """

    def __init__(self, start: int, total: int):
        looked_at = sys.stdout.isatty() and sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            unit=' steps',
            bar_format=_BAR,
            dynamic_ncols=True,
            disable=not looked_at,
            leave=False,
        )
        self._total = total

    def tick(self, step: int) -> None:
        """A step is done."""
        self._bar.update(step - self._bar.n)

    def line(self, step: int, text: str, brief: str = '') -> None:
        """Says `text` of a step; a bar shows `brief` instead, if there is any."""
        if brief and not self._bar.disable:
            self._bar.set_postfix_str(brief)
        else:
            self._bar.write(f'step {step}/{self._total}  {text}')
            sys.stdout.flush()

    def pause(self) -> None:
        """Takes the time since the last step out of the time left."""
        self._bar.unpause()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()
