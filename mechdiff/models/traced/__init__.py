"""Any JAX function as a denoiser: values named by `jax.ad_checkpoint.checkpoint_name` become sites.

`wrap` makes the `TracedDenoiser`; `README.md` beside this file says which constructs are entered, and what
was shown of each.
"""

from mechdiff.diffusion.parameterization import (
    Parameterization,
    edm_schedule,
    flow_schedule,
    schedule_from_sigmas,
)
from mechdiff.models.traced.denoiser import TracedDenoiser
from mechdiff.models.traced.sites import Site
from mechdiff.models.traced.wrapping import wrap

__all__ = [
    "Parameterization",
    "Site",
    "TracedDenoiser",
    "edm_schedule",
    "flow_schedule",
    "schedule_from_sigmas",
    "wrap",
]
