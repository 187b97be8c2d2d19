"""The former place of `jaxarch.runtime.keep_freed_memory`; imports of it still work."""

from jaxarch.runtime import keep_freed_memory

__all__ = ["keep_freed_memory"]
