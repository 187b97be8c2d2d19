"""The available devices, and how much memory a piece of code uses."""

import contextlib
import gc
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


def device_info() -> dict[str, Any]:
    """Framework, backend, processes, host memory, and for each local device its name and memory in bytes.

    Memory figures of a device are 0 where the backend does not report them, as on the CPU.
    """
    devices = []
    for i in range(torch.accelerator.device_count()):
        stats = torch.cuda.memory_stats(i) if torch.cuda.is_available() else {}
        devices.append(
            {
                "name": f"{_backend()}:{i}",
                "kind": torch.cuda.get_device_name(i) if torch.cuda.is_available() else _backend(),
                "memory": torch.cuda.get_device_properties(i).total_memory
                if torch.cuda.is_available()
                else 0,
                "used": int(stats.get("allocated_bytes.all.current", 0)),
                "peak": int(stats.get("allocated_bytes.all.peak", 0)),
            }
        )
    cpu = {"name": "cpu:0", "kind": "cpu", "memory": 0, "used": 0, "peak": 0}
    return {
        "framework": f"torch {torch.__version__}",
        "backend": _backend(),
        "python": platform.python_version(),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "cores": os.cpu_count() or 0,
        "host_memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host_peak": host_peak(),
        "devices": devices or [cpu],
    }


@dataclass
class MemoryReport:
    """Bytes that a piece of code left behind on the devices (`arrays`: in how many more tensors), and by how
    much it raised the peak of the devices and of the process."""

    name: str
    left: int = 0
    arrays: int = 0
    device_peak: int = 0
    host_peak: int = 0

    def __str__(self) -> str:
        mib = [f"{v / 2**20:.1f} MiB" for v in (self.left, self.device_peak, self.host_peak)]
        return f"{self.name}: {mib[0]} left in {self.arrays} tensors; peak +{mib[1]} device, +{mib[2]} host"


@contextlib.contextmanager
def memory_monitor(name: str) -> Iterator[MemoryReport]:
    """A report that is filled in when the code within ends."""
    report = MemoryReport(name)
    before, peak, host = live(), device_peak(), host_peak()
    try:
        yield report
    finally:
        after = live()
        report.left, report.arrays = after[0] - before[0], after[1] - before[1]
        report.device_peak, report.host_peak = device_peak() - peak, host_peak() - host


def live() -> tuple[int, int]:
    """The bytes and the number of the live tensors."""
    memory = {}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), torch.Tensor):  # isinstance would resolve proxies
            storage = candidate.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
    return sum(memory.values()), len(memory)


def device_peak() -> int:
    """The peak memory of the local devices in bytes, summed."""
    return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))


def _backend() -> str:
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def host_peak() -> int:
    """The peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
