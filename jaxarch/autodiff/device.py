"""The available devices, and how much memory a piece of code uses."""

import contextlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax


def device_info() -> dict[str, Any]:
    """Framework, backend, processes, host memory, and for each local device its name and memory in bytes.

    Memory figures of a device are 0 where the backend does not report them, as on the CPU.
    """
    devices = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        devices.append(
            {
                "name": f"{device.platform}:{device.id}",
                "kind": device.device_kind,
                "memory": int(stats.get("bytes_limit", 0)),
                "used": int(stats.get("bytes_in_use", 0)),
                "peak": int(stats.get("peak_bytes_in_use", 0)),
            }
        )
    return {
        "framework": f"jax {jax.__version__}",
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "processes": jax.process_count(),
        "cores": os.cpu_count() or 0,
        "host_memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host_peak": host_peak(),
        "devices": devices,
    }


@dataclass
class MemoryReport:
    """Bytes that a piece of code left behind on the devices (`arrays`: in how many more arrays), and by how
    much it raised the peak of the devices and of the process."""

    name: str
    left: int = 0
    arrays: int = 0
    device_peak: int = 0
    host_peak: int = 0

    def __str__(self) -> str:
        mib = [f"{v / 2**20:.1f} MiB" for v in (self.left, self.device_peak, self.host_peak)]
        return f"{self.name}: {mib[0]} left in {self.arrays} arrays; peak +{mib[1]} device, +{mib[2]} host"


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
    """The bytes and the number of the live arrays."""
    arrays = jax.live_arrays()
    return sum(a.nbytes for a in arrays), len(arrays)


def device_peak() -> int:
    """The peak memory of the local devices in bytes, summed."""
    return sum(int((d.memory_stats() or {}).get("peak_bytes_in_use", 0)) for d in jax.local_devices())


def host_peak() -> int:
    """The peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
