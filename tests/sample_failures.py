"""Stores at which something happens: a call fails, or the power is cut before it."""

import threading

WRITING = ("make_directory", "write", "link", "sync", "publish", "delete")
"""The methods that change anything."""


class InjectedError(OSError):
    """What a failing store raises."""


class FailingStore:
    """Forwards to another store; the n-th call that could change anything fails.

    Args:
        store: The real one.
        fail_at: Which call fails, from 0; None: none.
        after: Whether it fails after it has done its work.
        names: The methods that count.
    """

    def __init__(self, store, fail_at, *, after=False, names=WRITING):
        self.store = store
        self.fail_at = fail_at
        self.after = after
        self.names = names
        self.failed = None
        # Guards the count: calls come from several threads.
        self._lock = threading.Lock()
        self.count = 0

    def __getattr__(self, name):
        method = getattr(self.store, name)
        if name not in self.names:
            return method

        async def call(*args, **kwargs):
            with self._lock:
                fails = self.count == self.fail_at
                self.count += 1
            if fails:
                self.failed = name, args[0]
                if self.after:
                    await method(*args, **kwargs)
                raise InjectedError(f"{name}({args[0]})")
            return await method(*args, **kwargs)

        return call


class PowerCutStore(FailingStore):
    """Keeps what a power cut before the n-th call would have left."""

    view = None

    def __getattr__(self, name):
        method = getattr(self.store, name)
        if name not in self.names:
            return method

        async def call(*args, **kwargs):
            with self._lock:
                if self.count == self.fail_at:
                    self.view = self.store.durable_view()
                self.count += 1
            return await method(*args, **kwargs)

        return call
