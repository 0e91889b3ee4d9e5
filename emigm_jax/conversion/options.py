"""What may be said about official weights; imports next to nothing, as the command's help does."""

import dataclasses
import enum
from typing import TypedDict

from emigm_jax.errors import UserError, check_choice


class Kind(enum.StrEnum):
    """What official weights may be; `kinds.KINDS` says how each is known and read."""

    EMIGM = 'emigm'
    MAR = 'mar'
    MASKGIT = 'maskgit'
    KL16 = 'kl16'
    DC_AE = 'dc_ae'
    VQGAN = 'vqgan'
    INCEPTION = 'inception'


NULLS = ('mask_token', 'fake_latent')  # the names under which eMIGM's shared token is stored


class Given(TypedDict, total=False):
    """`Options` as keywords."""

    kind: str | None
    weights: str
    null: str
    heads: int | None
    classes: int | None
    allow_non_finite: bool


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user says about official weights; None and '' leave it to the file."""

    kind: str | None = None  # a `Kind`
    weights: str = ''  # a place in the file, as 'model_ema' or 'model'
    null: str = ''  # one of NULLS
    # For sizes that were never published: attention heads of eMIGM and MAR, classes of MaskGIT.
    heads: int | None = None
    classes: int | None = None
    allow_non_finite: bool = False  # take numbers that are not finite as they are

    def __post_init__(self):
        if self.kind is not None:
            check_choice('kind', self.kind, list(map(str, Kind)))
        if self.null:
            check_choice('null', self.null, NULLS)

    def refuse(
        self, what: str, names: tuple[str, ...] = ('weights', 'heads', 'classes', 'null')
    ) -> None:
        """Raises UserError if one of `names` is given, as it does not apply to `what`."""
        for name in names:
            if getattr(self, name):
                raise UserError(f'--{name} does not apply to {what}')
