"""The two halves of a network: a trunk gives conditions z, a head models each token given its z.

Training and sampling know nothing else of a network. A new trunk or head is one final class that
`models.emigm.EMIGM` builds.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int, Int32, Key, PRNGKeyArray, Shaped

from emigm_jax.core.categorical import CodesConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.models.config import ModelConfig


class Read(abc.ABC):
    """Which rows of N tokens in generation order are read."""

    @abc.abstractmethod
    def __call__(self, rows: Shaped[Array, 'B N *F']) -> Shaped[Array, 'B R *F']:
        """Picks rows of an array."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Suffix(Read):
    """The last `size` rows: the tokens that training may have masked."""

    size: int = dataclasses.field(metadata={'static': True})

    def __call__(self, rows: Shaped[Array, 'B N *F']) -> Shaped[Array, 'B R *F']:
        """A static slice."""
        return rows[:, rows.shape[1] - self.size :]


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots(Read):
    """Rows of each image's own: the tokens that a step of generation reveals."""

    index: Int[Array, 'B R']

    def __call__(self, rows: Shaped[Array, 'B N *F']) -> Shaped[Array, 'B R *F']:
        """A gather."""
        index = self.index.reshape(self.index.shape + (1,) * (rows.ndim - 2))
        return jnp.take_along_axis(rows, index, axis=1)


@final
@dataclasses.dataclass(frozen=True)
class Group:
    """B images, of which so many tokens at most are visible, and the rows that are read of them."""

    tokens: Shaped[Array, 'B N *C']  # in generation order
    positions: Any  # of `Trunk.positions`
    condition: Float32[Array, 'B D']  # class embeddings
    visible: Int32[Array, ' B']  # tokens[:, :visible] are seen, what the others hold is not
    budget: int  # the most of `visible`
    read: Read


class Trunk(nnx.Module):
    """Maps visible tokens and a class to conditions z of masked tokens. Holds parameters alone."""

    token_embed: nnx.Module  # tokens -> (..., D), as the head makes it

    @abc.abstractmethod
    def __init__(
        self,
        config: ModelConfig,
        token_embed: Callable[[ModelConfig, nnx.Rngs], nnx.Module],
        rngs: nnx.Rngs,
    ):
        """`token_embed` is `Head.embedding` of the head that it feeds."""

    @abc.abstractmethod
    def condition(
        self, labels: Int[Array, ' B'], null: Bool[Array, ' B'] | None = None
    ) -> Float32[Array, 'B D']:
        """Class embeddings; rows where `null` is set get the null class."""

    @abc.abstractmethod
    def null(self) -> Float32[Array, ' D']:
        """Embedding of the null class."""

    @abc.abstractmethod
    def positions(self, order: Int[Array, 'B N']) -> Any:
        """Position embeddings gathered once for an order: a pytree of arrays (B, N, ...)."""

    @abc.abstractmethod
    def __call__(
        self, groups: Sequence[Group], key: PRNGKeyArray | None = None
    ) -> list[Float32[Array, '_B _R D']]:
        """Conditions z of the rows that each group reads.

        Args:
          groups: of equally many images; what they share is computed at once.
          key: of `nn.dropout`, which alone draws from it; None for no dropout.
        """


class TokenLoss(NamedTuple):
    """The loss of every token (and copy of it)."""

    value: Float32[Array, 'copies B R']  # what is differentiated
    parts: Mapping[str, Float32[Array, 'copies B R']]  # what is reported beside it


@runtime_checkable
class Objective(Protocol):
    """What heads read of the settings of the loss."""

    @property
    def label_smoothing(self) -> float:
        """Of the categorical head."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """What heads read of the sampling settings."""

    @property
    def solver(self) -> SolverConfig:
        """Of the diffusion head."""
        ...

    @property
    def codes(self) -> CodesConfig:
        """Of the categorical head."""
        ...


class Drawn(NamedTuple):
    """Tokens that a head drew."""

    tokens: Shaped[Array, 'B R *C']
    log_probability: Float32[Array, 'B R'] | None  # None where the head cannot tell it


class Guide(NamedTuple):
    """What guidance leads away from in place of the null class: another model of the same tokens.

    Autoguidance (arXiv 2406.02507): one of the same kind that is smaller or less trained.
    """

    head: 'Head'
    z: Float32[Array, 'B R _D']  # its own, of the class


class Head(nnx.Module):
    """The conditional distribution p(x^i | z^i) of a token: the third choice of paper Table 1."""

    @abc.abstractmethod
    def __init__(self, config: ModelConfig, token_embed: nnx.Module, rngs: nnx.Rngs):
        """`token_embed` is what `embedding` made for the trunk, whose parameters may be shared."""

    @staticmethod
    @abc.abstractmethod
    def token(config: ModelConfig) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one token: a vector (C,) float32, or a code () int32."""

    @staticmethod
    @abc.abstractmethod
    def embedding(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """What turns tokens (..., *C) into (..., D) for the trunk."""

    @abc.abstractmethod
    def draws(self, keys: Key[Array, ' B'], copies: int, tokens: int) -> Any:
        """All that is random in the loss: a pytree of arrays (copies, B, N, ...).

        Args:
          keys: one per image, so that nothing else decides an image's draws.
          copies: of every token.
          tokens: N, per image.
        """

    @abc.abstractmethod
    def loss(
        self,
        z: Float32[Array, 'B R D'],
        clean: Shaped[Array, 'B R *C'],
        draws: Any,
        settings: Objective,
    ) -> TokenLoss:
        """-log p(clean | z), or a bound of it, by `draws` (copies, B, R, ...)."""

    def weighed(
        self,
        z: Float32[Array, 'B R D'],
        clean: Shaped[Array, 'B R *C'],
        draws: Any,
        settings: Objective,
        weight: Float32[Array, 'B R'],
    ) -> tuple[Float32[Array, ''], dict[str, Float32[Array, '']]]:
        """Sums of `loss` over tokens, each times its weight, and copies: value and parts."""
        loss = self.loss(z, clean, draws, settings)
        add = lambda term: jnp.sum(term * weight)
        return add(loss.value), {name: add(term) for name, term in loss.parts.items()}

    @abc.abstractmethod
    def noise(self, key: PRNGKeyArray) -> Float32[Array, '*F']:
        """The noise of one token and draw, as `sample` asks for it."""

    @abc.abstractmethod
    def sample(
        self,
        z: Float32[Array, 'guides B R D'],
        guidance: Float32[Array, ' B'],
        noise: Callable[[int | Int[Array, '']], Float32[Array, 'B R *F']],
        settings: Drawing,
        guide: Guide | None = None,
    ) -> Drawn:
        """Draws tokens.

        Args:
          z: of the class, and of the null class where that guides (guides = 2).
          guidance: scale of each image; not read where unguided.
          noise: number of a draw -> `noise` of every token.
          settings: how.
          guide: guides in place of the null class; guides = 1 then.
        """
