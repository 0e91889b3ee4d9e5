"""FLOPs counted from shapes (2 per multiply-add, matrix products only).

They price the cuts of a reveal plan and are what `emigm benchmark` divides by. A test compares
them with the compiler's own count.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

TIME_FEATURES = 256  # of the head


@runtime_checkable
class Sizes(Protocol):
    """What FLOPs depend on: the fields of models.emigm.ModelConfig that are read here."""

    @property
    def tokens(self) -> int: ...

    @property
    def trunk(self) -> str: ...

    @property
    def head(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def words(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def encoder_depth(self) -> int: ...

    @property
    def decoder_depth(self) -> int: ...

    @property
    def mlp_ratio(self) -> float: ...

    @property
    def buffer(self) -> int: ...

    @property
    def head_width(self) -> int: ...

    @property
    def head_depth(self) -> int: ...

    @property
    def mae(self) -> bool: ...


def block(config: Sizes, length: int, read: int | None = None) -> float:
    """One transformer block on `length` tokens of which `read` rows are computed."""
    width, rows = config.width, length if read is None else read
    projections = rows * width * 2 + length * width * 2  # q, out; k, v
    mlp = rows * width * 2 * config.mlp_ratio
    attention = 2 * rows * length
    return 2 * width * (projections + mlp + attention)


def encoder(config: Sizes, visible: int) -> float:
    """Embedding, encoder stack on `visible` tokens plus buffer, and the decoder's embedding."""
    length = config.buffer + (visible if config.mae else config.tokens)
    embed = 2 * (length - config.buffer) * config.channels * config.width
    return embed + config.encoder_depth * block(config, length) + 2 * length * config.width**2


def decoder(config: Sizes, read: int) -> float:
    """Decoder stack of which the last block computes `read` rows."""
    length = config.buffer + config.tokens
    return (config.decoder_depth - 1) * block(config, length) + block(config, length, read)


def autoencoder(config: Sizes, visible: int, read: int) -> float:
    """The trunk 'mae': `encoder` and `decoder`."""
    return encoder(config, visible) + decoder(config, read)


def bert(config: Sizes, visible: int, read: int) -> float:
    """The trunk 'bert', which is on all tokens whether they are visible or not."""
    length, depth = config.buffer + config.tokens, config.encoder_depth + config.decoder_depth
    blocks = (depth - 1) * block(config, length) + block(config, length, read)
    return blocks + 2 * read * config.width**2


def head(config: Sizes, rows: int, conditions: int, times: int) -> int:
    """Diffusion head on `rows` noisy tokens with so many distinct conditions z and times."""
    width, channels = config.head_width, config.channels
    per_row = config.head_depth * 5 * width**2 + 2 * width**2 + 3 * channels * width
    per_time = TIME_FEATURES * width + width**2
    return 2 * (rows * per_row + conditions * config.width * width + times * per_time)


# Names as in the settings: (config, visible tokens, rows that are read).
TRUNKS = {'mae': autoencoder, 'bert': bert}
# (config, tokens, network calls for each: solver rows, or copies in training)
HEADS = {
    'diffusion': lambda config, tokens, calls: head(config, calls * tokens, tokens, 0),
    'categorical': lambda config, tokens, calls: 2 * tokens * config.width * config.words,
}


def sample_step(
    config: Sizes, solver_rows: int, visible: int, read: int, guided: bool = False
) -> float:
    """One transformer step of the sampler, of which `read` tokens are drawn.

    `guided` is by its own null class, which makes it two.
    """
    transformer = TRUNKS[config.trunk](config, visible, read)
    return (1 + guided) * (transformer + HEADS[config.head](config, read, solver_rows))


def train_image(config: Sizes, budgets: Sequence[tuple[int, int]], copies: int) -> float:
    """Forward FLOPs per image of a training step whose groups have `budgets` (masking.Budget)."""
    total = 0
    for visible, masked in budgets:
        total += TRUNKS[config.trunk](config, visible, masked)
        total += HEADS[config.head](config, masked, copies)
    return total / len(budgets)
