"""Every check of the repository, one command each: `nox -s NAME`, `nox -l` lists them.

Each session installs the four packages and its tools from the pinned set of the
running Python, in one pip command (a second command could move a version again).
"""

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests"]
nox.options.reuse_venv = "yes"
# `matrix` runs on the interpreters that are there and says which were not.
nox.options.error_on_missing_interpreters = False

PACKAGES = ["stowax", "stowax-flax", "stowax-optax", "stowax-grain"]
# Optional parts of a package that its tests and its type check need.
EXTRAS = {"stowax": "[proto]"}
PEER = "orbax-checkpoint"
TEST_TOOLS = [
    *("pytest", "pytest-xdist", "hypothesis", "scikit-learn", "matplotlib"),
    "safetensors",
]
PYTHONS = ["3.11", "3.12", "3.13"]

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Eight devices in one process, so that sharding is real on any machine.
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    # The tests fork processes; OpenBLAS must not have started its threads by then.
    "OPENBLAS_NUM_THREADS": "1",
}


@nox.session
def demo(session: nox.Session) -> None:
    """Train on real digits, get killed, resume, and compare bit for bit."""
    _install(session, *_editable(), PEER, "scikit-learn", "matplotlib")
    session.run("python", "examples/train_digits.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests and doctests; arguments after `--` go to pytest."""
    _install_tests(session)
    # Two workers: the suite is sized for two cores, and its groups of processes have
    # deadlines.  By file: a file's tests share what its fixtures started.  No restart:
    # a worker that died (a deadlock ends it) fails the run and names its test.
    parallel = ["-n2", "--dist=loadfile", "--max-worker-restart=0"]
    session.run("pytest", *parallel, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint, nothing changed."""
    _install(session, "ruff")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Pyright over the packages' sources."""
    _install(session, *_editable(), *TEST_TOOLS, "pyright[nodejs]")
    session.run("pyright", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the four wheels, and import what is in them, not what is beside them."""
    folder = session.create_tmp()
    sources = [f"./packages/{package}" for package in PACKAGES]
    session.run(
        "python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, *sources
    )
    built = sorted(str(path) for path in Path(folder).glob("*.whl"))
    _install(session, "--force-reinstall", "--no-deps", *built)
    _install(session, *built)
    modules = [package.replace("-", "_") for package in PACKAGES]
    check = (
        "import importlib, pathlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    module = importlib.import_module(name)\n"
        "    folder = pathlib.Path(module.__file__).parent\n"
        "    assert 'site-packages' in folder.parts, folder\n"
        "    assert (folder / 'py.typed').exists(), folder\n"
    )
    session.run("python", "-c", check, *modules)


@nox.session
def docs(session: nox.Session) -> None:
    """Run the code blocks of README and docs, and follow their links."""
    _install_tests(session)
    session.run("pytest", "packages/stowax/tests/test_docs.py", *session.posargs)


@nox.session
def multihost(session: nox.Session) -> None:
    """Only the tests with several real processes, one test at a time."""
    _install_tests(session)
    session.run("pytest", "tests/multihost", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """The tests marked `soak`: the same promises for longer."""
    _install_tests(session)
    session.run("pytest", "-m", "soak", *session.posargs, env={"STOWAX_SOAK": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Compare with Orbax, safetensors and the raw disk; writes docs/benchmarks.md."""
    _install(session, *_editable(), PEER, "safetensors")
    table = ["--table", "docs/benchmarks.md"]
    session.run("python", "benchmarks/compare.py", *table, *session.posargs)


@nox.session(python=PYTHONS)
def matrix(session: nox.Session) -> None:
    """All tests on each supported Python that this machine has."""
    tests(session)


def _install_tests(session: nox.Session) -> None:
    _install(session, *_editable(), PEER, *TEST_TOOLS)


def _install(session: nox.Session, *requirements: str) -> None:
    session.env.update(ENVIRONMENT)
    session.install("-c", _constraints(session), *requirements)


def _constraints(session: nox.Session) -> str:
    """The pinned set of the session's Python."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = session.python if isinstance(session.python, str) else running
    path = Path("constraints", f"python{python}.txt")
    if not path.exists():
        session.error(
            f"Python {python} has no pinned set; supported: {', '.join(PYTHONS)}. "
            "Run nox with one of these, or add "
            f"{path} (its neighbours say how)."
        )
    return os.fspath(path)


def _editable() -> list[str]:
    """The four packages, so that an edit needs no new install."""
    sources = (f"./packages/{name}{EXTRAS.get(name, '')}" for name in PACKAGES)
    return [part for source in sources for part in ("-e", source)]
