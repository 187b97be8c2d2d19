"""`jaxarch diff`: two checkpoints of any formats, tensor by tensor."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxarch.commands.inspect import shortened
from jaxarch.convert.tensors import BLOCK_BYTES, Tensor, block_indices
from jaxarch.errors import UsageError, printable
from jaxarch.handover.places import open_place, same_kind_of_names

NAME = 42


@dataclass(frozen=True)
class Difference:
    """How one tensor differs.

    Attributes:
        what: "missing", "added", "shape", "dtype" (of equal values), or "values".
        before, after: dtype and shape in words; empty where the tensor is not there.
        largest: the largest absolute difference, and `relative` of the larger of the two numbers; None where the values
            were not compared.
    """

    name: str
    what: str
    before: str = ""
    after: str = ""
    largest: float | None = None
    relative: float | None = None


def run(args: argparse.Namespace) -> int:
    """Print what differs; 0 if nothing does, else 1.

    Raises:
        ConversionError: a place holds nothing that is known, or is damaged.
        UsageError: a tolerance below 0.
    """
    if args.atol < 0:
        raise UsageError(f"--atol {args.atol} must not be negative")
    with contextlib.ExitStack() as stack:
        a, b = (open_place(text, stack) for text in (args.a, args.b))
        tensors = same_kind_of_names(a, b)
        found = differences(*tensors)
        count = len(tensors[0].keys() & tensors[1].keys())
    close = [d for d in found if d.what in ("values", "dtype") and (d.largest or 0.0) <= args.atol]
    different = [d for d in found if d not in close or (d.what == "dtype" and not args.ignore_dtype)]
    if args.json:
        rows = [{k: _finite(v) for k, v in asdict(d).items()} for d in found]
        print(json.dumps({"compared": count, "different": len(different), "differences": rows}, indent=1))
    else:
        print_differences(different, count)
    return 1 if different else 0


def differences(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[Difference]:
    """What differs between two sets of tensors; only tensors of one shape in both are read, block by block."""
    found = [Difference(k, "missing", before=_words(a[k])) for k in a if k not in b]
    found += [Difference(k, "added", after=_words(b[k])) for k in b if k not in a]
    for key in a:
        if key not in b:
            continue
        if a[key].shape != b[key].shape:
            found.append(Difference(key, "shape", _words(a[key]), _words(b[key])))
            continue
        largest, relative, same = compare(a[key], b[key])
        if not same or a[key].info.dtype != b[key].info.dtype:
            what = "values" if largest > 0 or a[key].info.dtype == b[key].info.dtype else "dtype"
            found.append(Difference(key, what, _words(a[key]), _words(b[key]), largest, relative))
    return found


def compare(a: Tensor, b: Tensor) -> tuple[float, float, bool]:
    """(largest absolute difference, largest relative one, whether all bits are the same) of tensors of one shape.

    NaN equals NaN; a NaN or an infinity on one side is infinitely far.
    """
    largest = relative = 0.0
    same = a.info.dtype == b.info.dtype
    for index in block_indices(a.shape, 16, BLOCK_BYTES) if 0 not in a.shape else ():
        x, y = a.read(index), b.read(index)
        if x.dtype == y.dtype and x.tobytes() == y.tobytes():
            continue
        same = False
        if x.dtype.kind in "iub" and y.dtype.kind in "iub":  # exactly, beyond the 53 bits of a float64
            gap = np.abs(x.astype(object) - y.astype(object)).astype(np.float64)
        else:
            x, y = (v.astype(np.complex128 if v.dtype.kind == "c" else np.float64) for v in (x, y))
            with np.errstate(invalid="ignore"):
                gap = np.abs(x - y)
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
            gap[np.isnan(gap)] = np.inf
        size = np.maximum(*(np.abs(v if v.dtype.kind == "c" else v.astype(np.float64)) for v in (x, y)))
        size = np.where(size > 0, size, 1.0)
        with np.errstate(invalid="ignore"):
            ratio = np.where(np.isinf(gap), np.inf, gap / size)
        largest, relative = max(largest, float(gap.max())), max(relative, float(ratio.max()))
    return largest, relative, same


def print_differences(found: Iterable[Difference], count: int) -> None:
    """Print differences in lines of 80 columns, and a summary."""
    found = list(found)
    for d in found:
        name = shortened(printable(d.name, 1000), NAME)
        if d.what in ("missing", "added"):
            text = f"{'only in A' if d.what == 'missing' else 'only in B'}: {d.before or d.after}"
        elif d.what == "shape" or d.before != d.after:
            text = f"{d.before} -> {d.after}"
        else:
            text = d.before
        print(f"{name:{NAME}} {text}"[:80])
        if d.largest is not None:
            print(f"{'':{NAME}} largest {d.largest:.3e}, relative {d.relative:.3e}")
    kinds = {
        what: sum(d.what == what for d in found) for what in ("missing", "added", "shape", "dtype", "values")
    }
    text = ", ".join(f"{n} {what}" for what, n in kinds.items() if n) or "no difference"
    print(f"{count} tensors compared: {text}")


def _words(tensor: Tensor) -> str:
    return f"{tensor.info.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}"


def _finite(value: Any) -> Any:
    return min(value, sys.float_info.max) if isinstance(value, float) else value
