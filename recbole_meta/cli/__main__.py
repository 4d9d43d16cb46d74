"""``python -m recbole_meta.cli``."""

import sys

from recbole_meta.cli import main

if __name__ == "__main__":
    sys.exit(main())
