"""Installation of mechdiff; tool settings live in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="mechdiff",
    version="0.1.0",
    description="Which parts of a diffusion denoiser do what, at which noise level, and how sure are we?",
    python_requires=">=3.11",
    packages=find_packages(include=["mechdiff", "mechdiff.*"]),
    package_data={"mechdiff.report": ["*.html", "*.css", "*.j2"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "jaxtyping>=0.3",
        "numpy>=2",
        "scipy>=1.14",
        "matplotlib>=3.9",
        "absl-py>=2.1",
        "pillow>=11",
        "xarray>=2025.1",
        "zarr>=3.1",
        "jinja2>=3.1",
        "tqdm>=4.66",
        "safetensors>=0.5",
    ],
    extras_require={
        # Reads a prepared TensorFlow Datasets copy of CelebA; TensorFlow itself is not needed.
        "tfds": ["tensorflow-datasets>=4.9.10", "importlib_resources"],
        "test": ["pytest>=8", "equinox>=0.13", "pytest-xdist>=3.6", "hypothesis>=6.100", "beartype>=0.20"],
        # Independent oracle and rival in the benchmarks; never imported by the package.
        "torch": ["torch>=2.13", "diffusers>=0.36"],
    },
)
