"""The networks of a study, in an order in which a study that ends early is worth the most.

Data sets, by the names that networks have in results:
  celeba                               CelebA
  synthetic                            synthetic faces of the highest complexity
  synthetic-level0, synthetic-level2   the ladder: synthetic faces of lower complexity
  scrambled                            CelebA with random phases
  gaussian                             Gaussian images, whose best denoiser is known
"""

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mechdiff.core.config import DataConfig, ExperimentConfig, StudyConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.text_table import counted
from mechdiff.diffusion.schedules import make_schedule, timesteps_by_log_snr
from mechdiff.storage import files, packed
from mechdiff.study import circuit_results, controls, packing

SIDES = ("celeba", "synthetic")  # data sets that claims compare, examined in full
OTHERS = ("synthetic-level0", "synthetic-level2", "scrambled", "gaussian")
NEED_CELEBA = ("celeba", "scrambled")
SAMPLED_SEED = 0  # of its networks the sheet of samples is kept
MAX_PIECE_BYTES = 15 * 2**20  # bytes of a piece, below the 16 MiB that some machines hand back


@dataclasses.dataclass(frozen=True)
class Planned:
    """A network of the study.

    Attributes:
      name: in results.
      config: of its training.
      full: whether it is examined in full, or for the claim about complexity alone.
      snapshots: steps of its training that are examined too.
    """

    name: str
    config: ExperimentConfig
    full: bool
    snapshots: tuple[int, ...] = ()


def networks(config: ExperimentConfig, data: Sequence[str], seeds: int, celeba: str | None) -> list[Planned]:
    """The networks in the order in which they are made: seed by seed, those of the data sets that claims
    compare before all others.

    Args:
      config: of one network; its seed and data are replaced. Steps of `train.keep` before the last are
        examined as snapshots of the two data sets that claims compare.
      data: names of data sets, from the list in the module.
      seeds: trainings of each.
      celeba: where CelebA lies.

    Raises:
      ConfigError: a data set that is unknown or given twice, or one that takes CelebA without it; settings
        with which no trained network could be examined, since a training may take hours.
    """
    for name in data:
        if data.count(name) > 1:
            raise ConfigError(f"data set {name!r} is given twice; more seeds make more networks of it")
        if name not in (*SIDES, *OTHERS):
            raise ConfigError(unknown("data set of a study:", name, (*SIDES, *OTHERS)))
        if name in NEED_CELEBA and not celeba:
            raise ConfigError(
                f"{name} networks are trained on CelebA; give --celeba=FOLDER, or leave them out"
            )
    before = tuple(step for step in config.train.keep if step < config.train.steps)
    check_examinable(config, ladder=bool(before) or not set(data) <= set(SIDES))
    planned = []
    for seed in range(seeds):
        for name in data:
            trained = dataclasses.replace(config, seed=seed, data=_data(config.data, name, celeba or ""))
            snapshots = before if name in SIDES else ()
            planned.append(Planned(f"{config.name}-{name}-seed{seed}", trained, name in SIDES, snapshots))
    return sorted(planned, key=lambda network: not network.full)  # the seeds of each stay in their order


def check_examinable(config: ExperimentConfig, ladder: bool = False) -> None:
    """Raises ConfigError for settings of examinations that would be refused once a network is trained.

    Args:
      ladder: whether some networks, or snapshots, are examined as `of_ladder` says, which finds circuits.
    """
    schedule = make_schedule(config.diffusion)
    for count in (config.sweep.timesteps, config.study.timesteps):
        timesteps_by_log_snr(schedule, count)
    circuit_results.check(config)
    if ladder:
        circuit_results.check(of_ladder(config))
    if config.study.controls:
        controls.check_references(config.sweep.reference_images)


def progress(name: str, trained: float, examined: float, left: int) -> str:
    """A line on a network that is done, and how long the remaining ones take if each takes as long.

    Args:
      trained, examined: seconds.
      left: networks.

    Example:
      >>> progress("tiny-celeba-seed0", 95, 55, 5)
      'tiny-celeba-seed0: trained in 95 s, examined in 55 s; 5 networks left: 12 min at this pace'
    """
    rest = f"{left * (trained + examined) / 60:.0f} min at this pace"
    done = f"{name}: trained in {trained:.0f} s, examined in {examined:.0f} s"
    return f"{done}; {counted(left, 'network')} left: {rest}"


def _data(data: DataConfig, name: str, celeba: str) -> DataConfig:
    """The images of a data set, as many as `data` says where they are drawn."""
    if name == "gaussian":
        return dataclasses.replace(data, name="gaussian")
    if name not in NEED_CELEBA:
        complexity = int(name[-1]) if name.startswith("synthetic-level") else 4
        return dataclasses.replace(data, name="synthetic", complexity=complexity)
    prepared = data.preprocessing
    if name == "scrambled":
        prepared = dataclasses.replace(prepared, phases="random")
    return dataclasses.replace(data, name="celeba", path=celeba, n_train=0, n_test=0, preprocessing=prepared)


def of_ladder(config: ExperimentConfig) -> ExperimentConfig:
    """Settings for what only the claim about complexity needs: mean ablation and its circuits."""
    sweep = dataclasses.replace(config.sweep, ablations=("mean",))
    study = StudyConfig(circuits=("mean",), images=config.study.images, timesteps=config.study.timesteps)
    return dataclasses.replace(config, sweep=sweep, study=study)


def write_pieces(examined: Path, folder: Path, largest: int = MAX_PIECE_BYTES) -> list[Path]:
    """All packed networks and their manifests in a few files of at most `largest` bytes, to be carried away.

    A piece is a zip of `NAME/cells/NAME.zip` and `NAME/manifest.json`; unpacked into one folder, pieces are
    what `collecting.collect` takes. Networks come in the order in which they were packed, so that only the
    last piece changes as a study goes on.

    Args:
      examined: folder of examinations, one folder each.

    Returns:
      The pieces.
    """
    cells = sorted(examined.glob(f"*/{packing.CELLS}/*.zip"), key=lambda path: (path.stat().st_mtime, path))
    pieces, room = [[]], largest
    for path in cells:
        size = path.stat().st_size + 2**16  # its manifest, and names
        if size > room and pieces[-1]:
            pieces.append([])
            room = largest
        pieces[-1].append(path)
        room -= size
    files.ensure_writable(folder)
    return [_write_piece(folder / f"cells-{i}.zip", piece) for i, piece in enumerate(pieces) if piece]


def _write_piece(path: Path, cells: Sequence[Path]) -> Path:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        for cell in cells:
            examination = cell.parents[1]
            for member in (cell, examination / "manifest.json"):
                name = Path(examination.name) / member.relative_to(examination)
                bundle.writestr(zipfile.ZipInfo(str(name), packed.EPOCH), member.read_bytes())
    files.write_atomic(path, content.getvalue())
    return path
