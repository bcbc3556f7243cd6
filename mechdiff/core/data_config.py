"""The configuration of data: which images, and how they are preprocessed."""

from dataclasses import dataclass, field
from typing import Literal

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.ranges import at_least, count, within

DRAWN = ("synthetic", "gaussian")  # data sets whose images are rendered at the network's size, not read
CROPS = ("center", "ddim", "none", "squash")  # and center-N


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes an image of the network's size, `unet.image_size`; images are never enlarged.

    It is saved with a model, and applied to all images that the model is examined on, but for the fields that
    `--set` names there.
    """

    crop: str = "center"  # the largest centered square; center-N; ddim; none; squash: see `images.cropped`
    filter: Literal["bicubic", "bilinear", "box", "hamming", "lanczos", "nearest"] = "bicubic"  # of Pillow
    channels: Literal["rgb", "gray"] = "rgb"  # that images are read as
    background: Literal["", "black", "white"] = ""  # under transparent pixels; empty: they are refused
    phases: Literal["kept", "random"] = "kept"  # random: same spectrum, no shapes; see `data.scrambled`
    white: int = 0  # in files of 16 bits; 0: 65535, and files without a pixel above half of it are refused

    def __post_init__(self):
        within("data.preprocessing.white", self.white, 0, 65535)
        side = self.crop.removeprefix("center-")
        if self.crop not in CROPS and (side == self.crop or not side.isdecimal() or int(side) < 1):
            raise ConfigError(unknown("data.preprocessing.crop", self.crop, [*CROPS, "center-140"]))

    @property
    def channel_count(self) -> int:
        """Channels of a preprocessed image: 3 or 1."""
        return 3 if self.channels == "rgb" else 1

    @property
    def description(self) -> str:
        """The preprocessing in words, such as `'center crop, bicubic, RGB'`."""
        crop = {"none": "no crop", "squash": "squashed to a square"}.get(self.crop, f"{self.crop} crop")
        on = f", transparent pixels over {self.background}" if self.background else ""
        scrambled = ", random phases" if self.phases == "random" else ""
        white = f", white is {self.white} of 16 bits" if self.white else ""
        return f"{crop}, {self.filter}, {'RGB' if self.channels == 'rgb' else 'gray'}{on}{white}{scrambled}"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are preprocessed.

    `path` is where CelebA, a TFDS copy or image files lie (several folders are joined by commas); for
    `folder` it is a folder, an `.npy` or an `.npz` file.
    """

    # gaussian: see `data.gaussian`; unknown: what an imported model was trained on.
    name: Literal["synthetic", "gaussian", "celeba", "tfds", "folder", "unknown"] = "synthetic"  # data set
    path: str = ""  # celeba, tfds, folder: where the images lie
    cache: str = ""  # where decoded images are kept; empty: beside the run
    complexity: int = 4  # synthetic: rung of the complexity ladder, 0..4
    n_train: int = 16384  # synthetic, gaussian: images rendered; else an upper limit (0: all)
    n_test: int = 2048  # held out: images rendered, else an upper limit (0: all)
    flip: bool = True  # mirror training images at random
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # not of synthetic images
    split: Literal["auto", "digest", "folders"] = "auto"  # folder: see `data.folder`
    split_seed: int = 0  # folder: which images are held out by their digest
    held_out: float = 0.2  # folder: share held out, half for validation and half for testing
    classes: str = ""  # labels that make up an image's class, with commas: attributes, factors, or `folder`

    def __post_init__(self):
        within("data.complexity", self.complexity, 0, 4)
        count("data.n_train", self.n_train, 0)
        count("data.n_test", self.n_test, 0)
        at_least("data.split_seed", self.split_seed, 0)
        within("data.held_out", self.held_out, 0.001, 0.999)
        if self.name in DRAWN:
            count("data.n_train", self.n_train, 1)
            count("data.n_test", self.n_test, 1)
