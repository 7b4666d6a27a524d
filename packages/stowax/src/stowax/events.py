"""What saves and loads do, told while they do it: for progress bars, logs, dashboards.

Whoever subscribes hears of every save, load and `verify` of this process that begins
afterwards, on any thread.  Of one operation events come one after the other, in this
order:

    started     the call was made
    staged      a save only: the values are safe, so `save_async` returns
    progress    more bytes were written or read, now and then
    leaf        one leaf was written, durably, or read and verified; on request

and the last one is one of these:

    published   a save is there for everybody, and durable
    loaded      the result of a load is complete
    verified    every byte that was compared is as it was saved
    failed      or it failed, or was given up

Writing begins as soon as there is something staged, so progress and leaves may come
before `staged`.

Example:
    >>> import stowax
    >>> path = getfixture("tmp_path") / "checkpoint"
    >>> def show(event):
    ...     if event.kind == "published":
    ...         print(f"{event.done_bytes} of {event.total_bytes} bytes")
    >>> with stowax.events.subscribe(show):
    ...     stowax.save(path, {"step": 7})
    8 of 8 bytes

A listener is called on a thread of its own, so a slow one holds nobody up; only the end
of an operation waits until it has heard of it, a second at most.

Of several processes each tells what it does itself.  The same goes to `jax.monitoring`,
under the names that Orbax uses, whether anybody subscribes or not.
"""

from stowax._events import Event as Event
from stowax._listeners import Listener as Listener
from stowax._listeners import Subscription as Subscription
from stowax._listeners import subscribe as subscribe
from stowax._public import claim as _claim

__all__ = ["Event", "Listener", "Subscription", "subscribe"]

_claim(globals())
