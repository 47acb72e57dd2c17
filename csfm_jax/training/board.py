"""TensorBoard's writer, without what its package would import beside it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

# tensorboardX imports these where they are installed, three seconds of every start: to write tensors of PyTorch's and
# to write into object stores, neither of which is done here.
_UNUSED = ("torch", "boto3", "google.cloud.storage")


def open_board(folder: Path, first: int) -> "SummaryWriter":
    """A writer of scalars.

    Args:
        folder: of this machine; made if absent. first: the step that is to come: what an earlier process wrote of it
            and of later ones is not shown.
    """
    with _hidden(*_UNUSED):
        from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first)


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Modules that cannot be imported meanwhile, but for those that already were."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
