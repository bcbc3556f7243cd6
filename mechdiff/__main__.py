"""`python -m mechdiff` is the command `mechdiff`."""

from mechdiff.cli.main import main

if __name__ == "__main__":
    main()
