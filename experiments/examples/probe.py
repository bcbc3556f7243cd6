"""A direction that a linear probe reads, added to see whether the network uses it.

scikit-learn (not a dependency: `pip install scikit-learn`) tells plain faces (complexity 0) from rich ones
(4) by what leaves the middle of a trained UNet, averaged over positions. A probe shows that something can be
read there, not that it is used. So its direction is added there, and the image that the network then predicts
is compared with what random directions of the same length do to it.
`python -m experiments.examples.probe --model=cpu16-synthetic-seed0` (2026-11-28): the probe is right on
80 % of 64 other images; its direction moves predictions by 0.008 of the way, 19 random ones by 0.004 on
average, p = 0.15. What can be read there is not shown to be used there.
"""

import dataclasses

import jax
import numpy as np
from absl import app, flags
from sklearn.linear_model import LogisticRegression

import mechdiff as md
from mechdiff.data.synthetic import faces
from mechdiff.diffusion.process import predict_x0, q_sample
from mechdiff.models.load import load_denoiser

SITE, STREAM = "mid.block1.res", "mid.block1"  # a direction added at SITE moves the whole map STREAM
RANDOM = 19  # directions to compare with: the least p is 1 / 20


def labeled_faces(count, size):
    """Faces of complexity 0 and 4 in turn, and which they are."""
    plain, rich = (faces(jax.random.key(5), np.arange(count), size, rung).image for rung in (0, 4))
    return np.stack([plain, rich], axis=1).reshape(-1, *plain.shape[1:]), np.arange(2 * count) % 2


def fitted(denoiser, eval_set, labels, t):
    """The probe's accuracy on images that it was not fitted to, its direction of length 1, and how long the
    averaged activations are."""
    pooled = md.activations(denoiser, eval_set, [STREAM], timesteps=[t])[STREAM].values[0].mean((1, 2))
    half = len(pooled) // 2
    probe = LogisticRegression(max_iter=1000).fit(pooled[:half], labels[:half])
    direction = probe.coef_[0] / np.linalg.norm(probe.coef_)
    return probe.score(pooled[half:], labels[half:]), direction, np.linalg.norm(pooled, axis=1).mean()


def richer(denoiser, images, labels, t, directions):
    """How far each direction moves the predicted images from plain faces to rich ones: 0 not at all, 1 by the
    difference of their means."""
    way = images[labels == 1].mean(0) - images[labels == 0].mean(0)
    rows, noise = np.full(len(images), t), jax.random.normal(jax.random.key(6), images.shape)
    x_t = q_sample(denoiser.schedule, images, rows, noise)

    @jax.jit
    def predicted(intervention):
        eps = denoiser.predict(intervention, x_t, rows)
        return predict_x0(denoiser.schedule, x_t, rows, eps).mean(0)

    nothing = {SITE: np.zeros((1, 1, len(directions[0])), np.float32)}
    clean = predicted(dataclasses.replace(denoiser.identity, add=nothing))
    moved = [
        predicted(
            dataclasses.replace(denoiser.identity, add={SITE: np.asarray(direction, np.float32)[None, None]})
        )
        - clean
        for direction in directions
    ]
    return np.array([np.vdot(change, way) / np.vdot(way, way) for change in moved])


def main(_):
    """Fits the probe, adds its direction, and compares."""
    denoiser, t = load_denoiser(flags.FLAGS.model)[0], flags.FLAGS.t
    images, labels = labeled_faces(flags.FLAGS.count, denoiser.image_shape[0])
    eval_set = md.EvalSet(images, [t], jax.random.key(7))
    accuracy, direction, length = fitted(denoiser, eval_set, labels, t)
    others = np.random.default_rng(8).normal(size=(RANDOM, len(direction)))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    effects = richer(denoiser, images, labels, t, length * np.stack([direction, *others]))
    p = (np.abs(effects) >= np.abs(effects[0])).mean()
    print(f"probe at {STREAM}, t = {t}: {accuracy:.0%} right on {len(images) // 2} other images")
    print(f"its direction moves predictions by {effects[0]:+.3f} of the way from plain to rich faces;")
    print(f"{RANDOM} random ones by {np.abs(effects[1:]).mean():.3f} on average (absolute); p = {p:.2f}")


if __name__ == "__main__":
    flags.DEFINE_string("model", "cpu16-synthetic-seed0", "A UNet trained here.")
    flags.DEFINE_integer("t", 300, "Timestep.")
    flags.DEFINE_integer("count", 64, "Faces of each complexity.")
    app.run(main)
