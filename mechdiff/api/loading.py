"""`load`: a model by whatever name it has."""

import functools
import logging
import os
import platform
from pathlib import Path
from typing import Any

import jax

from mechdiff.api.cache_folders import cache_folder
from mechdiff.api.model import Model
from mechdiff.core import devices
from mechdiff.core.config import DataConfig, ExperimentConfig
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.models import factories, pretrained, shipped
from mechdiff.models import load as exported
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.models.pretrained import builders, hub_cache
from mechdiff.models.traced.denoiser import TracedDenoiser
from mechdiff.storage import checksums


def load(source: str | Path | Examinable, *, name: str = "", **stated: Any) -> Model:
    """A model to be examined.

    The first call makes every CPU core a JAX device, as launchers do, unless JAX is running already or
    JAX_NUM_CPU_DEVICES is set; see `devices.use_all_cores`.

    Args:
      source: the name of a shipped network (`cpu32-celeba-seed0`); a folder that was exported here; the
        folder RUN of a training, or RUN@STEP; a folder of diffusers, of guided-diffusion (ADM), of ddim or
        of lucidrains, which is read as it is; a repository of the Hugging Face hub that was downloaded before
        (`google/ddpm-cifar10-32`); `module:function` of a function that returns a
        denoiser, see `models.factories`; or a denoiser.
      name: shown in results; default: that of the source.
      stated: what the files of others leave open, such as `prediction="v_prediction"`; see
        `models.pretrained.Stated`.

    Raises:
      CheckpointError: nothing is there, or it is damaged; shipped networks are listed.
      ConfigError: an option of a foreign folder that is not supported.

    Example:
      >>> load("cpu16-synthetic-seed0")  # doctest: +ELLIPSIS
      Model('cpu16-synthetic-seed0': UNet 16x16x3, ... parameters, 56 components; identity)
    """
    if not devices.use_all_cores():
        _warn_of_cores()
    _keep_programs()
    if isinstance(source, str) and not source.strip():
        raise CheckpointError("the name of a model is empty; shipped networks: " + ", ".join(shipped.names()))
    if not isinstance(source, str | Path):
        return _of_denoiser(source, name)
    source = _expanded(source)
    if factories.is_factory(source):
        made = factories.make(source, name)
        config, record = factories.config_of(made.denoiser), factories.record_of(source, made)
        return Model(made.denoiser, made.denoiser.identity, config=config, record=record, origin=str(source))
    folder = _folder(source)
    of_hub = folder.parent.name == hub_cache.SNAPSHOTS and not (folder / checksums.NAME).is_file()
    if of_hub:  # whose own name is a digest
        name = name or Path(source).name
    return _of_folder(folder, name, stated)


def _expanded(source: str | Path) -> str | Path:
    """A path with the user's home folder in place of a leading `~`; anything else unchanged."""
    try:
        return Path(source).expanduser() if str(source).startswith("~") else source
    except RuntimeError:  # there is no such user
        return source


@functools.cache
def _warn_of_cores() -> None:
    """Once a session: nothing can be changed about it later."""
    logging.warning(
        "JAX is at work on %d of the CPU's cores; call mechdiff.use_all_cores() before anything of JAX's",
        jax.local_device_count(),
    )


def _keep_programs() -> None:
    """Compiled programs are kept for the next session, unless JAX was told where, or not to. By host: what a
    CPU compiles for itself another one may not run."""
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "programs" / platform.node()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # compiled programs are code: private
    except OSError:  # a home that can't be written to: then they are not kept
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _of_denoiser(denoiser: Any, name: str) -> Model:
    if not isinstance(denoiser, Denoiser | TracedDenoiser):
        raise ConfigError(
            f"{type(denoiser).__name__} is not a denoiser; make one by mechdiff.wrap(fn, params, ...) or "
            "mechdiff.Denoiser(...), or give a name or a folder"
        )
    return Model(denoiser, denoiser.identity, origin=name or denoiser.name)


def _folder(source: str | Path) -> Path:
    """An exported folder, or one of others."""
    path = exported.model_folder(source)
    if path.exists():
        return path if path.name else path.absolute()  # of "." messages would not say where it is
    try:
        return hub_cache.snapshot(source) or shipped.find(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hub_cache.hint(source)}") from None


def _of_folder(folder: Path, name: str, stated: dict[str, Any]) -> Model:
    if (folder / checksums.NAME).is_file():
        if stated:
            raise ConfigError(f"{', '.join(stated)} can't be stated of {folder}: its config says it")
        denoiser, config, record = exported.load_denoiser(folder, name)
        return Model(denoiser, denoiser.identity, config=config, record=record, origin=str(folder))
    exported.refuse_results(folder)
    try:
        statement = pretrained.Stated(**stated)
    except TypeError as error:
        raise ConfigError(f"{error}; see mechdiff.models.pretrained.Stated") from error
    imported = pretrained.read(folder, statement)
    for note in imported.notes:  # what was assumed among them
        logging.warning("%s: %s", folder.name, note)
    called = name or folder.resolve().name
    denoiser, unet = builders.denoiser_of(imported, called), builders.unet_of(imported)
    config = ExperimentConfig(
        name=called, data=DataConfig(name="unknown"), unet=unet, diffusion=imported.diffusion
    )
    record: dict[str, Any] = {exported.IMPORTED: imported.facts}
    if isinstance(imported, pretrained.ImportedFunction):
        record[factories.FUNCTION_FACTS] = factories.facts(imported.layout, denoiser)
    return Model(denoiser, denoiser.identity, config=config, record=record, origin=str(folder))
