"""The training step on this machine's devices: milliseconds, tokens a second, MFU, for each size and way of attention.

python -m benchmarks.accelerator --sizes=tiny,base,large --rows=16 --row-tokens=2048 --output=accelerator.json

Needs jax, flax, optax and numpy, and this checkout; no store and no file. Rows are made on the spot: windows of twelve
leads, of a lead and PPG, and of PPG alone, a quarter of their tokens visible. Every way of attention is first held
against the reference (output, gradients of q, k and v, in bfloat16), and one that is wrong is not timed. What fails to
compile or to run is told in a line, with its stack on stderr, and the rest is measured all the same; in both cases the
exit code is 1 at the end. MFU is products of the model (`csfm_jax/models/flops.py`: attention over all pairs of a row)
over what the same devices make of a large bfloat16 product in the same run, the "ceiling"; recomputation is not
counted. Seconds are the best of three rounds of steps that the host queues without waiting, as training does.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

# As in configs/csfm_*.py, which need more packages to be read; tests/test_accelerator_benchmark.py compares.
SIZES = {
    "nano": {"encoder": (128, 4, 4, 32, 512), "decoder": (96, 2, 2, 32, 384), "remat": "none"},
    "tiny": {"encoder": (768, 6, 8, 64, 1024), "decoder": (256, 4, 4, 64, 1024), "remat": "dots"},
    "base": {"encoder": (768, 12, 12, 64, 3072), "decoder": (256, 4, 4, 64, 1024), "remat": "dots"},
    "large": {"encoder": (1024, 16, 24, 64, 4096), "decoder": (256, 4, 4, 64, 1024), "remat": "full"},
}
BACKENDS = {
    "tpu": ("splash", "dense", "blocks"),
    "gpu": ("dense", "triton", "cudnn", "blocks"),
    "cpu": ("blocks", "dense"),
}
KEEP = 0.25  # of a window's tokens are visible
WRONG = 0.03  # of the largest value: several roundings to bfloat16 (0.004 each)
ROUNDS = 3
FAILED = "failed"


def config_of(size: str, rows: int, row_tokens: int, attention: str):
    """The configuration of a size, without text, for rows of so many tokens on every device there is."""
    from csfm_jax import config as configs
    from csfm_jax.models.config import DecoderConfig, EncoderConfig
    from data_pipelines.config import DataConfig, TokenConfig

    names, sizes = ("width", "depth", "heads", "head_dim", "mlp"), SIZES[size]
    encoder = EncoderConfig(
        **dict(zip(names, sizes["encoder"])), remat=sizes["remat"], compute="bfloat16", attention=attention
    )
    windows = row_tokens // (1 + steps_of(row_tokens)) + 1
    visible = -(-int(KEEP * row_tokens + windows) // 64) * 64
    return configs.Config(
        tokens=TokenConfig(modalities=("ecg", "ppg"), channels="csfm", text_length=0),
        data=DataConfig(rows=rows, row_tokens=row_tokens, row_visible=min(visible, row_tokens), row_windows=windows),
        encoder=encoder,
        decoder=DecoderConfig(**dict(zip(names, sizes["decoder"]))),
        optimizer=configs.OptimizerConfig(warmup_steps=0),
    )


def steps_of(row_tokens: int) -> int:
    """Tokens of a channel: ten seconds, where a row holds so many of twelve leads."""
    return min(100, (row_tokens - 1) // 12)


def packed_rows(config, seed: int = 0):
    """A TokenBatch of full rows, in NumPy."""
    import numpy as np

    from data_pipelines.rows import empty_batch
    from data_pipelines.signals import CHANNEL_ID, CLS

    rng, data = np.random.default_rng(seed), config.data
    leads = [CHANNEL_ID[name] for name in ("I", "II", "III", "aVR", "aVL", "aVF", *(f"V{i}" for i in range(1, 7)))]
    kinds = (leads, [CHANNEL_ID["II"], CHANNEL_ID["PPG"]], [CHANNEL_ID["PPG"]])
    steps = steps_of(data.row_tokens)
    batch = empty_batch(data.rows, (data.row_tokens, data.row_visible, data.row_windows), config.tokens)
    for row in range(data.rows):
        at, seen = 0, []
        for window in range(data.row_windows):
            fitting = [kind for kind in kinds if at + 1 + steps * len(kind) <= data.row_tokens]
            if not fitting:
                break
            kind = fitting[rng.integers(len(fitting))]
            signal = steps * len(kind)
            here = slice(at, at + 1 + signal)
            batch.channel[row, here] = [CLS, *np.repeat(kind, steps)]
            batch.segment[row, here], batch.window[row, window] = window + 1, row * data.row_windows + window
            batch.time[row, here] = [0.0, *np.tile(0.05 + 0.1 * np.arange(steps), len(kind))]
            batch.patches[row, at + 1 : here.stop] = rng.normal(size=(signal, batch.patches.shape[-1]))
            hidden = rng.permutation(signal)[round(KEEP * signal) :]
            batch.target[row, at + 1 + hidden] = True
            seen += [i for i in range(at, here.stop) if not batch.target[row, i]]
            at = here.stop
        batch.visible[row, : len(seen)] = seen
    return batch


def ceiling(size: int) -> float:
    """FLOP/s of one device for bfloat16 products [size, size] x [size, size], one after the other."""
    import jax
    import jax.numpy as jnp

    many = 10
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (size, size), jnp.bfloat16)
    w = jax.random.normal(keys[1], (size, size), jnp.bfloat16) / jnp.bfloat16(size**0.5)  # keeps the size of values
    chain = jax.jit(lambda x, w: jax.lax.fori_loop(0, many, lambda _, x: x @ w, x))
    return many * 2 * size**3 / best_of_rounds(lambda: chain(x, w), 1)


def attention_error(backend: str, config) -> float:
    """Largest difference to the reference, over the largest value, of the output and of the gradients."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from csfm_jax.models.attention import attend

    segments = packed_rows(config).segment[:2]
    shape = (4, *segments.shape, config.encoder.heads, config.encoder.head_dim)
    values = jax.random.normal(jax.random.key(1), shape, jnp.bfloat16)

    def everything(values, backend):
        q, k, v, cotangent = values
        out, back = jax.vjp(lambda *x: attend(*x, segments, backend=backend), q, k, v)
        return out, *back(jnp.where((segments > 0)[..., None, None], cotangent, 0))

    # the same rounded values; products of the reference in float32
    with jax.default_matmul_precision("highest"):
        right = jax.jit(lambda x: everything(x.astype(jnp.float32), "reference"))(values)
    found = jax.jit(lambda x: everything(x, backend))(values)
    pairs = [(np.asarray(f, np.float32), np.asarray(r)) for f, r in zip(found, right)]
    return max(float(np.abs(f - r).max() / np.abs(r).max()) for f, r in pairs)


def step_time(config, steps: int) -> dict:
    """Seconds of a training step, its loss, and the memory that a device needs for it (bytes)."""
    import jax

    from csfm_jax import sharding
    from csfm_jax.training.optimizer import learning_rate, make_optimizer
    from csfm_jax.training.state import blueprint
    from csfm_jax.training.step import make_train_step

    mesh = sharding.make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    plan = blueprint(config, optimizer, mesh)
    batch = packed_rows(config)
    with sharding.use(mesh):
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        step = make_train_step(plan, optimizer, learning_rate(config.optimizer, config.training.steps), config)
        step = step.lower(plan.abstract, placed).compile()
        memory, state = step.memory_analysis(), [plan.initial()]

        def make():
            state[0], metrics = step(state[0], placed)
            return metrics

        first = make().fetch().loss
        seconds = best_of_rounds(make, steps)
    jax.tree.map(lambda x: x.delete(), state[0])
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    return {"seconds": seconds, "loss": first, "bytes": needed, "tokens": int((batch.channel > 0).sum())}


def best_of_rounds(run, times: int) -> float:
    """Seconds of one call, of the best round of so many; calls are queued, and only the last is waited for."""
    import jax

    jax.block_until_ready(run())
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            last = run()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - began) / times)
    return min(found)


def figures(options: argparse.Namespace) -> Iterator[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure, as it is measured."""
    import jax

    from csfm_jax.models import flops

    devices, platform = jax.device_count(), jax.default_backend()
    reached = ceiling(options.matmul or (512 if platform == "cpu" else 8192))
    sheet = flops.peak(jax.devices()[0].device_kind, "bfloat16")
    known = f"; {reached / sheet:.0%} of the data sheet's {sheet / 1e12:,.0f}" if sheet else ""
    kind = f"{devices} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    yield "bfloat16 product, a device", reached / 1e12, "TFLOP/s", kind + known
    for size in options.sizes:
        for backend in options.attention or BACKENDS.get(platform, BACKENDS["gpu"]):
            name = f"{size}, {backend}"
            config = config_of(size, options.rows * devices, options.row_tokens, backend)
            try:
                error = attention_error(backend, config)
                yield f"{name}: attention's error", error, "", f"at most {WRONG}: else not timed"
                if not error <= WRONG:
                    continue
                found = step_time(config, options.steps)
            except Exception as problem:  # whatever a compiler raises: the next machine may be long in coming
                what, note = told(problem)
                yield f"{name}: {what}", float("nan"), "", note
                continue
            done = flops.count(config).train * config.data.rows / found["seconds"]
            rows = f"{options.rows} rows of {options.row_tokens} tokens a device, {found['bytes'] / 2**30:.1f} GiB"
            yield f"{name}: step", 1e3 * found["seconds"], "ms", f"{rows}; first loss {found['loss']:.4f}"
            yield f"{name}: tokens", found["tokens"] / found["seconds"], "tokens/s", "all devices, padding not counted"
            yield f"{name}: MFU", done / (reached * devices), "", f"{done / devices / 1e12:.1f} TFLOP/s a device"


def told(problem: Exception) -> tuple[str, str]:
    """(what, note) of a step that was not measured."""
    text = str(problem)
    # a kernel whose tiles need more than a multiprocessor's shared memory is RESOURCE_EXHAUSTED, too, with any rows
    if "RESOURCE_EXHAUSTED" in text and "shared memory" not in text.lower():
        return "does not fit", "fewer --rows"
    traceback.print_exception(problem)
    return FAILED, f"{type(problem).__name__}: {text.strip().partition(chr(10))[0][:200]}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.accelerator", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=_words, default=("tiny", "base", "large"), help=", ".join(SIZES))
    parser.add_argument("--rows", type=int, default=16, help="of a device")
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--attention", type=_words, help="default: what this platform has, without the reference")
    parser.add_argument("--matmul", type=int, default=0, help="side of the product; default 8192, on CPU 512")
    parser.add_argument("--output", type=Path, help="the figures as JSON")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def run() -> list[tuple[str, float, str, str]]:
    """The defaults' figures, for `python -m benchmarks accelerator`."""
    return list(figures(arguments().parse_args([])))


def main(words: list[str] | None = None) -> int:
    parser = arguments()
    options = parser.parse_args(words)
    if unknown := [size for size in options.sizes if size not in SIZES]:
        parser.error(f"--sizes: found {', '.join(unknown)}; expected some of {', '.join(SIZES)}")
    found = []
    for name, value, unit, note in figures(options):
        found.append({"name": name, "value": value if value == value else None, "unit": unit, "note": note})
        print(f"  {name:<40} {value:>12,.4g} {unit:<9} {note}", flush=True)
        if options.output:  # after every figure: a run that is cut off leaves what it has
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    errors = [f["value"] for f in found if f["name"].endswith("error")]
    failed = any(f["name"].endswith(FAILED) for f in found)
    return 1 if failed or any(error is None or error > WRONG for error in errors) else 0


if __name__ == "__main__":
    sys.exit(main())
