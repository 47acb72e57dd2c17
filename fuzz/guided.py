"""WFDB and EDF, headers and files, guided by coverage (atheris, libFuzzer): `python -m fuzz.guided READER INPUTS ...`.

One input is a recording's main file, for WFDB with its signal file behind the bytes `SPLIT`; run by `fuzz.campaign`.
"""

import json
import sys
import tracemalloc
from pathlib import Path

SPLIT = b"\0\0~~\0\0"


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["data_pipelines"]):
        from data_pipelines.formats import edf, wfdb  # noqa: F401
    from fuzz.campaign import keep, place, warm
    from fuzz.check import Failed, check
    from fuzz.seeds import Seed, seeds

    reader, inputs, seed, folder, output = sys.argv[1:]
    folder, inputs = Path(folder), int(inputs)
    work, corpus = folder / "work", folder / "corpus"
    work.mkdir()
    corpus.mkdir()
    tracemalloc.start()
    group = [s for s in seeds()[reader] if len(s.files) <= 2]
    warm(reader, tuple(group), work)
    for i, chosen in enumerate(group):
        others = [content for name, content in chosen.files.items() if name != chosen.main]
        (corpus / str(i)).write_bytes(SPLIT.join([chosen.files[chosen.main], *others]))
    counts = {"value": 0, "refused": 0, "failed": 0}
    main_name, other = ("x.edf", None) if reader == "edf" else ("r.hea", "r.dat")

    def read(data: bytes) -> None:
        head, _, rest = data.partition(SPLIT)
        files = {main_name: head, other: rest} if other else {main_name: data}
        place(Seed(main_name, files, 0), files, work)
        number = sum(counts.values())
        if number >= inputs:
            return
        try:
            counts[check(reader, work, main_name)] += 1
        except Failed as failed:
            counts["failed"] += 1
            keep(f"{reader}-guided", number, work, Path(output), failed)
        if number % 1000 == 0 or number + 1 == inputs:
            (folder / "counts.json").write_text(json.dumps(counts))

    # the time of an input is bounded by `check`; this one only ends what hangs in a library, and runs on while the
    # process is stopped or the machine sleeps
    options = [f"-runs={inputs + 100}", f"-seed={int(seed) + 1}", "-max_len=8192", "-timeout=3600"]
    options.append("-rss_limit_mb=4096")
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={output}/{reader}-", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
