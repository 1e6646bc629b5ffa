"""`bigr train --workdir=run` in a folder of each process's own: FOLDER/0, FOLDER/1."""

from __future__ import annotations

import os
import sys

from bigr_jax.cli.main import main
from bigr_jax.train import workdir

if __name__ == "__main__":
    folder, config, *rest = sys.argv[1:]
    os.chdir(os.path.join(folder, rest[-1].rpartition("=")[2]))
    workdir._SEEN = 1.0
    sys.exit(main(["train", f"--config={config}", "--workdir=run", *rest]))
