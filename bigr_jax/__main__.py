"""The process of the command `bigr`, which `python -m bigr_jax` is too."""

from __future__ import annotations


def run() -> int:
    """Runs `bigr` on the words of the command line and returns its exit status, see `cli.main`."""
    try:
        from bigr_jax import interrupts

        interrupts.install()
        from bigr_jax.cli.main import main

        status = main()
        interrupts.uninstall()
        return status
    except KeyboardInterrupt:
        import sys

        print("bigr: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(run())
