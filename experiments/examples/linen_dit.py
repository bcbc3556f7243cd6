"""A class-conditional diffusion transformer in Flax Linen, trained on synthetic faces and examined.

The architecture is that of Peebles & Xie 2023 (patches, adaLN-Zero), its blocks in an `nn.scan`: a value
named `block*.mlp` in the body is a site of every block. The class is the rung of the faces' complexity
ladder. `python -m experiments.examples.linen_dit` trains for some minutes, and goes on where it was stopped;
then it asks which components the denoising needs, and which of them carry the class: without them a wrong
class costs less than with them. What came out is in `README.md` beside this file. The launchers examine the
trained network as they do any other:

    python -m experiments.sweep --model=experiments.examples.linen_dit:examined --workdir=runs/dit
    python -m experiments.report --workdir=runs/dit
"""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.ad_checkpoint import checkpoint_name

from experiments.examples.common import loss_increases, show, time_features, trained
from mechdiff.core.errors import ConfigError
from mechdiff.data.synthetic import faces
from mechdiff.diffusion.process import denoising_loss, training_loss
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import ablate
from mechdiff.interventions.record import Intervention
from mechdiff.models.traced import TracedDenoiser, wrap
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest

SCHEDULE = cosine_schedule()
RUNGS = 5  # of the complexity ladder, 0 to 4: the classes
SIZE, PATCH = 16, 2
STEPS = 1500  # of training
EXAMINED, EACH = 400, 16  # timestep at which components are left out, on so many images of each rung
WORKDIR = "runs/linen_dit"
STATE = "state.safetensors"  # in it


class Attention(nn.Module):
    """Self-attention whose heads are named before they are mixed."""

    heads: int

    @nn.compact
    def __call__(self, h):
        batch, tokens, width = h.shape
        depth = width // self.heads
        split = nn.Dense(3 * width, name="qkv")(h).reshape(batch, tokens, 3, self.heads, depth)
        query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / depth**0.5
        pattern = checkpoint_name(nn.softmax(logits), "block*.pattern@1")
        mixed = checkpoint_name(jnp.einsum("bhqk,bkhd->bqhd", pattern, value), "block*.head@2")
        return nn.Dense(width, name="project")(mixed.reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention and an MLP, both modulated by time and class (adaLN-Zero)."""

    heads: int

    @nn.compact
    def __call__(self, h, condition):
        width = h.shape[-1]
        modulation = nn.Dense(6 * width, kernel_init=nn.initializers.zeros, name="modulation")(
            nn.silu(condition)
        )
        shift, scale, gate, shift2, scale2, gate2 = jnp.split(modulation[:, None, :], 6, axis=-1)
        gate = checkpoint_name(gate, "block*.attention.adaln")
        gate2 = checkpoint_name(gate2, "block*.mlp.adaln")

        def norm(h):
            return nn.LayerNorm(use_bias=False, use_scale=False)(h)

        h = h + gate * Attention(self.heads, name="attention")(norm(h) * (1 + scale) + shift)
        inner = nn.Dense(4 * width, name="mlp_in")(norm(h) * (1 + scale2) + shift2)
        branch = nn.Dense(width, name="mlp_out")(nn.gelu(inner))
        return h + gate2 * checkpoint_name(branch, "block*.mlp"), None


class DiT(nn.Module):
    """Predicts the noise in `(batch, side, side, 3)` images, given timesteps and classes."""

    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x, t, label):
        batch, side, _, channels = x.shape
        grid = side // PATCH
        h = nn.Conv(self.width, (PATCH, PATCH), (PATCH, PATCH), name="patches")(x).reshape(
            batch, -1, self.width
        )
        h = h + self.param("positions", nn.initializers.normal(0.02), (1, grid * grid, self.width))
        time = nn.Dense(self.width, name="time")(time_features(t, self.width))
        which = checkpoint_name(nn.Embed(RUNGS, self.width, name="classes")(label), "embedding.class")
        condition = checkpoint_name(time, "embedding.time") + which
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        h, _ = blocks(self.heads, name="blocks")(h, condition)
        h = nn.Dense(PATCH * PATCH * channels, kernel_init=nn.initializers.zeros, name="out")(
            nn.LayerNorm()(h)
        )
        h = h.reshape(batch, grid, grid, PATCH, PATCH, channels).transpose(0, 1, 3, 2, 4, 5)
        return h.reshape(x.shape)


def labeled_faces(key, each: int = 8):
    """`each` faces of every rung, and their rungs."""
    indices = jax.random.randint(key, (RUNGS, each), 0, 1 << 20)
    images = [faces(jax.random.key(rung), indices[rung], SIZE, rung).image for rung in range(RUNGS)]
    return jnp.concatenate(images), jnp.repeat(jnp.arange(RUNGS), each)


def examined() -> tuple[TracedDenoiser, np.ndarray, np.ndarray]:
    """For launchers: the network that `main` trained in `WORKDIR`, faces of all rungs in turn, and these."""
    state = Path(WORKDIR, STATE)
    if not state.exists():
        raise ConfigError(f"no {state}; train first: python -m experiments.examples.linen_dit")
    images, label = labeled_faces(jax.random.key(9), EACH)
    in_turn = np.arange(RUNGS * EACH).reshape(RUNGS, EACH).T.ravel()
    model = denoiser(steps=STEPS, state_file=state)
    return model, np.asarray(images)[in_turn], np.asarray(label)[in_turn]


def denoiser(
    *, steps: int, width: int = 64, depth: int = 4, heads: int = 4, draw=labeled_faces, state_file=None
) -> TracedDenoiser:
    """The network, trained on the images and classes that `draw(key)` makes, and wrapped."""
    module = DiT(width, depth, heads)
    example = (jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    init = functools.partial(_fresh, module, example)
    params = jax.jit(init)(jax.random.key(0))

    def loss(params, key, labeled):
        at, noise = jax.random.split(key)
        x0, label = labeled
        t = jax.random.randint(at, label.shape, 0, SCHEDULE.steps)

        def network(x, t):
            return module.apply(params, x, t, label)

        return training_loss(network, SCHEDULE, x0, t, jax.random.normal(noise, x0.shape)).mean()

    params, losses = trained(loss, params, draw, steps=steps, rate=1e-3, state_file=state_file)
    print(f"loss: first {losses[:10].mean():.3f}, last {losses[-50:].mean():.4f}")
    options = {"schedule": SCHEDULE, "example": example, "init": init}
    return wrap(module.apply, params, name="linen-dit", **options)


def _fresh(module: DiT, example: tuple, key):
    return module.init(key, *example)


@jax.jit
def _losses(model: TracedDenoiser, intervention: Intervention, x0, t, noise, said):
    def predict(x, t):
        return model.predict(intervention, x, t, said)

    return denoising_loss(predict, SCHEDULE, x0, t, noise)


def worth_of_the_class(model: TracedDenoiser, x0, t, noise, label, component: str | None = None):
    """By how much a wrong class raises the loss of each image, in % of the mean loss with the right one and
    nothing ablated."""
    intervention = ablate(model.identity, [component]) if component else model.identity
    common = model, intervention, x0, t, noise
    right, wrong = _losses(*common, label), _losses(*common, (label + 2) % RUNGS)
    clean = _losses(model, model.identity, x0, t, noise, label).mean()
    return np.asarray(100 * (wrong - right) / clean)


def mean_and_error(values) -> list[float]:
    """Mean over images and its standard error."""
    return [float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)]


def main(_):
    """Trains, leaves out every component, and asks which carry the class; WORKDIR/examined.json."""
    workdir, steps = Path(flags.FLAGS.workdir), flags.FLAGS.steps
    workdir.mkdir(parents=True, exist_ok=True)
    model = denoiser(steps=steps, state_file=workdir / STATE)
    x0, label = labeled_faces(jax.random.key(9), EACH)
    noise, t = jax.random.normal(jax.random.key(10), x0.shape), jnp.full(len(x0), EXAMINED)
    increases = loss_increases(model, x0, t, noise, condition=label)
    show(increases)
    whole = worth_of_the_class(model, x0, t, noise, label)
    print(
        "\nthe right class is worth {:.2f} % +- {:.2f} of the loss; of that is lost without".format(
            *mean_and_error(whole)
        )
    )
    lost = {
        component: whole - worth_of_the_class(model, x0, t, noise, label, component)
        for component in increases
    }
    for component, values in sorted(lost.items(), key=lambda item: -item[1].mean()):
        print("{:24s} {:7.2f} % +- {:.2f}".format(component, *mean_and_error(values)))
    results = {
        "manifest": run_manifest(
            {"steps": steps, "timestep": EXAMINED, "images": len(x0)}, models=[model.name]
        ),
        "worth_of_the_class_percent": mean_and_error(whole),
        "relative_loss_increase_percent": {
            component: mean_and_error(100 * v) for component, v in increases.items()
        },
        "lost_worth_of_the_class_percent": {
            component: mean_and_error(values) for component, values in lost.items()
        },
    }
    files.write_json(workdir / "examined.json", results)


if __name__ == "__main__":
    flags.DEFINE_integer("steps", STEPS, "Steps of training.")
    flags.DEFINE_string("workdir", WORKDIR, "Folder of the training and of what came out.")
    app.run(main)
