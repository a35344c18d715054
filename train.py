"""Train a model: python train.py CONFIG [options]. See python train.py --help."""

import sys

from jgolf.start import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
