"""The recordings that stores were prepared from, found again by the hashes of their studies."""

from pathlib import Path

from csfm_jax.evaluation.moved import Chosen
from data_pipelines.channel_names import derive_leads
from data_pipelines.datasets import Entry, Source, open_sources
from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import study_of
from data_pipelines.store import Store
from data_pipelines.subjects import PUBLIC_KEY, fingerprint, read_key


def reader(where: str, key_file: Path | None, stores: list[Store], chosen: Chosen):
    """What `moved.embed` reads with: a recording's channels as they were recorded, and its mains frequency.

    Args:
        where: as `csfm prepare --source`. key_file: of the stores' subjects; None: the public one. chosen: which
            recordings must be found.

    Raises:
        BadInput: another key, a recording that is not among the source's, or a store whose channels were named by hand.
    """
    own = read_key(key_file) if key_file else PUBLIC_KEY
    entries: dict[tuple[str, bytes], tuple[Source, Entry]] = {}
    sources = {source.name: source for source in open_sources(where)}
    for number in sorted(set(chosen.store.tolist())):
        store = stores[number]
        if (source := sources.get(store.name)) is None:
            raise BadInput("--source", f"no {store.name} among its recordings", "the stores' recordings", "correct it")
        if store.manifest["plan"].get("channel names"):
            found, remedy = f"{store.name}, prepared with names of its own (--channels)", "leave --source out"
            raise BadInput("--source", found, "stores whose channels were known by their names", remedy)
        key = PUBLIC_KEY if source.public else own
        if not source.hashed and store.manifest["key"] != fingerprint(key):
            raise BadInput("--key-file", f"another key than that of {store.name}", "the same", "give --key-file")
        entries |= {(store.name, study_of(source, key, entry).encode()): (source, entry) for entry in source.entries()}
    for number, row in zip(chosen.store, chosen.recording):
        if (stores[number].name, bytes(stores[number].index.study[row])) not in entries:
            raise BadInput(
                "--source", f"a recording of {stores[number].name} that it lacks", "all of them", "correct it"
            )

    def read(store: Store, row: int, seconds: float):
        source, entry = entries[store.name, bytes(store.index.study[row])]
        recording = source.read(entry)
        if store.manifest["plan"].get("derived leads"):
            recording = derive_leads(recording)  # of the whole recording, as when it was stored
        recording = recording.until(seconds)
        return [(c.name, c.rate, c.unit, c.start, c.signal) for c in recording.channels], recording.mains

    return read
