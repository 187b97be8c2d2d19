"""What the command tells the C library of its memory."""

import os
import platform
import subprocess
import sys

import pytest

from jaxarch import cli, memory, runtime


def test_only_a_process_of_the_command_keeps_its_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(1))
    cli.main(["list"])
    assert not calls
    monkeypatch.setattr(cli.sys, "argv", ["jaxarch", "list"])
    cli.main()
    assert calls


def test_settings_of_the_environment_stay(monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: pytest.fail("malloc was set"))
    for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert not runtime.keep_freed_memory()


def test_the_old_import_works():
    assert memory.keep_freed_memory is runtime.keep_freed_memory


def test_memory_is_kept_where_glibc_gives_it():
    program = "from jaxarch.runtime import keep_freed_memory; print(keep_freed_memory())"
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{platform.libc_ver()[0] == 'glibc'}\n"
