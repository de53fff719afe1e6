/** Send recordings to a server, and watch them through any interruption. See docs/protocol.md. */

// Where this module comes from, which may be a path of a larger application, there is the server.
const HERE = new URL("..", import.meta.url).href;
const SILENCE_MS = 45_000;                          // the server speaks every 15 s
const FIRST_WAIT_MS = 250, LONGEST_WAIT_MS = 15_000;
const ENDED = ["completed", "failed", "cancelled"];

/**
 * Send a File or Blob; resolve to the new job's first frame. From then on the server has it.
 * `token` is what the server wants, if it wants one; `options` are the job's; `onProgress` is called
 * with the part that is sent, 0 to 1.
 * Rejects with an Error with `message`, `code` and `status` (0 if there was no answer).
 */
export async function submit(
  recording, { server = HERE, token, options = {}, lang, signal, onProgress } = {}) {
  signal?.throwIfAborted();
  const form = new FormData();
  for (const [name, value] of Object.entries(options)) form.append(name, value ?? "");
  form.append("file", recording);
  const request = new XMLHttpRequest();             // fetch cannot tell how much it has sent
  request.open("POST", locate(server, "v1/jobs", { lang }));
  if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
  // Only if it is wanted: for a listener, a browser asks a server elsewhere for permission first.
  if (onProgress) request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
  const abort = () => request.abort();
  signal?.addEventListener("abort", abort);
  await new Promise(resolve => { request.onloadend = resolve; request.send(form) });
  signal?.removeEventListener("abort", abort);
  signal?.throwIfAborted();
  if (request.status === 202) return JSON.parse(request.responseText);
  throw refusal(request.status, request.statusText, request.responseText);
}

/**
 * Iterate over a job's frames to its end, through broken connections and restarts of the server.
 * Each is the server's, and has `all` beside `segments`: a new list of every segment so far.
 * Leaving the loop closes the socket, and so does `signal`, which makes it throw the signal's reason.
 * To go on from a frame that you had, give its cursor as `since`, and its `all`.
 * `onLost` is called when there is no connection; the next frame tells that it is back.
 * Throws an Error with `message`, `code` and `status` if there is no such job.
 */
export async function* watch(
  jobId, { server = HERE, token, since, all = [], lang, signal, onLost } = {}) {
  const locateJob = path => locate(server, `${path}/${encodeURIComponent(jobId)}`, { since, lang });
  const connect = () => receive(locateJob("ws/transcription"), token, join, signal);
  let mine = [...all];
  for await (const frame of persist(connect, () => locateJob("v1/jobs"), token, signal, onLost)) {
    // Only ever longer, so that a frame's beginning of it stays that frame's.
    if (frame.offset < mine.length) mine = mine.slice(0, frame.offset);
    for (const segment of frame.segments) mine.push(segment);       // too many to be arguments
    const [list, count] = [mine, mine.length];
    since = frame.cursor;
    yield { ...frame, get all() { return list.slice(0, count) } };
    if (ENDED.includes(frame.status)) return;
  }
}

/**
 * Iterate over the state of all jobs, for ever: a Map from the id of each to its latest frame, without
 * segments. It is always whole, and the same Map until a connection breaks.
 * `signal` and `onLost` are as in `watch`.
 */
export async function* watchAll({ server = HERE, token, lang, signal, onLost } = {}) {
  let jobs, isWhole;
  const connect = () => {
    [jobs, isWhole] = [new Map(), false];
    const url = locate(server, "ws/transcription", { lang });
    return receive(url, token, gather, signal, JSON.stringify({ subscribe: "*" }));
  };
  const locateReason = () => locate(server, "v1/jobs", { limit: 1, lang });
  for await (const news of persist(connect, locateReason, token, signal, onLost)) {
    for (const [id, told] of news) {
      if (told.status) jobs.set(id, told);
      else if (id) jobs.delete(id);
      else isWhole = true;
    }
    if (isWhole) yield jobs;
  }
}

/** What one connection after the other brings. */
async function* persist(connect, locateReason, token, signal, onLost) {
  let wait = FIRST_WAIT_MS;
  while (true) {
    signal?.throwIfAborted();
    let isRefused = true;
    for await (const news of connect()) {
      [wait, isRefused] = [FIRST_WAIT_MS, false];
      yield news;
    }
    onLost?.();
    if (isRefused) await askWhy(locateReason(), token, signal);
    // A random time, lest all watchers of a restarted server come back at the same moment.
    await pause(wait * (0.5 + Math.random()), signal);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }
}

/** What one connection brings. While the consumer is busy, `add` makes one of what comes: no queue. */
async function* receive(url, token, add, signal, hello) {
  let next = null, isOpen = true, silence, wake;
  url.protocol = url.protocol.replace("http", "ws");
  // A browser cannot send headers with a socket; a subprotocol may have these letters.
  const code = token && btoa(token).replace(/[+/=]/g, letter => ({ "+": "-", "/": "_" })[letter] ?? "");
  const socket = new WebSocket(url, token ? ["aiotranscribe.v1", `bearer.${code}`] : []);
  // Does not wait for the other side's goodbye: it may be gone.
  const end = () => { isOpen = false; socket.close(); wake?.() };
  const expectMore = () => { clearTimeout(silence); silence = setTimeout(end, SILENCE_MS) };
  socket.onopen = () => hello && socket.send(hello);
  socket.onmessage = ({ data }) => { expectMore(); next = add(next, JSON.parse(data)); wake?.() };
  socket.onclose = end;
  signal?.addEventListener("abort", end);
  expectMore();
  try {
    while (true) {
      while (!next && isOpen) await new Promise(resolve => { wake = resolve });
      signal?.throwIfAborted();
      if (!next) return;
      const frame = next;
      next = null;
      yield frame;
    }
  } finally {
    end();
    clearTimeout(silence);
    signal?.removeEventListener("abort", end);
  }
}

/** The one frame that says what two do. */
function join(earlier, later) {
  if (!earlier || later.offset < earlier.offset) return later;      // it replaces all of the other
  const { offset, segments } = earlier;
  segments.length = Math.min(segments.length, later.offset - offset);
  for (const segment of later.segments) segments.push(segment);     // too many to be arguments
  return { ...later, offset, segments };
}

/** The latest that is told of each job; what is told of none says that all have been. */
function gather(earlier, later) {
  return (earlier ?? new Map()).set(later.job_id, later);
}

/** Throw the reason why a socket is refused, which a browser hides, if the server gives one. */
async function askWhy(url, token, signal) {
  const patience = AbortSignal.timeout(SILENCE_MS);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const either = signal ? AbortSignal.any([signal, patience]) : patience;
  const answer = await fetch(url, { headers, signal: either }).catch(() => null);
  if (answer?.status >= 400 && answer.status < 500)
    throw refusal(answer.status, answer.statusText, await answer.text().catch(() => ""));
  answer?.body?.cancel();
}

function refusal(status, statusText, body) {
  let told = null;
  try { told = JSON.parse(body) } catch {}          // of a proxy, say, or there is no answer
  const message = status ? `${status} ${statusText}`.trim() : "the recording could not be sent";
  return Object.assign(new Error(told?.detail ?? message), { code: told?.code ?? "unknown", status });
}

/** The address of `path` on a server that is given with or without its last slash. */
function locate(server, path, query = {}) {
  const url = new URL(`${server}`.replace(/\/*$/, "/") + path, self.location);
  for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
  return url;
}

function pause(ms, signal) {
  return new Promise(resolve => {
    if (signal?.aborted) return resolve();
    const end = () => { clearTimeout(timer); signal?.removeEventListener("abort", end); resolve() };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}
