"""What a crash or a failure in a session may take: nothing that was there.

The model is a dictionary: what the session would become, and what is published.  After
a power cut before any call of the store, or after a call that fails, the session is as
it was before the operation, or as it would have been after it, and it goes on.
"""

import copy
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sample_failures import FailingStore, InjectedError, PowerCutStore
from sample_states import SOAK
from sample_trees import differences

import stowax
from stowax import partial
from stowax.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    PartialSaveReplacementError,
    StowaxError,
)
from stowax.options import FileOptions
from stowax.testing import MemoryStore

PATH = "/runs/checkpoint"


def on(store):
    """A Context with a store."""
    return stowax.Context(file=FileOptions(store=store))


def published(store):
    """What is at the path, every byte of it compared; None if nothing is."""
    with on(store):
        if not stowax.is_orbax_checkpoint(PATH):
            return None
        stowax.verify(PATH)
        return stowax.load(PATH)


def session(store):
    """What the session would become; None if there is none. The store is untouched."""
    aside = store.durable_view()
    with on(aside):
        try:
            partial.finalize(PATH)
        except (CheckpointNotFoundError, CheckpointExistsError):
            return None
    return published(aside)


def first():
    """What a session begins with."""
    return {"a": np.arange(6.0), "b": {"c": 1, "text": "one"}}


def second():
    """What is saved on top of it."""
    return {"b": {"c": np.ones((3, 2)), "d": 2}}


BOTH = {"a": np.arange(6.0), "b": {"c": np.ones((3, 2)), "d": 2, "text": "one"}}


def begin_new(store):
    """A session where nothing is."""
    with on(store):
        partial.save(PATH, first())


def begin_on_published(store):
    """A session that began from a checkpoint."""
    with on(store):
        stowax.save(PATH, {"a": np.zeros(2), "b": {"c": 0, "text": "zero"}})
        partial.save(PATH, first(), replace=True)


BEGINNINGS = {"new": begin_new, "on a checkpoint": begin_on_published}


def save_second():
    """The operation that is interrupted, if it is not the finalization."""
    partial.save(PATH, second(), replace=True)


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("end", [False, True], ids=["save", "finalize"])
def test_power_cut_at_every_call(beginning, end):
    """The session before or after it is whole, and can be taken to its end."""
    number, states = 0, []
    while True:
        base = MemoryStore()
        BEGINNINGS[beginning](base)
        if end:
            with on(base):
                save_second()
        before = published(base)
        store = PowerCutStore(base, number)
        with on(store):
            partial.finalize(PATH) if end else save_second()
        if store.view is None:
            break
        now = published(store.view)
        if end and now is not None and differences(BOTH, now) == []:
            states.append("after")
            with on(store.view):
                # The end of the session may be missing; then it comes, once.
                if session(store.view) is not None:
                    partial.finalize(PATH)
                with pytest.raises(CheckpointExistsError):
                    partial.finalize(PATH)
        else:
            assert differences(before, now) == []
            found = session(store.view)
            if differences(BOTH, found) == []:
                states.append("before" if end else "after")
            else:
                assert not end
                assert differences(first(), found) == []
                states.append("before")
            with on(store.view):
                save_second()
                partial.finalize(PATH)
            assert differences(BOTH, published(store.view)) == []
        number += 1

    assert number > 15
    assert states[0] == "before"
    # What follows the end of a save is its callers' to see.
    assert states[-1] == ("after" if end else "before")
    assert states == sorted(states, key=["before", "after"].index)


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("end", [False, True], ids=["save", "finalize"])
def test_failure_at_every_call(beginning, after, end):
    """A store that fails at any call leaves a session that can be taken to its end."""
    number = 0
    while True:
        base = MemoryStore()
        BEGINNINGS[beginning](base)
        if end:
            with on(base):
                save_second()
        before = published(base)
        store = FailingStore(base, number, after=after)
        try:
            with on(store):
                partial.finalize(PATH) if end else save_second()
        except (InjectedError, StowaxError):
            assert store.failed is not None
        else:
            if store.failed is None:
                break
        now = published(base)
        if differences(before, now) != []:
            assert end
            assert differences(BOTH, now) == []
        with on(base):
            if not end:
                save_second()
            try:
                partial.finalize(PATH)
            except CheckpointExistsError:
                assert end
        assert differences(BOTH, published(base)) == [], store.failed
        with on(base):
            names = [
                e.name
                for e in stowax._runtime.default_runtime().run(base.list("/runs"))
            ]
        assert [name for name in names if "tmp" not in name] == ["checkpoint"]
        number += 1

    assert number > 15


KEYS = st.sampled_from("abc")
VALUES = st.one_of(
    st.integers(-9, 9),
    st.sampled_from(["text", "more", None]),
    st.integers(1, 5).map(lambda n: np.arange(n, dtype=np.float32)),
)
TREES = st.recursive(
    VALUES, lambda below: st.dictionaries(KEYS, below, min_size=1, max_size=3)
).filter(lambda tree: isinstance(tree, dict))


CUTS = st.none() | st.integers(0, 70)
"""Before which call of the store the power is cut; None: it is not."""


def updated(below, top, *, replace):
    """The dictionary with another on top of it.

    Raises:
        KeyError: Something is there already.
    """
    result = dict(below)
    for key, value in top.items():
        old = result.get(key)
        if key not in result or (not replace and old is None):
            result[key] = value
        elif isinstance(old, dict) and isinstance(value, dict):
            result[key] = updated(old, value, replace=replace)
        elif replace:
            result[key] = value
        elif value is not None:
            raise KeyError(key)
    return result


class Sessions(RuleBasedStateMachine):
    """A session against a dictionary, with power cuts inside of its operations."""

    def __init__(self):
        super().__init__()
        self.store = MemoryStore()
        self.session: Any = None
        self.published: Any = None

    @initialize(tree=st.none() | TREES)
    def begin(self, tree):
        if tree is not None:
            with on(self.store):
                stowax.save(PATH, tree)
            self.published = tree

    @rule(tree=TREES, replace=st.booleans(), cut=CUTS)
    def save(self, tree, replace, cut):
        below = self.session
        if below is None:
            below = {} if self.published is None else self.published
        error = None
        expected = below
        if self.session is None and self.published is not None and not replace:
            error = CheckpointExistsError
        else:
            try:
                expected = updated(below, tree, replace=replace)
            except KeyError:
                error = PartialSaveReplacementError
        if error is not None:
            with on(self.store), pytest.raises(error):
                partial.save(PATH, tree, replace=replace)
            return

        def call():
            partial.save(PATH, tree, replace=replace)

        self._operate(call, (expected, self.published), cut)

    @rule(
        trees=st.lists(TREES, min_size=2, max_size=3),
        cut=st.none() | st.integers(0, 90),
    )
    def save_together(self, trees, cut):
        """Calls in flight together: a power cut leaves the first few of them."""
        below = self.session
        if below is None:
            below = {} if self.published is None else self.published
        states = []
        for tree in trees:
            below = updated(below, tree, replace=True)
            states.append((below, self.published))

        def call():
            responses = [partial.save_async(PATH, tree, replace=True) for tree in trees]
            for response in responses:
                response.result()

        self._operate(call, states[-1], cut, *states[:-1])

    @rule(cut=CUTS)
    def finalize(self, cut):
        if self.session is None:
            with on(self.store), pytest.raises((FileExistsError, FileNotFoundError)):
                partial.finalize(PATH)
            return
        self._operate(lambda: partial.finalize(PATH), (None, self.session), cut)

    @precondition(lambda self: self.session is None)
    @rule()
    def delete(self):
        with on(self.store):
            stowax.delete(PATH, missing_ok=True)
        self.published = None

    def _operate(self, call, after, cut, *between):
        store = PowerCutStore(self.store, cut)
        with on(store):
            call()
        states = [after]
        if store.view is not None:
            self.store = store.view
            states = [(self.session, self.published), *between, after]
        found = session(self.store), published(self.store)
        # After a crash just before its end, a session is what it has become.
        whole = [(s, p) for s, p in states if differences(p, found[1]) == []]
        fitting = [(s, p) for s, p in whole if differences(s, found[0]) == []]
        if not fitting and whole and whole[-1][0] is None:
            assert differences(found[0], found[1]) == []
            with on(self.store):
                partial.finalize(PATH)
            fitting = whole[-1:]
        assert fitting, (found, states)
        self.session, self.published = copy.deepcopy(fitting[-1])

    @invariant()
    def both_are_as_the_model_says(self):
        assert differences(self.published, published(self.store)) == []
        assert differences(self.session, session(self.store)) == []


@pytest.mark.usefixtures("rounds")
def test_any_session():
    """Whatever is done in whatever order: session and checkpoint are the model's."""
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=240 if SOAK else 40,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
