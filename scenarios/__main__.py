"""Where the process ``splitsight`` (or ``python -m scenarios``) begins: Ctrl-C is provided for before anything else."""

from scenarios import interrupt

interrupt.leave_at_once()


def main() -> None:
    """Run the command line; always raises :class:`SystemExit`."""
    interrupt.leave_quickly()
    from scenarios.cli import main as run

    try:
        run()
    except SystemExit as end:
        interrupt.ends_with(0 if end.code is None else end.code if isinstance(end.code, int) else 1)
        raise


if __name__ == "__main__":
    main()
