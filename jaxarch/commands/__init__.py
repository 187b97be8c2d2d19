"""The bodies of the commands: `jaxarch NAME` calls `run(args)` of NAME.py, which returns the exit status."""

from jaxarch.versions import check_versions

check_versions()
