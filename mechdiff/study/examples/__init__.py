"""Example images of single components: samples with each of the largest ablated, attention maps of heads, and
the images on which an activation is largest.

They are illustrations, not evidence: a few images without intervals. examples.zarr of an examined model has
  untouched, ablated   samples from equal noise, bytes; `ablated` with one component replaced by zero
  strongest            images on which a component's activation has the largest root mean square, bytes
  strongest_image      their numbers among the scored images
  pattern              attention maps by head, timestep and image, bytes; 255 is the map's own largest weight
"""

from mechdiff.study.examples.saving import save
from mechdiff.study.examples.sizes import Sizes

__all__ = ["Sizes", "save"]
