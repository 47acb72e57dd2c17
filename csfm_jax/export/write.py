"""A checkpoint -> a self-contained PyTorch folder, with its head where it was taught a task. Needs no PyTorch; the
folder appears whole or not at all.

In an object store, where nothing can be put in place at once, the manifest goes first when an earlier export is
replaced, and comes last: what has none is no export.

Nothing in it is pickled: weights are safetensors, golden arrays plain .npy inside .npz, the rest text.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import data_pipelines
from csfm_jax import encoding, tasks
from csfm_jax.config import Config
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.export import card, golden, names, task
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.models.encoder import Encoder
from csfm_jax.models.vocabulary import Vocabulary
from csfm_jax.training import checkpoint
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import Spec
from data_pipelines.signals import CHANNELS, MODALITIES
from data_pipelines.storage import Place, absolute, is_remote

FORMAT = "csfm-export"
_SENDING = ".sending"  # in an object store, while the rest is on its way
TEMPLATES = Path(__file__).parent / "torch"


def export_checkpoint(path: Place, output: Place) -> Place:
    """Exports the encoder of a checkpoint, or of published weights; of a fine-tuned one also its head.

    Args:
        path: what `encoding.load` takes; verified before use.
        output: the folder to write, here or at gs:// or s3://; an earlier export there is replaced, anything else is
            not touched.

    Returns:
        The folder.

    Raises:
        BadInput: no intact checkpoint, a checkpoint of another preprocessing, or `output` holds something else.
    """
    _refuse_foreign(absolute(output))
    loaded = encoding.load(path)
    if "step" not in loaded.provenance:  # published weights tell nothing of their training
        return export(loaded, output)
    if loaded.config.objective.name == "translation":
        found = f"a checkpoint of {loaded.config.adaptation.task}, which predicts signals"
        remedy = "use csfm predict for its signals; export the checkpoint that it began from for embeddings"
        raise BadInput(str(path), found, "an encoder, or one with a head", remedy)
    if loaded.config.adaptation.task and tasks.get(loaded.config.adaptation.task).cut is not None:
        found = f"a checkpoint of {loaded.config.adaptation.task}, which labels stretches of recordings"
        remedy = "use csfm predict for its labels; export the checkpoint that it began from for embeddings"
        raise BadInput(str(path), found, "an encoder, or one with a head for whole recordings", remedy)
    run = checkpoint.read_run(loaded.provenance["path"])  # verified a moment ago
    model = FineTuned.load(path).merged() if loaded.config.adaptation.task else None
    return export(loaded, output, run, model)


def export(loaded: LoadedEncoder, output: Place, run: dict | None = None, model: FineTuned | None = None) -> Place:
    """Exports any encoder; arguments, result and errors as `export_checkpoint`.

    Args:
        run: what its training recorded; the model card tells its numbers.
        model: `FineTuned.merged` of the same checkpoint, where there is a head to export.
    """
    output = absolute(output)
    _refuse_foreign(output)
    if is_remote(output):
        with tempfile.TemporaryDirectory(prefix="csfm-export-") as folder:
            send(export(loaded, Path(folder, "export"), run, model), output)
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        _write_all(loaded, run or {}, model, temporary)
        _write_manifest(temporary)
        temporary.chmod(0o755)
        _replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _write_all(loaded: LoadedEncoder, run: dict, model: FineTuned | None, folder: Path) -> None:
    config = loaded.config
    params = nnx.to_pure_dict(nnx.state(loaded.encoder, nnx.Param))
    state = {f"encoder.{name}": value for name, value in names.to_torch(params).items()}
    if model is not None:
        state |= task.head_to_torch(nnx.to_pure_dict(nnx.state(model.objective.head, nnx.Param)))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _dump(folder / "config.json", model_config(config) | ({"task": task.task_config(model)} if model else {}))
    _dump(folder / "preprocessor_config.json", preprocessor_config(loaded.spec, config))
    for template in sorted(TEMPLATES.glob("*.py")):
        shutil.copyfile(template, folder / template.name)
    for name in ("preprocess.py", "filters.py", "signals.py"):
        shutil.copyfile(Path(data_pipelines.__file__).parent / name, folder / name)
    if loaded.tokenizer_json:
        (folder / "tokenizer.json").write_text(loaded.tokenizer_json, encoding="utf-8")
    cases = golden.cases(config.tokens, config.data.window)
    arrays = golden.arrays(cases, _in_float32(loaded, params)) | (task.golden_arrays(cases, model) if model else {})
    np.savez(folder / "golden.npz", **arrays)
    parameters = sum(v.size for v in state.values())
    (folder / "README.md").write_text(card.text(config, loaded.spec, run, parameters, model), encoding="utf-8")


def model_config(config: Config) -> dict:
    """The content of config.json: what PyTorch needs to build the encoder, and what transformers needs to find it."""
    return {
        "model_type": "csfm",
        "architectures": ["CSFMModel"],
        "auto_map": {"AutoConfig": "configuration_csfm.CSFMConfig", "AutoModel": "modeling_csfm.CSFMModel"},
        "dtype": "float32",
        "encoder": dataclasses.asdict(config.encoder),
        "tokens": dataclasses.asdict(config.tokens),
        "channels": [CHANNELS[i].name for i in Vocabulary.of(config.tokens).channels],
        "window_seconds": config.data.window.seconds,
        "minimum_seconds": config.data.window.minimum_seconds,
    }


def preprocessor_config(spec: Spec, config: Config) -> dict:
    """The content of preprocessor_config.json: the versioned spec, its digest, and the modalities' numbers."""
    fields = ("rate", "unit", "band", "step", "source")
    return {
        "spec": spec.to_dict(),
        "digest": spec.digest(),
        "normalisation": "z-score per window and channel, of valid samples",
        "modalities": {
            m: {"patch": config.tokens.patch[m]} | {f: getattr(MODALITIES[m], f) for f in fields}
            for m in config.tokens.modalities
        },
    }


def _in_float32(loaded: LoadedEncoder, params: dict) -> LoadedEncoder:
    sizes = dataclasses.replace(loaded.config.encoder, compute="float32", remat="none")
    config = dataclasses.replace(loaded.config, encoder=sizes)
    encoder = encoding.with_params(lambda: Encoder(sizes, config.tokens, rngs=nnx.Rngs(0)), params, "encoder")
    return LoadedEncoder(config, encoder, loaded.spec, loaded.tokenizer_json, loaded.provenance)


def _dump(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        with open(path, "rb") as file:
            files[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            os.fsync(file.fileno())
    # exactly in this form: `csfm_torch.manifest_text`, which this process may not be able to import, expects it
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    manifest = {"format": FORMAT, "version": 1, "files": files, "digest": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def send(folder: Path, output: str) -> None:
    """Copies an export into an object store, in place of an earlier one; a kill on the way leaves no export there."""
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    storage.write_bytes(storage.join(output, _SENDING), b"an export that was not sent whole; give the command again\n")
    storage.delete_tree(storage.join(output, "manifest.json"))
    for name in storage.file_sizes(output):
        if name != _SENDING and name not in files:
            storage.delete_tree(storage.join(output, name))
    for name, entry in files.items():
        storage.upload(folder / name, storage.join(output, name), entry["sha256"])
    storage.write_bytes(storage.join(output, "manifest.json"), (folder / "manifest.json").read_bytes())
    storage.delete_tree(storage.join(output, _SENDING))


def _refuse_foreign(output: Place) -> None:
    if not storage.exists(output) or (not is_remote(output) and output.is_dir() and not any(output.iterdir())):
        return
    if is_remote(output) and storage.exists(storage.join(output, _SENDING)):
        return
    with contextlib.suppress(storage.Missing):
        written = storage.read_bytes(storage.join(output, "manifest.json"))
        with contextlib.suppress(ValueError, AttributeError):  # any file may have this name
            if json.loads(written).get("format") == FORMAT:
                return
    raise BadInput(
        str(output), "something that is no export", "a new folder or an earlier export", "choose another one"
    )


def _replace(temporary: Path, output: Path) -> None:
    if not output.exists():
        os.rename(temporary, output)
        return
    # A folder cannot be replaced in one step; the old one is whole beside it until the new one stands.
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    os.rename(output, old / "export")
    os.rename(temporary, output)
    shutil.rmtree(old)
