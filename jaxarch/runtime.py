"""Set-up of the process: its memory allocator, and the devices that JAX opens."""

import ctypes
import os

# mallopt's parameters, of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for later allocations; True if the settings were made.

    XLA's CPU backend allocates its scratch memory anew in every step, gigabytes for a large model, and the C library
    returns blocks of that size to the system at once: clearing the new pages can take half of a step. The
    command line calls this as it starts; call it before the first array in your own programs that train on a
    CPU. Only glibc has these settings, and settings of the environment (MALLOC_*, GLIBC_TUNABLES) take
    precedence.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))


def configure_jax(*, cpu: bool = False, x64: bool = False, devices: int = 0) -> None:
    """Set what must be set before JAX opens its devices.

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
