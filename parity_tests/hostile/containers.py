"""Archives of numpy and files of Flax that lie."""

import io
import pickle
import struct
import zipfile
from typing import Any

import flax.serialization
import numpy as np

from hostile import Case, irregular, of_bytes, truncated

NPZ, MSGPACK = "a.npz", "a.msgpack"


def npz(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of entries by name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return stream.getvalue()


def array(
    descr: Any = "<f8",
    shape: Any = (2,),
    order: Any = False,
    data: bytes = bytes(16),
    version: bytes = b"\x01\x00",
) -> bytes:
    """An entry of an archive: a header, which may be any text, and bytes."""
    header = (
        descr
        if isinstance(descr, bytes)
        else repr({"descr": descr, "fortran_order": order, "shape": shape}).encode()
    )
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) + 1)
    return b"\x93NUMPY" + version + length + header + b"\n" + data


def arrays() -> dict[str, bytes]:
    """Archives of one array by what is wrong with it."""
    held = {
        f"descr {str(d)[:20]!r}": array(d)
        for d in ("O", "|V3", "<f3", "<q9", "", "x" * 9000, None, 3, [("a", "O")], "<M8[s]")
    }
    held |= {
        f"shape {str(s)[:24]}": array(shape=s)
        for s in (
            (-2,),
            (3,),
            (1,),
            (10**12,),
            (2**62,),
            (2**70,),
            2,
            None,
            "x",
            (2.0,),
            (None,),
            (2**32, 2**32),
            (1,) * 64,
            [2],
            (True,),
        )
    }
    held["order a text"] = array(order="x")
    held["header that calls"] = array(
        b"{'descr': __import__('os').system('touch /tmp/jaxarch-canary'), 'shape': (2,)}"
    )
    held["header of lists in lists"] = array(b"[" * 9000)
    held["header too long"] = array(b"{" + b" " * 12000 + b"}")
    held["header without a key"] = array(b"{'descr': '<f8'}")
    held["header a list"] = array(b"[]")
    held["header of 4 GB"] = b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)
    held["version 9"] = array(version=b"\x09\x00")
    held["no header"] = bytes(99)
    held["no bytes"] = b""
    held["objects"] = array("|O", (1,), data=pickle.dumps([print]))
    held["utf-8 damage"] = b"\x93NUMPY\x03\x00\x04\x00\x00\x00\xff\xfe\xff\xfe"
    return held


def archives() -> dict[str, bytes]:
    """Archives that lie as such."""
    good, stream = npz(("a.npy", array())), io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(4 * 10**7))
    packed = stream.getvalue()
    end = good.rfind(b"PK\x05\x06")
    flipped = bytearray(npz(("a.npy", array(shape=(9000,), data=bytes(72000)))))
    flipped[40000] ^= 1
    return {
        "a bomb of 320 MB": packed,
        "ten bombs": npz(
            *((f"{i}.npy", array(shape=(10**7,), data=bytes(8 * 10**7))) for i in range(4)), method=8
        ),
        "no arrays": npz(("readme.txt", b"x")),
        "texts alone": npz(("a.npy", array("<U2", (), data=bytes(8)))),
        "nothing": npz(),
        "long name": npz(("x" * 5000 + ".npy", array())),
        "name with a newline": npz(("a\nb.npy", array())),
        "an entry twice": npz(("a.npy", array()), ("b.npy", array())).replace(b"b.npy", b"a.npy"),
        "a method that is unknown": npz(("a.npy", array()), method=8).replace(b"\x08\x00", b"\x63\x00"),
        "damaged stream": packed[:60] + bytes(40) + packed[100:],
        "a flipped byte": bytes(flipped),
        "directory elsewhere": good[: end + 16] + b"\xff" * 4 + good[end + 20 :],
        "another size": good.replace(struct.pack("<I", len(array())), struct.pack("<I", len(array()) + 8)),
        "a text with objects": npz(("__metadata__.npy", array("<U2", (), data=bytes(8))), ("a.npy", array())),
    }


def ext(kind: int, payload: bytes) -> bytes:
    """An extension of msgpack."""
    return b"\xc9" + struct.pack(">Ib", len(payload), kind) + payload


def packed(
    shape: bytes = b"\x91\x02", name: bytes = b"\xa7float32", data: bytes = b"\xc4\x08" + bytes(8)
) -> bytes:
    """An array as Flax packs it."""
    return ext(1, b"\x93" + shape + name + data)


# Values that are no arrays, or lie; names of dtypes and shapes that an array cannot have.
VALUES = {
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "text of 4 GB": b"\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
    "extension of 4 GB": b"\xc9\xff\xff\xff\xff\x01",
    "no value": b"\xc1",
    "a number": b"\x03",
    "nothing": b"\xc0",
    "a list": b"\x91\x01",
    "an unknown extension": ext(9, bytes(9)),
    "a complex number": ext(2, b"\x92\xcb" + bytes(8)),
    "a time": b"\xd6\xff" + bytes(4),
    "lists in lists": b"\x91" * 100_000,
    "maps in maps": b"\x81\xa1a" * 100_000,
    "text damage": b"\xa2\xc3\x28",
    "600,000 values": b"\xdd\x00\x09\x27\xc0" + b"\x01" * 600_000,
    "array in array": ext(1, b"\x93" + packed() + b"\xa7float32\xc4\x00"),
    "array of nothing": ext(1, b""),
    "array of one": ext(1, b"\x91\x01"),
    "array too long": ext(1, b"\x93\x91\x02\xa7float32\xc4\x08" + bytes(20)),
    "array with a map": ext(1, b"\x83\x01\x01\x02\x02\x03\x03"),
    "bytes beyond the array": ext(1, b"\x93\x91\x02\xa7float32\xc4\x80"),
}
NAMES = (b"\xa1O", b"\xa3<U9", b"\xa7float99", b"\xa0", b"\x03", b"\xc0", b"\xa4void", b"\xa6object")
SHAPES = (
    b"\x91\xff",
    b"\x91\x03",
    b"\x91\xcf" + b"\x40" + bytes(7),
    b"\x02",
    b"\xc0",
    b"\x91\xa1a",
    b"\x91\xcb" + bytes(8),
    b"\x91\xc3",
)


def messages() -> dict[str, bytes]:
    """Files of msgpack by what is wrong with them; `a` stands before each value."""
    key = b"\x81\xa1a"
    values = dict(VALUES)
    deep = b"\xc4\x00"
    for _ in range(2000):
        deep = ext(1, deep)
    values["extensions in extensions"] = deep
    values |= {f"dtype {name!r}": packed(name=name) for name in NAMES}
    values |= {f"shape {shape!r}"[:40]: packed(shape) for shape in SHAPES}
    chunked = b"\x83\xd9\x19__msgpack_chunked_array__\xc3\xa5shape%shape\xa6chunks%chunks"
    one = b"\x81\xa10"
    for name, shape, chunks in (
        ("no chunks", one + b"\x02", b"\x80"),
        ("another shape", one + b"\x03", one + packed()),
        ("no shape", b"\xc0", one + packed()),
        ("chunks of numbers", one + b"\x02", one + b"\x03"),
        ("chunks missing", one + b"\x02", b"\x81\xa11" + packed()),
        ("shape negative", one + b"\xfe", one + packed()),
    ):
        values[f"chunked: {name}"] = chunked.replace(b"%shape", shape).replace(b"%chunks", chunks)
    files = {name: key + value for name, value in values.items()}
    files["a key twice"] = b"\x82\xa1a" + packed() + b"\xa1a" + packed()
    files["a key of another kind"] = b"\x81\x91\x01" + packed()
    files["a long key"] = b"\x81\xda\x13\x88" + b"x" * 5000 + packed()
    files["a key with a newline"] = b"\x81\xa3a\nb" + packed()
    files["bytes after the end"] = key + packed() + b"\x00"
    files["an array alone"] = packed()
    return files


def cases() -> list[Case]:
    """The cases of both."""
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3), b=np.ones((2, 2)))
    good = flax.serialization.msgpack_serialize({"params": {"a": np.ones(3), "b": np.ones((2, 2))}})
    return [
        *irregular("npz", NPZ),
        *truncated("npz", NPZ, stream.getvalue(), 6),
        *(Case("npz", name, of_bytes(NPZ, npz(("a.npy", v)))) for name, v in arrays().items()),
        *(Case("npz", f"archive: {name}", of_bytes(NPZ, v)) for name, v in archives().items()),
        *irregular("msgpack", MSGPACK),
        *truncated("msgpack", MSGPACK, good, 8),
        *(Case("msgpack", name, of_bytes(MSGPACK, v)) for name, v in messages().items()),
    ]
