"""Package metadata. Exact, tested versions of everything stand in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

version: dict[str, str] = {}
exec((Path(__file__).parent / "entropy_rl" / "version.py").read_text(), version)

setup(
    name="entropy_rl",
    version=version["__version__"],
    description="Reinforcement learning of language-model reasoning in JAX, with entropy-shaped advantages",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["entropy_rl", "entropy_rl.*"]),
    package_data={"entropy_rl": ["assets/**/*", "report/template/*"]},
    install_requires=[
        # XLA:CPU of jaxlib 0.11.1 rewrites whole buffers in loops; 0.10.2 and 0.11.0 do not.
        "jax>=0.10.2,!=0.11.1",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "etils[epath]>=1.14",  # its paths in buckets, and fsspec; orbax requires them too
        "transformers>=5.23,<6",
        "tensorflow-datasets>=4.9.10,<5",
        "grain>=0.2.18,<0.3",
        "pyarrow>=18",
        "huggingface_hub>=1.31,<3",
        "safetensors>=0.8",
        "math-verify==0.9.0",
        "docstring-parser>=0.16",
        "pyyaml>=6",
        "scipy>=1.13",  # sparse vectors of sentences; jax requires it too
        "jinja2>=3.1",  # chat templates; transformers does not require it
        "rich>=14",
        "tensorboardX>=2.6.5",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "gcs": ["gcsfs>=2025.3", "google-cloud-storage>=3", "google-cloud-storage-control>=1"],
        "report": ["matplotlib>=3.10"],
        "wandb": ["wandb>=0.31"],
        "notebooks": ["ipykernel>=6", "nbmake>=1.5", "matplotlib>=3.10"],
        "test": ["pytest>=8", "pytest-xdist>=3.8", "ruff>=0.14", "matplotlib>=3.10"],
    },
    entry_points={"console_scripts": ["entropy-rl=entropy_rl.cli.main:main"]},
)
