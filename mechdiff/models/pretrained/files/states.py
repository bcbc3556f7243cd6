"""State dicts as trainers leave them: wrapped, doubled by an average, with learned variances."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mechdiff.core.errors import CheckpointError, ConfigError, shorten
from mechdiff.models.pretrained.files.averages import OTHER, check_stated, kind_of, named, spaced, unaveraged
from mechdiff.models.pretrained.files.in_parts import check_whole
from mechdiff.models.pretrained.files.nameless_averages import with_names
from mechdiff.models.pretrained.files.tensors import PICKLES, State, index_of

INNER = re.compile(  # of torch.compile, FSDP, activation checkpointing at any depth, DataParallel inside
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|(?<=\.)module\."
)
WRAPPERS = (
    "module",
    "model",
    "net",
    "network",
    "unet",
    "denoise_fn",
    "diffusion_model",
    "state_dict",
    "params",
)
ADAPTERS = re.compile("lora|adapter|optim|embed")  # in names of files that hold no whole network
NO_NETWORK = re.compile(f"{ADAPTERS.pattern}|opt|sched|random|rng|args|scaler|sampler|-of-")  # of pickles
SHARD = re.compile(r"-\d+-of-\d+$")
COPIED = "online_model"  # the raw network that an average keeps beside itself


def unwrapped(state: State, anchor: str, weights: str | None, path: Path) -> tuple[dict, tuple[str, ...]]:
    """The tensors of one network without the names that wrappers put before theirs, and notes.

    Args:
      anchor: name of a tensor that every network of the layout has.
      weights: `raw` or `ema`, where the file may hold both; None: there must be one.

    Raises:
      CheckpointError: raw and averaged tensors, and `weights` does not say which; a statement that neither
        the tensors nor the file bear out; averages without names, see `nameless_averages`; weights in
        parts, see `in_parts`.
    """
    check_whole(state, path)
    named_state, unnamed = with_names(state, weights, path)
    plain = _without_inner(named_state, path)
    prefixes = _prefixes(plain, anchor)
    if not any(map(_averaged, prefixes)):
        check_stated(weights, path)
    if not prefixes:
        return plain, unnamed
    prefix = _chosen(prefixes, weights, path)
    others = [other for other in prefixes if other != prefix]
    kept = {}
    for name, value in plain.items():
        owner = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
        if owner == prefix:
            kept[name.removeprefix(prefix)] = value
        elif owner is None:
            kept[name] = value  # reported as unused
    notes = [f"read the tensors under {prefix!r} of {path.name}"] if prefix else []
    notes += [f"others under {other!r} are not read" for other in others]
    notes += unnamed
    return kept, ("; ".join(notes),) if notes else ()


def _without_inner(state: State, path: Path) -> dict[str, np.ndarray]:
    """The tensors without the names of wrappers inside theirs, under which no network lies twice."""
    plain, owners = {}, {}
    for name, value in state.items():
        own = INNER.sub("", name)
        if own in plain and not np.array_equal(plain[own], value):
            raise CheckpointError(
                f"{path} holds {shorten(owners[own])} and {shorten(name)}, one tensor of two networks; keep "
                "one of them in a file of its own"
            )
        plain[own], owners[own] = value, name
    return plain


def _prefixes(state: State, anchor: str) -> list[str]:
    """Prefixes that wrappers put before tensors' names; of an unknown one only if all tensors have it."""
    prefixes = sorted({name.removesuffix(anchor) for name in state if name.endswith(anchor)})
    of_wrappers = [prefix for prefix in prefixes if all(map(wraps, prefix.split(".")[:-1]))]
    if len(prefixes) > 1 and all(name.startswith(tuple(filter(None, prefixes)) or ".") for name in state):
        return prefixes  # side by side, under names of which some may be unknown
    if of_wrappers or len(prefixes) != 1 or not prefixes[0].endswith("."):
        return of_wrappers
    return prefixes if all(name.startswith(prefixes[0]) for name in state) else []


def wraps(part: str) -> bool:
    """Whether a part of a tensor's name is that of a wrapper or of an average."""
    return part in WRAPPERS or bool(named(part))


def _averaged(prefix: str) -> bool:
    return any(named(part) == "ema" for part in prefix.split("."))


def _chosen(prefixes: list[str], weights: str | None, path: Path) -> str:
    originals = [prefix for prefix in prefixes if COPIED not in prefix.split(".")]
    averaged = [prefix for prefix in originals if _averaged(prefix)]
    if len(originals) > len(averaged):  # the raw network itself lies there too
        prefixes = originals
    raw = [prefix for prefix in prefixes if prefix not in averaged and _raw(prefix, averaged)]
    choices = {"raw": raw, "ema": averaged}.get(weights or "", prefixes)
    if len(prefixes) == 1 and prefixes == averaged and weights == "raw":
        raise CheckpointError(
            f"--weights=raw: {path} holds averages only, under {prefixes[0]!r}; leave it out"
        )
    if len(prefixes) > 1 and len(choices) != 1:
        names = " and ".join(repr(prefix) for prefix in prefixes[:4])
        singly = {"raw": len(raw) == 1, "ema": len(averaged) == 1}
        flags = " or ".join(
            f"--weights={kind}" for kind, alone in singly.items() if alone and kind != weights
        )
        alone = "keep one of them in a file of its own"
        way_out = f"say which: {flags}" if flags else alone
        if flags and not all(singly.values()):
            way_out += f", or {alone}"
        raise CheckpointError(f"{path} holds several networks, under {names}; {way_out}")
    return choices[0] if choices else prefixes[0]


def _raw(prefix: str, averaged: list[str]) -> bool:
    """Whether tensors beside averages are the raw ones: under a wrapper, or the averages' name without that
    word (`generator` beside `generator_ema`)."""
    return all(map(wraps, prefix.split(".")[:-1])) or any(
        spaced(prefix).strip(".") == unaveraged(other).strip(".") for other in averaged
    )


def without_variances(state: State, names: tuple[str, ...], outputs: int) -> tuple[dict, str]:
    """The state with the first `outputs` rows alone of the last convolution, and a note. The other half, the
    variances of a sampler, has no effect on them.

    Raises:
      CheckpointError: there is no other half, whatever the config says.
    """
    kept = dict(state)
    for name in names:
        if name in kept and len(kept[name]) == outputs:
            raise CheckpointError(
                f"{name} has {outputs} output channels, but its config says {2 * outputs}, with learned "
                f"variances; write {outputs} (learn_sigma=False) if these are the right tensors"
            )
        if name in kept and len(kept[name]) == 2 * outputs:
            kept[name] = kept[name][:outputs]
    return kept, "learned variances are dropped: sampling uses those of the posterior"


def weight_file(folder: Path, stem: str, weights: str | None) -> tuple[Path, tuple[str, ...]]:
    """The file of a folder that holds the weights, and notes on the files that are not used.

    `STEM.safetensors`, or what `weights` names: a variant (`STEM.fp16.safetensors`), a file, or `raw` or
    `ema` where names of files tell these apart (`averages.kind_of`). Without either, the only file.

    Raises:
      ConfigError: several files and no statement which; or none of the stated name; one file beside an
        index of shards, or a variant beside a pickle, which may hold another network.
    """
    main = folder / f"{stem}.safetensors"
    variants = _variants(folder, stem)
    if weights and weights not in OTHER:
        return _stated_file(folder, variants, weights), ()
    sharded = index_of(main).is_file()
    beside = sorted(path for path in folder.glob("*.safetensors") if path != main)
    others = list(variants.values()) if sharded else beside
    networks = [path for path in beside if not ADAPTERS.search(path.stem.lower())]
    candidates = [main, *others] if main.is_file() or sharded else list(variants.values()) or networks
    said = [
        path for path in candidates if kind_of(path.stem, [other.stem for other in candidates]) == weights
    ]
    chosen = said if weights and said else candidates
    pickled = main.with_suffix(".bin")
    if chosen and chosen[0] != main and not said and pickled.is_file():
        raise ConfigError(
            f"{folder} has {pickled.name}, a pickle, which is never opened, and {chosen[0].name}: these may "
            "be two networks; choose by --weights=NAME"
        )
    if chosen and (chosen[0] == main or len(chosen) == 1):
        return _whole(chosen[0]), _beside(chosen[0], main, [*candidates, *networks])
    if chosen:
        raise ConfigError(_several(folder, main, chosen))
    return main, ()  # reported as absent by who loads it


def _beside(read: Path, main: Path, networks: Iterable[Path]) -> tuple[str, ...]:
    """The note on a folder's other files of weights, if there are any; and on a name that is not `main`'s."""
    others = [path for path in dict.fromkeys(networks) if path != read and not SHARD.search(path.stem)]
    notes = []
    if others:
        names = ", ".join(path.name for path in others)
        notes.append(f"read {read.name}; beside it, not read: {names} (choose by --weights=NAME)")
    pickles = [path for path in sorted(read.parent.glob("*")) if path.suffix in PICKLES]
    pickles = [path for path in pickles if path.stem != read.stem and not NO_NETWORK.search(path.stem)]
    if pickles:
        names = ", ".join(path.name for path in pickles[:4])
        notes.append(f"pickles, which are never opened, may hold other weights than {read.name}: {names}")
    if not notes and read != main:
        notes.append(f"read {read.name}, the only weights there")
    return tuple(notes)


def _stated_file(folder: Path, variants: Mapping[str, Path], weights: str) -> Path:
    shown = f"--weights={shorten(weights)[1:-1]}"
    if weights.endswith(".safetensors"):
        if Path(weights).name != weights or not (folder / weights).is_file():
            raise ConfigError(f"{shown}: no such file in {folder}")
        return folder / weights
    if weights not in variants:
        raise ConfigError(f"{shown}: no such variant in {folder} (have: {', '.join(variants) or 'none'})")
    return _whole(variants[weights])


def _whole(path: Path) -> Path:
    """The path, unless its weights lie there twice: an earlier export's file is easily left beside shards."""
    index = index_of(path)
    if path.is_file() and index.is_file():
        raise ConfigError(
            f"{path.parent} has {path.name} and shards ({index.name}), which may be two networks: delete "
            f"those that are not meant, or read the one file by --weights={path.name}"
        )
    return path


def _several(folder: Path, main: Path, files: list[Path]) -> str:
    if all(SHARD.search(path.stem) for path in files):
        return f"{folder} has {len(files)} shards without {main.name}.index.json; fetch it too"
    names = ", ".join(path.name for path in files[:4])
    return f"{folder} has no {main.name} but {names}; choose by --weights=NAME"


def _variants(folder: Path, stem: str) -> dict[str, Path]:
    variants = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        match = re.fullmatch(rf"{re.escape(stem)}\.(\w+)\.safetensors", path.name)
        match = match or re.fullmatch(rf"{re.escape(stem)}\.safetensors\.index\.(\w+)\.json", path.name)
        if match:
            variants[match[1]] = folder / f"{stem}.{match[1]}.safetensors"
    return variants


def levels_asked(reason: str, assumed: tuple[str, ...]) -> str:
    """The line that asks for noise levels and the prediction, where they are but `assumed`; else empty.

    Betas of a schedule that was stated may be its usual ones.
    """
    names = [option.partition("=")[0] for option in assumed]
    flags = [
        f"--{option}" for name, option in zip(names, assumed, strict=True) if not name.startswith("beta")
    ]
    if not flags:
        return ""
    return f"{reason}, so what decides its numbers is not known; state it ({' '.join(flags)} is usual)"


def summary(options: Mapping[str, object]) -> tuple[str, ...]:
    """`option=value` of each, for `Imported.assumed`."""
    return tuple(f"{name}={shorten(value)}" for name, value in options.items())
