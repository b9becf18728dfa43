"""`python -m polysem`."""

from polysem.cli import main

if __name__ == "__main__":
    main()
