"""`python -m jaxarch` is the command `jaxarch`."""

import sys

from jaxarch.cli import main

if __name__ == "__main__":
    sys.exit(main())
