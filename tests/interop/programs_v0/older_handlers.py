"""Handlers that were written before there were arguments; futures, and a last touch."""

import concurrent.futures

import numpy as np


def handlers(ocp):
    """One that waits, and one that goes on."""

    class LogHandler(ocp.CheckpointHandler):
        def save(self, directory, item, sep="\n"):
            (directory / "log").write_text(sep.join(item))

        def restore(self, directory, item=None):
            lines = (directory / "log").read_text().split("\n")
            return lines if item is None else [*item, *lines]

    class TableHandler(ocp.AsyncCheckpointHandler):
        def __init__(self):
            self.pool = concurrent.futures.ThreadPoolExecutor()

        def save(self, directory, item):
            for future in self.begin(directory, item):
                future.result()

        async def async_save(self, directory, item):
            return self.begin(directory, item)

        def begin(self, directory, item):
            return [
                self.pool.submit(np.savetxt, str(directory / name), column)
                for name, column in item.items()
            ]

        def restore(self, directory):
            names = (directory / "names").read_text().split()
            return {name: np.loadtxt(str(directory / name)) for name in names}

        def finalize(self, directory):
            names = sorted(p.name for p in directory.iterdir() if "." not in p.name)
            names = [name for name in names if not name.startswith("_")]
            (directory / "names").write_text(" ".join(names))

        def close(self):
            self.pool.shutdown()

    return LogHandler, TableHandler


def save(ocp, path):
    """With whatever arguments their own `save` takes."""
    log, table = handlers(ocp)
    with ocp.Checkpointer(log()) as checkpointer:
        checkpointer.save(path / "log", ["one", "two"])
        checkpointer.save(path / "other", ["one", "two"], sep=" ")
    columns = {"x": np.arange(3.0), "y": np.ones(3)}
    # The pool of the handler does not wait for a directory.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    with ocp.AsyncCheckpointer(table(), async_options=options) as checkpointer:
        checkpointer.save(path / "table", columns)
        columns = None
        checkpointer.wait_until_finished()


def load(ocp, path):
    """The same for `restore`."""
    log, table = handlers(ocp)
    with ocp.Checkpointer(log()) as checkpointer:
        lines = checkpointer.restore(path / "log")
        more = checkpointer.restore(path / "log", ["zero"])
        other = checkpointer.restore(path / "other")
    with ocp.AsyncCheckpointer(table()) as checkpointer:
        return lines, more, other, checkpointer.restore(path / "table")
