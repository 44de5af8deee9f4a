"""The command `hardloop`. The base install has it too: there it says what to install."""

import sys

_OURS = {"hardloop", "feedback", "miner", "annotation", "training", "registry"}


def main() -> None:
    """Hand over to the command line, where all that it needs is installed."""
    try:
        from hardloop.service.cli import main as run

        run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if not missing or missing in _OURS:
            raise
        print(
            f"hardloop: this command needs {missing}, which the base install leaves out: "
            "pip install 'hardloop[service]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
