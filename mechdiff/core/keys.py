"""Named PRNG streams: one root key per run, one stream per purpose, one key per image."""

import zlib

import jax

from mechdiff.core.types import AnyArray, PRNGKey


def stream(key: PRNGKey, name: str) -> PRNGKey:
    """A key for the purpose `name`: `fold_in(key, crc32(name))`, so that adding a stream changes no other."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_image(key: PRNGKey, indices: AnyArray) -> jax.Array:
    """One key per image, `fold_in(key, index)`: an image's noise does not depend on its batch or device."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
