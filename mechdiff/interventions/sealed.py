"""A dict that can't be changed in place, and that JAX flattens as it does a dict.

A compiled function that closes over an intervention does not see later changes of it. So neither the arrays
nor the dicts of an intervention may be changed in place.
"""

from typing import Any, NoReturn

import jax


class Sealed(dict):
    """A dict whose items can't be set or removed. `dict(sealed)` and `sealed | {...}` are plain dicts.

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

    def __reduce__(self):  # by default, copying and unpickling set items one by one
        return type(self), (dict(self),)


def _flatten(sealed: Sealed) -> tuple[list, tuple]:
    names = tuple(sorted(sealed))
    return [(jax.tree_util.DictKey(name), sealed[name]) for name in names], names


jax.tree_util.register_pytree_with_keys(
    Sealed, _flatten, lambda names, leaves: Sealed(zip(names, leaves, strict=True))
)
