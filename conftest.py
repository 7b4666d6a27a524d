"""What holds in every test and doctest of the repository."""

import os
import signal

# Before the first import of jax, also where pytest is called without nox.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

# A shell ignores Ctrl-C for what it starts in the background, and so would the tests
# of it; they would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _doctest_in_its_own_folder(request, tmp_path_factory, monkeypatch):
    """A docstring's example may save to a relative path."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("doctest"))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(0, id="once"),
        *(pytest.param(i, id=f"soak{i}", marks=pytest.mark.soak) for i in range(1, 5)),
    ],
)
def rounds():
    """Runs a test once, and in a soak four times more, none of which gets too long."""


def pytest_collection_modifyitems(config, items):
    """Without STOWAX_SOAK, leaves the tests marked `soak` out and counts them."""
    if os.environ.get("STOWAX_SOAK"):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
