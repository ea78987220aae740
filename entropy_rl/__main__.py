"""`python -m entropy_rl` is the command `entropy-rl`."""

import sys

from entropy_rl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
