-- Each part brings a database from the version before it to its own (PRAGMA user_version).
-- A part that has been released never changes: what changes is a new part.

-- version 1
CREATE TABLE jobs (
    -- The order in which they were accepted.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    -- aiotranscribe.job.Job
    job TEXT NOT NULL CHECK (json_valid(job))
) STRICT;

-- What workers found out about each job, in order: SpanFound and Recognised, as they sent it
-- (aiotranscribe.engine.messages). Read again from the first to the last, it is the transcript.
CREATE TABLE findings (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    finding TEXT NOT NULL CHECK (json_valid(finding)),
    PRIMARY KEY (job_id, number)
) STRICT, WITHOUT ROWID;

-- What this machine knows of its own pace (aiotranscribe.progress.Pace).
CREATE TABLE paces (
    name TEXT PRIMARY KEY,
    done REAL NOT NULL,
    took_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
