"""A loaded encoder: raw signals and prepared windows, alone or with neighbours, and everything that is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from small_checkpoints import toy_config, toy_params, write_checkpoint
from small_stores import LEADS, mixed_store

import csfm_jax
from csfm_jax import encoding
from csfm_jax.evaluation import features
from csfm_jax.models.encoder import Encoder
from csfm_jax.training import record
from data_pipelines import preprocess
from data_pipelines.errors import BadInput
from data_pipelines.recording import Channel, Recording
from data_pipelines.signals import CHANNEL_ID


@pytest.fixture(scope="module")
def encoder():
    return _encoder(toy_config())


def _encoder(config, seed=1):
    params = toy_params(config, seed)["encoder"]
    encoder = encoding.with_params(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)), params, "toy")
    return encoding.LoadedEncoder(config, encoder, preprocess.get_spec("csfm-jax"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), toy_config(), subjects=["00000000000000aa"])


def _signal(channels=3, seconds=9.0, rate=500, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(0, 0.02, (channels, round(seconds * rate))), axis=1)


def test_importing_the_package_imports_no_jax():
    code = "import csfm_jax, sys; assert csfm_jax.__version__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        csfm_jax.nothing  # noqa: B018


def test_embedding_a_raw_recording_tells_windows_tokens_and_what_was_done(encoder):
    signal = _signal(4, seconds=9.0)
    signal[1] = np.nan
    result = encoder.embed(signal, rate=500, channels=["I", "II", "PLETH", "gyroscope"], unit=["mV", "mV", "NU", "deg"])
    assert result.pooled.shape == (2, 24) and result.pooled.dtype == np.float32
    assert result.starts.tolist() == [0.0, 4.0] and result.seconds == 4.0
    assert result.tokens.shape == (2 * (1 + 8 + 8), 24)
    assert result.channel[:2] == ("CLS", "I") and result.channel.count("PPG") == 16
    first, second = result.time[result.window == 0], result.time[result.window == 1]
    assert first[:3].tolist() == [0.0, 0.25, 0.75] and np.array_equal(second, first + 4)
    assert result.embedding == pytest.approx(result.pooled.mean(axis=0))
    fates = {row["name"]: (row["status"], row.get("reason")) for row in result.report}
    assert fates["I"] == fates["PLETH"] == ("kept", None)
    assert fates["II"] == ("dropped", "flat or invalid throughout") and fates["gyroscope"] == (
        "dropped",
        "unknown name",
    )
    assert "500 -> 250 Hz" in result.report[0]["done"]


def test_a_kernel_that_a_run_named_for_its_own_devices_is_left_to_auto_on_others(tmp_path):
    workdir = write_checkpoint(tmp_path, toy_config(attention="splash"))
    assert encoding.load(workdir).embed(_signal(1), 500, ["I"], "mV").pooled.shape == (2, 24)
    assert encoding.load_objective(workdir)[1].config == encoding.about(workdir).config == toy_config(attention="auto")


def test_units_of_each_channel_and_recordings_give_the_same_embedding(encoder):
    signal = _signal(2)
    result = encoder.embed(signal, 500, ["I", "V1"], "mV", mains=50)
    mixed = encoder.embed(signal * [[1], [1000]], [500, 500], ["I", "V1"], ["mV", "uV"], mains=50)
    assert mixed.pooled == pytest.approx(result.pooled, abs=1e-5)
    channels = tuple(Channel(n, 500.0, "mV", x.astype(np.float32)) for n, x in zip(("I", "V1"), signal))
    recording = Recording(channels, subject="a", study="b", source="c", mains=50.0)
    assert np.array_equal(encoder.embed(recording).pooled, result.pooled)


def test_an_embedding_does_not_depend_on_the_order_of_channels_or_on_what_is_unusable(encoder):
    signal = _signal(3)
    result = encoder.embed(signal, 500, ["I", "II", "PPG"])
    turned = encoder.embed(signal[::-1], 500, ["PPG", "II", "I"])
    assert turned.pooled == pytest.approx(result.pooled, abs=1e-5)
    more = np.concatenate([signal, np.full((1, signal.shape[1]), np.nan)])
    assert encoder.embed(more, 500, ["I", "II", "PPG", "V6"]).pooled == pytest.approx(result.pooled, abs=1e-5)
    assert np.abs(encoder.embed(signal[:2], 500, ["I", "II"]).pooled - result.pooled).max() > 1e-3


def test_a_gap_takes_away_its_tokens_and_an_empty_window_is_left_out(encoder):
    signal = _signal(1, seconds=12.0)
    signal[0, 1300:1350] = np.nan  # inside the token from 2.5 s to 3 s
    signal[0, 4 * 500 - 50 : 8 * 500 + 50] = np.nan
    result = encoder.embed(signal, 500, ["II"])
    assert result.starts.tolist() == [0.0, 8.0] and result.pooled.shape == (2, 24)
    assert 2.75 not in result.time and 2.25 in result.time and 3.75 not in result.time


def test_encode_is_embed_without_the_preprocessing(encoder):
    signal = _signal(2, seconds=4.0)
    result = encoder.embed(signal, 500, ["I", "PPG"])
    given = [("I", 500.0, "mV", 0.0, signal[0]), ("PPG", 500.0, "mV", 0.0, signal[1])]
    made = preprocess.prepare(given, spec=encoder.spec)
    window = np.stack(made.samples).astype(float)
    encoded = encoder.encode(window, ["I", "PPG"])
    assert encoded.pooled == pytest.approx(result.pooled, abs=1e-5) and encoded.report == []
    assert encoder.encode(window * 0.37 + 5, ["I", 13]).pooled == pytest.approx(result.pooled, abs=1e-4)
    rates = encoder.encode([window[0], window[1], np.sin(np.arange(100))], ["I", "PPG", "RESP"])
    assert rates.channel.count("RESP") == 4 and rates.channel.count("I") == 8


def test_text_joins_every_window_as_ids_or_as_words(encoder, tmp_path):
    tokenizer = _tokenizer()
    signal = _signal(1, seconds=8.0)
    plain = encoder.embed(signal, 500, ["II"])
    ids = encoder.embed(signal, 500, ["II"], text=[7, 8, 9, 10, 11, 12, 13, 14])
    assert ids.channel.count("TEXT") == 2 * 6  # cut to the six that the model reads
    assert ids.time[np.array(ids.channel) == "TEXT"].tolist() == 2 * [0, 1, 2, 3, 4, 5]
    assert np.abs(ids.pooled - plain.pooled).max() > 1e-3
    with pytest.raises(BadInput, match="no tokenizer"):
        encoder.embed(signal, 500, ["II"], text="sinus rhythm")
    worded = encoding.LoadedEncoder(encoder.config, encoder.encoder, encoder.spec, tokenizer.to_str())
    words = worded.embed(signal, 500, ["II"], text="Sinus  rhythm.\nCompared to yesterday")
    want = tokenizer.encode("sinus rhythm", add_special_tokens=False).ids
    assert np.array_equal(words.pooled, encoder.embed(signal, 500, ["II"], text=want).pooled)


def _tokenizer():
    from data_pipelines.text import train_tokenizer

    return train_tokenizer(["sinus rhythm"] * 30, [str(i) for i in range(30)], vocabulary_size=50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ["I", "II"]}, "2 channel names"),
        ({"channels": ["x", "y", "z"], "unit": "deg"}, "x: unknown name"),
        ({"unit": ["mV"]}, "1 values for 3 channels"),
        ({"rate": None}, "no rate"),
        ({"rate": [500, 500, 0]}, "rate of 0"),
        ({"signal": np.zeros((3, 5000))}, "flat or invalid"),
        ({"signal": np.ones(5000)}, "channel names"),
        ({"signal": _signal(3, seconds=1.0)}, "minimum_seconds"),
        ({"text": [60]}, "integers from 0 to 59"),
        ({"text": [1.5]}, "integers from 0 to 59"),
    ],
)
def test_what_cannot_be_embedded_is_refused(encoder, arguments, message):
    usual = {"signal": _signal(3), "rate": 500, "channels": ["I", "II", "PPG"], "unit": "mV"}
    with pytest.raises(BadInput, match=message):
        encoder.embed(**{**usual, **arguments})


@pytest.mark.parametrize(
    ("window", "channels", "message"),
    [
        (np.zeros((2, 1000)), ["I"], "1 names for 2"),
        (np.zeros((1, 1000)), ["EEG C3"], "channels that the model knows"),
        (np.zeros((2, 1000)), ["I", 1], "given twice"),
        (np.zeros((1, 2, 500)), ["I"], "dimensions"),
        (np.full((1, 1000), np.nan), ["I"], "no valid patch"),
        (np.zeros((1, 13000)), ["I"], "at most 50 s"),
    ],
)
def test_what_cannot_be_encoded_is_refused(encoder, window, channels, message):
    with pytest.raises(BadInput, match=message):
        encoder.encode(window, channels)


def test_a_checkpoint_loads_from_any_of_its_folders_with_its_weights(workdir, tmp_path):
    paths = (workdir, workdir / "checkpoints", str(workdir / "checkpoints" / "3"))
    every = [csfm_jax.load(path) for path in paths]
    assert len({e.provenance["path"] for e in every}) == 1
    assert every[0].provenance["step"] == 3 and every[0].config == toy_config()
    window = np.sin(np.arange(1000) / 9.0)[None]
    pooled = [e.encode(window, ["II"]).pooled for e in (every[0], _encoder(toy_config(), seed=5))]
    assert np.array_equal(*pooled)
    assert record.trained_on(every[1].provenance) == record.TrainedOn(
        {b"00000000000000aa"}, True, frozenset({("", "toy")})
    )
    assert record.trained_on({"path": str(tmp_path / "run" / "weights.pt")}) == record.TrainedOn(set(), False, None)


def test_random_encoders_differ_by_seed():
    window = np.sin(np.arange(1000) / 9.0)[None]
    config = toy_config(pooling="mean")
    one, other = (encoding.random_encoder(config, seed).encode(window, ["II"]).pooled for seed in (1, 2))
    assert np.isfinite(one).all() and np.abs(one - other).max() > 1e-2


def test_a_changed_file_and_another_preprocessing_are_refused(tmp_path):
    spec = preprocess.get_spec("csfm-jax").to_dict()
    with pytest.raises(BadInput, match="version 99.*version 1"):
        encoding.load(write_checkpoint(tmp_path / "other", toy_config(), spec={**spec, "version": 99}))
    workdir = write_checkpoint(tmp_path / "run", toy_config())
    largest = max((workdir / "checkpoints" / "3" / "params").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(BadInput, match=largest.name):
        encoding.load(workdir)
    with pytest.raises(BadInput, match="no finished checkpoint"):
        encoding.load(tmp_path)


def test_parameters_of_another_shape_are_named(encoder):
    config = toy_config(mlp=40)
    params = nnx.to_pure_dict(nnx.state(encoder.encoder, nnx.Param))
    with pytest.raises(
        BadInput, match=r"here: transformer/blocks/down/kernel: found \(1, 32, 24\); expected \(1, 40, 24\)"
    ):
        encoding.with_params(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)), params, "here")


def test_a_window_is_the_same_packed_from_a_store_and_encoded_alone(encoder, tmp_path):
    store = mixed_store(tmp_path / "store", recordings=9, gaps=1)
    found = list(features.embed_stores(encoder, [store], "train"))
    of = {(int(r), float(s)): e for some in found for r, s, e in zip(some.recording, some.start, some.pooled)}
    assert len({r for r, _ in of}) == 9 and len(of) > 20
    for (recording, start), pooled in of.items():
        window = store.read_window(recording, start, min(4.0, float(store.index.seconds[recording])))
        samples = [np.where(x == preprocess.INVALID, np.nan, x) for _, x in window]
        alone = encoder.encode(samples, [c for c, _ in window])
        assert alone.pooled[0] == pytest.approx(pooled, abs=1e-5)
    means = features.recording_features(encoder, [store])
    assert means.recording.tolist() == list(range(9)) and means.windows.sum() == len(of)
    of_last = np.stack([e for (r, _), e in of.items() if r == 8])
    assert means.pooled[8] == pytest.approx(of_last.mean(axis=0), abs=1e-5)


def test_real_recordings_embed(encoder, shared_data):
    import data_pipelines

    twelve = data_pipelines.read(sorted((shared_data / "ptbxl").rglob("*_hr.hea"))[0])
    result = encoder.embed(twelve)
    assert result.pooled.shape == (2, 24) and set(result.channel) == {"CLS", *LEADS}
    bedside = data_pipelines.read(shared_data / "bidmc" / "bidmc02.hea")
    minute = tuple(c._replace(signal=c.signal[: round(60 * c.rate)]) for c in bedside.channels)
    bedside = encoder.embed(replace(bedside, channels=minute))
    assert len(bedside.pooled) == 15 and {"II", "PPG", "RESP"} <= set(bedside.channel)
    assert json.dumps(result.report) and CHANNEL_ID["PPG"] == 13


def test_a_checkpoint_of_another_channel_vocabulary_is_refused(tmp_path):
    workdir = write_checkpoint(tmp_path / "run", toy_config(), channels=["PAD", "CLS", "TEXT", "II", "I"])
    with pytest.raises(BadInput, match="another channel vocabulary"):
        encoding.load(workdir)
