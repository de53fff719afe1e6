"""``aiotranscribe`` as it is, but for the model, which is scripted: run it with ``python -m``."""

from functools import partial

from aiotranscribe import service
from aiotranscribe.cli import main
from aiotranscribe.web import app
from tests import scripted

if __name__ == "__main__":
    transcriber = partial(service.Transcriber, loader=scripted.load)
    for module in (service, app):
        vars(module)["Transcriber"] = transcriber
    main(prog_name="aiotranscribe")
