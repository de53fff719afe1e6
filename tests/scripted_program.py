"""``aiotranscribe`` as it is, but for the model, which is scripted: run it with ``python -m``."""

import logging
import os
from functools import partial

from aiotranscribe import service
from aiotranscribe.cli import main
from aiotranscribe.web import app
from tests import scripted

if __name__ == "__main__":
    transcriber = partial(service.Transcriber, loader=scripted.load)
    for module in (service, app):
        vars(module)["Transcriber"] = transcriber
    if "DEBUG_LOG" in os.environ:  # all that there is to log, of the libraries too
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s")
    main(prog_name="aiotranscribe")
