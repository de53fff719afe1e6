"""What people read: one sentence for each state of a job. Pure."""

from aiotranscribe.exports import clock
from aiotranscribe.job import Job, Status, Step

_WAITING = {
    Step.QUEUED: "Waiting for a free worker",
    Step.LOADING_MODEL: "Loading the model",
    Step.DECODING: "Reading the recording",
    Step.DETECTING_SPEECH: "Listening for speech",
    Step.DETECTING_LANGUAGE: "Recognising the language",
    Step.FINISHING: "Finishing",
}


def message(job: Job) -> str:
    """Return how the job stands, in a sentence for people."""
    match job.status:
        case Status.COMPLETED:
            return f"Transcribed {clock(job.duration or 0.0)}"
        case Status.CANCELLED:
            return "Cancelled"
        case Status.FAILED:
            return f"Failed: {job.error.message}" if job.error else "Failed"
    if job.step is Step.TRANSCRIBING:
        whole = f" of {clock(job.duration)}" if job.duration else ""
        return f"Transcribed {clock(job.position)}{whole}"
    return _WAITING[job.step]
