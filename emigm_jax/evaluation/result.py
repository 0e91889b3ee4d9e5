"""What a measurement ends with, and its form in JSON."""

import dataclasses
from typing import Any

from emigm_jax.errors import UserError
from emigm_jax.evaluation.score_table import SCORES

_COMMON = ('images', 'seconds_per_image')
_GROUPS = ('settings', 'missing', 'reference', 'real_halves')


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores of one set of images."""

    scores: dict[str, float]  # by name in `score_table.SCORES`
    images: int  # that were measured
    seconds_per_image: float | None = None  # None: all were there before
    # JSON-like, all that decides scores
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)  # metric: why, in one line
    reference: dict[str, str] | None = None  # its name and fingerprint; None: pixels were compared
    real_halves: dict[str, float] | None = None  # of pixels: scores of real images, to stand beside

    def to_json(self) -> dict[str, Any]:
        """The JSON object in result.json; in that of pixels the settings are not nested."""
        common = {**self.scores, **{name: getattr(self, name) for name in _COMMON}}
        if self.reference is None:
            return {**common, **self.settings, 'real_halves': self.real_halves}
        nested = {name: getattr(self, name) for name in ('settings', 'missing', 'reference')}
        return {**common, **nested}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> 'Result':
        """What `to_json` made.

        Raises:
          UserError: it is the object of something else.
        """
        if not isinstance(value, dict):
            raise UserError(f'is no result of an evaluation, but {value!r}')
        if lacking := [name for name in _COMMON if name not in value]:
            raise UserError(f'is no result of an evaluation: it lacks {", ".join(lacking)}')
        for name, part in value.items():
            if not _fits(name, part):
                raise UserError(f'is no result of an evaluation: its {name} is {part!r}')
        fields = {field.name for field in dataclasses.fields(cls)} - {'scores'}
        named = {name: part for name, part in value.items() if name in fields}
        rest = {k: v for k, v in value.items() if k not in fields and k not in SCORES}
        scores = {name: value[name] for name in SCORES if name in value}
        return cls(scores, **{'settings': rest, **named})


def _fits(name, part):
    """Whether a part of a result is of its kind."""
    if name in SCORES or name == 'images':
        return type(part) in (int, float)
    if name == 'seconds_per_image':
        return part is None or type(part) in (int, float)
    return name not in _GROUPS or part is None or isinstance(part, dict)
