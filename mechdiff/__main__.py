"""`python -m mechdiff` is the command `mechdiff`."""

from mechdiff.cli import interrupts

if __name__ == "__main__":
    interrupts.end_silently()
    from mechdiff.cli.main import main

    main()
