"""Outputs of a consistency model in PyTorch, by diffusers' own scalings, for `consistency.npz`.

    python -m tests.reference.make_consistency_reference

Needs torch and diffusers. Weights are not stored: shapes are, and `draw` makes the same from them.
`table`: a UNet2DModel with classes under CMStochasticIterativeScheduler: D(x, sigma) by its own scalings and
time, the gradient of half its square, outputs without each head (hooks), and one step of sampling from noise.
`edm`: the same network under EDM's scalings with the same time, as openai/consistency_models' teachers are.
"""

import json
from pathlib import Path

import numpy as np

from .make_foreign_reference import CLASSES, SIGMAS, noisy
from .make_pretrained_reference import HEADS_OF, UNET2D, draw

HERE = Path(__file__).parent
CONFIG = UNET2D | {"num_class_embeds": CLASSES}
LABELS = (1, 4, 0)
SCHEDULER = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0, "num_train_timesteps": 40}


def main() -> None:
    import torch
    from diffusers import CMStochasticIterativeScheduler, UNet2DModel

    model = UNet2DModel(**CONFIG).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in draw(shapes).items()})
    scheduler = CMStochasticIterativeScheduler(**SCHEDULER)
    sigma = torch.tensor(SIGMAS)

    def denoised(x, sigma, scalings):
        wide = sigma.reshape(-1, 1, 1, 1)
        skip, out = scalings(wide)[:2]
        time = torch.from_numpy(scheduler.sigma_to_t(sigma.numpy()))
        labels = torch.tensor(LABELS)[: len(x)]
        output = model(x / (wide**2 + 0.25) ** 0.5, time, class_labels=labels, return_dict=False)[0]
        return skip * x + out * output

    def of_edm(wide):
        return 0.25 / (wide**2 + 0.25), wide * 0.5 / (wide**2 + 0.25) ** 0.5

    boundary = scheduler.get_scalings_for_boundary_condition
    arrays = {"shapes": json.dumps(shapes), "config": json.dumps(CONFIG)}
    for name, scalings in (("table", boundary), ("edm", of_edm)):
        x = torch.from_numpy(noisy()).requires_grad_()
        output = denoised(x, sigma, scalings)
        (output**2).sum().div(2).backward()
        arrays |= {f"{name}/output": output.detach().numpy(), f"{name}/gradient": x.grad.numpy()}
    arrays["table/hooked"] = hooked(model, lambda: denoised(torch.from_numpy(noisy()), sigma, boundary))
    with torch.no_grad():
        start = denoised(80 * torch.from_numpy(noisy()[:1]), torch.tensor([80.0]), boundary)
    arrays["table/one_step"] = start.clamp(-1, 1).numpy()
    np.savez_compressed(HERE / "consistency.npz", **arrays)


def hooked(model, call) -> np.ndarray:
    """`(head, row, ...)`: each head's columns of the input of its output projection set to zero."""
    import torch

    outputs = []
    for path in HEADS_OF:
        attention = model.get_submodule(path)
        width = attention.to_out[0].in_features // attention.heads
        for head in range(attention.heads):

            def zeroed(module, inputs, columns=slice(head * width, (head + 1) * width)):
                changed = inputs[0].clone()
                changed[..., columns] = 0
                return (changed,)

            handle = attention.to_out[0].register_forward_pre_hook(zeroed)
            with torch.no_grad():
                outputs.append(call().numpy())
            handle.remove()
    return np.stack(outputs)


if __name__ == "__main__":
    main()
