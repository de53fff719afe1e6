"""Run the command line as ``python -m aiotranscribe``."""

from aiotranscribe.cli import main

if __name__ == "__main__":
    main(prog_name="aiotranscribe")
