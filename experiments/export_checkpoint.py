"""Writes a model as a diffusers folder: `python -m experiments.export_checkpoint --model=FOLDER --to=FOLDER`.

`diffusers.UNet2DModel.from_pretrained` and `DDPMScheduler.from_pretrained` open it. The parameters are those
of the exported model (float16 if it was trained here), widened to float32: importing it again gives the same
bits.
"""

from pathlib import Path

from absl import flags

from mechdiff.models import pretrained
from mechdiff.models.load import load_trained

from . import _flags, _launch

MODEL = flags.DEFINE_string("model", None, "Folder of a trained model.", required=True)
TO = flags.DEFINE_string("to", None, "Folder to write.", required=True)
idle = _flags.NO_SETTINGS


def main(config, workdir):
    trained, params, _, _ = load_trained(MODEL.value)
    folder = pretrained.write_diffusers(Path(TO.value), trained.unet, trained.diffusion, params)
    print(folder)
    return {"folder": folder}


if __name__ == "__main__":
    _launch.run(main)
