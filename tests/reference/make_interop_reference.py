"""Freezes guided-diffusion and diffusers' schedulers for `tests/models/pretrained/test_frozen.py`.

Run once, from the top folder, with the `torch` extra and a clone of github.com/openai/guided-diffusion:

    PYTHONPATH=GUIDED_DIFFUSION python -m tests.reference.make_interop_reference

Writes beside this file `adm_p2_shapes.json` (flags, and shapes of tensors, of the network that P2 weighting,
Choi et al. 2022, published for CelebA-HQ), `adm.npz` (`config`: flags as JSON; `weights/...`: the state dict,
random, float16; `x` NCHW, `t`, `output`, `gradient`: of sum(output^2) / 2 with respect to x) and `steps.npz`
(single steps of DDPM and DDIM).
"""

import itertools
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from guided_diffusion.script_util import create_model

HERE = Path(__file__).parent
ADM = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "num_head_channels": 16,
    "attention_resolutions": "4",
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "learn_sigma": True,
}
P2 = {  # the command line in the README of github.com/jychoi118/P2-weighting; absent flags as there
    "image_size": 256,
    "num_channels": 128,
    "num_res_blocks": 1,
    "num_head_channels": 64,
    "attention_resolutions": "16",
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "learn_sigma": True,
}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TIMES = (0, 20, 500, 980)


def p2_shapes() -> dict[str, list[int]]:
    with torch.device("meta"):
        return {name: list(value.shape) for name, value in create_model(**P2).state_dict().items()}


def adm() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    model = create_model(**ADM).eval()
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("weight") and value.ndim > 1:
            new = rng.standard_normal(value.shape) / np.sqrt(np.prod(value.shape[1:]))
        else:
            new = name.endswith("weight") + 0.2 * rng.standard_normal(value.shape)
        state[name] = torch.from_numpy(new.astype(np.float16).astype(np.float32))
    model.load_state_dict(state)
    x = torch.from_numpy(rng.standard_normal((2, 3, 8, 8)).astype(np.float32)).requires_grad_()
    t = torch.tensor([3, 987])
    output = model(x, t)[:, :3]
    (output**2).sum().div(2).backward()
    arrays = {f"weights/{name}": value.numpy().astype(np.float16) for name, value in state.items()}
    results = {"x": x.detach(), "t": t.int(), "output": output.detach(), "gradient": x.grad}
    return arrays | {name: value.numpy() for name, value in results.items()} | {"config": json.dumps(ADM)}


def exact(scheduler):
    """The scheduler with tables in float64: in float32 its own rounding (1 - alpha near 0) is up to 3e-5."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def steps() -> dict[str, np.ndarray]:
    """`SCHEDULE/PREDICTION/{ddpm,ddim}`: x at the previous timestep, `(time, row, ...)`, from rows `x`,
    `output` and `noise`. DDPM goes from t to t - 1, DDIM from t to t - 20 (both at most to clean data)."""
    shape = (2, 3, 4, 4)
    rng = np.random.default_rng(1)
    x, output = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    results = {"x": x, "output": output, "noise": noise.numpy(), "t": np.array(TIMES)}
    for schedule, prediction in itertools.product(SCHEDULES, PREDICTIONS):
        options = {"beta_schedule": schedule, "prediction_type": prediction}
        ddpm, ddim = (exact(kind(**options)) for kind in (diffusers.DDPMScheduler, diffusers.DDIMScheduler))
        ddpm.set_timesteps(1000)
        ddim.set_timesteps(50)
        arguments = torch.from_numpy(output).double(), torch.from_numpy(x).double()
        draw = lambda: torch.Generator().manual_seed(0)
        single = [ddpm.step(arguments[0], t, arguments[1], generator=draw()).prev_sample for t in TIMES]
        two = [
            ddim.step(arguments[0], t, arguments[1], use_clipped_model_output=True).prev_sample for t in TIMES
        ]
        for kind, stepped in (("ddpm", single), ("ddim", two)):
            results[f"{schedule}/{prediction}/{kind}"] = torch.stack(stepped).float().numpy()
    return results


if __name__ == "__main__":
    (HERE / "adm_p2_shapes.json").write_text(json.dumps({"config": P2, "shapes": p2_shapes()}))
    for name, arrays in (("adm", adm()), ("steps", steps())):
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(name, (HERE / f"{name}.npz").stat().st_size)
