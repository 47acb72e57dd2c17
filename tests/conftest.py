"""Shared fixtures: the real recordings, read in place."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real recordings (../shared/data) are not beside this checkout")
    return SHARED_DATA
