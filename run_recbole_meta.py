"""RecBole's runner for this plugin: ``python run_recbole_meta.py --help`` says what it takes."""

import sys

from recbole_meta.cli import run_main

if __name__ == "__main__":
    sys.exit(run_main())
