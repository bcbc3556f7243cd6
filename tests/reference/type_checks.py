"""Checks of types and shapes while tests run, in half of jaxtyping's time."""

import functools
import inspect

import jaxtyping

jaxtyped = jaxtyping.jaxtyped  # jaxtyping's own


def checked_once(function=None, *, typechecker):
    """The decorator that jaxtyping's import hook applies to every function and class of the package.

    jaxtyping's own binds the arguments, checks them before the call, and checks them again with what is
    returned; here one call of the checked function does all that, and functions that say nothing of types are
    left as they are. Classes, and functions whose shapes name arguments (`"{size}"`) or whose types are
    named in another package (optax's), go to jaxtyping's own.
    """
    if function is None:
        return functools.partial(checked_once, typechecker=typechecker)
    hints = list(getattr(function, "__annotations__", {}).values())
    if not inspect.isfunction(function) or any(word in str(hints) for word in ("{", "ForwardRef")):
        return jaxtyped(function, typechecker=typechecker)
    if not hints:
        return function
    checked = typechecker(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with jaxtyped("context"):  # axes of one name have one size in a call
            return checked(*args, **kwargs)

    return call
