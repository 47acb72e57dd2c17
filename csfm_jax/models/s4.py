"""S4: diagonal state spaces over the samples of a window (S4D: Gu et al. 2022; as a baseline: Al-Masud et al. 2026).

One layer is, for each of its channels, the linear system x' = A x + B u, y = Re(C x) + D u with a diagonal complex A,
discretised by zero-order hold. It has two forms: a convolution with a kernel as long as the window (FFT), for training;
and a recurrence, for packed rows of very different windows or signals that go on. Both give the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from csfm_jax import sharding
from csfm_jax.models.backbone_config import S4Config
from csfm_jax.models.layers import axes, dropout, layer_norm, linear, vector
from csfm_jax.sharding import constrain


class Packing(NamedTuple):
    """Where windows begin and end in packed rows.

    Attributes:
        steps: [B, L] int32, samples since the previous one of the same window; 0 = it is the first of its window.
        segment: [B, L] int32, window of each sample, 1 ... S; 0 = padding.
        windows: S.
    """

    steps: jax.Array
    segment: jax.Array
    windows: int


class Modes(NamedTuple):
    """A discretised layer: exponents A dt and output weights, complex64 [H, n] and [directions, H, n]."""

    exponent: jax.Array
    weight: jax.Array


class StateSpace(nnx.Module):
    """H independent systems of `state` real numbers each, initialised as S4D-Lin.

    The second of two directions looks ahead, from the next sample on.
    """

    def __init__(self, config: S4Config, *, rngs: nnx.Rngs):
        width, modes = config.width, config.state // 2
        low, high = np.log(config.shortest_step), np.log(config.longest_step)
        directions = 2 if config.bidirectional else 1
        per_mode = axes("vector", None)
        self.log_step = nnx.Param(
            jax.random.uniform(rngs.params(), (width,), minval=low, maxval=high), **axes("vector")
        )
        # The real part of A is -exp(log_decay): a system that grows cannot be learned.
        self.log_decay = nnx.Param(jnp.full((width, modes), jnp.log(0.5)), **per_mode)
        self.frequency = nnx.Param(jnp.tile(jnp.pi * jnp.arange(modes, dtype=jnp.float32), (width, 1)), **per_mode)
        out = jax.random.normal(rngs.params(), (directions, 2, width, modes)) * np.sqrt(0.5)  # real and imaginary
        self.out = nnx.Param(out, **axes(None, None, "vector", None))
        self.skip = vector(width, rngs=rngs)

    def convolve(self, u_NLH: jax.Array) -> jax.Array:
        """Every row of [N, L, H] float32 as one sequence from its start, by FFT."""
        length = u_NLH.shape[1]
        kernels = _kernels(self._modes(), length)
        # Twice the length, or the end of a window would run into its start.
        # In a circular kernel the lags -1, -2, ... stand at the end.
        ahead = kernels[1, :, ::-1] if len(kernels) > 1 else jnp.zeros_like(kernels[0])
        circular = jnp.concatenate([kernels[0], ahead], axis=-1)
        return _by_fft(u_NLH, circular) + self.skip[...] * u_NLH

    def recur(self, u_BLH: jax.Array, steps_BL: jax.Array) -> jax.Array:
        """Packed rows [B, L, H] float32 as a recurrence that starts anew where `steps` is 0; see `Packing`."""
        modes = self._modes()
        u = u_BLH[..., None].astype(jnp.complex64)
        before = steps_BL[..., None, None]
        state = _scan(_power(modes.exponent, before, before > 0), u)
        y = _read(modes.weight[0], state)
        if len(modes.weight) > 1:
            after = jnp.pad(before, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]
            state = _scan(_power(modes.exponent, after, after > 0), u, reverse=True)
            coming = jnp.pad(state, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]
            y += _read(modes.weight[1], coming * _power(modes.exponent, after - 1, after > 0))
        return y + self.skip[...] * u_BLH

    def _modes(self) -> Modes:
        a = jax.lax.complex(-jnp.exp(self.log_decay[...]), self.frequency[...])
        exponent = a * jnp.exp(self.log_step[...])[:, None]
        out = jax.lax.complex(self.out[:, 0], self.out[:, 1])
        return Modes(exponent, out * (jnp.exp(exponent) - 1.0) / a)  # B = 1, held between samples


def _kernels(modes: Modes, length: int) -> jax.Array:
    """[directions, H, length]: the answer to an impulse, 2 Re(sum_n weight_n exp(exponent_n l))."""
    lag = jnp.arange(length, dtype=jnp.float32)
    size = jnp.exp(modes.exponent.real[..., None] * lag)
    phase = modes.exponent.imag[..., None] * lag
    exact = jax.lax.Precision.HIGHEST
    real = jnp.einsum("dhn,hnl->dhl", modes.weight.real, size * jnp.cos(phase), precision=exact)
    return 2 * (real - jnp.einsum("dhn,hnl->dhl", modes.weight.imag, size * jnp.sin(phase), precision=exact))


def _by_fft(u_NLH, kernel_HK):
    """Circular convolution along time with kernels of K = 2 L lags, the first L of it."""

    def run(u_NLH, kernel_HK):
        length, around = u_NLH.shape[1], kernel_HK.shape[-1]
        u_f = jnp.fft.rfft(u_NLH.swapaxes(1, 2), n=around)
        y = jnp.fft.irfft(u_f * jnp.fft.rfft(kernel_HK), n=around)
        return y[..., :length].swapaxes(1, 2)

    mesh = sharding.ambient_mesh()
    if mesh is None:
        return run(u_NLH, kernel_HK)
    # The compiler does not split an FFT over its rows: it would gather all of them on every device.
    rows, whole = sharding.spec("batch", None, None, mesh=mesh), sharding.spec(None, None)
    return jax.shard_map(run, in_specs=(rows, whole), out_specs=rows)(u_NLH, kernel_HK)


def _power(exponent_Hn, steps, going_on):
    """exp(exponent x steps), [B, L, H, n]; 0 where nothing goes on."""
    return jnp.where(going_on, jnp.exp(exponent_Hn * steps.astype(jnp.float32)), 0.0)


def _scan(factor, u, reverse=False):
    """state_t = factor_t state_(t-1) + u_t along axis 1; t + 1 instead where it runs in reverse."""

    def join(first, then):
        return then[0] * first[0], then[0] * first[1] + then[1]

    return jax.lax.associative_scan(join, (factor, jnp.broadcast_to(u, factor.shape)), axis=1, reverse=reverse)[1]


def _read(weight_Hn, state_BLHn):
    return 2 * (weight_Hn * state_BLHn).sum(axis=-1).real


class S4Block(nnx.Module):
    """Layer norm of x + mix(gelu(state space(x))), mix a gated linear map (post-norm, as in the benchmark)."""

    def __init__(self, config: S4Config, dtype, *, rngs: nnx.Rngs):
        self.rate = config.dropout
        self.space = StateSpace(config, rngs=rngs)
        self.mix = linear(config.width, 2 * config.width, ("embed", None), dtype=dtype, rngs=rngs)
        self.norm = layer_norm(config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x_NLD, there_NL, packing: Packing | None, key):
        keys = (None, None) if key is None else jax.random.split(key)
        u = x_NLD.astype(jnp.float32)
        y = self.space.convolve(u) if packing is None else self.space.recur(u, packing.steps)
        y = _drop_channels(jax.nn.gelu(y, approximate=False).astype(x_NLD.dtype), self.rate, packing, keys[0])
        y = _drop_channels(jax.nn.glu(self.mix(y)), self.rate, packing, keys[1])
        y = jnp.where(there_NL[..., None], self.norm(x_NLD + y), jnp.zeros((), x_NLD.dtype))
        return constrain(y, "batch", None, None)


def _drop_channels(x_NLD, rate, packing, key):
    """Dropout of whole channels of a window: a mask that changes along time would be noise in the state."""
    if key is None or rate == 0.0:
        return x_NLD
    rows, _, width = x_NLD.shape
    windows = 1 if packing is None else packing.windows
    kept = dropout(jnp.ones((rows, windows, width), x_NLD.dtype), rate, key)
    if packing is not None:
        kept = jnp.take_along_axis(kept, jnp.maximum(packing.segment - 1, 0)[..., None], axis=1)
    return x_NLD * kept


class S4(nnx.Module):
    """A linear map of the samples, then `depth` blocks, stacked and scanned as those of the transformer.

    Args:
        inputs: channels of the input. dtype: of activations; the state spaces are float32 always.
    """

    stride = 1  # a feature for every sample

    def __init__(self, config: S4Config, inputs: int, dtype, *, rngs: nnx.Rngs):
        self.depth = config.depth
        self.enter = linear(inputs, config.width, ("patch", "embed"), dtype=dtype, rngs=rngs)

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return S4Block(config, dtype, rngs=rngs)

        self.blocks = stack(rngs)

    def __call__(self, x_NLC, there_NL, *, packing: Packing | None = None, key=None) -> tuple[jax.Array, jax.Array]:
        """Args:
            x_NLC: [N, L, C] samples; there_NL: [N, L] bool, which of them are there.
            packing: of rows that hold several windows, by recurrence; None: each row is a window, by convolution.
            key: of dropout; None = none.

        Returns:
            [N, L, D], zeros where nothing is there; and `there_NL`.
        """

        def step(x, layer):
            block, layer_key = layer
            return block(x, there_NL, packing, layer_key), None

        x = self.enter(x_NLC)
        x = constrain(jnp.where(there_NL[..., None], x, jnp.zeros((), x.dtype)), "batch", None, None)
        keys = None if key is None else jax.random.split(key, self.depth)
        return jax.lax.scan(step, x, (self.blocks, keys))[0], there_NL
