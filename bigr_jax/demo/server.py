"""Serves the page on this machine until it is interrupted."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from typing import Any

from bigr_jax.demo import page
from bigr_jax.errors import UserError
from bigr_jax.model import Model

HOST, LARGEST = "127.0.0.1", "50mb"


class Ended(KeyboardInterrupt):
    """The server was asked to end (Ctrl-C, SIGTERM); `signum` says by what."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def serve(model: Model, title: str, port: int, browser: bool = False) -> None:
    """Serves the page of a model at a port of this machine and prints its address; never returns.

    title    where the model is from
    browser  opens the page

    Raises UserError where the port is taken, and Ended on Ctrl-C and SIGTERM.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _end)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # What was drawn and uploaded is kept no longer than the page is served.
    with tempfile.TemporaryDirectory(prefix="bigr-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        shown = page.build(model, title)
        try:
            shown.launch(
                server_name=HOST, server_port=port, share=False, inbrowser=browser, quiet=True,
                prevent_thread_lock=True, footer_links=[], run_history=False, ssr_mode=False,
                max_file_size=LARGEST, theme=page.THEME, css=page.CSS,
            )  # fmt: skip
        except OSError:
            raise UserError(f"--port={port} is taken; give another one") from None
        print(f"http://{HOST}:{port} draws on this machine; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        finally:
            shown.close(verbose=False)


def _end(signum: int, frame: Any) -> None:
    raise Ended(signum)
