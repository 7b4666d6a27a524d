"""What the items of a session are together: which are united, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence

from stowax._array_directories import check_array_names
from stowax._formats._orbax_strings import check_string_names
from stowax._keypath import check_names, leaf_name, walk
from stowax._manifest import NO_ARRAY_KINDS
from stowax._plan._unite import Layer, UnitedTree
from stowax._session import SavedItem
from stowax.errors import InvalidLayoutError


def layer_of(item: SavedItem) -> Layer | None:
    """The tree of an item; None if it has none."""
    if item.tree is None:
        return None
    manifest = item.tree.manifest
    kinds = [leaf.form.kind for leaf in manifest.leaves]
    return Layer(
        root=manifest.root,
        texts=frozenset([i for i, kind in enumerate(kinds) if kind in NO_ARRAY_KINDS]),
        replaces=item.owner.replaces,
        is_plain=item.owner.seal is None,
    )


def unites(item: SavedItem) -> bool:
    """Whether an item is a tree and nothing else, to be united with others."""
    return item.tree is not None and item.is_alone


def check_united(layers: Sequence[Layer], tree: UnitedTree, *, use_ocdbt: bool) -> None:
    """Refuses trees that together have names which no item can have.

    Args:
        layers: What the tree is united from.
        tree: What they are together.
        use_ocdbt: Whether arrays lie in a database, and not each in a directory.

    Raises:
        KeyPathCollisionError: Two leaves would get one name, or one place.
        InvalidNameError: An array cannot be a directory.
    """
    check_names(tree.root)
    texts: list[str] = []
    arrays: list[str] = []
    leaves = (path for path, node in walk(tree.root) if node.kind == "leaf")
    for path, origin in zip(leaves, tree.origins, strict=True):
        is_text = origin.leaf in layers[origin.tree].texts
        (texts if is_text else arrays).append(leaf_name(path))
    check_string_names(texts)
    if not use_ocdbt:
        check_array_names(arrays)


def check_form_is_known(item: SavedItem) -> None:
    """Refuses trees of Orbax that cannot be united with others here.

    Raises:
        InvalidLayoutError: Its arrays lie in a directory each, or it has leaves
            without a value.
    """
    if item.owner.seal is None and not item.use_ocdbt:
        raise InvalidLayoutError(
            f"{item.directory} was written by Orbax with an array in each directory "
            "(without OCDBT), which cannot be changed in place; load it, and save it "
            "anew"
        )
    for leaf in () if item.tree is None else item.tree.manifest.leaves:
        if leaf.form.kind == "placeholder":
            raise InvalidLayoutError(
                f"leaf {leaf.name!r} of {item.directory} is a placeholder of Orbax, "
                "which has no value and cannot be saved; load the tree, leave such "
                "leaves out, and save it anew"
            )
