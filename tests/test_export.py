"""An exported folder gives the embeddings of JAX in PyTorch, from raw signals on, and refuses any changed file."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from csfm_jax.cli import main
from csfm_jax.config import Config
from csfm_jax.config import load as load_config
from csfm_jax.encoding import LoadedEncoder, with_params
from csfm_jax.export import golden, published
from csfm_jax.export.write import export
from csfm_jax.models import position
from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.encoder import Encoder
from csfm_jax.training.checkpoint import Checkpoints
from data_pipelines.config import DataConfig, TokenConfig, WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import get_spec

TINY = EncoderConfig(width=24, depth=2, heads=2, head_dim=8, mlp=40)
TEXT = dict(text_vocabulary=40, text_length=16)
EVERY = ("ecg", "ppg", "resp", "spo2", "abp", "eeg", "emg")
PATCH = TokenConfig().patch | {"ppg": 50, "resp": 5, "spo2": 1}
# as short as the filters allow: what costs time here is compiling
SHORT = DataConfig(window=WindowConfig(seconds=1.0, minimum_seconds=0.8))


def variant(tokens, data=SHORT, **encoder):
    return Config(tokens=tokens, encoder=dataclasses.replace(TINY, **encoder), data=data)


VARIANTS = {
    "published": variant(TokenConfig(channels="csfm", **TEXT), DataConfig()),
    "sincos": variant(
        TokenConfig(modalities=EVERY[:3], patch=PATCH, text_length=0),
        position="sincos",
        projection="modality",
        output="average",
        pooling="mean",
    ),
    "rotary": variant(
        TokenConfig(modalities=EVERY, patch=PATCH, **TEXT),
        position="rotary",
        pooling="mean",
        compute="bfloat16",
        remat="full",
    ),
    "learned by modality": variant(
        TokenConfig(modalities=EVERY[:4], patch=PATCH, **TEXT), projection="modality", heads=1, head_dim=16
    ),
    "csfm_nano": load_config("csfm_nano"),
}


def trained(config: Config, spec: str = "csfm-jax") -> LoadedEncoder:
    """An encoder none of whose parameters is 0 or 1, so that a forgotten or swapped one shows."""

    def build():
        return Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0))

    rng = np.random.default_rng(0)
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(build), nnx.Param))
    for path, leaf in jax.tree.leaves_with_path(params):
        *parents, last = (key.key for key in path)
        # large weights would make attention sharp, and rounding errors larger than those of any trained model
        scale = 1.0 if "place" in parents or last == "cls" else 0.7 * config.encoder.width**-0.5
        values = (last == "scale") + scale * rng.standard_normal(leaf.shape)
        functools.reduce(dict.__getitem__, parents, params)[last] = values.astype(np.float32)
    return LoadedEncoder(config, with_params(build, params, "test"), get_spec(spec), '{"model": null}', {})


def pytorch(folder):
    """The folder's csfm_torch, imported as part of a package of its own."""
    pytest.importorskip("torch")
    name = "exported_" + "".join(c if c.isalnum() else "_" for c in str(folder))
    if name not in sys.modules:
        package = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, None, is_package=True))
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return importlib.import_module(f"{name}.csfm_torch")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(encoder in JAX, its exported folder) of the variant that resembles the published model."""
    loaded = trained(VARIANTS["published"])
    run = {"step": 7, "versions": {"jax": jax.__version__}}
    return loaded, export(loaded, tmp_path_factory.mktemp("published") / "out", run)


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_inputs_agree(name, base, tmp_path):
    config = VARIANTS[name]
    folder = base[1] if name == "published" else export(trained(config), tmp_path / "out")
    differences = pytorch(folder).selfcheck(folder)
    expected = {"twelve_leads", "one_lead", "ppg_only", "ecg_ppg_text"}
    assert set(differences) == expected | ({"one_of_each"} if set(config.tokens.modalities) - {"ecg", "ppg"} else set())
    assert max(differences.values()) <= 1e-5


def test_golden_inputs_are_raw_and_hostile(base):
    with np.load(base[1] / "golden.npz", allow_pickle=False) as arrays:
        assert arrays["twelve_leads/signal"].shape == (12, 5000) and arrays["twelve_leads/rate"] == 500
        assert arrays["twelve_leads/tokens"].shape == (1201, 24) and arrays["twelve_leads/pooled"].shape == (1, 24)
        mixed, channel = arrays["ecg_ppg_text/signal"], arrays["ecg_ppg_text/channel_out"]
    assert np.isnan(mixed[1]).any() and np.ptp(mixed[2]) == 0
    ids, counts = np.unique(channel, return_counts=True)
    # CLS once, I and PPG whole, II with a hole of 0.78 s, V2 absent, text
    assert dict(zip(ids.tolist(), counts.tolist())) == {1: 100, 2: 91, 13: 100, 14: 1, 15: 12}


def test_positions_of_long_windows(base):
    torch = pytest.importorskip("torch")
    layers = sys.modules[pytorch(base[1]).__name__.replace("csfm_torch", "csfm_layers")]
    time = np.linspace(0.05, 1000.0, 77, dtype=np.float32)[None]
    x = np.random.default_rng(0).standard_normal((1, 77, 2, 8)).astype(np.float32)
    expected = position.rotate(jax.numpy.asarray(x), position.angles(jax.numpy.asarray(time), 4))
    # PyTorch has heads before tokens
    found = layers._rotate(torch.from_numpy(x).transpose(1, 2), layers.angles(torch.from_numpy(time), 4))
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, rtol=0, atol=1e-5)


def test_a_wrong_parameter_shows(base, tmp_path):
    torch = pytest.importorskip("torch")
    module = pytorch(base[1])
    with np.load(base[1] / "golden.npz", allow_pickle=False) as arrays:
        signal, wanted = arrays["one_lead/signal"], arrays["one_lead/pooled"]
    for name, _ in module.CSFMEncoder.from_folder(base[1]).named_parameters():
        encoder = module.CSFMEncoder.from_folder(base[1])
        with torch.no_grad():
            dict(encoder.named_parameters())[name].mul_(1.1)
        moved = np.abs(encoder.embed(signal, 500, ["II"]).pooled.numpy() - wanted).max()
        assert moved > 1e-5 or name.startswith("text_"), name


def test_long_recordings_give_the_same_windows(base):
    loaded, folder = base
    case = golden.cases(loaded.config.tokens, WindowConfig(seconds=34.0, minimum_seconds=34.0))["one_lead"]
    signal = case.signal.copy()
    signal[:, 4900:10100] = np.nan  # the second window is dead
    expected = loaded.embed(signal, 500, ["MLII"], "mV")
    encoder = pytorch(folder).CSFMEncoder.from_folder(folder)
    encoder.most = 1
    found = encoder.embed(signal, 500, ["MLII"], "mV")
    assert expected.starts.tolist() == found.starts.tolist() == [0.0, 20.0]
    np.testing.assert_allclose(found.pooled.numpy(), expected.pooled, rtol=0, atol=1e-5)
    there = found.channel > 0
    np.testing.assert_allclose(found.tokens[there].numpy(), expected.tokens, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.time[there].numpy(), expected.time)


def test_a_padded_batch_equals_each_window_alone(base):
    loaded, folder = base
    encoder = pytorch(folder).CSFMEncoder.from_folder(folder)
    windows = np.random.default_rng(3).standard_normal((2, 2, 1000)).astype(np.float32)
    windows[0, 0, 300:420] = np.nan
    windows[1, 0, 700:] = np.nan
    out = encoder.encode(windows, [["V2", "PPG"], ["aVR", "PAD"]], text=[[5, 9, 0], [8, 0, 0]])
    alone = [loaded.encode(windows[0], ["V2", "PPG"], [5, 9]), loaded.encode(windows[1, :1], ["aVR"], [8])]
    for row, expected in enumerate(alone):
        np.testing.assert_allclose(out.pooled[row].numpy(), expected.pooled[0], rtol=0, atol=1e-5)
        there = out.channel[row] > 0
        np.testing.assert_allclose(out.tokens[row][there].numpy(), expected.tokens, rtol=0, atol=1e-5)
        assert not out.tokens[row][~there].any()


def test_unusable_input_is_refused_in_one_line(base):
    module = pytorch(base[1])
    encoder = module.CSFMEncoder.from_folder(base[1])
    noise = np.random.default_rng(0).standard_normal((1, 5000))
    for attempt in (
        lambda: encoder.embed(noise, 500, ["C4"], "uV"),
        lambda: encoder.embed(np.zeros((1, 5000)), 500, ["II"]),
        lambda: encoder.embed(noise[:, :500], 500, ["II"]),
        lambda: encoder.embed(noise[0], 500, ["II"]),
        lambda: encoder.encode(noise[None, :, :3000], ["II"]),
        lambda: encoder.encode(noise[None, :, :2500], ["EEG C4"]),
        lambda: encoder.encode(noise[None, :, :2500], ["II"], [[1] * 17]),
    ):
        with pytest.raises(module.Refused, match="expected") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def run(*words, **options):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, **options
    )


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
"""


def test_the_folder_stands_alone(base, tmp_path):
    """In a process that can import nothing but what the card names."""
    pytest.importorskip("torch")
    blocked = ("jax", "jaxlib", "flax", "csfm_jax", "data_pipelines", "transformers", "neurokit2", "wfdb", "tokenizers")
    code = (
        BLOCK.format(names=blocked)
        + f"""
import runpy
sys.argv = ["csfm_torch.py", "--selfcheck"]
sys.path.insert(0, {str(base[1])!r})
runpy.run_path({str(base[1] / "csfm_torch.py")!r}, run_name="__main__")
"""
    )
    done = run("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("agrees with JAX") == 4


def test_selfcheck_tells_a_difference(base, tmp_path):
    """A golden output that is another model's, in a folder whose manifest is right."""
    pytest.importorskip("torch")
    folder = shutil.copytree(base[1], tmp_path / "out")
    with np.load(folder / "golden.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays.files}
    changed["one_lead/tokens"][7, 3] += 1e-3
    np.savez(folder / "golden.npz", **changed)
    manifest = folder / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    content = (folder / "golden.npz").read_bytes()
    files["golden.npz"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(pytorch(base[1]).manifest_text(files))
    done = run(folder / "csfm_torch.py", "--selfcheck")
    assert done.returncode == 1 and done.stdout.count("DIFFERS") == 1 and done.stdout.count("agrees") == 3


def test_transformers_load_it(base, tmp_path):
    pytest.importorskip("transformers")
    code = """
import sys, numpy as np
from transformers import AutoConfig, AutoModel
folder, copy, signal = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
x = np.load(folder + "/golden.npz")
print(np.abs(model.embed(x["one_lead/signal"], 500, ["II"], "mV").pooled.numpy() - x["one_lead/pooled"]).max())
model.save_pretrained(copy)
with open(folder + "/model.safetensors", "r+b") as file:
    file.seek(-5, 2); byte = file.read(1)[0]; file.seek(-1, 1); file.write(bytes([byte ^ 4]))
try:
    AutoModel.from_pretrained(folder, trust_remote_code=True)
except ValueError as error:
    print(type(error).__name__, error)
"""
    folder = shutil.copytree(base[1], tmp_path / "model")
    done = run("-c", code, folder, tmp_path / "copy", "", env={"HF_HOME": str(tmp_path / "cache")})
    difference, refusal = done.stdout.splitlines()
    assert float(difference) <= 1e-5
    assert refusal.startswith("Refused") and "model.safetensors" in refusal
    assert {"config.json", "model.safetensors", "preprocess.py"} <= {p.name for p in (tmp_path / "copy").iterdir()}


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_every_changed_file_is_refused_by_name(base, tmp_path, harm):
    folder = shutil.copytree(base[1], tmp_path / "out")
    module, rng = pytorch(base[1]), np.random.default_rng(0)
    files = sorted(p for p in folder.iterdir() if p.is_file())  # importing the module may leave its cache there
    assert len(files) == 17
    module.verify(folder)
    for path in files:
        content = path.read_bytes()
        if harm == "flipped":
            flip(path, int(rng.integers(8 * len(content))))
        elif harm == "cut":
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        with pytest.raises(module.Refused, match=path.name):
            module.CSFMEncoder.from_folder(folder)
        if path.name not in ("csfm_torch.py", "csfm_files.py"):  # nothing else can check those that check
            done = run(folder / "csfm_torch.py", "--selfcheck")
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
            assert path.name in done.stderr
        path.write_bytes(content)


def test_no_bit_of_the_manifest_is_free(base, tmp_path):
    folder = shutil.copytree(base[1], tmp_path / "out")
    module, path = pytorch(base[1]), folder / "manifest.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 41):
        flip(path, bit)
        with pytest.raises(module.Refused):
            module.verify(folder)
        path.write_bytes(content)


def test_nothing_is_pickled(base):
    for path in (p for p in base[1].iterdir() if p.is_file()):
        content = path.read_bytes()
        assert not content.startswith(b"\x80") and b"\x93NUMPY" not in content[:6]
    with np.load(base[1] / "golden.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fiU" for name in arrays.files)


def test_config_card_and_code(base):
    loaded, folder = base
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_csfm.CSFMModel" and config["model_type"] == "csfm"
    assert config["channels"][:2] == ["I", "II"] and len(config["channels"]) == 13
    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessing["digest"] == loaded.spec.digest() and preprocessing["spec"] == loaded.spec.to_dict()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense:") and loaded.spec.digest() in card and "7 of" in card
    assert (folder / "tokenizer.json").read_text() == '{"model": null}'


@pytest.fixture
def no_golden(monkeypatch):
    """Exports that are not about the golden inputs compile nothing for them."""
    monkeypatch.setattr(golden, "cases", lambda tokens, window: {})


def test_the_command_exports_a_checkpoint(base, tmp_path, no_golden, capsys):
    loaded, _ = base
    params = {"encoder": nnx.to_pure_dict(nnx.state(loaded.encoder, nnx.Param)), "decoder": {"bias": np.ones(3)}}
    stores = {"ptbxl": {"digest": "ab", "recordings": 17441, "subjects": 15106}}
    record = {"config": loaded.config.to_dict(), "preprocessing": loaded.spec.to_dict(), "tokenizer": None}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    optimizer = {"count": jax.numpy.zeros(())}
    checkpoints.save(3, jax.tree.map(jax.numpy.asarray, params), optimizer, record | {"step": 3, "stores": stores})
    checkpoints.close()
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    assert "--selfcheck" in capsys.readouterr().out
    assert "ptbxl: 17,441 recordings, 15,106 subjects" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as weights:
        assert all(name.startswith("encoder.") for name in weights.keys())
        cls = weights.get_tensor("encoder.cls_token")
    np.testing.assert_array_equal(cls[0, 0], params["encoder"]["tokenizer"]["cls"])

    biggest = max((tmp_path / "run").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    flip(biggest, 1234)
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "new")]) == 2
    assert biggest.name in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_published_names_make_the_round_trip(tmp_path, no_golden):
    config = variant(TokenConfig(channels="csfm", **TEXT), DataConfig(), head_dim=64)
    loaded = trained(config, "csfm-published")
    folder = export(loaded, tmp_path / "out")
    back = published.load_published_csfm(folder / "model.safetensors")
    assert back.config == config and back.spec == loaded.spec
    one, two = (nnx.to_pure_dict(nnx.state(x.encoder, nnx.Param)) for x in (loaded, back))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_output_is_replaced_only_if_it_is_an_export(base, tmp_path, no_golden):
    loaded, _ = base
    folder = export(loaded, tmp_path / "a" / "out")
    assert export(loaded, folder) == folder and not list(folder.parent.glob(".*"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(BadInput, match="mine"):
        export(loaded, mine)
    assert (mine / "notes.txt").read_text() == "keep"
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput):
        export(loaded, tmp_path / "file")


def test_a_failed_export_leaves_nothing(base, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(golden, "cases", full)
    with pytest.raises(OSError):
        export(base[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_writing_needs_no_pytorch(tmp_path):
    code = (
        BLOCK.format(names=("torch", "transformers"))
        + """
import jax
import numpy as np
from flax import nnx
from csfm_jax.config import Config
from csfm_jax.encoding import LoadedEncoder, with_params
from csfm_jax.export import golden, write
from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.encoder import Encoder
from data_pipelines.preprocess import get_spec
config = Config(encoder=EncoderConfig(width=64, depth=1, heads=1, mlp=64))
build = lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0))
shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(build), nnx.Param))
params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
golden.cases = lambda *words: {}
write.export(LoadedEncoder(config, with_params(build, params, "test"), get_spec("csfm-jax")), sys.argv[1])
"""
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = run("-c", code, tmp_path / "out", cwd=root, env={"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
