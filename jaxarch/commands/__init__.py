"""The bodies of the command line: one file a command."""

from jaxarch.versions import check_versions

check_versions()
