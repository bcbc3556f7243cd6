"""How many examples of a network there are, and how large they are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How many examples, and how large; at most so many where a network or its images have fewer.

    The values in this order are part of the key that examples are saved with: a field more, or two exchanged,
    and all that were saved are drawn again.

    Attributes:
      components: of the largest effects, which samples and images of the strongest activation are shown of.
      samples, steps: samples of each, and the steps of DDIM that draw them.
      strongest: images on which an activation is largest.
      heads, maps, map_timesteps, map_side: attention maps: heads, images, timesteps, bytes a side.
      side: of images, in pixels.
    """

    components: int = 8
    samples: int = 4
    steps: int = 12
    strongest: int = 3
    heads: int = 64
    maps: int = 2
    map_timesteps: int = 3
    map_side: int = 32
    side: int = 64
