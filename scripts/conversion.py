"""Measure conversions of a large checkpoint, beside what safetensors does with the same bytes.

    python scripts/conversion.py --layers 12 --width 2560 --folder /tmp/conversion

writes a GPT-2 of that size with random bits as a Hugging Face folder, converts it in every direction, each in a
process of its own, and prints a table. A directory with room for three times the checkpoint is needed.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch import files
from jaxarch.convert.files import create_tensors
from jaxarch.convert.tensors import BLOCK_BYTES, TensorInfo, block_indices

VOCABULARY, POSITIONS = 50257, 1024


def gpt2_infos(layers: int, width: int, dtype: str) -> dict[str, TensorInfo]:
    """What the tensors of a GPT-2 are, by their names on the Hub."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCABULARY, width),
        "transformer.wpe.weight": (POSITIONS, width),
    }
    for i in range(layers):
        block = f"transformer.h.{i}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.{k}": (width,) for k in ("weight", "bias")}
        for name, inner, outer in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{block}.{name}.weight": (inner, outer), f"{block}.{name}.bias": (outer,)}
    shapes |= {f"transformer.ln_f.{k}": (width,) for k in ("weight", "bias")}
    return {k: TensorInfo(dtype, shape) for k, shape in shapes.items()}


def synthesize(folder: Path, layers: int, width: int, dtype: str, shard_bytes: int = 5 * 10**9) -> int:
    """Write a Hugging Face folder of a GPT-2 with random bits; the size of its tensors in bytes."""
    infos = gpt2_infos(layers, width, dtype)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**16, BLOCK_BYTES // 2 + 4096, np.uint16)
    noise &= 0xBFFF  # no infinity and no NaN, in any dtype of floats
    with create_tensors(folder / "model.safetensors", infos, shard_bytes=shard_bytes) as writer:
        for name, info in infos.items():
            for index in block_indices(info.shape, info.numpy.itemsize, BLOCK_BYTES):
                size = int(np.prod([s.stop - s.start for s in index])) * info.numpy.itemsize
                at = int(rng.integers(0, 2048)) * 2
                writer.write(name, noise[at : at + size // 2].view(info.numpy))
        writer.finish()
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": layers,
        "n_embd": width,
        "n_head": width // 64,
        "n_positions": POSITIONS,
        "vocab_size": VOCABULARY,
    }
    files.write_text(folder / "config.json", json.dumps(config))
    return sum(i.nbytes for i in infos.values())


def baseline(source: Path, target: Path) -> None:
    """Load a folder's shards and save them again, with safetensors' own functions."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for shard in sorted(source.glob("*.safetensors")):
        save_file(load_file(shard), target / shard.name)


def convert(source: str, target: str, settings: dict[str, int]) -> None:
    """Convert in this process."""
    from jaxarch.commands.convert import conversion

    is_folder = Path(source.removeprefix("hf:")).is_dir()
    named: dict[str, Any] = {} if is_folder else {"model": "gpt2", "variant": "small", "settings": settings}
    print(conversion(source, target, **named).summary(), file=sys.stderr)


class PeakMemory:
    """A context that samples the memory of this process that no file backs; `growth` is its largest, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self._start, self._stop, self.growth = anonymous_memory(), threading.Event(), 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.growth = max(self.growth, anonymous_memory() - self._start)


def anonymous_memory() -> float:
    """The resident memory of this process that no file backs, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measured(task: str, source: str, target: str, settings: dict[str, int]) -> dict[str, float]:
    """Seconds, also with those until all is on the disk, and growth of memory in MiB, of one task in this process."""
    call = functools.partial(convert, source, target, settings)
    if task == "baseline":
        call = functools.partial(baseline, Path(source), Path(target))
    start = time.perf_counter()
    with PeakMemory() as peak:
        call()
        seconds = time.perf_counter() - start
    os.sync()
    return {"seconds": seconds, "synced": time.perf_counter() - start, "growth": peak.growth}


def in_child(task: str, source: str, target: str, settings: dict[str, int]) -> dict[str, float]:
    """`measured` in a process of its own, with nothing of the source in the page cache."""
    for path in files_of(Path(source.removeprefix("hf:"))):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    arguments = [sys.executable, __file__, "--measure", task, source, target, json.dumps(settings)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def files_of(path: Path) -> list[Path]:
    """A file, or all files in a folder."""
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def main() -> None:
    """Measure every direction and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--dtype", default="F32")
    parser.add_argument("--folder", type=Path, default=Path("conversion"))
    parser.add_argument(
        "--only", nargs="*", default=["baseline", "hub", "orbax", "back", "file", "pt", "pt-orbax"]
    )
    args = parser.parse_args()
    if args.measure:
        task, source, target, settings = args.measure
        print(json.dumps(measured(task, source, target, json.loads(settings))))
        return
    settings = {"n_layer": args.layers, "n_embd": args.width, "n_head": args.width // 64}
    out = args.folder
    size = synthesize(out / "hub", args.layers, args.width, args.dtype)
    tasks = {
        "baseline": (f"{out}/hub", f"{out}/baseline"),
        "hub": (f"hf:{out}/hub", f"{out}/orbax"),
        "back": (f"{out}/orbax", f"hf:{out}/back"),
        "file": (f"{out}/orbax", f"{out}/a.safetensors"),
        "pt": (f"{out}/orbax", f"{out}/a.pt"),
        "pt-orbax": (f"{out}/a.pt", f"{out}/again"),
    }
    print(
        f"{size / 1e9:.2f} GB of {args.dtype}, largest tensor {VOCABULARY * args.width * 4 / 2**20:.0f} MiB"
    )
    print(
        "| direction | seconds | until on the disk | GB/s | memory beyond the start, MiB |\n|---|---|---|---|---|"
    )
    for task, (source, target) in tasks.items():
        if task not in args.only:
            continue
        row = in_child(task, source, target, settings)
        speed = size / 1e9 / row["seconds"]
        print(
            f"| {task} | {row['seconds']:.1f} | {row['synced']:.1f} | {speed:.2f} | {row['growth']:.0f} |",
            flush=True,
        )
        if task in ("baseline", "back", "file"):
            files.remove(Path(target.removeprefix("hf:")))
    for name in ("hub", "orbax", "again", "a.pt", "a.pt.checksums.json"):
        files.remove(out / name)


if __name__ == "__main__":
    main()
