/** Send recordings to a server, and watch them through any interruption. See docs/protocol.md. */

// Where this module comes from, which may be a path of a larger application, there is the server.
const HERE = new URL("..", import.meta.url).href;
const SILENCE_MS = 45_000;                          // the server speaks every 15 s
const FIRST_WAIT_MS = 250, LONGEST_WAIT_MS = 15_000;
const ENDED = ["completed", "failed", "cancelled"];

/**
 * Send a File or Blob; resolve to the new job's first frame. From then on the server has it.
 * `token` is what the server wants, if it wants one. `options` are the job's; `onProgress` is called with the part that is sent, 0 to 1.
 * Rejects with an Error with `message`, `code` and `status` (0 if there was no answer).
 */
export async function submit(recording, { server = HERE, token, options = {}, signal, onProgress } = {}) {
  signal?.throwIfAborted();
  const form = new FormData();
  for (const [name, value] of Object.entries(options)) form.append(name, value ?? "");
  form.append("file", recording);
  const request = new XMLHttpRequest();             // fetch cannot tell how much it has sent
  request.open("POST", locate(server, "v1/jobs"));
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
  jobId, { server = HERE, token, since = "", all = [], signal, onLost } = {}) {
  const locateJob = path =>
    locate(server, `${path}/${encodeURIComponent(jobId)}?since=${encodeURIComponent(since)}`);
  let wait = FIRST_WAIT_MS;
  while (true) {
    signal?.throwIfAborted();
    let isRefused = true;
    for await (const frame of receive(locateJob("ws/transcription"), token, signal)) {
      all = all.filter(({ id }) => id < frame.offset).concat(frame.segments);
      [since, wait, isRefused] = [frame.cursor, FIRST_WAIT_MS, false];
      yield { ...frame, all };
      if (ENDED.includes(frame.status)) return;
    }
    onLost?.();
    if (isRefused) await askWhy(locateJob("v1/jobs"), token, signal);
    // A random time, lest all watchers of a restarted server come back at the same moment.
    await pause(wait * (0.5 + Math.random()), signal);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }
}

/** The frames of one connection. What comes while the consumer is busy is one frame: no queue. */
async function* receive(url, token, signal) {
  let next = null, isOpen = true, silence, wake;
  url.protocol = url.protocol.replace("http", "ws");
  // A browser cannot send headers with a socket; a subprotocol may have these letters.
  const code = token && btoa(token).replace(/[+/=]/g, letter => ({ "+": "-", "/": "_" })[letter] ?? "");
  const socket = new WebSocket(url, token ? ["aiotranscribe.v1", `bearer.${code}`] : []);
  // Does not wait for the other side's goodbye: it may be gone.
  const end = () => { isOpen = false; socket.close(); wake?.() };
  const expectMore = () => { clearTimeout(silence); silence = setTimeout(end, SILENCE_MS) };
  socket.onmessage = ({ data }) => { expectMore(); next = join(next, JSON.parse(data)); wake?.() };
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
function locate(server, path) {
  return new URL(`${server}`.replace(/\/*$/, "/") + path, self.location);
}

function pause(ms, signal) {
  return new Promise(resolve => {
    if (signal?.aborted) return resolve();
    const end = () => { clearTimeout(timer); signal?.removeEventListener("abort", end); resolve() };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}
