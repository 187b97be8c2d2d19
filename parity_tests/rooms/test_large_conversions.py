"""Conversions of checkpoints that are large, or are killed: little memory, and nothing half-written."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxarch import files
from jaxarch.commands.convert import conversion
from jaxarch.convert.checkpoint_folder import open_checkpoint
from jaxarch.convert.files import create_tensors, open_tensors
from jaxarch.convert.manifest import hash_of
from jaxarch.convert.safetensors_file import safetensors_places
from jaxarch.convert.tensors import BLOCK_BYTES, TensorInfo, block_indices, tensors_of

VOCABULARY, POSITIONS = 5003, 64
# The arguments of a GPT-2 whose weights take about that many MiB; the largest is its embedding or an inner matrix.
SIZES = {
    8: {"n_layer": 2, "n_embd": 192, "n_head": 3},
    256: {"n_layer": 12, "n_embd": 640, "n_head": 10},
    4096: {"n_layer": 12, "n_embd": 2624, "n_head": 41},
}

CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
import jaxarch.convert.store
from jaxarch import files
from jaxarch.commands.convert import conversion
jobs, settings, limit = json.loads(sys.argv[1])
if any(target.endswith(".pt") for _, target in jobs):
    import torch._subclasses.fake_tensor
threading.stack_size(1 << 20)  # the limit counts stacks that no thread has used
def named(source):
    is_folder = Path(source.removeprefix("hf:")).is_dir()
    return {} if is_folder else {"model": "gpt2", "variant": "small", "settings": settings}
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
peak, stop = 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.005):
        peak = max(peak, status("RssAnon"))
source, target = jobs[0]
conversion(source, target, dry_run=True, **named(source))  # starts JAX and its threads
threading.Thread(target=watch, daemon=True).start()
if not limit:
    jaxarch.convert.store._SYNC_BYTES = 1 << 20
for source, target in jobs:
    print("ready", flush=True)
    sys.stdin.readline()
    if limit:
        most = int((status("VmData") + limit) * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    start, begun = status("RssAnon"), time.perf_counter()
    peak = start
    conversion(source, target, **named(source))
    print(json.dumps({"MiB": peak - start, "seconds": time.perf_counter() - begun}), flush=True)
stop.set()
"""


class Child:
    """A process that converts, one pair of source and target after the other, when it is told to."""

    def __init__(self, jobs, settings, limit=0):
        arguments = json.dumps([[list(map(str, job)) for job in jobs], settings, limit])
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)},
        )

    def begin(self):
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()[-3000:]
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def convert(self):
        self.begin()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()[-3000:]
        return json.loads(line)


def convert(source, target, settings):
    """Convert in this process; the seconds it took."""
    is_folder = Path(str(source).removeprefix("hf:")).is_dir()
    named = {} if is_folder else {"model": "gpt2", "variant": "small", "settings": settings}
    begun = time.perf_counter()
    conversion(str(source), str(target), **named)
    return time.perf_counter() - begun


def infos_of(settings):
    """What the tensors of a GPT-2 are, by their names on the Hub."""
    width, block = settings["n_embd"], "transformer.h"
    shapes = {"transformer.wte.weight": (VOCABULARY, width), "transformer.wpe.weight": (POSITIONS, width)}
    sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for i in range(settings["n_layer"]):
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{i}.{name}.{k}": (width,) for k in ("weight", "bias")}
        for name, (inner, outer) in sizes.items():
            shapes[f"{block}.{i}.{name}.weight"] = (inner * width, outer * width)
            shapes[f"{block}.{i}.{name}.bias"] = (outer * width,)
    shapes |= {f"transformer.ln_f.{k}": (width,) for k in ("weight", "bias")}
    return {k: TensorInfo("F32", shape) for k, shape in shapes.items()}


def synthesize(folder, settings, shard_bytes):
    """A Hugging Face folder of random bits, in shards."""
    infos, rng = infos_of(settings), np.random.default_rng(0)
    noise = rng.integers(0, 2**16, BLOCK_BYTES // 2 + 4096, np.uint16) & 0xBFFF  # no NaN and no infinity
    with create_tensors(folder / "model.safetensors", infos, shard_bytes=shard_bytes) as writer:
        for name, info in infos.items():
            for index in block_indices(info.shape, 4, BLOCK_BYTES):
                size = int(np.prod([s.stop - s.start for s in index])) * 4
                at = int(rng.integers(0, 2048)) * 2
                writer.write(name, noise[at : at + size // 2].view(np.float32))
        writer.finish()
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **settings}
    config |= {"vocab_size": VOCABULARY, "n_positions": POSITIONS}
    (folder / "config.json").write_text(json.dumps(config))
    return infos


def hashes(path):
    """The hash of each tensor of a file, folder or checkpoint, by torch's names."""
    opened = open_checkpoint if (path / "about.json").is_file() else open_tensors
    with opened(path) as reader:
        tensors = tensors_of(reader)
        return {
            k.removeprefix("params/").removeprefix("rest/"): hash_of(t.blocks()) for k, t in tensors.items()
        }


def remove(*paths):
    for path in paths:
        files.remove(path)


def settings_of(size):
    return {**SIZES[size], "vocab_size": VOCABULARY, "n_positions": POSITIONS}


def check_memory(folder, size, limit):
    """Convert in every direction under a hard limit; the most memory beyond the start, by direction, in MiB."""
    settings = settings_of(size)
    infos = synthesize(folder / "hub", settings, size * 2**20 // 3)
    largest = max(i.nbytes for i in infos.values())
    most, expected = 2 * largest + limit * 2**20, hashes(folder / "hub")
    jobs = [
        tuple(f"hf:{folder / n[3:]}" if n.startswith("hf:") else folder / n for n in pair)
        for pair in (
            ("hf:hub", "orbax"),
            ("orbax", "hf:back"),
            ("orbax", "a.safetensors"),
            ("orbax", "a.pt"),
            ("a.pt", "again"),
        )
    ]
    unneeded = ["hub", "back", "a.safetensors", "orbax", "a.pt"]
    figures, child = {}, Child(jobs, settings, most / 2**20)
    for (source, target), name in zip(jobs, unneeded, strict=True):
        figures[f"{source} -> {target}".replace(str(folder), "")] = child.convert()
        assert set(hashes(Path(str(target).removeprefix("hf:"))).values()) == set(expected.values()), target
        remove(folder / name)
    child.process.communicate()
    print(json.dumps({"limit in MiB": most / 2**20, **figures}, indent=1))
    assert max(f["MiB"] for f in figures.values()) < most / 2**20
    return figures


def test_a_conversion_holds_two_tensors_and_a_few_blocks(tmp_path):
    check_memory(tmp_path, 256, 128)


@pytest.mark.slow
def test_four_gigabytes_under_a_hard_limit(tmp_path):
    check_memory(tmp_path, 4096, 256)


def test_seventy_billion_parameters_are_planned_in_seconds(tmp_path):
    settings = {
        "n_layer": 80,
        "n_embd": 8448,
        "n_head": 132,
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
    }
    infos = {k: i._replace(dtype="BF16") for k, i in infos_of(settings).items()}
    size = sum(i.nbytes for i in infos.values())
    assert size > 137e9
    places = safetensors_places("model.safetensors", infos, {}, shard_bytes=5 * 10**9, is_folder=True)
    places.prepare(tmp_path)  # sparse files: hardly a byte on the disk
    for name, text in places.texts.items():
        (tmp_path / name).write_text(text)
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    begun = time.perf_counter()
    report = conversion(f"hf:{tmp_path}", str(tmp_path / "folder"), dry_run=True)
    assert time.perf_counter() - begun < 30  # 3 s on an idle machine
    assert f"{size:,} bytes" in "\n".join(report.lines())
    assert not (tmp_path / "folder").exists()


DIRECTIONS = {
    "hub -> orbax": ("hf:hub", "orbax"),
    "orbax -> hub": ("start", "hf:back"),
    "orbax -> safetensors": ("start", "a.safetensors"),
    "pt -> orbax": ("start.pt", "orbax"),
    "orbax -> pt": ("start", "a.pt"),
}


def check_kills(folder, direction, kills, seed=0):
    """Kill a conversion at random moments: its target is whole or not there, and the next one ends it."""
    settings = settings_of(8)
    synthesize(folder / "hub", settings, 3 << 20)
    convert(f"hf:{folder / 'hub'}", folder / "start", settings)
    source, target = DIRECTIONS[direction]
    if source == "start.pt":
        convert(folder / "start", folder / source, settings)
    source, target = (f"hf:{folder / n[3:]}" if n.startswith("hf:") else folder / n for n in (source, target))
    place = Path(str(target).removeprefix("hf:"))
    expected = hashes(folder / "hub")
    seconds = convert(source, target, settings)
    before = {p.name for p in folder.iterdir()}
    rng, killed = random.Random(seed), 0
    for _ in range(kills):
        remove(*folder.glob(f"{place.name}*"))
        child = Child([(source, target)], settings)
        child.begin()
        time.sleep(rng.uniform(0, seconds * 1.2))
        child.process.send_signal(signal.SIGKILL)
        killed += child.process.wait() == -9
        child.process.communicate()
        if place.exists():
            assert set(hashes(place).values()) == set(expected.values())
            remove(*folder.glob(f"{place.name}*"))
        convert(source, target, settings)
        assert set(hashes(place).values()) == set(expected.values())
        assert {p.name for p in folder.iterdir()} == before  # nothing hidden is left
    assert killed >= kills // 3


@pytest.mark.parametrize(("direction", "kills"), [("hub -> orbax", 2), ("orbax -> safetensors", 1)])
def test_a_killed_conversion_leaves_nothing_behind(tmp_path, direction, kills):
    check_kills(tmp_path, direction, kills)


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_twenty_kills(tmp_path, direction):
    check_kills(tmp_path, direction, 20, seed=1)
