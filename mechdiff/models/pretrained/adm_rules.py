"""How single flags of an ADM network are found where a config leaves them open.

A rule is a function from what is known (`Given`) to flags (`Found`); `adm_flags.RULES` says which rule finds
which flag.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.adm_options import DIALECTS, LABELS, NUM_CLASSES, WHAT
from mechdiff.models.pretrained.imported import Stated
from mechdiff.models.pretrained.options import Options


class Given(NamedTuple):
    """What flags are found from.

    Attributes:
      options: given or stated flags, defaults of the others (None: to be inferred), and those found so far.
      said: flags that the tensors imply, see `adm_tensors.shapes_say`.
      rows: of the table of classes in the file; 0: it has none.
      stated: the user's statements.
      by_class: whether the config holds the arguments of the network's class, not the scripts' flags.
    """

    options: Options
    said: Mapping[str, Any]
    rows: int
    stated: Stated
    by_class: bool


class Found(NamedTuple):
    """Flags, and which of them were read off the tensors, as a note names them."""

    values: dict[str, Any]
    read_off: tuple[str, ...] = ()


def inferred(name: str, given: Given) -> Found:
    """A flag that the tensors tell if it is absent; None if they don't."""
    value = given.options[name]
    if value is not None or name not in given.said:
        return Found({name: value})
    return Found({name: given.said[name]}, (f"{name}={given.said[name]}",))


def switch(name: str, given: Given) -> Found:
    """As `inferred`, of a flag that is off if nothing tells it."""
    found = inferred(name, given)
    return found._replace(values={name: bool(found.values[name])})


def side(given: Given) -> Found:
    """The image's side: `large_size` of super-resolution, which has no `image_size`."""
    options = given.options
    own, small, large = options["image_size"], options["small_size"], options["large_size"]
    if large is None and small is not None:
        raise ConfigError(f"{WHAT} option large_size is absent beside small_size={small}; write it")
    if large is None:
        return Found({"image_size": own})
    if "image_size" in options.stated and own != large:
        raise ConfigError(f"{WHAT} options image_size={own} and large_size={large} differ")
    return Found({"image_size": large})


def channels(given: Given) -> Found:
    """Channels by the flags, or by the tensors if there are no such flags."""
    return _with_smaller_image(given) if given.options["large_size"] is not None else _channels(given)


def _with_smaller_image(given: Given) -> Found:
    """Channels of super-resolution, which concatenates the enlarged smaller image after the noisy one."""
    options, said = given.options, given.said
    outputs, learned = options["out_channels"], options["learn_sigma"]
    image = options["in_channels"] or said.get("in_channels", 6) // 2
    if outputs is None and learned is not None:
        outputs = image * (1 + learned)
    outputs = outputs or said.get("out_channels", image)
    return Found({"channels": conditioning.channels(WHAT, 2 * image, outputs, "last", image)})


def _channels(given: Given) -> Found:
    options, said = given.options, given.said
    outputs, learned = options["out_channels"], options["learn_sigma"]
    inputs = options["in_channels"] or said.get("in_channels", 3)
    read_off = []
    if "in_channels" not in options.stated and inputs != 3:
        read_off.append(f"in_channels={inputs}")
    if outputs is None and learned is not None and inputs in conditioning.IMAGE_CHANNELS:
        outputs = inputs * (1 + learned)
    if outputs is None:
        outputs = said.get("out_channels", inputs)
        read_off.append(f"out_channels={outputs}")
    found = conditioning.channels(WHAT, inputs, outputs, given.stated.condition)
    return Found({"channels": found}, tuple(read_off))


def classes(given: Given) -> Found:
    """The fields of `UNetConfig` about classes."""
    conditioned, count, rows = given.options["class_cond"], given.options["num_classes"], given.rows
    if conditioned is False and rows:
        raise ConfigError(
            f"{WHAT} option class_cond=False, but the file has {LABELS}, a table of {rows} classes; write "
            "class_cond=true"
        )
    read_off = (f"num_classes={rows}",) if count is None and rows else ()
    if conditioned is False:
        count = 0
    elif count is None and conditioned and not rows:
        count = NUM_CLASSES  # then its table is reported as missing
    else:
        count = count or rows
    return Found({"class_fields": conditioning.classes(count, given.stated.null_class, WHAT)}, read_off)


def heads(given: Given) -> Found:
    """The number of heads; its default is that of the class, if not of the scripts."""
    at_default = given.by_class and "num_heads" not in given.options.stated
    return Found({"num_heads": 1 if at_default else given.options["num_heads"]})


def predicts_image(given: Given) -> Found:
    """Whether the network's output is the image: by `predict_xstart`, or by forks' `model_mean_type`."""
    options = given.options
    by_flag, kind = options["predict_xstart"], options["model_mean_type"]
    if "model_mean_type" not in options.stated:
        return Found({"predict_xstart": by_flag})
    flagged = "predict_xstart" in options.stated or given.stated.prediction
    if flagged and by_flag != (kind == "start_x"):
        raise ConfigError(
            f"{WHAT} option model_mean_type={kind} contradicts predict_xstart={by_flag}; write what is right"
        )
    return Found({"predict_xstart": kind == "start_x"})


def rescaled(given: Given) -> Found:
    """Whether the network is given t * 1000 / T. For T = 1000 it makes no difference; else it must be set."""
    steps, by_flag = given.options["diffusion_steps"], given.options["rescale_timesteps"]
    if steps == 1000:
        return Found({"rescale_timesteps": False})
    if by_flag is not None:
        return Found({"rescale_timesteps": by_flag})
    if given.stated.dialect is not None:
        return Found({"rescale_timesteps": DIALECTS[given.stated.dialect]})
    raise ConfigError(
        f"{WHAT} option rescale_timesteps is absent, and with diffusion_steps={steps} it "
        "decides the network's input: write true (default of improved-diffusion) or false (of "
        "guided-diffusion), or give --rescale_timesteps or --dialect"
    )
