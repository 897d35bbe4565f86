"""`python -m switchlora` is the command `switchlora`."""

import sys

from switchlora.cli import main

if __name__ == "__main__":
    sys.exit(main())
