"""How this process is set up: its memory and the devices that JAX opens."""

import ctypes
import os

# mallopt's parameters, of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for its next blocks; True where the C library is told to.

    XLA's CPU backend takes its scratch memory anew in every step, gigabytes for a large model, and the C library
    gives blocks of that size back to the system at once: clearing the new pages can take half of a step. The
    command line calls this as it starts; call it before the first array in programs of your own that train on
    a CPU. glibc alone knows these settings, and those that the environment makes are left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))


def configure_jax(*, cpu: bool = False, x64: bool = False, devices: int = 0) -> None:
    """Settings that must be made before JAX opens its devices.

    Args:
        cpu: use the CPU even where an accelerator is present.
        x64: compute in float64.
        devices: the number of virtual CPU devices; 0 leaves JAX's default.
    """
    import jax

    if cpu:
        jax.config.update("jax_platforms", "cpu")
    if x64:
        jax.config.update("jax_enable_x64", True)
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)
