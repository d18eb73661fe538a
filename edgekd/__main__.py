"""`python -m edgekd` is `edgekd`."""

from edgekd.cli.main import run

if __name__ == "__main__":
    run()
