"""Named PRNG streams. One root key a run, one stream a purpose, one key an image."""

import zlib

import jax

from mechdiff.core.types import AnyArray, PRNGKey


def stream(key: PRNGKey, name: str) -> PRNGKey:
    """The stream called `name` of `key`. The name is hashed (CRC-32), so adding a stream moves no other."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_image(key: PRNGKey, indices: AnyArray) -> jax.Array:
    """One key per image, `fold_in(key, index)`: an image's noise does not depend on its batch or device."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
