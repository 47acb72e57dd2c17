"""CSFM in plain PyTorch: encoder, head of a task where there is one, preprocessing, self-check.

Needs torch, numpy, scipy, safetensors.

    encoder = CSFMEncoder.from_folder(FOLDER)           # verifies every file of the folder first
    result = encoder.embed(signal, rate=500, channels=["I", "II", "PPG"], unit="mV")
    result.pooled, result.tokens, result.channel, result.time, result.report

    model = CSFMTask.from_folder(FOLDER)                # where a fine-tuned model was exported
    result = model.predict(signal, rate=500, channels=["I", "II"], unit="mV")
    result.values, result.decisions, result.report

    python csfm_torch.py --selfcheck                    # exit code 0 agrees, 1 differs, 2 a file was changed
"""

import argparse
import sys
from pathlib import Path

try:
    from .csfm_files import MANIFEST, Refused, manifest_text, verify, verify_beside
except ImportError:
    from csfm_files import MANIFEST, Refused, manifest_text, verify, verify_beside

TOLERANCE = 1e-5

# Before the modules beside this file are imported, so that nothing that was changed is executed.
try:
    verify_beside(__file__, None if __name__ == "__main__" else (".py",))
except Refused as error:
    if __name__ != "__main__":
        raise
    print(f"csfm_torch: {error}", file=sys.stderr)
    sys.exit(2)

import numpy as np  # noqa: E402
import torch  # noqa: E402

try:
    from .csfm_encoder import CSFMEncoder, Encoded, read_spec
    from .csfm_task import CSFMTask, Prediction
except ImportError:
    from csfm_encoder import CSFMEncoder, Encoded, read_spec
    from csfm_task import CSFMTask, Prediction

__all__ = [
    "MANIFEST", "CSFMEncoder", "CSFMTask", "Encoded", "Prediction", "Refused", "manifest_text", "read_spec",
    "selfcheck", "verify",
]  # fmt: skip


def selfcheck(folder):
    """Runs the golden inputs, from raw signals on, and compares with what JAX gave.

    Returns:
        The largest difference, by input: of pooled and token embeddings; and, of "INPUT, task", of the head's scores
        (relative beyond 1) and of the values that `predict` gives.
    """
    encoder = CSFMEncoder.from_folder(folder)
    task = CSFMTask.from_folder(folder) if encoder.config_dict.get("task") else None
    differences = {}
    with np.load(Path(folder) / "golden.npz", allow_pickle=False) as golden:
        for name in sorted({key.split("/")[0] for key in golden.files}):
            case = {key.split("/")[1]: golden[key] for key in golden.files if key.startswith(f"{name}/")}
            text = [int(t) for t in case["text"]] or None
            given = case["signal"], float(case["rate"]), case["channels"].tolist(), case["units"].tolist()
            out = encoder.embed(*given, text=text)
            there = out.channel > 0
            found = {"pooled": out.pooled, "tokens": out.tokens[there]}
            found |= {"channel_out": out.channel[there], "time_out": out.time[there]}
            differences[name] = max(_difference(value.cpu().numpy(), case[field]) for field, value in found.items())
            if task is not None and "scores" in case:
                differences[f"{name}, task"] = _task_difference(
                    task, task.predict(_reaching(task, case), *given[1:]), case
                )
    return differences


def _reaching(task, case):
    """The input as often, one after the other, as reaches beyond the second that the task reads from."""
    signal = case["signal"]
    return np.tile(signal, 1 + int(np.ceil(task.task["begin"] * case["rate"] / signal.shape[1])))


def _task_difference(task, found, case):
    size = np.maximum(1.0, np.abs(case["scores"]))
    scores = _difference(found.scores.cpu().numpy() / size, case["scores"] / size)
    unit = np.array(task.task["scale"] or 1.0)  # a regression's values are as good as its scores
    return max(scores, _difference(np.array(list(found.values.values())) / unit, case["values"] / unit))


def _difference(a, b):
    return float(np.abs(a - b).max()) if a.shape == b.shape and np.isfinite(a).all() else float("inf")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--selfcheck", action="store_true", required=True, help="verify the folder and compare with JAX"
    )
    parser.parse_args()
    torch.manual_seed(0)
    try:
        differences = selfcheck(Path(__file__).resolve().parent)
    except Refused as error:
        print(f"csfm_torch: {error}", file=sys.stderr)
        return 2
    for name, difference in differences.items():
        verdict = "agrees" if difference <= TOLERANCE else "DIFFERS"
        print(f"{name:<20}{verdict} with JAX: largest difference {difference:.2e} (at most {TOLERANCE:.0e})")
    return 0 if differences and max(differences.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
