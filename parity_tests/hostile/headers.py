"""Safetensors whose headers lie."""

import json
from typing import Any

from hostile import Case, irregular, of_bytes, truncated

FILE = "a.safetensors"
NEST = 100_000
# What is no shape and what are no offsets of two floats; ... leaves the key out.
SHAPES: tuple[Any, ...] = (
    [-2],
    [2.0],
    ["2"],
    [None],
    [[2]],
    None,
    2,
    "2",
    {},
    [True, 2],
    [2**63],
    [2**64],
    [3],
    [2, 2],
    [0],
    ...,
    [1.5],
    [2**32, 2**32],
    [2**33, 2**31, 0],
    [1] * 100 + [2],
    [float("nan")],
    [1e400],
    [10**30],
)
OFFSETS: tuple[Any, ...] = (
    [8, 0],
    [0, 9],
    [0, 4],
    [4, 12],
    [-8, 0],
    [0, 2**63],
    [0, 2**64 + 8],
    [0],
    [0, 4, 8],
    [0.0, 8.0],
    ["0", "8"],
    None,
    {},
    ...,
    [2**63, 2**63 + 8],
)


def pack(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A file with a header, of bytes or of what becomes JSON, that may claim another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    """A header of one tensor of two floats, with changes; None leaves a key out."""
    described = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return {"a": {k: v for k, v in described.items() if v is not ...}}


GOOD = pack(entry())


def lies() -> dict[str, bytes]:
    """Files by what is wrong with their header."""
    files = {
        f"claims a header of {n} bytes": pack(entry(), length=n) for n in (0, 1, 2**31, 2**63 - 1, 2**64 - 1)
    }
    files |= {
        f"claims {d:+} bytes of header": pack(entry(), length=len(GOOD) - 16 + d) for d in (-1, 1, 8, 9)
    }
    for value in (
        b"null",
        b"[]",
        b"3",
        b'"a"',
        b"{",
        b"{}x",
        b"\xff\xfe{}",
        b'{"a":}',
        b"{'a': 1}",
        b"\0" * 9,
        b"NaN",
    ):
        files[f"header is {value!r}"] = pack(value)
    files["utf-8 damage"] = pack(json.dumps(entry()).encode().replace(b'"a"', b'"\xc3\x28"'))
    files["lists in lists"] = pack(b"[" * NEST)
    files["tables in tables"] = pack(b'{"a":' * NEST)
    files["nested metadata"] = pack(b'{"__metadata__":' + b'{"a":' * NEST)
    files["header of 100 MB"] = pack(b"{" + b" " * (100 << 20) + b"}")
    files["header of 40 MB of names"] = pack({f"{i:0400}": entry()["a"] for i in range(80_000)})
    one = json.dumps(entry()["a"]).encode()
    files["duplicate names"] = pack(b'{"a":' + one + b',"a":' + one + b"}")
    files["duplicate metadata"] = pack(b'{"__metadata__":{"b":"1","b":"2"},"a":' + one + b"}")
    files["duplicate keys of a tensor"] = pack(
        json.dumps(entry()).encode().replace(b"}}", b',"shape":[1,2]}}')
    )
    files["bytes after the tensors"] = pack(entry(), bytes(16))
    return files


def tensors() -> dict[str, dict[str, Any]]:
    """Headers by what is wrong with their tensors."""
    headers: dict[str, dict[str, Any]] = {}
    dtypes: tuple[Any, ...] = ("F33", "f32", "", None, 3, ["F32"], {}, "F32 " * 1000, ...)
    for dtype in dtypes:
        headers[f"dtype {str(dtype)[:20]!r}"] = entry(dtype=dtype)
    for shape in SHAPES:
        headers[f"shape {str(shape)[:30]}"] = entry(shape=shape)
    for offsets in OFFSETS:
        headers[f"offsets {str(offsets)[:30]}"] = entry(data_offsets=offsets)
    half = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    headers["one over the other"] = {**entry(), "b": half}
    headers["the same bytes twice"] = {**entry(), "b": entry()["a"]}
    headers["a gap"] = {"a": half, "b": {"dtype": "U8", "shape": [3], "data_offsets": [5, 8]}}
    headers["four bits, odd"] = entry(dtype="F4", shape=[15])
    values: tuple[Any, ...] = (3, [], "x", {"a": 1}, {"a": {"b": "c"}}, {"a": None})
    for value in values:
        headers[f"metadata {value}"] = {"__metadata__": value, **entry()}
    for name in ("x" * 5000, "a\nb", "a\x00b", "\x1b[31m", "a\u202eb", "\ud800", "a\x7f"):
        headers[f"name {name[:9]!a}"] = {name: entry()["a"]}
    values = (None, 3, [], "F32", {})
    for value in values:
        headers[f"tensor {value}"] = {"a": value}
    return headers


def cases() -> list[Case]:
    """The cases of this reader."""
    files = {**lies(), **{k: pack(v) for k, v in tensors().items()}}
    return [
        *irregular("safetensors", FILE),
        *truncated("safetensors", FILE, GOOD, 8),
        *(Case("safetensors", name, of_bytes(FILE, data)) for name, data in files.items()),
    ]
