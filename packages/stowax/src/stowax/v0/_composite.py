"""Several values by name: what a composite handler is given, and what it gives."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, NoReturn

from stowax.errors import InvalidArgumentError, InvalidNameError


class Composite(Mapping[str, Any]):
    """Values by name, as keys and as attributes; cannot be changed.

    Args:
        **items: The values.

    Example:
        >>> from stowax import v0 as ocp
        >>> args = ocp.args.Composite(config=ocp.args.JsonSave({"depth": 3}))
        >>> list(args), args.config is args["config"]
        (['config'], True)
    """

    _items: Mapping[str, Any]

    def __init__(self, **items: Any) -> None:
        for name in items:
            if name.startswith("__"):
                raise InvalidNameError(
                    f"{name!r} begins with two underscores; name the item otherwise"
                )
        object.__setattr__(self, "_items", items)

    def __getitem__(self, key: str) -> Any:
        try:
            return self._items[key]
        except KeyError:
            raise KeyError(
                f"there is no item {key!r}; there are {sorted(self._items)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __getattr__(self, key: str) -> Any:
        # Names of methods are found before; copying asks before there are items.
        if key.startswith("_"):
            raise AttributeError(key)
        return self[key]

    def __setattr__(self, key: str, value: Any) -> NoReturn:
        raise InvalidArgumentError(
            f"{type(self).__name__} cannot be changed; make another one to set {key!r}"
        )

    def __and__(self, other: Mapping[str, Any]) -> Composite:
        names = self.keys() & other.keys()
        return Composite(**{name: self[name] for name in self if name in names})

    def __or__(self, other: Mapping[str, Any]) -> Composite:
        return Composite(**{**self, **other})

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._items.keys()

    def values(self) -> ValuesView[Any]:
        """The values."""
        return self._items.values()

    def items(self) -> ItemsView[str, Any]:
        """Both."""
        return self._items.items()

    def __repr__(self) -> str:
        return f"Composite({dict(self._items)!r})"
