"""Stores of made-up samples, small enough to be built inside a test."""

import numpy as np

from data_pipelines.preprocess import INVALID, PreparedRecording, get_spec
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store_writer import StoredRecording, StoreWriter

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
WORDS = "sinus rhythm normal ecg atrial fibrillation left axis premature beat st depression".split()


def recording(number, names, seconds, split="train", report=None, labels=None, gaps=0):
    """A recording of integers drawn from its number; `gaps` stretches of one second in it are invalid."""
    rng = np.random.default_rng(number)
    channels = np.array([CHANNEL_ID[name] for name in names], np.int32)
    order = np.argsort(channels)
    samples = []
    for channel in channels[order]:
        rate = modality_of(int(channel)).rate
        x = rng.integers(-2000, 2000, int(round(seconds * 1000) * rate // 1000)).astype(np.int16)
        for _ in range(gaps):
            at = int(rng.integers(0, max(1, len(x) - rate)))
            x[at : at + rate] = INVALID
        samples.append(x)
    prepared = PreparedRecording(channels[order], samples, seconds, [])
    return StoredRecording(f"{number:016x}", f"{number + 10**6:016x}", split, prepared, report, labels or {})


def write_store(path, recordings, name="small", tokenizer=None):
    """Writes recordings as a store of one shard and opens it."""
    writer = StoreWriter(path, name=name, spec=get_spec("csfm-jax"), shards=1)
    writer.write_shard(0, recordings)
    return writer.finish(tokenizer=tokenizer)


def mixed_store(path, recordings=40, name="small", splits=("train",), report_every=0, gaps=0, tokenizer=None, seed=0):
    """A store of twelve leads, one lead with PPG and RESP, and PPG alone, 3 to 35 s long."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(recordings):
        names = [LEADS, ("II", "PPG", "RESP"), ("PPG",)][i % 3]
        report = " ".join(rng.choice(WORDS, 6)) if report_every and i % report_every == 0 else None
        split = splits[i % len(splits)]
        labels = {"even": float(i % 2 == 0), "number": float(i)}
        made.append(recording(seed * 1000 + i, names, round(float(rng.uniform(3, 35)), 2), split, report, labels, gaps))
    return write_store(path, made, name, tokenizer)
