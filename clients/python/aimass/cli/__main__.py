"""`python -m aimass.cli`: the `aimass` command where its script is not on the path."""

from aimass.cli.application import main

if __name__ == "__main__":
    main()
