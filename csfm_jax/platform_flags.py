"""Flags of compilers and runtimes that jobs are started with, each with its reason: the one place. No JAX here.

`launching` puts them into job files, and what compiles for TPUs that are not there sets them, so that both are the same
program. What the pinned versions reject fails a test. `LIBTPU_INIT_ARGS= csfm plan ...` compiles without them.

Left alone on purpose:

- xla_gpu_enable_triton_gemm, xla_gpu_triton_gemm_any: JAX's page turns Triton's products on, NVIDIA's off; XLA tries
  both for every product when it compiles (autotuning), and takes the faster.
- NCCL_PROTO, NCCL_*_BUFFSIZE, NCCL_NVLS_ENABLE: NCCL chooses by the network that it finds, and its manual advises
  against overriding it (docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html).
- CUDA_DEVICE_MAX_CONNECTIONS=1: against NVIDIA's advice for Blackwell (docs.nvidia.com/jax-toolbox).
- xla_gpu_*_combine_threshold_bytes: with pipelined collectives XLA combines up to the memory there is.
- xla_tpu_scoped_vmem_limit_kib and SparseCore offload: worth trying with a profile at hand, per model and generation.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One setting.

    Attributes:
        variable: of the environment. text: what is added to it. why: the reason, with its source.
        when: "always", or "split" (parameters lie over `fsdp`), or "slices" (several, joined by a slow network).
    """

    variable: str
    text: str
    why: str
    when: str = "always"


_OVERLAP = (
    "Gathers of split parameters and the reduction of gradients run beside products instead of before them. Defaults "
    "of libtpu 0.0.42 (a step compiled for v5e:2x4 is the same without them); said, so that an image with another "
    "libtpu does the same. Named as in MaxText, benchmarks/xla_flags_library.py."
)
_GPU_LEVELS = "openxla.org/xla/gpu_optimization_levels: part of -O1, off by default because programs get larger."

TPU = (
    Flag("LIBTPU_INIT_ARGS", "--xla_tpu_enable_latency_hiding_scheduler=true", _OVERLAP),
    Flag("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=true", _OVERLAP),
    Flag("LIBTPU_INIT_ARGS", "--xla_tpu_enable_async_collective_fusion=true", _OVERLAP),
    Flag("LIBTPU_INIT_ARGS", "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true", _OVERLAP),
    Flag("LIBTPU_INIT_ARGS", "--xla_tpu_enable_async_collective_fusion_multiple_steps=true", _OVERLAP),
    Flag("LIBTPU_INIT_ARGS", "--xla_tpu_overlap_compute_collective_tc=true", _OVERLAP),
    Flag(
        "LIBTPU_INIT_ARGS",
        "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
        "Split parameters are gathered whole and used once. Below this size of a product the compiler would instead "
        "multiply slice by slice as they arrive: Base over fsdp=16 on v5e:4x4 then needs 145 ms for a step's memory "
        "traffic instead of 63 (docs/scaling.md).",
        "split",
    ),
    Flag(
        "LIBTPU_INIT_ARGS",
        "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
        "Gradients cross the data-centre network while the backward pass goes on (MaxText, DATA_PARALLEL_OVERLAP).",
        "slices",
    ),
    Flag(
        "LIBTPU_INIT_ARGS",
        "--xla_tpu_data_parallel_opt_different_sized_ops=true",
        "The same for gradients of different sizes, pipelined over the scan of layers.",
        "slices",
    ),
)
GPU = (
    Flag(
        "XLA_FLAGS",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "Collectives are started early and waited for late; all else here relies on it. " + _GPU_LEVELS,
    ),
    Flag(
        "XLA_FLAGS",
        "--xla_gpu_enable_pipelined_all_gather=true",
        "The next layer's parameters are gathered while this one computes. " + _GPU_LEVELS,
        "split",
    ),
    Flag(
        "XLA_FLAGS",
        "--xla_gpu_enable_pipelined_reduce_scatter=true",
        "The same for the gradients of the backward pass. " + _GPU_LEVELS,
        "split",
    ),
    Flag(
        "XLA_FLAGS",
        "--xla_gpu_enable_pipelined_all_reduce=true",
        "The same where each GPU keeps whole copies. " + _GPU_LEVELS,
    ),
    Flag(
        "XLA_FLAGS",
        "--xla_gpu_enable_while_loop_double_buffering=true",
        "Two layers of the scan in one turn: without it, no collective can cross from one layer to the next. "
        + _GPU_LEVELS,
    ),
    Flag(
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "0.9",
        "JAX takes 75 % of a GPU's memory by default; the job has the machine to itself, and NCCL and cuDNN need a "
        "tenth (docs.nvidia.com/jax-toolbox, GPU performance).",
    ),
)
PLATFORMS = {"tpu": TPU, "gpu": GPU, "cpu": ()}


def environment(platform: str, *, split: bool, slices: int) -> dict[str, str]:
    """Variables of a job's environment.

    Args:
        platform: a key of `PLATFORMS`. split: whether parameters lie over the mesh's axis `fsdp`. slices: of TPUs.

    Returns:
        Name -> value, flags of one variable separated by spaces.
    """
    found = {}
    for flag in PLATFORMS[platform]:
        if {"always": True, "split": split, "slices": slices > 1}[flag.when]:
            found[flag.variable] = f"{found[flag.variable]} {flag.text}" if flag.variable in found else flag.text
    return found


def set_for_tpu(*, split: bool, slices: int) -> None:
    """Sets a job's variables in this process, but for those that the environment has; before libtpu is loaded."""
    for variable, value in environment("tpu", split=split, slices=slices).items():
        os.environ.setdefault(variable, value)
