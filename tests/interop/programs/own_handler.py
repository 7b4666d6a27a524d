"""A handler for objects of one's own, which writes its own file.

Saving has two phases: what must see the object now, and what can be done later.
"""

import jax.numpy as jnp


class Vocabulary:
    """Words that a model knows."""

    def __init__(self, words):
        self.words = list(words)


def handler(ocp):
    """The handler, as its protocol asks for it."""

    class VocabularyHandler(ocp.CheckpointableHandler[Vocabulary, None]):
        async def save(self, directory, checkpointable):
            words = list(checkpointable.words)  # The caller may go on with it.
            return self.write(directory, words)

        async def write(self, directory, words):
            directory = await directory.await_creation()
            (directory / "words.txt").write_text("\n".join(words))

        async def load(self, directory, abstract_checkpointable=None):
            return self.read(directory)

        async def read(self, directory):
            return Vocabulary((directory / "words.txt").read_text().split("\n"))

        async def metadata(self, directory):
            return None

        def is_handleable(self, checkpointable):
            return isinstance(checkpointable, Vocabulary)

        def is_abstract_handleable(self, abstract_checkpointable):
            return abstract_checkpointable is None

    return VocabularyHandler


def context(ocp):
    """A context that knows it."""
    registry = ocp.handlers.local_registry()
    registry.add(handler(ocp))
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def save(ocp, path):
    """The vocabulary is changed while it is being saved."""
    vocabulary = Vocabulary(["<pad>", "snow", "Schnee", "雪"])
    parts = {"model": {"w": jnp.ones(3)}, "words": vocabulary}
    with context(ocp):
        ocp.save_checkpointables(path / "now", parts)
        response = ocp.save_checkpointables_async(path / "later", parts)
        vocabulary.words.append("too late")
        response.result()
    return (path / "now" / "words" / "words.txt").read_text()


def load(ocp, path):
    """Found by what the checkpoint recorded; with other parts, or alone."""
    with context(ocp):
        every = ocp.load_checkpointables(path / "now")
        alone = ocp.load_checkpointables(path / "later", {"words": None})
        described = ocp.checkpointables_metadata(path / "now").metadata
    return {
        "model": every["model"],
        "words": [every["words"].words, alone["words"].words],
        "types": [type(every["words"]) is Vocabulary, sorted(alone)],
        "described": described["words"],
    }
