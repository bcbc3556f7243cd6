"""A dict that can't be changed, and is to JAX what a dict is.

A compiled function that closes over an intervention does not see its change, so that neither its arrays nor
its dicts may be changed in place.
"""

from typing import Any, NoReturn

import jax


class Sealed(dict):
    """A dict whose items can't be set or removed; `dict(sealed)`, `sealed | {...}` and copies of items can.

    Example:
      >>> Sealed(a=1) | {"b": 2}
      {'a': 1, 'b': 2}
    """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "an intervention can't be changed in place; pass a changed dict to dataclasses.replace, "
            "such as gate={**intervention.gate, site: values}"
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self):  # copies and pickles would set item by item
        return type(self), (dict(self),)


def _flatten(sealed: Sealed) -> tuple[list, tuple]:
    names = tuple(sorted(sealed))
    return [(jax.tree_util.DictKey(name), sealed[name]) for name in names], names


jax.tree_util.register_pytree_with_keys(
    Sealed, _flatten, lambda names, leaves: Sealed(zip(names, leaves, strict=True))
)
