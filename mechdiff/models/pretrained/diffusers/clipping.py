"""How diffusers' schedulers keep predicted images in range: clipped, scaled down into it, or as they are."""

from mechdiff.models.pretrained.files.options import Option, Options, boolean, number, optional

# Classes that clip predicted images unless they are told not to; the others do so only if they are told to.
CLIPPING = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler",
    "DDIMInverseScheduler", "RePaintScheduler", "UnCLIPScheduler",
)  # fmt: skip
# Classes that threshold them where `thresholding` is true; on the others it has no effect.
THRESHOLDING = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "LCMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
TABLE = {
    "clip_sample": Option(None, optional(boolean())),
    "clip_sample_range": Option(1.0, number(1e-9)),
    "thresholding": Option(False, optional(boolean())),
    "sample_max_value": Option(1.0, optional(number(0.0))),
    "dynamic_thresholding_ratio": Option(0.995, optional(number(0.0))),
}


def clip_of(get: Options, kind: str) -> tuple[float, str]:
    """The range that predicted images are clipped to (0: none), and a note where the scheduler thresholds.

    Dynamic thresholding (Saharia et al. 2022) divides an image whose 99.5 % quantile of |x| is s > 1 by s, at
    most `sample_max_value`, and clips it to [-1, 1]; where that is 1 it only clips. It takes the place of
    `clip_sample`. Samplers here clip, which leaves more pixels at the ends of the range.

    Args:
      get: options of `TABLE`.
      kind: class of the scheduler.
    """
    if get["thresholding"] and kind in THRESHOLDING:
        if get["sample_max_value"] == 1:
            return 1.0, "thresholding with sample_max_value=1 clips predicted images to [-1, 1]"
        return 1.0, (
            "samples are not thresholded here: predicted images are clipped to [-1, 1], not scaled into it; "
            "they differ from the scheduler's (losses don't)"
        )
    clips = get["clip_sample"] if "clip_sample" in get.stated else kind in CLIPPING
    return (get["clip_sample_range"] if clips else 0.0), ""
