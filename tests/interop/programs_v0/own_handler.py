"""A handler for objects of one's own, with arguments that name it."""

import dataclasses


class Tokenizer:
    """Numbers words in the order in which it meets them."""

    def __init__(self, words=()):
        self.words = list(words)


def handler(ocp):
    """The handler and its arguments, made for a library."""

    class TokenizerHandler(ocp.CheckpointHandler):
        def save(self, directory, args):
            (directory / "words.txt").write_text("\n".join(args.item.words))

        def restore(self, directory, args=None):
            tokenizer = args.item if args and args.item else Tokenizer()
            tokenizer.words = (directory / "words.txt").read_text().split("\n")
            return tokenizer

        def metadata(self, directory):
            return {"count": len(self.restore(directory).words)}

        @classmethod
        def typestr(cls):
            return "tokenizers.TokenizerHandler"

    @ocp.args.register_with_handler(TokenizerHandler, for_save=True)
    @dataclasses.dataclass
    class TokenizerSave(ocp.args.CheckpointArgs):
        item: Tokenizer

    @ocp.args.register_with_handler(TokenizerHandler, for_restore=True)
    @dataclasses.dataclass
    class TokenizerRestore(ocp.args.CheckpointArgs):
        item: Tokenizer | None = None

    return TokenizerHandler, TokenizerSave, TokenizerRestore


_KNOWN = {}


def known(ocp):
    """The same, once for each library: a type string stands for one class."""
    if ocp.__name__ not in _KNOWN:
        _KNOWN[ocp.__name__] = handler(ocp)
    return _KNOWN[ocp.__name__]


def save(ocp, path):
    """Alone, and beside a tree."""
    made, save_args, _ = known(ocp)
    with ocp.Checkpointer(made()) as checkpointer:
        checkpointer.save(path / "alone", args=save_args(Tokenizer(["a", "b"])))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(
            words=save_args(Tokenizer(["c"])), state=ocp.args.PyTreeSave({"x": 1})
        )
        checkpointer.save(path / "both", args)


def load(ocp, path):
    """Into a new object, and into one that is there."""
    made, _, restore_args = known(ocp)
    target = Tokenizer()
    with ocp.Checkpointer(made()) as checkpointer:
        restored = checkpointer.restore(path / "alone", args=restore_args(target))
        found = checkpointer.metadata(path / "alone")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        both = checkpointer.restore(path / "both")
    return {
        "in place": restored is target,
        "words": restored.words,
        "told": (found.item_handlers, found.item_metadata),
        "both": (both.words.words, both.state),
    }
