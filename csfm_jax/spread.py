"""A network in use on all devices of this process: rows of a batch lie over them, weights are whole on each."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from csfm_jax import sharding
from csfm_jax.config import MeshConfig
from data_pipelines.batch import TokenBatch
from data_pipelines.config import TokenConfig
from data_pipelines.rows import empty_batch


class OverDevices:
    """`function(weights, batch)` over batches. Each process runs all that it is given: nothing is shared among several.

    Args:
        function: compiled by `jax.jit`, which keeps a program for each shape of batch. weights: its first argument.
            tokens: of the batches, for empty rows.
    """

    def __init__(self, function: Callable[[Any, TokenBatch], Any], weights: Any, tokens: TokenConfig):
        self._function, self._given, self._tokens = function, weights, tokens

    def over(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, Any]]:
        """Every batch in turn as it was run, with empty rows at its end where devices do not divide it, and its result
        in NumPy. The next batch is read and sent while the devices work on this one."""
        waiting = None
        for batch in batches:
            running = self._run(batch)
            if waiting is not None:
                yield waiting[0], jax.device_get(waiting[1])
            waiting = running
        if waiting is not None:
            yield waiting[0], jax.device_get(waiting[1])

    def rows(self, wanted: int) -> int:
        """The next number of rows that the devices divide."""
        return -(-wanted // self._mesh.size) * self._mesh.size

    def _run(self, batch: TokenBatch) -> tuple[TokenBatch, Any]:
        batch = self._filled(batch)
        rows = sharding.batch_sharding(self._mesh)
        placed = TokenBatch(*(jax.device_put(np.asarray(field), rows) for field in batch))
        with sharding.use(self._mesh):
            return batch, self._function(self._weights, placed)

    @cached_property
    def _mesh(self) -> Mesh:
        return sharding.make_mesh(MeshConfig(), jax.local_devices())

    @cached_property
    def _weights(self) -> Any:
        return jax.device_put(self._given, NamedSharding(self._mesh, PartitionSpec()))

    def _filled(self, batch: TokenBatch) -> TokenBatch:
        rows, capacities = len(batch.window), (batch.channel.shape[1], batch.visible.shape[1], batch.window.shape[1])
        if not (missing := self.rows(rows) - rows):
            return batch
        empty = empty_batch(missing, capacities, self._tokens, batch.labels.shape[-1])
        return TokenBatch(*map(np.concatenate, zip(batch, empty)))
