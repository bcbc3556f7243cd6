"""How single flags of an ADM network are found where a config leaves them open.

A rule is a function from what is known (`Evidence`) to flags (`Derived`); `flags.RULES` says which rule
is for which flag.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained import conditioning
from mechdiff.models.pretrained.adm.options import DIALECTS, LABELS, NUM_CLASSES, WHAT
from mechdiff.models.pretrained.files.options import Options
from mechdiff.models.pretrained.imported import Stated


class Evidence(NamedTuple):
    """What flags are found from.

    Attributes:
      options: given or stated flags, defaults of the others (None: to be inferred), and those found so far.
      said: flags that the tensors imply, see `tensors.shapes_say`.
      rows: of the table of classes in the file; 0: it has none.
      stated: the user's statements.
      by_class: whether the config holds the arguments of the network's class, not the scripts' flags.
    """

    options: Options
    said: Mapping[str, Any]
    rows: int
    stated: Stated
    by_class: bool


class Derived(NamedTuple):
    """Flags, and which of them were read off the tensors, as a note names them."""

    values: dict[str, Any]
    read_off: tuple[str, ...] = ()


def inferred(name: str, evidence: Evidence) -> Derived:
    """A flag that the tensors tell if it is absent; None if they don't."""
    value = evidence.options[name]
    if value is not None or name not in evidence.said:
        return Derived({name: value})
    return Derived({name: evidence.said[name]}, (f"{name}={evidence.said[name]}",))


def switch(name: str, evidence: Evidence) -> Derived:
    """As `inferred`, of a flag that is off if nothing tells it."""
    derived = inferred(name, evidence)
    return derived._replace(values={name: bool(derived.values[name])})


def side(evidence: Evidence) -> Derived:
    """The image's side: `large_size` of super-resolution, which has no `image_size`."""
    options = evidence.options
    own, small, large = options["image_size"], options["small_size"], options["large_size"]
    if large is None and small is not None:
        raise ConfigError(f"{WHAT} option large_size is absent beside small_size={small}; write it")
    if large is None:
        return Derived({"image_size": own})
    if "image_size" in options.stated and own != large:
        raise ConfigError(f"{WHAT} options image_size={own} and large_size={large} differ")
    return Derived({"image_size": large})


def channels(evidence: Evidence) -> Derived:
    """Channels by the flags, or by the tensors if there are no such flags."""
    return (
        _with_smaller_image(evidence) if evidence.options["large_size"] is not None else _channels(evidence)
    )


def _with_smaller_image(evidence: Evidence) -> Derived:
    """Channels of super-resolution, which concatenates the enlarged smaller image after the noisy one."""
    options, said = evidence.options, evidence.said
    outputs, learned = options["out_channels"], options["learn_sigma"]
    image = options["in_channels"] or said.get("in_channels", 6) // 2
    if outputs is None and learned is not None:
        outputs = image * (1 + learned)
    outputs = outputs or said.get("out_channels", image)
    return Derived({"channels": conditioning.channels(WHAT, 2 * image, outputs, "last", image)})


def _channels(evidence: Evidence) -> Derived:
    options, said = evidence.options, evidence.said
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
    count = conditioning.channels(WHAT, inputs, outputs, evidence.stated.condition)
    return Derived({"channels": count}, tuple(read_off))


def classes(evidence: Evidence) -> Derived:
    """The fields of `UNetConfig` about classes."""
    conditioned, count, rows = evidence.options["class_cond"], evidence.options["num_classes"], evidence.rows
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
    return Derived({"class_fields": conditioning.classes(count, evidence.stated.null_class, WHAT)}, read_off)


def heads(evidence: Evidence) -> Derived:
    """The number of heads; its default is that of the class, if not of the scripts."""
    at_default = evidence.by_class and "num_heads" not in evidence.options.stated
    return Derived({"num_heads": 1 if at_default else evidence.options["num_heads"]})


def prediction(evidence: Evidence) -> Derived:
    """What the network's output is: by `predict_xstart`, by forks' `model_mean_type`, or as stated."""
    options, stated = evidence.options, evidence.stated.prediction
    by_flag, kind = options["predict_xstart"], options["model_mean_type"]
    if "model_mean_type" in options.stated:
        if ("predict_xstart" in options.stated or stated) and by_flag != (kind == "start_x"):
            raise ConfigError(
                f"{WHAT} option model_mean_type={kind} contradicts predict_xstart={by_flag}; write what is "
                "right"
            )
        if stated == "v_prediction":
            raise ConfigError(
                f"--prediction={stated} contradicts {WHAT} option model_mean_type={kind}; take one out"
            )
        by_flag = kind == "start_x"
    output = "sample" if by_flag else "epsilon"  # no flag says v, which some forks train
    return Derived({"predict_xstart": by_flag, "prediction": stated if stated == "v_prediction" else output})


def rescaled(evidence: Evidence) -> Derived:
    """Whether the network is given t * 1000 / T. For T = 1000 it makes no difference; else it must be set."""
    steps, by_flag = evidence.options["diffusion_steps"], evidence.options["rescale_timesteps"]
    if steps == 1000:
        return Derived({"rescale_timesteps": False})
    if by_flag is not None:
        return Derived({"rescale_timesteps": by_flag})
    if evidence.stated.dialect is not None:
        return Derived({"rescale_timesteps": DIALECTS[evidence.stated.dialect]})
    raise ConfigError(
        f"{WHAT} option rescale_timesteps is absent, and with diffusion_steps={steps} it "
        "decides the network's input: write true (default of improved-diffusion) or false (of "
        "guided-diffusion), or give --rescale_timesteps or --dialect"
    )
