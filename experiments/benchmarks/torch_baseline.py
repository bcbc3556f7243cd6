"""The arm of PyTorch: diffusers' `UNet2DModel` of the same config, and what a user would write around it.

One process, one task, one JSON line. Started by `_harness`. Also holds the hooks that ablate a component,
which the reference outputs of the tests are made with.
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

import diffusers
import numpy as np
import torch

from experiments.benchmarks import _harness
from mechdiff.core.config import ExperimentConfig, UNetConfig, from_dict

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rows of a batch of ablations; on CPUs larger ones were slower wherever tried.
MAX_ROWS = 256 if DEVICE == "cpu" else 4096
if os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "float32") == "float32":  # as mechdiff does
    torch.backends.cudnn.allow_tf32 = False
else:
    torch.backends.cuda.matmul.allow_tf32 = True
Hooks = dict[str, tuple[Callable, Callable]]  # component -> how to register a hook, and the hook


def unet2d(config: UNetConfig) -> diffusers.UNet2DModel:
    """The network of `config`, freshly initialized."""

    def blocks_of(attends, side):
        return [f"Attn{side}Block2D" if flag else f"{side}Block2D" for flag in attends]

    model = diffusers.UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks_per_level,
        down_block_types=blocks_of(config.down_attention, "Down"),
        up_block_types=blocks_of(config.up_attention[::-1], "Up"),
        add_attention=config.mid_attention,
        attention_head_dim=1,  # the number of heads is set below: it may differ between levels
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        resnet_time_scale_shift="scale_shift" if config.time_scale_shift else "default",
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.frequency_shift,
        downsample_padding=config.down_padding,
        center_input_sample=config.center_input,
    )
    blocks = [*model.down_blocks, *reversed(model.up_blocks), model.mid_block]
    for block, heads in zip(blocks, [*config.heads, *config.heads, config.heads[-1]], strict=True):
        for attention in getattr(block, "attentions", []):
            if attention is not None:
                attention.heads = heads
    return model.to(DEVICE)


def hooks(model: diffusers.UNet2DModel) -> Hooks:
    """Every residual branch, time injection, head and skip of the network, and the hook that zeroes it.

    Names are dotted module paths with `res`, `time`, `headN` or `skip` behind them.
    """
    hooks_of: Hooks = {}
    for path, module in model.named_modules():
        if isinstance(module, diffusers.models.resnet.ResnetBlock2D):
            hooks_of[f"{path}.res"] = module.conv2.register_forward_hook, zero_output
            hooks_of[f"{path}.time"] = module.time_emb_proj.register_forward_hook, zero_output
        elif isinstance(module, diffusers.models.attention_processor.Attention):
            depth = module.inner_dim // module.heads
            for head in range(module.heads):
                hook = zero_slice(head * depth, (head + 1) * depth, axis=2)
                hooks_of[f"{path}.head{head}"] = module.to_out[0].register_forward_pre_hook, hook
    width = model.config.block_out_channels[-1]  # of what a skip tensor is concatenated to
    for i, block in enumerate(model.up_blocks):
        for j, resnet in enumerate(block.resnets):
            hook = zero_slice(width, None, axis=1)
            hooks_of[f"up_blocks.{i}.resnets.{j}.skip"] = resnet.register_forward_pre_hook, hook
            width = resnet.out_channels
    return hooks_of


def zero_output(module, args, out):
    """A forward hook that zeroes a module's output."""
    return torch.zeros_like(out)


def zero_slice(start: int, stop: int | None, axis: int) -> Callable:
    """A forward pre-hook that zeroes part of a module's first argument."""

    def hook(module, args):
        value = args[0].clone()
        value[(slice(None),) * axis + (slice(start, stop),)] = 0
        return value, *args[1:]

    return hook


class Masks:
    """Hooks that stay, and multiply every component by a mask with one entry a row: a batch then holds many
    ablations, which is how a skilled user batches that loop."""

    def __init__(self, model: diffusers.UNet2DModel):
        self.mask: torch.Tensor | None = None  # (rows, components)
        self.names: list[str] = []
        for path, module in model.named_modules():
            if isinstance(module, diffusers.models.resnet.ResnetBlock2D):
                module.conv2.register_forward_hook(self.output(self.column(f"{path}.res")))
                module.time_emb_proj.register_forward_hook(self.output(self.column(f"{path}.time")))
            elif isinstance(module, diffusers.models.attention_processor.Attention):
                columns = [self.column(f"{path}.head{head}") for head in range(module.heads)]
                module.to_out[0].register_forward_pre_hook(self.heads(columns))
        width = model.config.block_out_channels[-1]
        for i, block in enumerate(model.up_blocks):
            for j, resnet in enumerate(block.resnets):
                column = self.column(f"up_blocks.{i}.resnets.{j}.skip")
                resnet.register_forward_pre_hook(self.skip(column, width))
                width = resnet.out_channels

    def column(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1

    def output(self, column: int) -> Callable:
        def hook(module, args, out):
            return out * self.mask[:, column].reshape(-1, *[1] * (out.ndim - 1))

        return hook

    def heads(self, columns: list[int]) -> Callable:
        def hook(module, args):
            rows, tokens, width = args[0].shape
            split = args[0].view(rows, tokens, len(columns), -1)
            return ((split * self.mask[:, None, columns, None]).view(rows, tokens, width), *args[1:])

        return hook

    def skip(self, column: int, width: int) -> Callable:
        def hook(module, args):
            kept, skip = args[0][:, :width], args[0][:, width:]
            return torch.cat([kept, skip * self.mask[:, column, None, None, None]], 1), *args[1:]

        return hook


@contextlib.contextmanager
def hooked(register: Callable, hook: Callable) -> Iterator[None]:
    """The component is at zero inside this context."""
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def prepared(config: ExperimentConfig, layout: str, images: int) -> tuple:
    """The network, images in [-1, 1], and the cumulative signal of the noise schedule."""
    torch.manual_seed(0)
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = unet2d(config.unet).to(memory_format=memory)
    shape = (images, config.unet.in_channels, *2 * [config.unet.image_size])
    x0 = torch.rand(shape, device=DEVICE).mul(2).sub(1).contiguous(memory_format=memory)
    signal = torch.linspace(1e-4, 0.02, config.diffusion.steps, device=DEVICE).neg().add(1).cumprod(0)
    return model, x0, signal[:, None, None, None]


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def training_step(config: ExperimentConfig, layout: str, images: int) -> tuple:
    """Noise, loss, gradients, clipping, AdamW, EMA, as `train_step`; autocast where `dtype` is bfloat16.

    Args:
      layout: as in `prepared`; with `_compiled` behind it the network goes through `torch.compile`.
    """
    model, x0, signal = prepared(config, layout.removesuffix("_compiled"), images)
    network = torch.compile(model) if layout.endswith("_compiled") else model
    parameters = list(model.parameters())
    ema = [parameter.detach().clone() for parameter in parameters]
    train = config.train
    optimizer = torch.optim.AdamW(
        parameters, train.learning_rate, weight_decay=train.weight_decay, fused=DEVICE == "cuda"
    )
    half = torch.autocast(DEVICE, torch.bfloat16, enabled=train.dtype == "bfloat16")

    def once():
        t = torch.randint(config.diffusion.steps, (images,), device=DEVICE)
        noise = torch.randn_like(x0)
        x_t = signal[t].sqrt() * x0 + (1 - signal[t]).sqrt() * noise
        with half:
            predicted = network(x_t, t).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, train.clip_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, parameters, 1 - train.ema_decay)
        wait()

    return once, images, once


def _timesteps(config: ExperimentConfig) -> list[int]:
    return np.linspace(0, config.diffusion.steps - 1, config.sweep.timesteps).astype(int).tolist()


def forward_sweep(config: ExperimentConfig, layout: str, images: int) -> tuple:
    """One component at zero at a time: a loop over forward hooks."""
    model, x0, signal = prepared(config, layout, images)
    components = hooks(model.eval())
    block = min(images, config.sweep.image_block)

    @torch.inference_mode()
    def once():
        for t in _timesteps(config):
            noise = torch.randn_like(x0)
            x_t = signal[t].sqrt() * x0 + (1 - signal[t]).sqrt() * noise
            for x, target in zip(x_t.split(block), noise.split(block), strict=True):
                for hook in components.values():
                    with hooked(*hook):
                        loss = (model(x, t).sample - target).square().mean((1, 2, 3))
                    loss.cpu()
        wait()

    def warm_up():
        with torch.inference_mode():
            model(x0[:block], 0)

    return once, len(components) * config.sweep.timesteps * images, warm_up


def batched_sweep(config: ExperimentConfig, layout: str, images: int) -> tuple:
    """The same sweep in batches of many ablations, of the size that is fastest here."""
    model, x0, signal = prepared(config, layout, images)
    masks = Masks(model.eval())
    count, run = len(masks.names), model
    if layout == "compiled":
        run = torch.compile(model, dynamic=False)
    off = 1 - torch.eye(count, device=DEVICE)

    def losses(run, x_t: torch.Tensor, noise: torch.Tensor, t: int, part: torch.Tensor):
        masks.mask = part.repeat_interleave(images, 0)
        at = torch.full((len(masks.mask),), t, device=DEVICE)
        eps = run(x_t.repeat(len(part), 1, 1, 1), at).sample
        return (eps - noise.repeat(len(part), 1, 1, 1)).square().mean((1, 2, 3)).cpu()

    @torch.inference_mode()
    def once(together: int):
        filled = torch.cat([off, off[-1:].expand(-count % together, -1)])  # another shape is compiled anew
        for t in _timesteps(config):
            noise = torch.randn_like(x0)
            x_t = signal[t].sqrt() * x0 + (1 - signal[t]).sqrt() * noise
            for part in filled.split(together):
                losses(run, x_t, noise, t, part)
        wait()

    @torch.inference_mode()
    def rate(together: int, run=model) -> float:
        """Ablations a second in batches of `together`; 0 where memory does not hold them."""
        try:
            losses(run, x0, x0, 0, off[:together])  # compiles, where it has to
            start = time.perf_counter()
            losses(run, x0, x0, 0, off[:together])
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return 0.0
        return together / (time.perf_counter() - start)

    sizes = [size for size in (1, 2, 4, 8, 16, 32, count) if size * images <= MAX_ROWS and size <= count]
    best = max(sizes or [1], key=rate)
    items = count * config.sweep.timesteps * images
    return functools.partial(once, best), items, functools.partial(rate, best, run)


def product() -> float:
    """GF/s of a plain matrix product."""
    a = torch.ones(_harness.PRODUCT, _harness.PRODUCT, device=DEVICE)

    def once():
        torch.mm(a, a)
        wait()

    return 2 * _harness.PRODUCT**3 / _harness.seconds(once) / 1e9


def main(task: str, variant: str, images: str, config: str):
    experiment = from_dict(json.loads(config))
    tasks = {"training_step": training_step, "forward_sweep": forward_sweep}
    run = batched_sweep if variant.startswith("batched") else tasks[task]
    once, items, warm_up = run(experiment, variant.removeprefix("batched_"), int(images))
    first = time.perf_counter()
    warm_up()
    result = {"compiling": time.perf_counter() - first} if variant.endswith("compiled") else {}
    result |= {"seconds": _harness.seconds(once, warm_up), "items": items, "product": product()}
    print(json.dumps(result | {"parameters": sum(p.numel() for p in unet2d(experiment.unet).parameters())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
