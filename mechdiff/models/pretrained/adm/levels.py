"""The resolution levels of an ADM network: width, residual blocks and attention of each."""

from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained.adm.options import WHAT
from mechdiff.models.pretrained.adm.rules import Derived, Evidence

MULTIPLIERS = {  # if channel_mult is empty; 32 is improved-diffusion's, 128 and 512 guided-diffusion's
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
SUPER_RESOLUTION = {512: (1, 1, 2, 2, 4, 4)}  # where the super-resolution scripts differ
OF_CLASS = (1, 2, 4, 8)  # default of the network's class

Read = tuple[str, ...]  # what was read off the tensors, for the note


def levels(evidence: Evidence) -> Derived:
    """`widths`, `blocks` and `attends`, one of each per level."""
    width = evidence.options["num_channels"]
    if width is None:
        raise ConfigError(f"{WHAT} option num_channels is absent, and the tensors don't tell")
    factors, of_factors = _factors(evidence)
    blocks, of_blocks = _blocks(evidence, len(factors))
    attends, of_attends = _attends(evidence, len(factors))
    widths = tuple(int(width * factor) for factor in factors)
    values = {"widths": widths, "blocks": blocks, "attends": attends}
    return Derived(values, (*of_factors, *of_blocks, *of_attends))


def _factors(evidence: Evidence) -> tuple[tuple[float, ...], Read]:
    """Each level's width in units of `num_channels`."""
    options = evidence.options
    if options["channel_mult"] != "":
        return options["channel_mult"], ()
    side = options["image_size"]
    usual = OF_CLASS if evidence.by_class else _of_scripts(side, bool(options["large_size"]))
    by_widths = tuple(width / options["num_channels"] for width in evidence.said.get("widths", ()))
    shown = [float(factor) for factor in by_widths]
    if not {"image_size", "large_size"} & options.stated and by_widths and by_widths != usual:
        raise ConfigError(
            f"{WHAT} option image_size is absent, and the tensors' channel_mult={shown} is not that of "
            f"{side}, its default; state it"
        )
    if usual is not None:
        return usual, ()
    if not by_widths:
        raise ConfigError(f"{WHAT} option channel_mult is needed with image_size={side}")
    return by_widths, (f"channel_mult={shown}",)


def _of_scripts(side: int, super_resolution: bool) -> tuple[float, ...] | None:
    """The scripts' factors for images of a side; None: they have none."""
    return (MULTIPLIERS | (SUPER_RESOLUTION if super_resolution else {})).get(side)


def _blocks(evidence: Evidence, count: int) -> tuple[tuple[int, ...], Read]:
    """Residual blocks of each of `count` levels."""
    stated = evidence.options["num_res_blocks"]
    blocks = evidence.said.get("blocks") if stated is None else stated
    if blocks is None or len(blocks) not in (1, count):
        shown = "absent" if blocks is None else f"={list(blocks)}"
        raise ConfigError(
            f"{WHAT} option num_res_blocks {shown}: need one number, or one for each of {count} levels"
        )
    read_off = (f"num_res_blocks={list(blocks)}",) if stated is None else ()
    return tuple(blocks) * (count if len(blocks) == 1 else 1), read_off


def _attends(evidence: Evidence, count: int) -> tuple[tuple[bool, ...], Read]:
    """Whether each of `count` levels has attention. The scripts' flag names sides of maps, the class's names
    factors of downsampling."""
    side, named = evidence.options["image_size"], evidence.options["attention_resolutions"]
    if named is not None:
        rates = named if evidence.by_class else tuple(side // resolution for resolution in named)
        return tuple(2**level in rates for level in range(count)), ()
    attends = evidence.said.get("attends", ())
    if len(attends) != count:
        raise ConfigError(f"{WHAT} option attention_resolutions is absent, and the tensors don't tell")
    sides = [side // 2**level for level, here in enumerate(attends) if here]
    return attends, (f"attention at sides {sides}",)
