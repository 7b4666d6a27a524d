"""Which handler serves a checkpointable: every row of the two tables."""

import pytest

from stowax._handlers._choose import (
    Candidate,
    choose_for_loading,
    choose_for_saving,
    typestr_of,
)
from stowax._handlers._stateful import StatefulCheckpointableHandler
from stowax.errors import HandlerError
from stowax.handlers import JsonHandler, ProtoHandler, PyTreeHandler


class Box:
    """What `Guest` serves."""


class Guest:
    """A handler of a user."""

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Box)

    def is_abstract_handleable(self, abstract_checkpointable):
        return isinstance(abstract_checkpointable, Box)


class Undecided(Guest):
    """A handler that leaves it to the record."""

    def is_abstract_handleable(self, abstract_checkpointable):
        return None


class Saver:
    """An object that saves itself."""

    async def save(self, directory): ...

    async def load(self, directory): ...


class SavingBox(Box, Saver):
    """An object that saves itself, and that has a handler besides."""


TREE, JSON, PROTO = map(Candidate, (PyTreeHandler, JsonHandler, ProtoHandler))
STATEFUL, GUEST, OTHER = map(Candidate, (StatefulCheckpointableHandler, Guest, Guest))
UNDECIDED = Candidate(Undecided)
TIED_GUEST = Candidate(Guest, ["other.Name"], name="x")
TIED_TREE = Candidate(PyTreeHandler, name="x")
ALL = (GUEST, TREE, STATEFUL, JSON, PROTO)
OLD = Candidate(PyTreeHandler, ["old.Tree"])

NAMES = {
    candidate: typestr_of(candidate.handler)
    for candidate in (TREE, JSON, PROTO, STATEFUL, GUEST, UNDECIDED)
}


@pytest.mark.parametrize(
    ("tied", "candidates", "value", "chosen"),
    [
        # 1: tied to the name, whether it accepts or not
        (TIED_GUEST, ALL, {"a": 1}, TIED_GUEST),
        (TIED_TREE, ALL, Box(), TIED_TREE),
        # ... but an object that saves itself is no tree
        (TIED_TREE, ALL, Saver(), STATEFUL),
        (TIED_GUEST, ALL, Saver(), TIED_GUEST),
        # 2: the first that accepts
        (None, ALL, Box(), GUEST),
        (None, (OTHER, GUEST), Box(), OTHER),
        (None, ALL, {"a": 1}, TREE),
        (None, (JSON, TREE), {"a": 1}, JSON),
        (None, ALL, Saver(), STATEFUL),
        (None, ALL, SavingBox(), GUEST),
        # ... unless it is tied to another name
        (None, (TIED_GUEST, GUEST), Box(), GUEST),
        # nobody
        (None, ALL, object(), None),
        (None, (), {"a": 1}, None),
    ],
)
def test_saving(tied, candidates, value, chosen):
    """The first row of the table for saving that answers counts."""
    assert choose_for_saving(tied, candidates, value) is chosen


@pytest.mark.parametrize(
    ("tied", "candidates", "typestr", "kind", "target", "chosen"),
    [
        # 1: tied to the name, whatever is recorded, asked for or stored
        (TIED_GUEST, ALL, NAMES[TREE], "tree", {"a": int}, TIED_GUEST),
        (TIED_GUEST, ALL, NAMES[TREE], "opaque", Saver(), TIED_GUEST),
        (JSON, ALL, None, "opaque", None, JSON),
        # ... one of ours only where such files are
        (TIED_TREE, ALL, NAMES[JSON], "json", None, JSON),
        (JSON, ALL, None, "tree", None, TREE),
        (TIED_TREE, ALL, NAMES[STATEFUL], "opaque", None, None),
        (TIED_TREE, ALL, NAMES[TREE], "opaque", None, TIED_TREE),
        # ... and an object that saves itself is no tree
        (TIED_TREE, ALL, NAMES[TREE], "tree", Saver(), STATEFUL),
        # 2: recorded, under the first name or another
        (None, ALL, NAMES[GUEST], "opaque", None, GUEST),
        (None, ALL, NAMES[GUEST], "tree", None, GUEST),
        (None, (OTHER, GUEST), NAMES[GUEST], "opaque", None, OTHER),
        (None, (TREE, OLD), "old.Tree", "tree", None, OLD),
        (None, (TIED_GUEST, TREE), "other.Name", "opaque", None, TIED_GUEST),
        (None, ALL, NAMES[JSON], "opaque", None, JSON),
        # ... a handler that cannot tell leaves it to the record
        (None, (TREE, UNDECIDED), NAMES[UNDECIDED], "tree", {"a": 1}, UNDECIDED),
        # ... one that refuses what is asked for is passed over
        (None, ALL, NAMES[GUEST], "tree", {"a": int}, TREE),
        (None, ALL, NAMES[JSON], "json", Saver(), STATEFUL),
        # ... and so is one of ours whose files these are not
        (None, ALL, NAMES[TREE], "json", None, JSON),
        (None, ALL, NAMES[JSON], "tree", None, TREE),
        # ... unless nothing can be told from the files: then they are damaged
        (None, ALL, NAMES[TREE], "opaque", None, TREE),
        # 3: accepts what is asked for
        (None, ALL, "unknown.Handler", "opaque", Box(), GUEST),
        (None, (OTHER, GUEST), None, "tree", Box(), OTHER),
        (None, ALL, None, "tree", {"a": int}, TREE),
        (None, ALL, "unknown.Handler", "opaque", {"a": int}, None),
        (None, ALL, NAMES[STATEFUL], "opaque", Saver(), STATEFUL),
        (None, ALL, "unknown.Handler", "opaque", SavingBox(), GUEST),
        # 4: the files are those of one of ours
        (None, ALL, "unknown.Handler", "tree", None, TREE),
        (None, ALL, None, "tree", {"a": object()}, TREE),
        (None, ALL, None, "json", None, JSON),
        (None, ALL, NAMES[STATEFUL], "json", None, JSON),
        # ... JSON only if no foreign handler is recorded
        (None, ALL, "unknown.Handler", "json", None, None),
        # ... and not one that has to be told what to load
        (None, ALL, None, "proto", None, None),
        (None, ALL, NAMES[PROTO], "proto", None, None),
        (None, ALL, NAMES[PROTO], "proto", {"a": 1}, PROTO),
        (None, ALL, NAMES[STATEFUL], "opaque", None, None),
        # nobody
        (None, ALL, "unknown.Handler", "opaque", None, None),
        (None, ALL, None, "opaque", None, None),
        (None, (), NAMES[TREE], "tree", None, None),
    ],
)
def test_loading(tied, candidates, typestr, kind, target, chosen):
    """The first row of the table for loading that answers counts."""
    found = choose_for_loading(
        tied, candidates, typestr=typestr, kind=kind, target=target
    )

    assert found is chosen


def test_messages():
    """A message is saved by the handler of messages, and loaded with its class."""
    from google.protobuf.duration_pb2 import Duration

    assert choose_for_saving(None, ALL, Duration()) is PROTO
    for kind in ("proto", "opaque"):  # Its file may have any name.
        found = choose_for_loading(None, ALL, typestr=None, kind=kind, target=Duration)
        assert found is PROTO


def test_made_when_asked():
    """A handler that is not asked is not made; one that cannot be made is named."""

    class Needy(Guest):
        def __init__(self, needed):
            self.needed = needed

    needy = Candidate(Needy)

    found = choose_for_loading(
        None, (needy, TREE), typestr=NAMES[TREE], kind="tree", target=None
    )
    assert found is TREE
    with pytest.raises(HandlerError, match=r"Needy cannot be made.*instance"):
        choose_for_saving(None, (needy, TREE), {"a": 1})
    made = Candidate(Needy(1))
    assert choose_for_saving(None, (made, TREE), Box()) is made
