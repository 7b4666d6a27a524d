"""What the shared tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The checkpoints that released Orbax versions wrote; never to be written to."""
    return Path(__file__).parent / "golden"
