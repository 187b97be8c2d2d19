"""Folders that lie: shards with an index, manifests, checkpoints of orbax and of torch.distributed, adapters."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hostile import Case, Make
from hostile.headers import NEST, entry, pack
from hostile.pickles import CANARY, called, plain, table, tensor, text, whole
from jaxarch.convert.checkpoint_folder import create_checkpoint
from jaxarch.convert.files import write_tensors
from jaxarch.convert.tensors import TensorInfo

HELD: dict[str, np.ndarray] = {"a": np.ones((2, 3), np.float32), "b": np.arange(4)}
Damage = Callable[[Path], Any]


def sharded(folder: Path, content: Any) -> Path:
    """A folder with an index of shards, which may be any text."""
    (folder / "model-1.safetensors").write_bytes(pack(entry()))
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "model.safetensors.index.json").write_bytes(data)
    return folder


def indices() -> dict[str, Any]:
    """Indices by what is wrong with them."""
    names: tuple[Any, ...] = (
        "../model-1.safetensors",
        "/etc/passwd",
        "/dev/zero",
        "x/model-1.safetensors",
        "model-1.bin",
        "..",
        "",
        ".",
        3,
        None,
        [],
        {},
        "missing.safetensors",
        "model.safetensors.index.json",
        "a\\model-1.safetensors",
        "model-1.safetensors\0",
        "x" * 5000 + ".safetensors",
    )
    files: dict[str, Any] = {f"shard {str(n)[:24]!r}": {"weight_map": {"a": n}} for n in names}
    maps: tuple[Any, ...] = (None, [], {}, "a", 3)
    files |= {f"map {v!r}": {"weight_map": v} for v in maps}
    files |= {f"index {v!r}"[:30]: v for v in (b"", b"null", b"[]", b"\xff", b"{", b'{"weight_map":' * NEST)}
    files["another name"] = {"weight_map": {"b": "model-1.safetensors"}}
    files["a name too many"] = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    return files


def stored(damage: Damage, folder: Path) -> Path:
    """A file with its manifest, damaged."""
    write_tensors(folder / "a.safetensors", HELD)
    damage(folder / "a.safetensors.checksums.json")
    return folder / "a.safetensors"


def checkpoint(damage: Damage, folder: Path) -> Path:
    """A checkpoint of ours, damaged; it is opened as one of orbax where its manifest is not the matter."""
    target = folder / "c"
    with create_checkpoint(target, {k: TensorInfo.of(v) for k, v in HELD.items()}, "{}") as writer:
        for name, value in HELD.items():
            writer.write(name, value)
        writer.finish()
    return damage(target) or target / "arrays"


def edited(change: Callable[[Any], Any]) -> Damage:
    """A damage that changes the content of a file of JSON."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_bytes())
        path.write_text(json.dumps(change(content) or content))

    return damage


def replaced(data: bytes) -> Damage:
    """A damage that replaces a file."""
    return lambda path: void(path.write_bytes(data))


def void(_: Any) -> None:
    """Nothing, whatever was made."""


def manifests() -> dict[str, Damage]:
    """Manifests by what was done to them."""
    return {
        "another hash": edited(lambda c: c["tensors"]["a"].update(hash="0" * 32)),
        "another dtype": edited(lambda c: c["tensors"]["a"].update(dtype="F16")),
        "another shape": edited(lambda c: c["tensors"]["a"].update(shape=[3, 2])),
        "no tensors": edited(lambda c: c.update(tensors={})),
        "a tensor less": edited(lambda c: void(c["tensors"].pop("a"))),
        "a tensor more": edited(lambda c: c["tensors"].update(z=c["tensors"]["a"])),
        "no hash of itself": edited(lambda c: void(c.pop("self"))),
        "another format": edited(lambda c: c.update(format=1)),
        "another algorithm": edited(lambda c: c.update(hash="none")),
        "a list": edited(lambda c: [c]),
        "null": edited(lambda c: [None]),
        "lists in lists": replaced(b"[" * NEST),
        "no JSON": replaced(b"{"),
        "noise": replaced(bytes(range(256))),
        "a number of 10^5 digits": replaced(b"9" * 10**5),
        "a pipe": swapped("", os.mkfifo),
        "a device": swapped("", lambda path: path.symlink_to("/dev/zero")),
        "a flipped byte": lambda path: flip(path.with_name("a.safetensors"), -1),
    }


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def at(name: str, damage: Damage) -> Damage:
    """A damage of a file in a folder."""
    return lambda folder: damage(folder / name)


def swapped(name: str, make: Callable[[Path], Any]) -> Damage:
    """A damage that puts something else in the place of a file or folder."""

    def damage(folder: Path) -> None:
        path = folder / name if name else folder
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


TREE, CHUNK, ZARRAY = "arrays/state/_METADATA", "arrays/state/a/0.0", "arrays/state/a/.zarray"
# Names of the one array in the description of a tree, and fields of the description of an array.
NAMES = (
    "('../../x',)",
    "('/etc/passwd',)",
    "__import__('os').system('touch /tmp/jaxarch-canary')",
    "(" * 500 + ")" * 500,
    "",
    "3",
    "('c',)",
    "('a\\n',)",
    "('x' * 10**9,)",
    f"('{'x' * 5000}',)",
    "('.',)",
    "('..',)",
)
FIELDS: dict[str, tuple[Any, ...]] = {
    "shape": ([10**6, 10**6], [-2, 3], [2.5, 3], "x", None, [2], [2, 4], [2**70, 1]),
    "chunks": ([0, 0], [10**9, 10**9], [-1, 3], None, "x"),
    "dtype": ("<f3", "|O", "<f8", None, "<U9"),
    "compressor": ({"id": "evil"}, "x", {"id": "zlib"}),
    "order": ("X", None),
    "zarr_format": (9, None),
    "filters": ([{"id": "pickle"}],),
}


def renamed(key: str) -> Damage:
    """A damage that gives the arrays of a tree one name."""
    return edited(
        lambda c: c.update(tree_metadata=dict.fromkeys([key], next(iter(c["tree_metadata"].values()))))
    )


def changed(key: str, value: Any) -> Damage:
    """A damage that changes a field of the description of an array."""
    return edited(lambda c: c.update({key: value}))


def orbax() -> dict[str, Damage]:
    """Checkpoints of orbax by what was done to them."""
    damages = {f"name {key[:24]}": at(TREE, renamed(key)) for key in NAMES}
    for key, values in FIELDS.items():
        damages |= {f"{key} {str(v)[:20]}": at(ZARRAY, changed(key, v)) for v in values}
    damages |= {
        f"description {d[:9]!r}": at(TREE, replaced(d))
        for d in (b"", b"{", b"[]", b"null", b"[" * NEST, b'{"tree_metadata":3}')
    }
    damages["description a pipe"] = swapped(TREE, os.mkfifo)
    damages["description a device"] = swapped(TREE, lambda p: p.symlink_to("/dev/zero"))
    damages["chunk cut"] = at(CHUNK, lambda p: os.truncate(p, 5))
    damages["chunk too long"] = at(CHUNK, lambda p: os.truncate(p, 50))
    damages["chunk empty"] = at(CHUNK, lambda p: os.truncate(p, 0))
    damages["chunk missing"] = at(CHUNK, os.unlink)
    damages["chunk a pipe"] = swapped(CHUNK, os.mkfifo)
    damages["chunk a device"] = swapped(CHUNK, lambda p: p.symlink_to("/dev/zero"))
    damages["chunk out of the folder"] = swapped(CHUNK, lambda p: p.symlink_to("/etc/passwd"))
    damages["chunk a folder"] = swapped(CHUNK, os.mkdir)
    damages["array missing"] = at("arrays/state/a", shutil.rmtree)
    damages["array out of the folder"] = swapped("arrays/state/a", lambda p: p.symlink_to("/etc"))
    return damages


def distributed(folder: Path, data: bytes, part: bytes = b"") -> Path:
    """A folder of torch.distributed.checkpoint."""
    (folder / ".metadata").write_bytes(data)
    (folder / "__0_0.distcp").write_bytes(part)
    return folder


def record(name: str, **state: bytes) -> bytes:
    """An object of torch.distributed.checkpoint, as pickled."""
    items = b"".join(text(k) + v for k, v in state.items())
    return (
        f"ctorch.distributed.checkpoint.{name}\n".replace(".checkpoint.metadata.", ".checkpoint.metadata\n")
        .replace(".filesystem.", ".filesystem\n")
        .encode()
        + b")\x81}("
        + items
        + b"ub"
    )


def described(
    size: Any = (2,),
    file: str = "__0_0.distcp",
    start: Any = 0,
    length: Any = 9,
    low: Any = (0,),
    part: Any = (2,),
) -> bytes:
    """The metadata of one tensor in one part."""
    properties = record("metadata.TensorProperties").replace(b"}(ub", b"(ctorch\nfloat32\nNNNtb")
    chunk = record("metadata.ChunkStorageMetadata", offsets=plain(low), sizes=plain(part))
    what = record(
        "metadata.TensorStorageMetadata", properties=properties, size=plain(size), chunks=b"](" + chunk + b"e"
    )
    where = record(
        "filesystem._StorageInfo", relative_path=text(file), offset=plain(start), length=plain(length)
    )
    key = record("metadata.MetadataIndex", fqn=text("a"), offset=plain(low))
    tables = {"state_dict_metadata": table(text("a"), what), "storage_data": table(key, where)}
    return whole(record("metadata.Metadata", planner_data=b"N", **tables))


def checkpoints() -> dict[str, Make]:
    """Folders of torch.distributed.checkpoint by what is wrong with them."""
    metadata = {
        "calls": whole(called("os.system", text(CANARY))),
        "nothing": b"",
        "null": whole(b"N"),
        "a table": whole(table(text("a"), tensor())),
        "no tables": whole(record("metadata.Metadata")),
        "noise": bytes(range(256)),
        "three million operations": b"\x80\x02" + b"N0" * 1_500_000 + b"N.",
        "out of the folder": described(file="../a.distcp"),
        "absolute": described(file="/etc/passwd"),
        "missing": described(file="x.distcp"),
        "start negative": described(start=-1),
        "length of 2^60": described(length=2**60),
        "length a text": described(length="9"),
        "size of 10^12": described((10**12,)),
        "size negative": described((-2,)),
        "size a text": described("x"),
        "a part outside": described(part=(3,)),
        "a part too small": described(part=(1,)),
        "a part of more axes": described(part=(2, 1)),
        "a part elsewhere": described(low=(1,)),
        "no bytes": described(),
        "no length": described(length=0),
    }
    return {name: partial(distributed, data=data, part=bytes(9)) for name, data in metadata.items()}


def adapters() -> dict[str, Make]:
    """Folders of peft by what is wrong with them."""

    def make(folder: Path, config: bytes, weights: bytes | None = None) -> Path:
        (folder / "adapter_config.json").write_bytes(config)
        if weights is not None:
            (folder / "adapter_model.safetensors").write_bytes(weights)
        return folder

    good, clash = (
        entry(),
        {"a": entry()["a"], "base_model.model.a": {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]}},
    )
    configs = {
        f"config {c[:9]!r}": c for c in (b"", b"{", b"[]", b"null", b"\xff", b"[" * NEST, b" " * (2 << 20))
    }
    made: dict[str, Make] = {name: partial(make, config=c, weights=pack(good)) for name, c in configs.items()}
    made["no weights"] = partial(make, config=b"{}")
    made["weights cut"] = partial(make, config=b"{}", weights=pack(good)[:-1])
    made["a name twice"] = partial(make, config=b"{}", weights=pack(clash))
    return made


def cases() -> list[Case]:
    """The cases of all of these."""
    groups: dict[str, dict[str, Make]] = {
        "shards": {k: partial(sharded, content=v) for k, v in indices().items()},
        "manifest": {k: partial(stored, v) for k, v in manifests().items()},
        "orbax": {k: partial(checkpoint, v) for k, v in orbax().items()},
        "torch.distributed": checkpoints(),
        "peft": adapters(),
        "folder": {
            "empty": lambda folder: folder,
            "of nothing known": lambda f: (f / "x").write_text("x") and f,
        },
    }
    return [Case(reader, name, make) for reader, makers in groups.items() for name, make in makers.items()]
