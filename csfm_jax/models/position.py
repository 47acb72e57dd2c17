"""Fixed positions on the axis that signals of any rate share: seconds from the window's start."""

import jax
import jax.numpy as jnp
import numpy as np

# Periods from twice CSFM's patch (0.1 s), the shortest that its patches can tell apart, to half an hour: longer than
# any window of a sleep study in one row.
SHORTEST_SECONDS, LONGEST_SECONDS = 0.2, 1800.0


def angles(time: jax.Array, pairs: int) -> jax.Array:
    """Phase of each time on `pairs` geometrically spaced periods.

    Args:
        time: [...] seconds, float32 (bfloat16 cannot tell 9.9 s from 10 s).

    Returns:
        [..., pairs] float32 radians.
    """
    periods = np.geomspace(SHORTEST_SECONDS, LONGEST_SECONDS, pairs)
    return time.astype(jnp.float32)[..., None] * jnp.asarray(2 * np.pi / periods, jnp.float32)


def sincos(time: jax.Array, width: int) -> jax.Array:
    """[...] seconds -> [..., width]: sines, then cosines (Vaswani et al. 2017, on seconds)."""
    phase = angles(time, width // 2)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def rotate(x_BNHd: jax.Array, angles_BNR: jax.Array) -> jax.Array:
    """Rotary position (Su et al. 2021): turns feature i of the first half against feature i of the second.

    Args:
        x_BNHd: queries or keys. angles_BNR: radians, R = head_dim / 2; 0 leaves a token (CLS, text) as it is.
    """
    first, second = jnp.split(x_BNHd.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles_BNR)[:, :, None], jnp.sin(angles_BNR)[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BNHd.dtype)
