"""The fixture that starts groups of real JAX processes."""

import pytest

from multihost import _launcher


@pytest.fixture
def launch():
    """Runs a module's function in several JAX processes; see `_launcher.launch`."""
    return _launcher.launch
