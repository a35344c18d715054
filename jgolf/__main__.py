import sys

from jgolf.cli import main

if __name__ == "__main__":
    sys.exit(main())
