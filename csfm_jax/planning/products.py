"""FLOPs of the products of a compiled program, each from its line of HLO."""

import itertools
import math
import re

# Products of query and key blocks that attention's kernels make, by JAX's names of them: scores and values; scores,
# the gradient of probabilities, and that of queries; the same and the gradients of values and keys.
_OF_KERNEL = {"fwd": 2, "dq": 3, "dkv": 4}


def of_product(result: str, operands: list[str], rest: str) -> float:
    """Of a `dot` or a `convolution`, which is what the TPU's compiler makes of every product.

    Axes that a product keeps apart (heads, q and k and v) become axes of a window that lies in the padding but for one
    place: only places within the operand count, as in the compiler's own analysis.

    Args:
        result, operands: shapes in HLO's words. rest: what follows the operands.
    """
    out, left, right = (_dimensions(shape) for shape in (result, *operands[:2]))
    if contracted := re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest):
        return 2.0 * math.prod(out) * math.prod(left[int(n)] for n in contracted[1].split(",") if n)
    of_left, of_right, of_out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest).groups()
    window, total = _window(rest), 2.0 * right[of_right.index("i")]
    total *= math.prod(size for size, label in zip(out, of_out) if label in "bf")
    for axis in filter(str.isdigit, of_out):
        sizes = (shape[of.index(axis)] for shape, of in ((left, of_left), (right, of_right), (out, of_out)))
        total *= _places(*sizes, **{name: values[int(axis)] for name, values in window.items()})
    return total


def _window(rest: str) -> dict[str, list]:
    """How a convolution's window moves, by axis: what HLO says of it, where it is not as usual."""
    names = {"stride": "stride", "pad": "pad", "lhs_dilate": "spread", "rhs_dilate": "apart"}
    found = re.search(r"window=\{(.*?)\}", rest)
    words = dict(word.split("=") for word in found[1].split()) if found else {}
    values = {names[name]: text.split("x") for name, text in words.items() if name in names}
    return {name: [int(v.split("_")[0]) for v in axes] for name, axes in values.items()}


def _places(size: int, window: int, out: int, stride: int = 1, pad: int = 0, spread: int = 1, apart: int = 1) -> int:
    """Pairs of an output and a place of its window, along one axis, that lie on the operand and not beside it."""
    last = (size - 1) * spread
    places = (n * stride - pad + k * apart for n, k in itertools.product(range(out), range(window)))
    return sum(0 <= place <= last and place % spread == 0 for place in places)


def of_kernel(name: str, operands: list[str]) -> float:
    """Of one of splash attention's kernels, which computes all pairs of a row; no other is in a step.

    Args:
        name: of the instruction. operands: shapes; queries and keys are the first two of four axes.

    Raises:
        ValueError: a kernel of another name.
    """
    phase = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", name)
    if not phase:
        raise ValueError(f"the program's kernel {name}: found no count of its products; expected splash attention's")
    (*rows, queries, width), (*_, keys, _) = [d for d in map(_dimensions, operands) if len(d) == 4][:2]
    return 2.0 * _OF_KERNEL[phase[1]] * math.prod(rows) * queries * keys * width


def _dimensions(shape: str) -> list[int]:
    return [int(n) for n in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if n]
