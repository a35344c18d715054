"""Quantize, pack and score a run: python export.py RUN_DIR [options]. See python export.py --help."""

import sys

from jgolf.start import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
