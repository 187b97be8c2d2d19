"""torch's files whose pickles call, allocate or claim what they should not, and archives that lie."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

from hostile import Case, irregular, of_bytes, truncated

FILE = "a.pt"
MAGIC = 0x1950A86A20F9469CFC6C
# Whatever runs leaves this behind.
CANARY = "touch /tmp/jaxarch-canary"


def text(value: str) -> bytes:
    """A string, as an operation of pickle."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def plain(value: Any) -> bytes:
    """A plain value, as operations of pickle."""
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"")


def called(name: str, *arguments: bytes) -> bytes:
    """A call of a global."""
    module, _, function = name.rpartition(".")
    return b"c" + f"{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def tensor(
    shape: Any = (2,),
    stride: Any = (1,),
    offset: Any = 0,
    count: Any = 2,
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """A tensor, as `torch.save` pickles it."""
    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + plain(count) + b"tQ"
    )
    rest = (plain(v) for v in (offset, shape, stride))
    return called(
        "torch._utils._rebuild_tensor_v2", storage, *rest, b"\x89", called("collections.OrderedDict")
    )


def table(*items: bytes) -> bytes:
    """A dictionary of keys and values in turn."""
    return b"}(" + b"".join(items) + b"u"


def whole(content: bytes) -> bytes:
    """A pickle."""
    return b"\x80\x02" + content + b"."


def archive(
    data: bytes | None,
    entries: Iterable[tuple[str, bytes]] = (("data/0", bytes(8)),),
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip archive as torch writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, value in ([] if data is None else [("data.pkl", data)]) + list(entries):
            file.writestr(f"archive/{name}", value)
    return stream.getvalue()


def legacy(
    content: bytes, *, magic: int = MAGIC, version: int = 1001, keys: Any = ("0",), count: int = 2
) -> bytes:
    """A file of torch before 1.6."""
    parts = [pickle.dumps(v, 2) for v in (magic, version, {"little_endian": True})]
    return b"".join([*parts, whole(content), pickle.dumps(list(keys), 2), struct.pack("<q", count), bytes(8)])


GOOD = table(text("a"), tensor())
CODE = (
    "posix.system",
    "os.system",
    "nt.system",
    "builtins.eval",
    "builtins.exec",
    "__builtin__.eval",
    "builtins.__import__",
    "builtins.open",
    "builtins.compile",
    "subprocess.Popen",
    "subprocess.check_output",
    "runpy.run_path",
    "pty.spawn",
    "shutil.rmtree",
    "importlib.import_module",
    "torch.load",
    "torch.hub.load",
    "torch.storage._load_from_bytes",
    "torch.jit.load",
    "torch.utils.model_zoo.load_url",
    "functools.partial",
    "operator.attrgetter",
    "builtins.getattr",
    "webbrowser.open",
    "code.interact",
    "marshal.loads",
    "pickle.loads",
    "socket.socket",
    "ctypes.CDLL",
    "jaxarch.cli.main",
    "numpy.testing._private.utils.runstring",
    "pathlib.Path.unlink.__call__",
    "torch.nn.modules.linear.Linear",
)


def operations() -> dict[str, bytes]:
    """Pickles that call code, or use the machine in ways that torch never does."""
    run = {f"calls {name}": table(text("a"), called(name, text(CANARY))) for name in CODE}
    run["calls at the top"] = called("os.system", text(CANARY))
    run["calls beside weights"] = table(text("a"), tensor(), text("b"), called("os.system", text(CANARY)))
    run["calls in a rebuild"] = table(
        text("a"),
        called(
            "torch._tensor._rebuild_from_type_v2",
            b"cos\nsystem\n",
            b"ctorch\nTensor\n",
            text("x") + b"\x85",
            b"N",
        ),
    )
    run["calls by INST"] = table(text("a"), b"(" + text(CANARY) + b"ios\nsystem\n")
    run["calls by OBJ"] = table(text("a"), b"(cos\nsystem\n" + text(CANARY) + b"o")
    run["calls by NEWOBJ"] = table(text("a"), b"csubprocess\nPopen\n" + text(CANARY) + b"\x85\x81")
    run["calls by NEWOBJ_EX"] = table(text("a"), b"csubprocess\nPopen\n)}\x92")
    run["calls by STACK_GLOBAL"] = table(
        text("a"), text("os") + text("system") + b"\x93" + text(CANARY) + b"\x85R"
    )
    run["calls an extension"] = table(text("a"), b"\x82\x01")
    run["a persistent text"] = table(text("a"), b"Pos.system\n")
    run["a persistent module"] = table(text("a"), b"(" + text("module") + b"cos\nsystem\nNNtQ")
    run["state of a text"] = table(text("a"), text("x") + b"}b")
    run["a call of a text"] = table(text("a"), text("x") + b")R")
    run["an empty stack"] = b"00000"
    run["a mark too many"] = b"((((("
    run["nothing remembered"] = b"j\xff\xff\xff\xff"
    run["memory for 4 billion"] = b"Nr\xff\xff\xff\xff0h\x00"
    run["text of 4 GB"] = b"X\xff\xff\xff\xff" + b"a" * 9
    run["text of 2^63"] = b"\x8d" + b"\xff" * 7 + b"\x7f"
    run["bytes of 2^62"] = b"\x8e" + b"\0" * 7 + b"\x40"
    run["bytearray of 2^62"] = b"\x96" + b"\0" * 7 + b"\x40"
    run["frame of 2^62"] = b"\x95" + b"\0" * 7 + b"\x40"
    run["a number of 10^6 digits"] = b"I" + b"9" * 10**6 + b"\n"
    run["a number of 2 GB"] = b"\x8b\xff\xff\xff\x7f"
    run["three million operations"] = b"N0" * 1_500_000 + GOOD
    run["a million numbers"] = table(text("a"), b"](" + b"K\x01" * 2_500_000 + b"e")
    return run


def contents() -> dict[str, bytes]:
    """Pickles whose content is no state_dict."""
    held = {
        f"holds {v!r}"[:40]: plain(v)
        for v in (None, 3, "x", [], {}, (), {"a": 1}, {"a": {"b": None}}, [1, 2])
    }
    held["a tensor"] = tensor()
    held["a list of tensors"] = b"](" + tensor() + b"e"
    held["an optimizer alone"] = table(text("state"), table(), text("param_groups"), b"]")
    for name, key in {
        "number": b"K\x03",
        "none": b"N",
        "pair": b"K\x01K\x02\x86",
        "float": b"G" + bytes(8),
        "global": b"ctorch\nfloat32\n",
        "bytes": b"C\x01a",
        "huge": plain(2**80),
        "long": text("x" * 5000),
        "newline": text("a\nb"),
        "escape": text("\x1b[31m"),
        "surrogate": text("\ud800"),
        "zero": text("a\0"),
        "tensor": tensor(),
        "list": b"]",
    }.items():
        held[f"key: {name}"] = table(key, tensor())
    held["two of one name"] = table(text("a.b"), tensor(), text("a"), table(text("b"), tensor()))
    held["tuples in tuples"] = table(text("a"), b")" + b"\x85" * 200_000)
    held["lists in lists"] = table(text("a"), b"]" + b"]a" * 1 + b"](" * 100_000 + b"e" * 100_000)
    held["tables in tables"] = (b"}" + text("a")) * 5_000 + tensor() + b"s" * 5_000
    held["a table in itself"] = b"}q\x01" + text("a") + b"h\x01s"
    held["tuples doubled 60 times"] = table(b")" + b"q\x01h\x01\x86" * 60, tensor())
    held["a text doubled"] = table(
        text("a" * 1000), b"](" + text("b" * 1000) + b"q\x01" + b"h\x01" * 100_000 + b"e"
    )
    return held


def shapes() -> dict[str, bytes]:
    """Tensors that claim what their storage does not hold."""
    held = {
        "expanded to 4 TB": tensor((10**6, 10**6), (0, 0)),
        "expanded to 2^60": tensor((2**30, 2**30), (0, 0)),
        "expanded a little, often": None,
        "outside its storage": tensor((3,)),
        "offset outside": tensor(offset=1),
        "offset of 2^62": tensor(offset=2**62),
        "offset negative": tensor(offset=-1),
        "stride outside": tensor(stride=(2,)),
        "stride negative": tensor(stride=(-1,), offset=1),
        "stride of 2^62": tensor(stride=(2**62,)),
        "a stride too many": tensor(stride=(1, 1)),
        "no stride": tensor(stride=()),
        "fewer elements than bytes": tensor(count=1, shape=(1,)),
        "more elements than bytes": tensor(count=4, shape=(4,)),
        "elements of 2^62": tensor(count=2**62, shape=(2**62,)),
        "elements negative": tensor(count=-2),
        "elements a text": tensor(count="2"),
        "another storage": tensor(key="1"),
        "storage elsewhere": tensor(key="../../../etc/passwd"),
        "quantized storage": tensor(kind="QInt8Storage"),
        "unknown storage": tensor(kind="EvilStorage"),
        "forty axes": tensor((1,) * 40 + (2,), (1,) * 41),
    }
    held["expanded a little, often"] = b"".join(
        text(str(i)) + tensor((1000, 1000), (0, 0)) for i in range(100)
    )
    for shape in ((-2,), (2.0,), ("2",), (None,), ((2,),), None, 2, "2", (True,), (2**63,), (2**70,)):
        held[f"shape {str(shape)[:30]}"] = tensor(shape)
    return {
        k: table(v) if k.endswith("often") else table(text("a"), v) for k, v in held.items() if v is not None
    }


def kinds() -> dict[str, bytes]:
    """Tensors of other kinds than dense ones, as torch saves them, and objects that allocate."""
    coo = b"ctorch.serialization\n_get_layout\n" + text("torch.sparse_coo") + b"\x85R"
    size = plain((10**6, 10**6))
    held = {
        "sparse": called(
            "torch._utils._rebuild_sparse_tensor", coo, b"(" + tensor() + tensor() + size + b"t"
        ),
        "quantized": called("torch._utils._rebuild_qtensor", b"N", b"K\0", size, size, b"N", b"\x89", b"N"),
        "nested": called("torch._utils._rebuild_nested_tensor", tensor(), tensor(), tensor(), tensor()),
        "meta": called(
            "torch._utils._rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n", size, size, b"\x89"
        ),
        "subclass": called("torch._utils._rebuild_wrapper_subclass", *[b"N"] * 8),
        "from numpy": called("torch._utils._rebuild_device_tensor_from_numpy", *[b"N"] * 4),
        "bytearray": called("builtins.bytearray", plain(10**11)),
        "bytes": called("_codecs.encode", text("a" * 10**6), text("utf-16")),
        "numpy": called(
            "numpy._core.multiarray._reconstruct", b"cnumpy\nndarray\n", plain((10**9,)), text("d")
        ),
        "a set": called("builtins.set", b"](" + b")" * 10**5 + b"e"),
        "a namespace": called("argparse.Namespace"),
        "int4": called("torch._utils._rebuild_tensor_v3", b"N", *[b"N"] * 5, b"ctorch\nint4\n"),
        "conjugate of floats": None,
    }
    return {k: table(text("a"), v) for k, v in held.items() if v is not None}


def archives() -> dict[str, bytes]:
    """Zip archives that lie."""
    good, data = archive(whole(GOOD)), whole(GOOD)
    middle = good.rfind(b"PK\x05\x06")
    files = {
        "no pickle": archive(None),
        "two pickles": archive(data, [("data/0", bytes(8))]) and _two(data),
        "no storage": archive(data, []),
        "an entry twice": _twice(data),
        "compressed": archive(data, [("data/0", bytes(10**7))], zipfile.ZIP_DEFLATED),
        "compressed pickle of 1 GB": archive(b"\x80\x02" + bytes(10**7), method=zipfile.ZIP_DEFLATED),
        "bzip2": archive(data, method=zipfile.ZIP_BZIP2),
        "lzma": archive(data, method=zipfile.ZIP_LZMA),
        "pickle of 70 MB": archive(b"\x80\x02" + bytes(70 << 20)),
        "torchscript": archive(data, [("data/0", bytes(8)), ("constants.pkl", b""), ("code/x.py", b"x")]),
        "unknown byte order": archive(data, [("data/0", bytes(8)), ("byteorder", b"middle")]),
        "no directory": good[:middle],
        "directory elsewhere": good[: middle + 16] + b"\xff" * 4 + good[middle + 20 :],
        "directory of 2 GB": good[: middle + 12] + b"\xff\xff\xff\x7f" + good[middle + 16 :],
        "65,535 entries": good[: middle + 8] + b"\xff" * 4 + good[middle + 12 :],
        "three hundred thousand entries": b"PK\x03\x04"
        + b"PK\x01\x02".ljust(46, b"\0") * 300_000
        + _end(300_000),
        "encrypted": good.replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
        ),
        "one over the other": _moved(good),
        "no header there": good.replace(b"PK\x03\x04", b"PK\x03\x05").replace(
            b"PK\x03\x05", b"PK\x03\x04", 1
        ),
        "garbage before": b"PK" + bytes(100) + good,
        "pickle of nothing": archive(b""),
        "directory in a comment": good[:-2] + b"\xff\xff" + good,
    }
    return files


def _two(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for folder in "ab":
            file.writestr(f"{folder}/data.pkl", data)
    return stream.getvalue()


def _twice(data: bytes) -> bytes:
    # The library warns of a name that is there twice: it is made by renaming.
    return archive(data, [("data/0", bytes(8)), ("data/1", bytes(8))]).replace(b"data/1", b"data/0")


def _end(count: int) -> bytes:
    return b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count & 0xFFFF, count & 0xFFFF, 46 * count, 4, 0)


def _moved(good: bytes) -> bytes:
    """An archive whose second entry claims the place of the first."""
    at = good.rfind(b"PK\x01\x02")
    return good[: at + 42] + bytes(4) + good[at + 46 :]


def legacies() -> dict[str, bytes]:
    """Files of torch before 1.6, and of other programs."""
    import tarfile

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name))
    return {
        "another number": legacy(GOOD, magic=3),
        "another version": legacy(GOOD, version=1002),
        "a storage too many": legacy(GOOD, keys=("0", "1")),
        "a storage twice": legacy(GOOD, keys=("0", "0")),
        "no storage": legacy(GOOD, keys=()),
        "keys of another kind": legacy(GOOD, keys=(3, None)),
        "another length": legacy(GOOD, count=3),
        "length negative": legacy(GOOD, count=-1),
        "code": legacy(table(text("a"), called("os.system", text(CANARY)))),
        "a whole model": legacy(
            table(text("a"), b"(" + text("module") + b"ctorch.nn\nLinear\n" + text("f") + text("s") + b"tQ")
        ),
        "a view of a storage": legacy(
            table(
                text("a"),
                b"("
                + text("storage")
                + b"ctorch\nFloatStorage\n"
                + text("0")
                + text("cpu")
                + b"K\x02K\x01tQ",
            )
        ),
        "tar": tar.getvalue(),
        "a plain pickle": pickle.dumps({"a": [1.0, 2.0]}),
        "a pickle that calls": whole(called("os.system", text(CANARY))),
        "gzip": b"\x1f\x8b\x08" + bytes(99),
        "an image": b"\x89PNG\r\n\x1a\n" + bytes(99),
    }


def cases() -> list[Case]:
    """The cases of both formats of torch."""
    import torch

    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(3), "b": torch.ones(2, 2)}}, stream)
    made = [*irregular("torch", FILE), *truncated("torch", FILE, stream.getvalue())]
    stream = io.BytesIO()
    torch.save({"a": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
    made += [Case("torch before 1.6", c.name, c.make) for c in truncated("torch", FILE, stream.getvalue())]
    for group in (operations(), contents(), shapes(), kinds()):
        made += [Case("torch", name, of_bytes(FILE, archive(whole(v)))) for name, v in group.items()]
    made += [Case("torch", f"archive: {name}", of_bytes(FILE, v)) for name, v in archives().items()]
    return made + [Case("torch before 1.6", name, of_bytes(FILE, v)) for name, v in legacies().items()]
