"""`python -m tfuq`: the command line."""

import sys

from tfuq.cli import main

if __name__ == "__main__":
    sys.exit(main())
