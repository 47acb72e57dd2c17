"""What a compiled program does in one step, read from its HLO text: products, collectives and traffic to memory.

The compiler's own `cost_analysis` counts the body of a loop once, whatever the number of layers; here every computation
is weighed by how often it runs.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from csfm_jax.planning import products

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computation|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
# they name places or wait for what another instruction has begun; no data moves
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota",
         "after-all", "partition-id", "replica-id", "opt-barrier", "reshape"}  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: of `KINDS`. times: how often it runs in a step.
        moved: bytes that each chip receives every time, at least, whatever the algorithm.
        group: chips that take part together. crosses: whether a group has chips of several slices.
    """

    kind: str
    times: int
    moved: float
    group: int
    crosses: bool


@dataclass(frozen=True)
class Program:
    """What a chip does in a step.

    Attributes:
        collectives: each once. hbm_bytes: read and written. kernels: Pallas calls.
        flops: of products (a multiply-add is two), those that are computed again and those within kernels included.
    """

    collectives: tuple[Collective, ...]
    hbm_bytes: float
    kernels: int
    flops: float


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest[: self.rest.find(")")])


def read(text: str, slice_of: list[int]) -> Program:
    """Reads an optimised HLO module.

    Args:
        text: of `Compiled.as_text()`.
        slice_of: the slice of each partition's device, in the order of the mesh.
    """
    computations, entry = _parse(text)
    times = _times(computations, entry)
    inside = _inside_others(computations)
    collectives, seen, hbm, kernels, flops = [], set(), 0.0, 0, 0.0
    for name, instructions in computations.items():
        if not times[name]:
            continue
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            kind = i.op.removesuffix("-start")
            if kind in KINDS and not i.op.endswith("-done"):
                scattered = name.startswith("all-reduce-scatter")  # one instruction, whose text adds and then slices
                found = _collective(kind, i, times[name], slice_of, scattered)
                # An overlapped one stands in the computations that begin it, go on with it, and end it. Its channel
                # tells, which others may share.
                channel = re.search(r"channel_id=(\d+)", i.rest)
                key = (channel[1], found.kind, found.moved, found.group) if channel else (name, i.name)
                if key not in seen:
                    seen.add(key)
                    collectives.append(found)
            if crossing := _between_slices(i, times[name], len(set(slice_of))):
                collectives.append(crossing)
            if i.op == "custom-call" and "tpu_custom_call" in i.rest:
                kernels += times[name]
                flops += times[name] * products.of_kernel(i.name, [shapes.get(o, "") for o in i.operands])
            if i.op in ("convolution", "dot"):
                flops += times[name] * products.of_product(i.shape, [shapes[o] for o in i.operands], i.rest)
            if name not in inside:
                hbm += times[name] * _traffic(i, shapes, computations)
    return Program(tuple(collectives), hbm, kernels, flops)


def _parse(text):
    computations, entry, current = {}, None, None
    for line in text.split("\n"):
        if head := _HEAD.match(line):
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_Instruction(*found.groups()))
    return computations, entry


def _called(instruction) -> list[str]:
    return [name for group in _CALLED.findall(instruction.rest) for name in re.findall(r"%([\w.\-]+)", group)]


def _times(computations, entry) -> dict[str, int]:
    """How often each computation runs in a step."""
    times = defaultdict(int)

    def walk(name, count):
        times[name] += count
        for i in computations.get(name, ()):
            turns = _trip_count(i, computations) if i.op == "while" else 1
            for called in _called(i):
                walk(called, count * turns)

    walk(entry, 1)
    return times


def _trip_count(loop, computations) -> int:
    """Of a loop that counts to a constant, as all of a step's do: the largest that its condition names."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
    constants = [
        int(m[1])
        for i in computations.get(condition[1] if condition else "", ())
        if i.op == "constant" and (m := re.match(r"(\d+)\)", i.rest))
    ]
    return max(constants, default=1)


def _inside_others(computations) -> set[str]:
    """Computations that are a part of one instruction: what they read and write is counted there."""
    loops = ("while", "conditional", "call")
    return {c for body in computations.values() for i in body if i.op not in loops for c in _called(i)}


def _collective(kind, i, times, slice_of, scattered) -> Collective:
    groups = _groups(i.rest, len(slice_of))
    arrays = _sizes(i.shape)
    if i.op.endswith("-start") and kind in ("all-gather", "collective-permute"):
        arrays = arrays[len(i.operands) : 2 * len(i.operands)]  # (operands, results, state)
    size, group = sum(arrays), max(len(g) for g in groups)
    others = (group - 1) / group
    moved = {
        "all-gather": size * others,
        "all-reduce": 2 * size * others,
        "reduce-scatter": size * (group - 1),  # of what stays, the shape that the text shows
        "all-to-all": size * others,
        "collective-permute": size,
    }[kind]
    if scattered:
        kind, moved = "reduce-scatter", size * others
    crosses = any(len({slice_of[p] for p in g}) > 1 for g in groups)
    return Collective(kind, times, moved, group, crosses)


def _between_slices(i, times, slices) -> Collective | None:
    """What a chip receives from other slices: the compiler reduces within slices first, and leaves the rest, a part
    for each chip where it is large, to the runtime of the data-centre network, as pairs of `send` and `recv`."""
    if i.op != "recv" or not (kind := re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)):
        return None
    return Collective(kind[1].lower().replace("_", "-"), times, float(_sizes(i.shape)[0]), slices, True)


def _groups(rest, partitions) -> list[list[int]]:
    """Partitions that take part together, in each of the ways that HLO writes them."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1] + "}")]
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? *\{(.*?)\}", rest):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        used = re.findall(r"'([^']+)'", mesh[3])
        ids = (_iota(mesh[2]) if mesh[2] else np.arange(partitions)).reshape(list(axes.values()))
        kept = [n for n, axis in enumerate(axes) if axis not in used]
        summed = [n for n, axis in enumerate(axes) if axis in used]
        return ids.transpose(kept + summed).reshape(-1, math.prod(axes[a] for a in used)).tolist()
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _iota(iota[3]).reshape(int(iota[1]), int(iota[2])).tolist()
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed[1])]
    if found := re.search(r"replica_groups=(?!\{\})\S+", rest):  # written in another way; {} are all
        raise ValueError(f"the program's {found[0]}: found groups in words that are not known; expected XLA's three")
    return [list(range(partitions))]


def _iota(text) -> np.ndarray:
    """Partitions as "[4,2]T(1,0)" orders them: counted along these axes, which are then transposed."""
    sizes, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    sizes = [int(n) for n in sizes.split(",")]
    order = [int(n) for n in order.split(",")] if order else range(len(sizes))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(order)


def _traffic(i, shapes, computations) -> int:
    """Bytes that an instruction reads from and writes to a chip's main memory."""
    if i.op in _FREE or i.op.endswith("-done"):
        return 0
    if i.op in ("copy-start", "slice-start"):  # into the fast memory, or out of it
        return sum(_sizes(i.shape, main_only=True)[:2]) if i.op == "copy-start" else 2 * sum(_sizes(i.shape)[1:2])
    if i.op in ("send", "recv"):  # (data, state, token), to or from the host
        return _sizes(i.shape, main_only=True)[0]
    if i.op == "dynamic-slice":
        return 2 * sum(_sizes(i.shape, main_only=True))
    parts = _parts(i, computations)
    written = sum(_sizes(i.shape, main_only=True)) if parts.get("written") is None else parts["written"]
    read = 0
    for n, operand in enumerate(i.operands):
        whole = sum(_sizes(shapes.get(operand, ""), main_only=True))
        read += min(whole, parts.get(n, whole))
    return written + read


def _parts(i, computations) -> dict:
    """Of a fusion that takes a slice of an operand, or writes into one: the bytes it touches, instead of the whole."""
    if i.op != "fusion" or not (called := _called(i)):
        return {}
    body = computations.get(called[0], [])
    shapes, users, parts = {b.name: b.shape for b in body}, _users(body), {}
    for b in body:
        if b.op == "parameter" and users[b.name]:
            number = int(b.rest.split(")")[0])
            if all(u.op == "dynamic-update-slice" and u.operands[0] == b.name for u in users[b.name]):
                parts["written"] = sum(sum(_sizes(shapes.get(u.operands[1], ""))) for u in users[b.name])
            if (read := _read_of(b.name, users, computations)) is not None:
                parts[number] = read
    return parts


def _users(body) -> dict[str, list]:
    users = defaultdict(list)
    for b in body:
        for operand in dict.fromkeys(b.operands):
            users[operand].append(b)
    return users


def _read_of(value, users, computations) -> int | None:
    """Bytes that are read of a value of a fusion where only slices of it are, in it or in a fusion within it; None
    where all of it is."""
    total = 0
    for user in users[value]:
        if user.op == "dynamic-slice":
            parts = [sum(_sizes(user.shape))]
        elif user.op == "dynamic-update-slice" and value not in user.operands[1:]:
            parts = [0]
        elif user.op == "bitcast":
            parts = [_read_of(user.name, users, computations)]
        elif user.op == "fusion" and (called := _called(user)):
            body = computations.get(called[0], [])
            inner, places = _users(body), [n for n, operand in enumerate(user.operands) if operand == value]
            names = [b.name for b in body if b.op == "parameter" and int(b.rest.split(")")[0]) in places]
            parts = [_read_of(name, inner, computations) for name in names]
        else:
            return None
        if None in parts:
            return None
        total += sum(parts)
    return total


def _sizes(shape, main_only: bool = False) -> list[int]:
    """Bytes of each array of a shape; with `main_only`, of those in main memory (S(1) and above are on the chip)."""
    return [
        0
        if main_only and re.search(r"S\([1-9]\)", layout or "")
        else _BYTES.get(kind, 4) * math.prod(map(int, filter(None, dims.split(","))))
        for kind, dims, layout in _ARRAY.findall(shape)
    ]
