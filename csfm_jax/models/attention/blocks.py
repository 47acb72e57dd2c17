"""Attention tile by tile over contiguous windows: any platform, fixed shapes, never the matrix of all pairs of a row.

All rows lie end to end as one sequence of M = B * N tokens. A window is cut into equal parts, a few short windows share
one part, and a loop visits, for each part's queries, the parts of keys of the same window only: its length is known at
run time, its shapes at compile time. The softmax is a running one (Milakov & Gimelshein 2018; Dao et al. 2022) in
float32; the backward pass keeps the output and the log of the sum, and makes the weights again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from csfm_jax.models.attention.per_device import per_device

# A tile has SIZE queries and SIZE keys; each size is a loop of its own, some 0.4 s of compilation. XLA:CPU multiplies
# 128 tokens at a time twice as fast as 32, but a window of 75 would waste two thirds of that tile.
SIZES = (32, 80, 128)
SHARED = 32  # windows share a tile while they have no more tokens than this together
OVERHEAD = 16  # what a tile's slices and statistics cost, as tokens added to its size; measured on a CPU
BEYOND = 2**31 - 1
LOW = -1e30  # not -inf: the difference of two of them is a number


class Plan(NamedTuple):
    """What the loops look up, for tokens of the flat sequence of queries.

    Attributes:
        first, end: [M + SIZE] int32, the keys of each query's window, from `first` to before `end`; padding, which has
            none, has an `end` of 0 and a `first` beyond all.
        stop, next: [M] int32, where a tile that starts at this token ends, and where the one after it starts.
        start: where the first starts; M where all is padding.
    """

    first: jax.Array
    end: jax.Array
    stop: jax.Array
    next: jax.Array
    start: jax.Array


def attend(q, k, v, segments):
    """See `csfm_jax.models.attention.attend`. A window's tokens must be contiguous.

    All in float32 at JAX's default precision: XLA:CPU multiplies such small batches slower in bfloat16. Reverse mode
    only. Under a mesh each device loops over its own rows (the data axes) and heads (`tensor`): the compiler cannot
    split a loop whose length the rows decide.
    """
    return per_device(_one_device, q, k, v, segments)


def _one_device(q, k, v, segments):
    sizes = tuple(c for c, below in zip(SIZES, (0, *SIZES)) if below < q.shape[1])
    return _attend(sizes, q, k, v, _plan(segments, sizes))


def _plan(segments, sizes):
    """Tiles of all rows."""
    total = segments.size
    position = jnp.arange(total, dtype=jnp.int32)
    valid = segments.reshape(-1) > 0
    run, run_end = _runs(segments)
    # The size whose tiles cover a window at the least cost, and so the length of its equal parts.
    length = run_end - run
    tiles = jnp.stack([-(-length // c) for c in sizes])
    cost = tiles * jnp.array([[c + OVERHEAD] for c in sizes])
    tiles = jnp.take_along_axis(tiles, jnp.argmin(cost, axis=0)[None], axis=0)[0]
    part = -(-length // tiles)
    # The last window's start within reach, where whole windows end within it; else the end of this part.
    shared = jnp.append(run, total)[jnp.minimum(position + SHARED, total)]
    stop = jnp.where(shared > position, shared, jnp.minimum(position + part, run_end))
    return Plan(
        first=jnp.pad(jnp.where(valid, run, BEYOND), (0, sizes[-1]), constant_values=BEYOND),
        end=jnp.pad(jnp.where(valid, run_end, 0), (0, sizes[-1])),
        stop=stop,
        next=jnp.append(jnp.where(valid, position, run_end), total)[stop],
        start=jnp.where(valid[0], 0, run_end[0]),
    )


def _runs(segments):
    """Start and end, in the flat sequence, of each token's run of equal ids within its row: two [M] int32."""
    changes = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True).reshape(-1)
    position = jnp.arange(changes.size, dtype=jnp.int32)
    start = lax.cummax(jnp.where(changes, position, 0))
    last = jnp.append(changes[1:], True)
    return start, lax.cummin(jnp.where(last, position + 1, changes.size), reverse=True)


def _loops(sizes, plan, turn, carry):
    """Calls `turn(size, at, first, end, carry)` for every tile of queries, one loop after the other.

    `at` is the tile's first token; `first` and `end` are [size], those of `Plan`, without keys beyond the tile's stop.
    """
    for below, size in zip((0, *sizes), sizes):
        carry = _loop(size, below, plan, functools.partial(turn, size), carry)
    return carry


def _loop(size, below, plan, turn, carry):
    """The tiles of more than `below` and at most `size` tokens."""
    total = plan.stop.size

    def of_another_size(at):
        length = plan.stop[at] - at
        return (at < total) & ((length <= below) | (length > size))

    def seek(at):
        return lax.while_loop(of_another_size, lambda at: plan.next[at], at)

    def visit(state):
        at, carry = state
        mine = at + jnp.arange(size) < plan.stop[at]
        first = jnp.where(mine, _cut(plan.first, at, size), BEYOND)
        end = jnp.where(mine, _cut(plan.end, at, size), 0)
        return seek(plan.next[at]), turn(at, first, end, carry)

    return lax.while_loop(lambda state: state[0] < total, visit, (seek(plan.start), carry))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, q, k, v, plan):
    return _forward(sizes, q, k, v, plan)[0]


def _forward(sizes, q, k, v, plan):
    heads, scale, pad = q.shape[2], q.shape[3] ** -0.5, sizes[-1]
    queries, keys, values = _flat(q, pad), _flat(k, pad), _flat(v, pad)

    def turn(size, at, first, end, carry):
        out, log_sum = carry
        query, last_key = _cut(queries, at, size), end.max()

        def chunk(state):
            place, top, total, mean = state
            key, value = _cut(keys, place, size), _cut(values, place, size)
            number = place + jnp.arange(size)
            own = (number >= first[:, None]) & (number < end[:, None])
            logits = jnp.where(own, jnp.einsum("hqd,hkd->hqk", query, key) * scale, LOW)
            new_top = jnp.maximum(top, logits.max(axis=-1))
            weights, shrink = jnp.exp(logits - new_top[..., None]), jnp.exp(top - new_top)
            new = jnp.einsum("hqk,hkd->hqd", weights, value)
            return place + size, new_top, total * shrink + weights.sum(axis=-1), mean * shrink[..., None] + new

        zero = jnp.zeros((heads, size), jnp.float32)
        empty = (first.min(), zero + LOW, zero, jnp.zeros((heads, size, q.shape[3]), jnp.float32))
        _, top, total, mean = lax.while_loop(lambda state: state[0] < last_key, chunk, empty)
        # Tokens beyond the tile belong to a tile that may have been written already.
        own = end > 0
        out = _put(out, at, jnp.where(own[:, None], mean / total[..., None], _cut(out, at, size)))
        return out, _put(log_sum, at, jnp.where(own, top + jnp.log(total), _cut(log_sum, at, size)))

    out = jnp.zeros(queries.shape, jnp.float32)
    out, log_sum = _loops(sizes, plan, turn, (out, jnp.zeros(out.shape[:2], jnp.float32)))
    out = _rows(out, q)
    return out, (q, k, v, plan, out, log_sum)


def _backward(sizes, kept, d_out):
    q, k, v, plan, out, log_sum = kept
    scale, pad = q.shape[3] ** -0.5, sizes[-1]
    queries, keys, values, d_outs = (_flat(x, pad) for x in (q, k, v, d_out))
    inner = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)
    inner = jnp.pad(inner.reshape(-1, q.shape[2]).T, ((0, 0), (0, pad)))

    def turn(size, at, first, end, carry):
        d_queries, d_keys, d_values = carry
        query, d_mean = _cut(queries, at, size), _cut(d_outs, at, size)
        last_key = end.max()
        offset, own_inner = _cut(log_sum, at, size)[:, None], _cut(inner, at, size)[:, None]

        def chunk(state):
            place, d_query, d_keys, d_values = state
            key, value = _cut(keys, place, size), _cut(values, place, size)
            number = place + jnp.arange(size)[:, None]
            own = (number >= first) & (number < end)
            # Keys by queries: so two of the three products of the gradient contract the last axis, as XLA:CPU likes.
            logits = jnp.einsum("hkd,hqd->hkq", key, query) * scale
            weights = jnp.where(own, jnp.exp(logits - offset), 0.0)
            d_logits = weights * (jnp.einsum("hkd,hqd->hkq", value, d_mean) - own_inner) * scale
            d_values = _add(d_values, place, jnp.einsum("hkq,hqd->hkd", weights, d_mean))
            d_keys = _add(d_keys, place, jnp.einsum("hkq,hqd->hkd", d_logits, query))
            return place + size, d_query + jnp.einsum("hkq,hkd->hqd", d_logits, key), d_keys, d_values

        empty = (first.min(), jnp.zeros(query.shape, jnp.float32), d_keys, d_values)
        _, d_query, d_keys, d_values = lax.while_loop(lambda state: state[0] < last_key, chunk, empty)
        return _add(d_queries, at, d_query), d_keys, d_values

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, keys, values))
    d_queries, d_keys, d_values = _loops(sizes, plan, turn, zeros)
    return _rows(d_queries, q), _rows(d_keys, k), _rows(d_values, v), None


_attend.defvjp(_forward, _backward)


def _flat(x, pad):
    """[B, N, H, d] -> [H, B N + pad, d] float32: heads first, as products want them; the last tile is cut whole."""
    return jnp.pad(x.astype(jnp.float32).reshape(-1, *x.shape[2:]).transpose(1, 0, 2), ((0, 0), (0, pad), (0, 0)))


def _rows(flat, like):
    """The inverse of `_flat`, in the shape and dtype of `like`."""
    tokens = like.shape[0] * like.shape[1]
    return flat[:, :tokens].transpose(1, 0, 2).reshape(like.shape).astype(like.dtype)


def _cut(x, at, size):
    return lax.dynamic_slice_in_dim(x, at, size, axis=min(1, x.ndim - 1))


def _put(x, at, new):
    return lax.dynamic_update_slice_in_dim(x, new, at, axis=1)


def _add(x, at, new):
    return _put(x, at, _cut(x, at, new.shape[1]) + new)
