"""The command line, with a pause before every batch, so that there is time to interfere."""

from __future__ import annotations

import sys
import time

from bigr_jax.cli.main import main
from bigr_jax.train import loop

PAUSE = 0.1


def paused(batches, mesh, placed=loop.device_batches):
    for batch in placed(batches, mesh):
        time.sleep(PAUSE)
        yield batch


if __name__ == "__main__":
    loop.device_batches = paused
    sys.exit(main(sys.argv[1:]))
