"""Transcription inside an application of your own: python examples/embed.py [PORT].

What is under /stt is aiotranscribe's: jobs, sockets, the page. The rest is yours, and can use
the same transcriber as a library::

    curl --data-binary @examples/sample.ogg http://127.0.0.1:8080/captions
"""

import sys

from aiohttp import web

from aiotranscribe import AiotranscribeError, Config, Status, Transcriber, create_app
from aiotranscribe.exports import to_vtt

TRANSCRIBER = web.AppKey("TRANSCRIBER", Transcriber)


async def captions(request: web.Request) -> web.Response:
    """Answer a recording with its subtitles."""
    transcriber = request.app[TRANSCRIBER]
    try:
        job = await transcriber.submit(request.content.iter_any(), name="from /captions")
    except AiotranscribeError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    async for frame in transcriber.watch(job.id):
        print(f"{frame.progress_percentage:5.1f} %  {frame.message}", flush=True)
    if frame.status is not Status.COMPLETED:
        raise web.HTTPUnprocessableEntity(text=frame.message)
    return web.Response(text=to_vtt(await transcriber.transcript(job.id)), content_type="text/vtt")


def make_app() -> web.Application:
    """Put the transcriber under a path; it starts and stops with the application."""
    app = web.Application()
    app[TRANSCRIBER] = Transcriber(Config(model=("tiny.en",)))
    app.add_subapp("/stt", create_app(transcriber=app[TRANSCRIBER]))
    app.router.add_post("/captions", captions)
    return app


# Workers import this file too, so only the first process may come to this line.
if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]) if sys.argv[1:] else 8080)
