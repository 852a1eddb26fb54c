"""`python -m parhelion.cli`, for `torchrun -m parhelion.cli train ...`."""

import sys

from parhelion.cli import main

if __name__ == "__main__":
    sys.exit(main())
