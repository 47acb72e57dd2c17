"""`csfm COMMAND ...`: finds the command, runs it, and turns bad input into one line and exit code 2.

Imports nothing heavy: `csfm --help` answers at once; a command's module is imported when it is called.
"""

import argparse
import errno
import importlib
import sys

from csfm_jax.starting import ended_by_signals

COMMANDS = {
    "prepare": "recordings -> a verified, patient-split store",
    "data": "what a store holds; a config's packing plan; suggested row length",
    "train": "pretrain, or go on where the same command stopped",
    "finetune": "teach a checkpoint a task, or go on where the same command stopped",
    "calibrate": "temperatures and decision thresholds of a fine-tuned checkpoint, on validation recordings",
    "predict": "predictions of a fine-tuned checkpoint for recordings of a split",
    "plan": "will it fit on these TPUs, how fast at best: compiles with no TPU at hand",
    "evaluate": "models compared over tasks and sensors, or a linear probe against random initialisation",
    "audit": "how far embeddings move under gain, wander, mains, sampling, shifts and lost leads",
    "embed": "embeddings of many recordings, to Parquet",
    "show": "a recording on ECG paper with masked patches and their reconstruction, to PNG",
    "launch": "job files for TPU pods, GKE, SLURM, SkyPilot or this machine",
    "export": "a checkpoint as a self-contained PyTorch folder",
}

_GOES_ON = "free space or choose another folder, then give the same command again: it goes on"
_REMEDIES = {
    errno.ENOSPC: f"expected room; {_GOES_ON}",
    errno.EDQUOT: f"expected room; {_GOES_ON}",
    errno.EFBIG: "expected the right to write larger files; raise it (ulimit -f), then give the same command again",
    errno.ENOLCK: "expected a disk that gives locks; choose a place on another one",
    errno.EIO: "expected a sound disk; look at the system's log, or choose another place",
    errno.EACCES: "expected the right to read and write there; choose another place, or change its permissions",
    errno.EPERM: "expected the right to read and write there; choose another place, or change its permissions",
    errno.EROFS: "expected a place that can be written; choose another one",
    errno.ENOENT: "expected a file or folder that exists; correct the path",
    errno.EEXIST: "expected a folder, or nothing yet; choose another name",
    errno.ENOTDIR: "expected a folder; correct the path",
    errno.EISDIR: "expected a file; correct the path",
    errno.ENAMETOOLONG: "expected a shorter name; choose one",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 2 bad input)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in COMMANDS:
        lines = [f"  {name:<10}{help}" for name, help in COMMANDS.items()]
        text = "usage: csfm COMMAND [options]\n\n" + "\n".join(lines) + "\n\ncsfm COMMAND --help lists its options"
        if not argv or argv[0] in ("-h", "--help"):
            print(text)
            return 0
        print(f"csfm: found no command {argv[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    with ended_by_signals(argv[0], argv[1:]):
        return _run(argv[0], argv[1:])


def _run(name: str, words: list[str]) -> int:
    try:
        command = importlib.import_module(f"csfm_jax.commands.{name}")
        parser = argparse.ArgumentParser(prog=f"csfm {name}", description=command.__doc__, allow_abbrev=False)
        command.arguments(parser)
        args, rest = parser.parse_known_args(words)
        overrides = [w for w in rest if w.startswith("--config.") and "=" in w]
        if unknown := [w for w in rest if w not in overrides] or (overrides and not hasattr(args, "config")):
            parser.error(f"unknown arguments: {' '.join(unknown if isinstance(unknown, list) else overrides)}")
        args.overrides = overrides
        return command.run(args) or 0
    except (Exception, KeyboardInterrupt) as error:
        line, code = _answer(name, error)
        if companions := sys.modules.get("csfm_jax.training.companions"):
            companions.leave(f"csfm {name}", error, line, code)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return code


def _answer(name: str, error: BaseException) -> tuple[str | None, int]:
    """The line that says what the user can do about an error, None where that is not known; and the exit code."""
    from data_pipelines.errors import BadInput

    if isinstance(error, BadInput):
        return f"csfm {name}: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return f"csfm {name}: interrupted", 130
    if isinstance(error, OSError) and (remedy := _REMEDIES.get(error.errno)):
        found = (error.strerror or str(error)).lower()
        return f"csfm {name}: {error.filename or 'output'}: found {found}; {remedy}", 2
    return None, 1


if __name__ == "__main__":
    sys.exit(main())
