"""Attention tile by tile as kernels for NVIDIA GPUs: no logits in memory, dropout inside.

FlashAttention-2 (arXiv 2307.08691) with this project's dropout: forwards a program takes a tile of
queries past all keys; backwards one kernel does so again for the gradient of the queries, another
takes a tile of keys past all queries. cuDNN has such kernels, too, but drops by a generator of its
own, so that one seed would not train the same network everywhere.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from emigm_jax.nn.dropout import stays

_HIDDEN = -1e30  # a logit that no softmax sees; finite, as differences of two are taken


class Plan(NamedTuple):
    """How the kernels run."""

    size: int  # of a head
    rate: float = 0.0  # of dropout
    interpret: bool = False
    queries: int = 64  # of a tile, a power of two
    keys: int = 64
    warps: int = 4
    stages: int = 3  # tiles that are on their way from memory at once


def forward(
    plan: Plan,
    q: Float[Array, 'B Q D'],
    k: Float[Array, 'B L D'],
    v: Float[Array, 'B L D'],
    lengths: Int32[Array, 'B 1 1'],
    words: UInt32[Array, 'B H 2 1'] | None,
) -> tuple[Float[Array, 'B Q D'], tuple[Float[Array, 'B Q D'], Float32[Array, 'B H Q']]]:
    """softmax(q k^T d^-0.5) v of all heads.

    Args:
      plan: how.
      q, k, v: the heads beside one another along D.
      lengths: keys at or beyond them are hidden; at least one is seen.
      words: of the dropout of each image and head; None: there is none.

    Returns:
      It, and what `backward` needs: it, and log2 of the sums of exp(logits).
    """
    work = _Work(plan if words is not None else plan._replace(rate=0.0), q.shape[1], k.shape[1])

    def attention(*refs):
        q, k, v, lengths, words, out, sums = refs
        rows = work.rows(pl.program_id(0))
        query = work.load(q, rows)

        def past(j, before):
            top, total, mixed = before
            columns = work.columns(j)
            logits = work.logits(query, work.load(k, columns), columns.at[None] < lengths[0])
            higher = jnp.maximum(top, jnp.max(logits, axis=1))
            shrunk, weights = jnp.exp2(top - higher), jnp.exp2(logits - higher[:, None])
            total = total * shrunk + jnp.sum(weights, axis=1)
            weights = work.dropped(weights, rows.at[:, None], columns.at[None], words)
            more = _product(weights.astype(v.dtype), work.load(v, columns))
            return higher, total, mixed * shrunk[:, None] + more

        none = jnp.zeros(plan.queries, jnp.float32)
        start = none + _HIDDEN, none, jnp.zeros((plan.queries, work.width), jnp.float32)
        top, total, mixed = jax.lax.fori_loop(0, work.seen(lengths[0]), past, start)
        work.store(out, rows, mixed / total[:, None])
        work.store(sums, rows, top + jnp.log2(total))

    given = map(work.by_head, (q, k, v))
    out, sums = work.run(attention, [*given], (lengths, words), 'qs', 1)
    return out, (out, sums)


def backward(
    plan: Plan,
    args: tuple[Any, ...],
    kept: tuple[Float[Array, 'B Q D'], Float32[Array, 'B H Q']],
    gradient: Float[Array, 'B Q D'],
) -> tuple[Float[Array, 'B _ D'], ...]:
    """Gradients of q, k and v.

    Args:
      plan: how.
      args: of `forward`, after the plan.
      kept: what it gave for this.
      gradient: of its result.
    """
    (q, k, v, lengths, words), (out, sums) = args, kept
    work = _Work(plan if words is not None else plan._replace(rate=0.0), q.shape[1], k.shape[1])
    # Of each row: the sum of its weights times their gradients.
    both = gradient.astype(jnp.float32) * out.astype(jnp.float32)
    deltas = jnp.sum(work.by_head(both), axis=3).transpose(0, 2, 1)

    def attention_queries(*refs):
        q, k, v, gradient, sums, deltas, lengths, words, of_q = refs
        rows = work.rows(pl.program_id(0))
        query, above = work.load(q, rows), work.load(gradient, rows)
        total, delta = work.load(sums, rows)[:, None], work.load(deltas, rows)[:, None]

        def past(j, before):
            columns = work.columns(j)
            key, value = work.load(k, columns), work.load(v, columns)
            logits = work.logits(query, key, columns.at[None] < lengths[0])
            of_weights = _product(above, value, True)
            of_weights = work.dropped(of_weights, rows.at[:, None], columns.at[None], words)
            of_logits = jnp.exp2(logits - total) * (of_weights - delta)
            return before + _product(of_logits.astype(k.dtype), key)

        none = jnp.zeros((plan.queries, work.width), jnp.float32)
        found = jax.lax.fori_loop(0, work.seen(lengths[0]), past, none)
        work.store(of_q, rows, found * plan.size**-0.5)

    def attention_keys(*refs):
        q, k, v, gradient, sums, deltas, lengths, words, of_k, of_v = refs
        columns = work.columns(pl.program_id(0))
        key, value = work.load(k, columns), work.load(v, columns)

        def past(j, before):
            of_key, of_value = before
            rows = work.rows(j)
            query, above = work.load(q, rows), work.load(gradient, rows)
            total, delta = work.load(sums, rows)[None], work.load(deltas, rows)[None]
            drop = lambda a: work.dropped(a, rows.at[None], columns.at[:, None], words)
            logits = work.logits(key, query, columns.at[:, None] < lengths[0])
            weights = jnp.exp2(logits - total)
            of_value += _product(drop(weights).astype(v.dtype), above)
            of_logits = weights * (drop(_product(value, above, True)) - delta)
            return of_key + _product(of_logits.astype(q.dtype), query), of_value

        none = jnp.zeros((plan.keys, work.width), jnp.float32)
        some_seen = (columns.start < lengths[0]).astype(jnp.int32)
        tiles = some_seen * jnp.int32(pl.cdiv(work.queries, plan.queries))
        of_key, of_value = jax.lax.fori_loop(0, tiles, past, (none, none))
        work.store(of_k, columns, of_key * plan.size**-0.5)
        work.store(of_v, columns, of_value)

    given, more = [*map(work.by_head, (q, k, v, gradient)), sums, deltas], (lengths, words)
    (of_q,) = work.run(attention_queries, given, more, 'q', 1.5)
    of_k, of_v = work.run(attention_keys, given, more, 'kk', 2)
    return of_q, of_k, of_v


class _Tile(NamedTuple):
    """Some rows of an array."""

    start: Int32[Array, '']
    at: Int32[Array, ' T']  # their places
    there: Bool[Array, ' T'] | None  # which exist; None: all


class _Work(NamedTuple):
    """What the kernels have in common."""

    plan: Plan
    queries: int  # of an image
    keys: int

    @property
    def width(self) -> int:
        """Of a head and of hidden columns up to a power of two, as tiles have to be."""
        return max(16, pl.next_power_of_2(self.plan.size))

    def by_head(self, a: Float[Array, 'B rows D']) -> Float[Array, 'B rows H d']:
        """Heads as an axis."""
        return a.reshape(*a.shape[:2], -1, self.plan.size)

    def rows(self, i: Int32[Array, '']) -> _Tile:
        """The i-th tile of queries."""
        return _tile(i, self.plan.queries, self.queries)

    def columns(self, j: Int32[Array, '']) -> _Tile:
        """The j-th tile of keys."""
        return _tile(j, self.plan.keys, self.keys)

    def seen(self, length: Int32[Array, '']) -> Int32[Array, '']:
        """How many tiles of keys have one that is seen."""
        return jax.lax.div(length + (self.plan.keys - 1), self.plan.keys)

    def load(self, ref, tile: _Tile) -> Float[Array, 'T ...']:
        """Of an array (rows, head) or (rows,); zeros where there is nothing."""
        place, there = self._place(ref, tile)
        return _triton().load(place, mask=there, other=None if there is None else 0.0)

    def store(self, ref, tile: _Tile, value: Float[Array, 'T ...']) -> None:
        """Into an array that `load` reads."""
        place, there = self._place(ref, tile)
        _triton().store(place, value.astype(ref.dtype), mask=there)

    def _place(self, ref, tile):
        rows, there = pl.ds(tile.start, tile.at.shape[0]), tile.there
        if len(ref.shape) == 1:
            return ref.at[rows], there
        there = None if there is None else there[:, None]
        if self.width != self.plan.size:
            of_head = (jnp.arange(self.width) < self.plan.size)[None]
            there = of_head if there is None else there & of_head
        if there is not None:
            there = jnp.broadcast_to(there, (tile.at.shape[0], self.width))
        return ref.at[rows, :], there

    def logits(
        self, x: Float[Array, 'M d'], y: Float[Array, 'N d'], seen: Bool[Array, '_ _']
    ) -> Float32[Array, 'M N']:
        """Of base 2."""
        logits = _product(x, y, True) * (self.plan.size**-0.5 * math.log2(math.e))
        return jnp.where(seen, logits, _HIDDEN)

    def dropped(
        self,
        weights: Float32[Array, 'M N'],
        rows: Int32[Array, '_ _'],
        columns: Int32[Array, '_ _'],
        words,
    ) -> Float32[Array, 'M N']:
        """Without those that `nn.dropout` drops of a head (Q, L)."""
        rate = self.plan.rate
        if rate == 0.0:
            return weights
        position = (rows * self.keys + columns).astype(jnp.uint32)
        keep = stays(rate, position + words[0], words[1])
        return jnp.where(keep, weights * (1.0 / (1.0 - rate)), 0.0)

    def run(
        self, kernel: Callable, given: Sequence[Array], more: tuple, made: str, passes: float
    ) -> list[Array]:
        """Runs it on all tiles of each head of each image.

        Args:
          kernel: of references to a head of each of `given`, of `more`, and of what is made.
          given: arrays (B, rows, H, d), of which the first two are queries and keys, or (B, H, Q).
          more: lengths (B, 1, 1), and words (B, H, 2, 1) or None.
          made: of each array that comes out a letter: q or k, like these; s, (B, H, Q).
          passes: its products over those of the forward pass.
        """
        plan, (q, k), (lengths, words) = self.plan, given[:2], more
        batch, heads = q.shape[0], q.shape[2]
        tiles = {'q': pl.cdiv(self.queries, plan.queries), 'k': pl.cdiv(self.keys, plan.keys)}
        words = jnp.zeros((batch, heads, 2), jnp.uint32) if words is None else words[..., 0]
        sums = jax.ShapeDtypeStruct((batch, heads, self.queries), jnp.float32)
        like = [{'q': q, 'k': k, 's': sums}[letter] for letter in made]

        def whole(a):
            """Of one head all rows, of which tiles are read; a last one may reach beyond."""
            tile = max(plan.queries, plan.keys)
            if len(a.shape) == 3:
                rows = pl.cdiv(a.shape[2], tile) * tile
                return pl.BlockSpec((None, None, rows), lambda i, h, b: (b, h, 0))
            rows = pl.cdiv(a.shape[1], tile) * tile
            return pl.BlockSpec((None, rows, None, self.width), lambda i, h, b: (b, 0, h, 0))

        logits = batch * heads * self.queries * self.keys
        moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*given, *like))
        found = pl.pallas_call(
            kernel,
            [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in like],
            grid=(tiles[made[0]], heads, batch),
            in_specs=[
                *map(whole, given),
                pl.BlockSpec((1,), lambda i, h, b: (b,)),
                pl.BlockSpec((None, None, 2), lambda i, h, b: (b, h, 0)),
            ],
            out_specs=[whole(a) for a in like],
            compiler_params=_triton().CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
            cost_estimate=pl.CostEstimate(
                flops=int(4 * passes * logits * plan.size),
                bytes_accessed=moved,
                transcendentals=logits,
            ),
            interpret=plan.interpret,
            name=kernel.__name__,
        )(*given, lengths.reshape(-1), words)
        return [a.reshape(*a.shape[:2], -1) for a in found]


def _triton():
    """This backend of Pallas, which JAX means to drop: where it is gone definitions run."""
    from jax.experimental.pallas import triton

    return triton


def _tile(i, size, rows):
    start = i * size
    at = start + jax.lax.iota(jnp.int32, size)
    return _Tile(start, at, None if rows % size == 0 else at < rows)


def _product(x, y, transposed=False):
    """x y, or x y^T, in float32."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    contracted = ((1,), (int(transposed),)), ((), ())
    return jax.lax.dot_general(
        x, y, contracted, precision=exact, preferred_element_type=jnp.float32
    )
