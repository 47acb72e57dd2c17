"""What prepared stores hold; for a config, how its windows pack; with --suggest, the row length to use.

csfm data STORE[,STORE...]
csfm data STORE --config=csfm_base --config.data.row_tokens=2048
csfm data STORE --config=csfm_base --suggest
csfm data overlap STORE STORE          whether two stores share subjects or signals (or one holds a recording twice)
csfm data report STORE                 one HTML page to look at before training
"""

import dataclasses

import numpy as np

from csfm_jax import config as configs
from csfm_jax.commands.options import WrittenHere
from data_pipelines import masking, plans, text, windows
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store import open_stores
from data_pipelines.suggest import suggest


def arguments(parser):
    parser.add_argument("stores", nargs="+", help="a store, a folder of stores, or several separated by commas")
    parser.add_argument("--config", help="a config file or the name of a shipped one: prints its packing plan")
    parser.add_argument("--suggest", action="store_true", help="prints the row length, V and S for these windows")
    parser.add_argument("--output", action=WrittenHere, help="what overlap and report write: pairs.json, report.html")
    parser.add_argument("--split", choices=windows.SPLITS, default="train", help="whose windows are planned")


def run(args) -> int | None:
    word, *places = args.stores
    if word == "overlap":
        from csfm_jax.commands import data_overlap

        return data_overlap.run(places, args.output, configs.Config().data.verify)
    if word == "report":
        from csfm_jax.commands import data_report

        return data_report.run(places, args.output, configs.Config().data.verify)
    if places:
        raise BadInput(places[0], "a second place", "one; several separated by commas", "join them")
    _describe_all(args)


def _describe_all(args) -> None:
    if args.overrides and not args.config:
        raise BadInput(args.overrides[0], "no --config that it changes", "one", "add --config=NAME")
    config = configs.load(args.config, args.overrides) if args.config else configs.Config()
    stores = open_stores(args.stores[0], config.data.verify, config.data.fold)
    for store in stores:
        print("\n".join(_describe(store)))
    if not (args.config or args.suggest):
        return
    tokens, data = config.tokens, config.data
    masking.check(data.mask, tokens)
    reports = text.Reports(stores, tokens, text.choose_tokenizer(stores, tokens, data.tokenizer))
    table = windows.epoch_windows(stores, tokens, data, args.split, 0, reports.counts())
    print("\n".join(_describe_windows(table, stores, tokens, args.split)))
    if args.suggest:
        print("\n".join(_suggestion(table)))
    else:
        print("\n".join(_describe_plan(table, windows.capacities(tokens, data), data.seed)))


def _describe(store) -> list[str]:
    index = store.index
    hours: dict[str, float] = {}
    channels: dict[int, int] = {}
    for number, ids in enumerate(index.channel_sets):
        chosen = index.channel_set == number
        for modality in {modality_of(c).name for c in ids}:
            hours[modality] = hours.get(modality, 0.0) + float(index.seconds[chosen].sum(dtype=np.float64)) / 3600
        for channel in ids:
            channels[channel] = channels.get(channel, 0) + int(np.count_nonzero(chosen))
    splits = [
        f"{split} {np.count_nonzero(index.split == i)} ({len(np.unique(index.subject[index.split == i]))} subjects)"
        for i, split in enumerate(windows.SPLITS)
    ]
    names = ", ".join(f"{CHANNELS[c].name} {n}" for c, n in sorted(channels.items()))
    quarantined = store.manifest["files"].get("quarantine.jsonl", {}).get("count", 0)
    labelled: dict[str, np.ndarray] = {}  # by the patterns that a task may name
    for name, values in store.labels().items():
        group = name.split("/")[0] + ("/*" if "/" in name else "")
        labelled[group] = labelled.get(group, False) | ~np.isnan(values)
    return [
        f"{store.name}  ({store.path}, preprocessing {store.spec})",
        f"  recordings   {len(index.split)} of {len(np.unique(index.subject))} subjects",
        "  hours        " + ", ".join(f"{name} {h:.2f}" for name, h in sorted(hours.items())),
        "  splits       " + ", ".join(splits),
        f"  channels     {names}",
        f"  reports      {np.count_nonzero(index.has_report)}",
        "  labels       " + ", ".join(f"{name} {np.count_nonzero(has)}" for name, has in sorted(labelled.items())),
        f"  quarantined  {quarantined}",
    ]


def _describe_windows(table, stores, tokens, split) -> list[str]:
    total = int(table.tokens.sum(dtype=np.int64))
    by_modality = {"CLS": len(table), "text": int(table.text_tokens.sum(dtype=np.int64))}
    for name in tokens.modalities:
        only = dataclasses.replace(tokens, modalities=(name,))
        count = 0
        for position, store in enumerate(stores):
            mine = table.store == position
            recording, seconds = table.recording[mine], table.seconds[mine]
            length = np.zeros(len(store.index.split), np.float32)
            length[recording] = seconds
            count += int(windows.signal_tokens(store.index, length, only)[recording].sum(dtype=np.int64))
        by_modality[name] = count
    shares = ", ".join(f"{name} {n} ({n / total:.1%})" for name, n in by_modality.items() if n)
    skipped = ", ".join(f"{n} {what}" for what, n in table.skipped.items() if n)
    return [
        f"windows of {split} subjects, first epoch",
        f"  windows      {len(table)}" + (f"; skipped {skipped}" if skipped else ""),
        f"  tokens       {total}: {shares}",
        f"  longest      {int(table.tokens.max())} tokens; mean {total / len(table):.1f}",
    ]


def _describe_plan(table, capacities, seed) -> list[str]:
    plan = plans.plan_windows(table, capacities, True, seed, 0)
    T, V, S = capacities
    longest, total = int(table.tokens.max()), int(table.tokens.sum(dtype=np.int64))
    return [
        f"plan for rows of {T} tokens, {V} visible, {S} windows",
        f"  rows         {plan.rows}, of {len(table) / plan.rows:.2f} windows",
        f"  fill         tokens {plan.fill[0]:.2%}, visible {plan.fill[1]:.2%}",
        f"  padding each window to the longest would fill {total / (len(table) * longest):.2%} and compute "
        f"{len(table) * longest / (plan.rows * T):.2f} times as many tokens",
    ]


def _suggestion(table) -> list[str]:
    found = suggest(table.sizes())
    flags = " ".join(
        f"--config.data.{name}={getattr(found, name)}" for name in ("row_tokens", "row_visible", "row_windows")
    )
    return [
        f"suggested rows of {found.row_tokens} tokens, {found.row_visible} visible, {found.row_windows} windows",
        f"  fill         tokens {found.fill_tokens:.2%}, visible {found.fill_visible:.2%}",
        f"  {flags}",
    ]
