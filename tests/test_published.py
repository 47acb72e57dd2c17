"""Published weights, written by an independent PyTorch twin of the published encoder, give its embeddings here."""

import copy
import pickle

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from small_stores import mixed_store

import csfm_jax
from csfm_jax.export import names, published
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import normalise
from data_pipelines.signals import CHANNEL_ID

torch = pytest.importorskip("torch")
nn = torch.nn

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SIZES = dict(width=24, depth=2, heads=2, mlp=40, words=50, text_length=8)


class TwinAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.scale = heads, 64**-0.5
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * 64 * heads, bias=False)
        self.to_out = nn.Sequential(nn.Linear(64 * heads, width), nn.Dropout(0.1))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, 64).permute(0, 2, 1, 3) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1)
        return self.to_out((weights @ v).permute(0, 2, 1, 3).reshape(b, n, -1))


class TwinMlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, width),
            nn.Dropout(0.1),
        )

    def forward(self, x):
        return self.net(x)


class TwinTransformer(nn.Module):
    def __init__(self, width, depth, heads, mlp):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            [nn.ModuleList([TwinAttention(width, heads), TwinMlp(width, mlp)]) for _ in range(depth)]
        )

    def forward(self, x):
        for attention, mlp in self.layers:
            x = attention(x) + x
            x = mlp(x) + x
        return self.norm(x)


class Twin(nn.Module):
    """Written from the table of published names and shapes alone; knows nothing of this project's model."""

    def __init__(self, width, depth, heads, mlp, words, text_length):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.ts_channel_type_embedding = nn.Parameter(torch.randn(1, 13, width))
        self.ts_pos_embedding = nn.Parameter(torch.randn(1, 100, width))
        self.text_type_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.text_pos_embedding = nn.Parameter(torch.randn(1, text_length, width))
        self.ts_to_patch_embedding = nn.Sequential(
            nn.Unflatten(-1, (-1, 25)), nn.LayerNorm(25), nn.Linear(25, width), nn.LayerNorm(width)
        )
        self.text_to_embedding = nn.Sequential(nn.Embedding(words, width), nn.LayerNorm(width))
        self.transformer = TwinTransformer(width, depth, heads, mlp)
        self.mlp_head = nn.Linear(width, 1)

    def forward(self, signals, channels, text=None):
        """[1, C, samples], C ids of the published order, [n] token ids -> [1, tokens, width]: CLS, signals, text."""
        x = self.ts_to_patch_embedding(signals)
        patches = x.shape[2]
        x = x + self.ts_channel_type_embedding[0, channels][None, :, None] + self.ts_pos_embedding[:, None, :patches]
        sequence = [self.cls_token, x.flatten(1, 2)]
        if text is not None:
            words = self.text_to_embedding(text)[None]
            sequence.append(words + self.text_pos_embedding[:, : len(text)] + self.text_type_embedding)
        return self.transformer(torch.cat(sequence, dim=1))


@pytest.fixture(scope="module")
def twin():
    torch.manual_seed(0)
    model = Twin(**SIZES).eval()
    with torch.no_grad():  # no parameter may stay at 0 or 1, where a swap would not show
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def state(twin):
    return {f"encoder.{name}": value.clone() for name, value in twin.state_dict().items()}


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file({k: v.numpy() for k, v in state.items()}, path)
    return csfm_jax.load_published_csfm(path)


CASES = {
    "12 leads": (LEADS, 2500, None),
    "one lead": (("II",), 2500, None),
    "leads in another order": (("V5", "I", "aVF"), 1250, None),
    "PPG only": (("PPG",), 2000, None),
    "ECG, PPG and text": (("PPG", "II", "V1"), 2500, [7, 3, 49, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_the_twins(imported, twin, case):
    channels, samples, text = CASES[case]
    rng = np.random.default_rng(len(case))
    signal = np.cumsum(rng.standard_normal((len(channels), samples)), axis=1).astype(np.float32)
    scored = torch.from_numpy(
        normalise(signal)
    )  # `encode` does it too; a rounding error in here shows in smooth patches
    ids = torch.tensor([CHANNEL_ID[c] - 1 for c in channels])
    with torch.no_grad():
        # in float64, so that the tolerance is for our rounding alone
        words = None if text is None else torch.tensor(text)
        expected = copy.deepcopy(twin).double()(scored[None].double(), ids, words)[0].numpy()
    found = imported.encode(signal, channels, text)
    patches = samples // 25
    order = [("CLS", 0.0)] + [(c, i) for c in channels for i in range(patches)]
    order += [("TEXT", i) for i in range(len(text or []))]
    place = {key: row for row, key in enumerate(order)}
    rows = [place[c, int(t) if c == "TEXT" else int(t / 0.1)] for c, t in zip(found.channel, found.time)]
    assert sorted(rows) == list(range(len(order)))
    np.testing.assert_allclose(found.tokens, expected[rows], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.pooled[0], expected[0], rtol=0, atol=1e-5)


def test_sizes_spec_and_head(imported, state):
    config = imported.config
    assert (config.encoder.width, config.encoder.depth, config.encoder.heads, config.encoder.mlp) == (24, 2, 2, 40)
    assert (config.tokens.text_vocabulary, config.tokens.text_length, config.tokens.channels) == (50, 8, "csfm")
    assert (config.encoder.position_steps, config.encoder.position_seconds, config.data.window.seconds) == (
        100,
        0.1,
        10,
    )
    assert imported.spec.name == "csfm-published"
    assert imported.provenance["left_out"] == ["encoder.mlp_head.bias", "encoder.mlp_head.weight"]


def test_raw_recordings_get_the_published_cleaning(imported):
    signal = np.cumsum(np.random.default_rng(0).standard_normal((1, 5000)), axis=1) / 50
    result = imported.embed(signal, rate=500, channels=["II"], unit="mV")
    assert result.pooled.shape == (1, 24) and "neurokit2 cleaning" in result.report[0]["done"]


@pytest.mark.parametrize("form", ["prefixed", "plain", "nested", "half precision"])
def test_pytorch_files_give_the_same_parameters(state, twin, tmp_path, form):
    tensors = state if form == "prefixed" else twin.state_dict()
    saved = {"epoch": 3, "state_dict": tensors} if form == "nested" else tensors
    if form == "half precision":
        saved = {k: v.bfloat16() for k, v in tensors.items()}
    torch.save(saved, tmp_path / "tiny.pt")
    made = published.parameters(tmp_path / "tiny.pt")
    back = names.to_torch(made.params)
    for name, value in twin.state_dict().items():
        if not name.startswith("mlp_head"):
            wanted = value.bfloat16().float() if form == "half precision" else value
            np.testing.assert_array_equal(back.pop(name), wanted.numpy(), err_msg=name)
    assert not back


def test_other_heads_are_reported_and_left_out(state, tmp_path, caplog):
    saved = state | {"encoder.dense_head.head.0.weight": torch.ones(3), "decoder.norm.weight": torch.ones(2)}
    torch.save(saved, tmp_path / "tiny.pt")
    with caplog.at_level("WARNING"):
        made = published.parameters(tmp_path / "tiny.pt")
    assert {"encoder.dense_head.head.0.weight", "decoder.norm.weight", "encoder.mlp_head.bias"} <= set(made.left_out)
    assert "dense_head" in caplog.text


def changed(state, **changes):
    state = {k: v.numpy() for k, v in state.items()}
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("transformer.layers.1.0.to_qkv.weight", None, "no such key"),
        ("transformer.layers.1.0.to_qkv.bias", ones(384), "no such key"),
        ("transformer.layers.3.0.norm.weight", ones(24), "layers.2"),
        ("transformer.layers.0.0.to_qkv.weight", ones(200, 24), "multiple of 192"),
        ("transformer.layers.1.1.net.4.weight", ones(40, 24), "shape (24, 40)"),
        ("ts_channel_type_embedding", ones(1, 12, 24), "shape (1, 13, 24)"),
        ("cls_token", None, "no such key"),
        ("cls_token", ones(24), "3 axes"),
        ("transformer.norm.bias", np.full(24, np.nan, np.float32), "finite"),
    ],
)
def test_what_does_not_fit_is_named(state, tmp_path, key, value, words):
    path = tmp_path / "tiny.safetensors"
    save_file(changed(state, **{f"encoder.{key}": value}), path)
    with pytest.raises(BadInput) as caught:
        csfm_jax.load_published_csfm(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert key in str(caught.value) or "layers.2" in words


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_unreadable_files_are_refused(state, tmp_path, capsys):
    whole = tmp_path / "whole.safetensors"
    save_file({k: v.numpy() for k, v in state.items()}, whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-7])
    (tmp_path / "noise.pt").write_bytes(bytes(range(200)))
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile()))
    torch.save({"encoder.cls_token": Hostile()}, tmp_path / "hostile_zip.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    for path in sorted(tmp_path.iterdir()):
        if path != whole:
            with pytest.raises(BadInput, match=path.name):
                csfm_jax.load_published_csfm(path)
    with pytest.raises(BadInput, match="no such file"):
        csfm_jax.load_published_csfm(tmp_path / "absent.pt")
    assert "executed" not in capsys.readouterr().out


def test_published_weights_are_taken_where_checkpoints_are(state, imported, tmp_path):
    from csfm_jax.config import Config
    from csfm_jax.training import initial

    weights = tmp_path / "tiny.safetensors"
    save_file({k: v.numpy() for k, v in state.items()}, weights)
    loaded = csfm_jax.load(weights)
    window = np.cumsum(np.random.default_rng(0).standard_normal((1, 2500)), axis=1)
    assert np.array_equal(loaded.encode(window, ["II"]).pooled, imported.encode(window, ["II"]).pooled)

    config = loaded.config
    begun = initial.read(str(weights), config, [], None)
    assert begun.about["sha256"] == loaded.provenance["sha256"] and begun.about["subjects"] is None
    with pytest.raises(BadInput, match=r"config.encoder.width: found 768; expected 24, as in .*tiny.safetensors"):
        initial.read(str(weights), Config(), [], None)
    ours = mixed_store(tmp_path / "store", recordings=3)
    with pytest.raises(BadInput, match="csfm-published"):
        initial.read(str(weights), config, [ours], None)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "sinus": 1}, unk_token="[UNK]")).to_str()
    with pytest.raises(BadInput, match="config.data.tokenizer: found 2 words; expected 50"):
        initial.read(str(weights), config, [], words)
