"""Registries: what may be put in, in which forms, and what comes out."""

import dataclasses
import json

import pytest

import stowax
from stowax._handlers._choose import typestr_of
from stowax.errors import HandlerError, HandlerNotFoundError
from stowax.handlers import (
    JsonHandler,
    PyTreeHandler,
    global_registry,
    local_registry,
    register_handler,
)
from stowax.options import CheckpointablesOptions


class Words(list):
    """What the handler below serves."""

    __slots__ = ()


class WordsHandler:
    """A user's handler, which may keep its file under another name."""

    def __init__(self, filename="words.json"):
        self.filename = filename

    async def save(self, directory, checkpointable):
        text = json.dumps(list(checkpointable))

        async def write():
            (await directory.await_creation() / self.filename).write_text(text)

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            return Words(json.loads((directory / self.filename).read_text()))

        return read()

    async def metadata(self, directory):
        return None

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Words)

    def is_abstract_handleable(self, abstract_checkpointable):
        return None


class OtherWordsHandler(WordsHandler):
    """Another handler of the same values."""


@pytest.fixture
def the_global_registry(monkeypatch):
    """The global registry, as it was before the test when the test is over."""
    registry = global_registry()
    for name in ("_entries", "_secondary_typestrs"):
        monkeypatch.setattr(registry, name, list(getattr(registry, name)))
    return registry


def there_and_back(path, options, name="words"):
    """Saves and loads words with the options; says what was recorded."""
    with stowax.Context(checkpointables=options):
        stowax.save_checkpointables(path, {name: Words("ab")})
        assert stowax.load_checkpointables(path) == {name: Words("ab")}
    root = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    return root["item_handlers"][name]


class TestForms:
    """A handler may be given as a class or an instance, with or without a name."""

    @pytest.mark.parametrize("handler", [WordsHandler, WordsHandler("other.json")])
    @pytest.mark.parametrize(
        "give",
        [
            lambda h: CheckpointablesOptions(registry=local_registry().add(h)),
            lambda h: CheckpointablesOptions(registry=local_registry().add(h, "words")),
            lambda h: CheckpointablesOptions(
                registry=local_registry().add(h, checkpointable_name="words")
            ),
            lambda h: CheckpointablesOptions.create_with_handlers(h),
            lambda h: CheckpointablesOptions.create_with_handlers(words=h),
        ],
        ids=["add", "positional", "keyword", "options", "options-name"],
    )
    def test_words(self, tmp_path, give, handler):
        """All forms of the documentation work, for saving and for loading."""
        recorded = there_and_back(tmp_path / "checkpoint", give(handler))

        assert recorded == typestr_of(WordsHandler)
        names = {path.name for path in (tmp_path / "checkpoint/words").iterdir()}
        assert names == {"words.json" if isinstance(handler, type) else "other.json"}

    def test_no_handler(self):
        """What lacks the methods of a handler is refused when it is added."""

        class Half:
            def save(self): ...

            def load(self): ...

        with pytest.raises(HandlerError, match="is_handleable, is_abstract_handleable"):
            local_registry().add(Half)

    def test_decorator(self, the_global_registry, tmp_path):
        """`register_handler` decorates a class, with arguments and without."""

        @register_handler
        class First(WordsHandler): ...

        @register_handler(secondary_typestrs=["old.Second"])
        class Second(WordsHandler): ...

        third = register_handler(WordsHandler(), checkpointable_name="third")

        entries = the_global_registry.get_all_entries()
        assert entries[-3:] == ((First, None), (Second, None), (third, "third"))
        assert the_global_registry.get_secondary_typestrs(Second) == ("old.Second",)
        assert the_global_registry.get("third") is third
        stowax.save_checkpointables(tmp_path / "c", {"w": Words("ab")})
        assert stowax.load_checkpointables(tmp_path / "c") == {"w": Words("ab")}


class TestOrder:
    def test_last_registered_is_asked_first(self, tmp_path):
        """Of several that accept, the one registered last saves."""
        registry = local_registry().add(WordsHandler).add(OtherWordsHandler)

        recorded = there_and_back(
            tmp_path / "c", CheckpointablesOptions(registry=registry)
        )

        assert recorded == typestr_of(OtherWordsHandler)

    def test_added_again(self):
        """What is added again counts as added last, and stands there once."""
        registry = local_registry(include_global_registry=False)
        registry.add(WordsHandler, secondary_typestrs=["old"]).add(OtherWordsHandler)

        registry.add(WordsHandler)

        assert registry.get_all_entries() == (
            (OtherWordsHandler, None),
            (WordsHandler, None),
        )
        assert registry.get_secondary_typestrs(WordsHandler) == ("old",)

    def test_a_name_has_one_handler(self):
        """A name is tied to the handler that was added last for it."""
        registry = local_registry().add(WordsHandler, "w").add(OtherWordsHandler, "w")

        assert registry.get("w") is OtherWordsHandler
        assert local_registry().add(JsonHandler, "state").get("state") is JsonHandler

    def test_options_before_registry(self, tmp_path):
        """Handlers of the options are asked before those of the registry."""
        options = CheckpointablesOptions.create_with_handlers(OtherWordsHandler)
        options.registry = local_registry().add(WordsHandler)

        recorded = there_and_back(tmp_path / "c", options)

        assert recorded == typestr_of(OtherWordsHandler)


class TestLookUp:
    def test_entries_are_pairs(self):
        """An entry can be taken apart as in Orbax, and read by its names."""
        handler, name = local_registry().add(WordsHandler, "w").get_all_entries()[-1]

        assert (handler, name) == (WordsHandler, "w")
        entry = local_registry().get_all_entries()[-1]
        assert (entry.handler_type, entry.checkpointable_name) == (
            PyTreeHandler,
            "state",
        )

    def test_missing_name(self):
        """A name without a handler is a KeyError that lists the others."""
        with pytest.raises(HandlerNotFoundError, match=r"'w'.*'state'") as caught:
            local_registry().get("w")

        assert isinstance(caught.value, KeyError)

    def test_local_registry_is_ones_own(self):
        """What is added to a local registry is in no other."""
        registry = local_registry().add(JsonHandler, "config")

        assert registry.has("config")
        assert registry.get("config") is JsonHandler
        assert not global_registry().has("config")
        assert not local_registry().has("config")

    def test_joined_registries(self):
        """A registry may begin with the entries of another, and not with the rest."""
        other = local_registry(include_global_registry=False)
        other.add(WordsHandler, "w", ["old"])

        alone = local_registry(other, include_global_registry=False)
        joined = local_registry(local_registry(other))

        assert alone.get_all_entries() == ((WordsHandler, "w"),)
        assert alone.get_secondary_typestrs(WordsHandler) == ("old",)
        assert joined.get_all_entries() == (
            *global_registry().get_all_entries(),
            (WordsHandler, "w"),
        )


@dataclasses.dataclass
class Bare:
    """An entry of somebody's own making."""

    handler_type: object
    checkpointable_name: object


@dataclasses.dataclass
class Full(Bare):
    """The same, with everything."""

    secondary_typestrs: object = ("old.Words",)


class Minimal:
    """A registry with the four documented methods, and entries of some form."""

    def __init__(self, form):
        self.form = form
        self.entries = [*local_registry().get_all_entries()]

    def add(self, handler_type, checkpointable=None):
        self.entries.append((handler_type, checkpointable))
        return self

    def get(self, checkpointable):
        for handler_type, name in self.entries:
            if name == checkpointable:
                return handler_type
        raise KeyError(checkpointable)

    def has(self, checkpointable):
        return any(name == checkpointable for _, name in self.entries)

    def get_all_entries(self):
        return [self.form(*entry) for entry in self.entries]


@pytest.mark.parametrize(
    "form", [lambda *entry: entry, lambda *entry: [*entry], Bare, Full]
)
@pytest.mark.parametrize("name", [None, "words"])
class TestOnesOwnRegistry:
    def test_round_trip(self, tmp_path, form, name):
        """A registry needs four methods; its entries are pairs or objects."""
        registry = Minimal(form).add(WordsHandler, name)

        recorded = there_and_back(
            tmp_path / "c", CheckpointablesOptions(registry=registry)
        )

        assert recorded == typestr_of(WordsHandler)
        stowax.save(tmp_path / "tree", {"x": 1})
        with stowax.Context(checkpointables=CheckpointablesOptions(registry=registry)):
            assert stowax.load(tmp_path / "tree") == {"x": 1}

    def test_beginning_of_another(self, form, name):
        """A local registry may begin with it."""
        registry = local_registry(Minimal(form).add(WordsHandler, name))

        assert registry.get_all_entries()[-1] == (WordsHandler, name)
        expected = ("old.Words",) if form is Full else ()
        assert registry.get_secondary_typestrs(WordsHandler) == expected


def test_registry_with_odd_entries(tmp_path):
    """Entries of another form are refused with the form that they need."""
    registry = Minimal(lambda handler, name: {"handler": handler})

    with (
        stowax.Context(checkpointables=CheckpointablesOptions(registry=registry)),
        pytest.raises(HandlerError, match=r"Minimal.get_all_entries.*\(handler, name"),
    ):
        stowax.save(tmp_path / "c", {"x": 1})


def test_secondary_typestrs(tmp_path):
    """A handler that was renamed finds what it saved under its old name."""
    options = CheckpointablesOptions.create_with_handlers(WordsHandler)
    with stowax.Context(checkpointables=options):
        stowax.save_checkpointables(tmp_path / "c", {"w": Words("ab")})

    class Renamed(WordsHandler): ...

    registry = local_registry().add(
        Renamed, secondary_typestrs=[typestr_of(WordsHandler)]
    )
    with stowax.Context(checkpointables=CheckpointablesOptions(registry=registry)):
        assert stowax.load_checkpointables(tmp_path / "c") == {"w": Words("ab")}
