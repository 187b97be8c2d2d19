"""`jaxarch inspect`: the tensors of a file or folder of any format, with their shapes, dtypes and sizes; loads none."""

import argparse
import contextlib
import json
from collections import Counter
from typing import Any

from jaxarch.errors import printable
from jaxarch.handover.places import Place, open_place

# Columns of a line, of which names get what is left.
WIDTH, DTYPE, SHAPE, BYTES = 80, 8, 18, 15


def run(args: argparse.Namespace) -> int:
    """Print the tensors; 1 if --verify finds one whose bytes have changed.

    Raises:
        ConversionError: the place holds nothing that is known, or is damaged.
    """
    with contextlib.ExitStack() as stack:
        place = open_place(args.path, stack)
        damaged = place.damaged() if args.verify else []
        state = checksum_state(place, damaged, verified=args.verify)
        if args.json:
            print(json.dumps({**as_json(place), "checksums": state, "damaged": damaged}, indent=1))
        else:
            print_place(place, state, damaged)
    return 1 if damaged else 0


def as_json(place: Place) -> dict[str, Any]:
    """Everything about a place but the numbers."""
    owners = {name: file for file, names in place.shards.items() for name in names}
    return {
        "path": str(place.path),
        "kind": place.kind,
        "bytes": sum(t.nbytes for t in place.tensors.values()),
        "parameters": sum(_size(t.shape) for t in place.tensors.values()),
        "metadata": dict(place.metadata),
        "notes": list(place.notes),
        "ties": dict(place.ties),
        "shards": {k: len(v) for k, v in place.shards.items()},
        "tensors": {
            k: {"dtype": t.info.dtype, "shape": list(t.shape), "bytes": t.nbytes}
            | ({"file": owners[k]} if k in owners else {})
            for k, t in place.tensors.items()
        },
    }


def checksum_state(place: Place, damaged: list[str], *, verified: bool) -> str:
    """Whether hashes were recorded, and whether the bytes have them."""
    if place.manifest is None:
        return "none recorded"
    if not verified:
        return "recorded, not compared (--verify compares them)"
    return f"damaged: {len(damaged)} tensors" if damaged else "compared, all are right"


def print_place(place: Place, state: str, damaged: list[str]) -> None:
    """Print a place in lines of 80 columns."""
    print(f"{place.path}: {place.kind}")
    name_width = WIDTH - DTYPE - SHAPE - BYTES - 3
    for name, tensor in place.tensors.items():
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        name = shortened(printable(name, 1000), name_width)
        print(f"{name:{name_width}} {tensor.info.dtype:{DTYPE}} {shape:{SHAPE}} {tensor.nbytes:{BYTES},}")
    for name in damaged:
        print(f"damaged: {printable(name)}")
    for name, original in place.ties.items():
        print(f"tied: {printable(name)} = {printable(original)}")
    for key, value in place.metadata.items():
        if key not in place.ties:
            print(f"metadata: {printable(key, 40)} = {printable(value, 30)}")
    for note in place.notes:
        print(note)
    for file, names in place.shards.items():
        size = sum(place.tensors[n].nbytes for n in names)
        print(f"shard: {file}, {len(names)} tensors, {size:,} bytes")
    kinds: Counter[str] = Counter()
    for tensor in place.tensors.values():
        kinds[tensor.info.dtype] += _size(tensor.shape)
    numbers = ", ".join(f"{n:,} of {k}" for k, n in kinds.most_common())
    total = sum(t.nbytes for t in place.tensors.values())
    print(f"{len(place.tensors)} tensors, {total:,} bytes: {numbers}")
    print(f"checksums: {state}")


def shortened(name: str, width: int) -> str:
    """A name with its middle left out where it is longer than a column."""
    if len(name) <= width:
        return name
    head = (width - 2) // 3
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
