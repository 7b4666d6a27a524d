"""What an adapter for a library of models, optimizers or data needs.

An adapter makes an object of such a library a checkpointable
(`stowax.handlers.StatefulCheckpointable`).  Its item is an ordinary tree, which loads
without the library, with a small JSON document beside it for what a tree cannot say.
A load reads the document and the metadata first, compares them with the live object,
and asks for arrays only when everything fits.

    save_item, open_item, load_item,
    StoredItem, tree_mismatch             the tree and its document
    parse_leaves, parse_path, check_type,
    corrupt_document                      what a document says, checked
    class_name, same_class                how it names classes
    flatten, nest, plain_key, KeyPath,
    show_path, stored_name, StoredName    trees and the paths to their leaves
    storable_leaf, note_of                what to write for a leaf
    Form, form_of, stored_form            whether a stored leaf fits a live one
    abstract_leaf, place_leaf             a stored leaf in the form of the live one
"""

from stowax._public import claim as _claim
from stowax.adapters._classes import class_name as class_name
from stowax.adapters._classes import same_class as same_class
from stowax.adapters._document import check_type as check_type
from stowax.adapters._document import corrupt_document as corrupt_document
from stowax.adapters._document import parse_leaves as parse_leaves
from stowax.adapters._document import parse_path as parse_path
from stowax.adapters._item import StoredItem as StoredItem
from stowax.adapters._item import load_item as load_item
from stowax.adapters._item import open_item as open_item
from stowax.adapters._item import save_item as save_item
from stowax.adapters._item import tree_mismatch as tree_mismatch
from stowax.adapters._leaf import Form as Form
from stowax.adapters._leaf import abstract_leaf as abstract_leaf
from stowax.adapters._leaf import form_of as form_of
from stowax.adapters._leaf import note_of as note_of
from stowax.adapters._leaf import place_leaf as place_leaf
from stowax.adapters._leaf import storable_leaf as storable_leaf
from stowax.adapters._leaf import stored_form as stored_form
from stowax.adapters._paths import KeyPath as KeyPath
from stowax.adapters._paths import StoredName as StoredName
from stowax.adapters._paths import flatten as flatten
from stowax.adapters._paths import nest as nest
from stowax.adapters._paths import plain_key as plain_key
from stowax.adapters._paths import show_path as show_path
from stowax.adapters._paths import stored_name as stored_name

__all__ = [
    "Form",
    "KeyPath",
    "StoredItem",
    "StoredName",
    "abstract_leaf",
    "check_type",
    "class_name",
    "corrupt_document",
    "flatten",
    "form_of",
    "load_item",
    "nest",
    "note_of",
    "open_item",
    "parse_leaves",
    "parse_path",
    "place_leaf",
    "plain_key",
    "same_class",
    "save_item",
    "show_path",
    "storable_leaf",
    "stored_form",
    "stored_name",
    "tree_mismatch",
]

_claim(globals())
