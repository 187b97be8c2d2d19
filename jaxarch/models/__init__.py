"""One architecture, one file."""

from jaxarch.versions import check_versions

check_versions()
