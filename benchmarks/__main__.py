"""`make bench`: every benchmark's figures, as ratios measured in one run where a ratio is what counts."""

import importlib
import os
import sys

# An installed libtpu is asked for its chips for minutes; what a GPU or TPU does is told by `benchmarks.accelerator`.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

BENCHMARKS = (
    *("packing", "reading", "wfdb_reader", "preprocessing", "augmenting", "attention", "bootstrap", "million"),
    *("overheads", "saving", "starting", "padding", "torch_step"),
)


def main() -> None:
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n{name}", flush=True)
        for line, value, unit, note in importlib.import_module(f"benchmarks.{name}").run():
            shown = f"{value:,.3g}" if isinstance(value, float) else str(value)
            print(f"  {line:<58} {shown:>12} {unit:<14} {note}", flush=True)


if __name__ == "__main__":
    main()
