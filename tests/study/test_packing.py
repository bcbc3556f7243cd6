"""An examined network packed into one file: without its folder, claims read all that they need from it."""

import dataclasses

import numpy as np
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import DiffusionConfig
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.storage import files
from mechdiff.study import choosing, claims, examine, packing, results_folder


def test_claims_read_a_packed_network_whose_folder_is_gone(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(
        tiny,
        unet=SMALL,
        sweep=dataclasses.replace(tiny.sweep, images=2, timesteps=2, nested=True, reference_images=2),
    )
    schedule = make_schedule(DiffusionConfig(schedule="cosine", steps=50))
    denoiser = Denoiser("small", SMALL, schedule, random_params(SMALL), identity_of(SMALL))
    monkeypatch.setattr(examine, "load_denoiser", lambda model, name: (denoiser, config, {"steps": 7}))
    folder = tmp_path / "subjects" / "small"
    choose = choosing.ImageChoice(config, None, tmp_path / "cache")
    examine.examine("small", tmp_path, choose, config.sweep, 0, folder)
    files.write_json(tmp_path / "manifest.json", {})
    whole = results_folder.read(tmp_path)[1][0]
    files.ensure_writable(tmp_path / packing.CELLS)
    packing.pack(folder, tmp_path / packing.CELLS / "small.zip")
    folder.parent.rename(tmp_path / "elsewhere")

    for ablation, measured in whole.increases.items():  # saved beside the losses, not packed
        saved = whole.sweep["pooled_delta_loss_low"].sel(ablation=ablation)
        np.testing.assert_array_equal(saved, measured.pooled.low)
    assert whole.sweep.attrs["preprocessing"] == whole.images_facts["preprocessing"]
    shipped = results_folder.read(tmp_path)[1][0]
    assert "pooled_delta_loss" not in shipped.sweep
    assert shipped.name == "small" and shipped.results.steps == 7
    assert shipped.images_facts == whole.images_facts and len(shipped.images_facts["ids"]) == 6
    first, second = whole.results.sweep, shipped.results.sweep
    np.testing.assert_array_equal(first["clean_loss"], second["clean_loss"])
    increase, kept = (sweep["loss"] - sweep["clean_loss"] for sweep in (first, second))
    half_step = packing.SHARES["increase"] / 2 * increase.std("image")
    assert bool((abs(increase - kept) <= 1.01 * half_step + 1e-5).all())
    clear = abs(increase) > 1e-5
    assert bool((np.sign(increase) == np.sign(kept)).where(clear, True).all()) and bool(clear.any())
    plain, packed = whole.results.attention["entropy"], shipped.results.attention["entropy"]
    half_step = packing.SHARES["entropy"] / 2 * plain.std("image")
    assert bool((abs(plain - packed) <= 1.01 * half_step + 1e-4 * plain.max()).all())
    verdicts = [[claim.verdict for claim in claims.evaluate([item.results])] for item in (whole, shipped)]
    assert verdicts[0] == verdicts[1] and verdicts[0]
