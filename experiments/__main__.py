"""`python -m experiments` lists the launchers."""

from mechdiff.cli import launchers, output


def main() -> None:
    """Prints a line for each, by room."""
    room = ""
    for launcher in launchers.all_launchers():
        if launcher.room != room:
            room = launcher.room
            print(f"\n{room}")
        print(f"  python -m experiments.{launcher.module:<18} {launcher.summary}")
    print("\n--help after any of them prints its flags; `mechdiff` is the same with shorter names")


if __name__ == "__main__":
    try:
        main()
        code = 0
    except BrokenPipeError:
        code = output.CLOSED_PIPE
    raise SystemExit(output.end(code))
