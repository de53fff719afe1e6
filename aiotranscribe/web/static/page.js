/** The page: recordings go in, every job's state is a list, and each job has an address of its own. */

import { submit, watch, watchAll } from "./aiotranscribe.js";

const LANGUAGES = ["en", "pt"];  // each has its words in a file
const SERVER = new URL("..", import.meta.url).href;
const FORMATS = document.documentElement.dataset.formats.split(" ");
const ROWS = 50;  // how many more jobs to list each time
const RATES = [1, 1.25, 1.5, 2, 0.75];
const PAUSE_S = 1.5, LONG = 400, TOO_LONG = 900;  // where a paragraph ends
const MARKS = { completed: "✓ ", failed: "✗ ", cancelled: "– " };
const CANCELLED = { code: "cancelled", message: "" };

const $ = id => document.getElementById(id);
const lang = chooseLanguage(), { default: say } = await import(`./${lang}.js`);
const token = remembered("token"), SERVER_OPTIONS = { server: SERVER, token, lang };
const LOCALE = navigator.languages.find(tag => tag.startsWith(lang)) ?? lang;
const put = (id, text) => { $(id).textContent = text };
const isEnded = ({ status }) => !["queued", "running"].includes(status);
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
const use = (svg, icon) => svg.querySelector("use").setAttribute("href", `#i-${icon}`);
const percentOf = frame => Math.floor(frame.progress_percentage);

let jobs = null;  // every job's frame, once that is known
let view = null;  // the job that is looked at

function chooseLanguage() {
  const wishes = [remembered("language"), ...navigator.languages].map(tag => tag?.split("-")[0]);
  return wishes.find(code => LANGUAGES.includes(code)) ?? "en";
}

function remembered(key, value) {
  try {  // a browser may keep no data for this page
    if (value) localStorage.setItem(key, value);
    return localStorage.getItem(key) ?? undefined;
  } catch {}
}

/** The address of something on the server, in the reader's language. */
function locate(path, query = {}) {
  return `${SERVER}${path}?${new URLSearchParams({ ...query, lang })}`;
}

/** Ask the server; every request of the page but uploads and sockets. Throws as `submit` does. */
async function ask(method, path, headers = {}, query) {
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(locate(path, query), { method, headers }).catch(() => null);
  if (answer?.ok) return answer;
  const { detail, code } = await answer?.json().catch(() => ({})) ?? {};
  throw Object.assign(new Error(detail ?? ""), { code, status: answer?.status ?? 0 });
}

/** An address for what takes no headers. The browser fetches it itself, but for a server that wants a token. */
async function address(path, query) {
  return token ? URL.createObjectURL(await (await ask("GET", path, {}, query)).blob()) : locate(path, query);
}

$("door").onsubmit = event => {
  event.preventDefault();
  remembered("token", event.target.querySelector("input").value.trim());
  location.reload();
};

/** What a person needs to know of an error: what happened, what to do, what the server said. */
function explain({ code, status, message }) {
  if (code === "unauthorized" && !$("door").open) $("door").showModal();
  const [what, todo] = say.problems[status === 0 ? "unreachable" : code] ?? say.problems.work_failed;
  return { what, todo, detail: status === 0 ? "" : message };
}

function clock(seconds) {
  const [h, m, s] = [seconds / 3600, seconds / 60 % 60, seconds % 60].map(Math.floor);
  const pad = number => `${number}`.padStart(2, "0");
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

function left({ eta_seconds }) {
  if (eta_seconds === null) return "";
  const minutes = Math.round(eta_seconds / 60);
  const time = eta_seconds < 59.5 ? `${Math.ceil(eta_seconds)} s`
    : minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return say.left(time);
}

function message(frame) {
  if (frame.queue_position === null) return frame.message;
  return frame.queue_position ? say.before(frame.queue_position) : say.next;
}

/** Length, language, day or time: what is worth knowing of a recording. */
function facts({ duration_seconds, language, created }) {
  const when = new Date(1000 * created);
  const isToday = when.toDateString() === new Date().toDateString();
  return [
    duration_seconds && clock(duration_seconds),
    duration_seconds && language && new Intl.DisplayNames(lang, { type: "language" }).of(language),
    when.toLocaleString(LOCALE, isToday ? { timeStyle: "short" } : { dateStyle: "medium" }),
  ].filter(Boolean).join(" · ");
}

/** For those who do not see the page. */
function announce(text) {
  if ($("status").textContent !== text) put("status", text);
}

function toast(text) {
  clearTimeout(toast.timer);
  put("toast", text);
  $("toast").hidden = false;
  toast.timer = setTimeout(() => { $("toast").hidden = true }, 8000);
}

function complain(error) {
  const { what, todo } = explain(error);
  if (!$("door").open) toast(`${what}. ${todo}`);
}

function name(element, text) {
  element.ariaLabel = text;
  if (element.localName === "button") element.title = text;
}

function entitle() {
  const frame = view?.frame;
  const mark = frame && { ...MARKS, running: `${percentOf(frame)} % · ` }[frame.status];
  document.title = entitle.news ?? (frame ? `${mark ?? ""}${frame.name}` : "aiotranscribe");
}

/** Tell that a job has ended to a reader who looks elsewhere. */
function tellEnd(frame) {
  if (view?.id !== frame.job_id) announce(`${frame.name}: ${frame.message}`);
  if (document.hasFocus()) return;
  entitle.news = `${MARKS[frame.status]}${frame.name}`;
  entitle();
  try {  // phones have another way, which needs a worker
    const notification = new Notification(frame.name, { body: frame.message, tag: frame.job_id });
    notification.onclick = () => { focus(); location.hash = `#/jobs/${frame.job_id}`; notification.close() };
  } catch {}
}

addEventListener("focus", () => { entitle.news = null; entitle() });

const DEEDS = {
  cancel: frame => ask("POST", `v1/jobs/${frame.job_id}/cancel`),
  async retry(frame) {
    const answer = await ask("POST", `v1/jobs/${frame.job_id}/retry`);
    location.hash = `#/jobs/${(await answer.json()).job_id}`;
  },
  async delete(frame) {
    const question = $("question");
    put("asked", say.asked(frame.name));
    question.returnValue = "no";
    question.showModal();
    await new Promise(resolve => question.addEventListener("close", resolve, { once: true }));
    if (question.returnValue !== "yes") return;
    location.hash = "#/";
    await ask("DELETE", `v1/jobs/${frame.job_id}`);
    announce(say.deleted);
  },
};

async function perform(button, frame) {
  button.disabled = true;
  await DEEDS[button.dataset.do](frame).catch(complain);
  button.disabled = false;
}

const rows = new Map();
let most = ROWS;

async function keepList() {
  const ended = new Map();
  const onLost = () => { $("list-lost").hidden = false };
  for await (jobs of watchAll({ ...SERVER_OPTIONS, onLost })) {
    for (const frame of jobs.values()) {
      if (isEnded(frame) && ended.get(frame.job_id) === false) tellEnd(frame);
      ended.set(frame.job_id, isEnded(frame));
    }
    if (view?.frame && ended.has(view.id) && !jobs.has(view.id)) view.fail({ code: "job_not_found", message: "" });
    $("list-lost").hidden = true;
    showList();
    await pause(50);  // the rest of what comes with it, in one go
  }
}

function showList() {
  if (view || !jobs) return;
  const frames = [...jobs.values()].sort((a, b) => b.created - a.created);
  const list = $("jobs"), shown = frames.slice(0, most), ids = new Set(shown.map(each => each.job_id));
  for (const [id, row] of rows) if (!ids.has(id)) { removeRow(row); rows.delete(id) }
  shown.forEach((frame, index) => {
    if (!rows.has(frame.job_id)) rows.set(frame.job_id, newRow());
    const row = rows.get(frame.job_id);
    // A row that is in its place is not touched: it may have the focus.
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
    if (row.frame !== frame) fillRow(row, frame);
  });
  $("list").hidden = !frames.length && !$("uploads").childElementCount;
  $("none").hidden = !$("list").hidden;
  $("more").hidden = frames.length <= most;
}

function newRow() {
  return $("row").content.firstElementChild.cloneNode(true);
}

function removeRow(row) {
  if (row.contains(document.activeElement)) $("list").focus();
  row.remove();
}

function fillRow(row, frame) {
  const [link, progress] = row.querySelectorAll("a, progress");
  const { status, name: called } = row.frame = frame;
  row.className = status;
  use(row, status);
  link.href = `#/jobs/${frame.job_id}`;
  link.textContent = called;
  row.querySelector("p").textContent = {
    queued: () => message(frame),
    running: () => `${percentOf(frame)} % · ${left(frame) || frame.message}`,
    completed: () => facts(frame),
    failed: () => `${explain(frame.error).what} · ${facts(frame)}`,
    cancelled: () => `${explain(CANCELLED).what} · ${facts(frame)}`,
  }[status]();
  progress.value = frame.progress_percentage;
  name(progress, called);
  for (const button of row.querySelectorAll("button")) name(button, `${say[button.dataset.do]}: ${called}`);
}

$("jobs").onclick = ({ target }) => {
  const button = target.closest("[data-do]");
  if (button) perform(button, button.closest("li").frame);
};
$("more").onclick = () => { most += ROWS; showList() };

let sending = Promise.resolve(), unsent = 0;

/** Send recordings, one after the other; a single one is looked at as soon as it is there. */
function send(files) {
  if (!files.length) return;
  location.hash = "#/";
  const isOnly = files.length === 1 && !unsent;
  for (const file of files) sendLater(file, newRow(), isOnly);
}

function sendLater(file, row, isOnly) {
  const stop = new AbortController(), [state, progress] = row.querySelectorAll("p, progress");
  const [cancel, retry, forget] = row.querySelectorAll("button");
  const end = () => { removeRow(row); showList() };
  row.className = "queued";
  use(row, "choose");
  row.querySelector("a").textContent = file.name;
  state.textContent = say.waitingToSend;
  for (const [button, word] of [[cancel, "cancel"], [retry, "retry"], [forget, "discard"]])
    name(button, `${say[word]}: ${file.name}`);
  name(progress, file.name);
  cancel.onclick = () => stop.abort();
  retry.onclick = () => sendLater(file, row, isOnly);
  forget.onclick = end;
  $("uploads").append(row);
  $("list").hidden = false;
  $("none").hidden = true;
  const onProgress = part => {
    row.className = "running";
    progress.value = 100 * part;
    state.textContent = say.sending(Math.floor(100 * part));
  };
  unsent++;
  sending = sending.then(async () => {
    try {
      const { job_id } = await submit(file, { ...SERVER_OPTIONS, signal: stop.signal, onProgress });
      end();
      if (isOnly && !view) location.hash = `#/jobs/${job_id}`;
    } catch (error) {
      if (stop.signal.aborted) return end();
      const { what, todo, detail } = explain(error);
      row.className = "failed";
      use(row, "failed");
      state.textContent = [`${what}.`, todo, detail].join(" ");
      announce(`${file.name}: ${what}. ${todo}`);
    } finally {
      unsent--;
    }
  });
}

$("choose").onclick = () => $("files").click();
$("files").onchange = ({ target }) => { send([...target.files]); target.value = "" };
$("sample").onclick = async () => {
  try {
    const sample = await (await ask("GET", "static/sample.ogg")).blob();
    send([new File([sample], "sample.ogg", { type: sample.type })]);
  } catch (error) { complain(error) }
};

addEventListener("paste", ({ clipboardData }) => send([...clipboardData.files]));
addEventListener("beforeunload", event => { if (unsent) event.preventDefault() });

for (const type of ["dragover", "dragleave", "drop"])
  addEventListener(type, event => {
    const { dataTransfer, relatedTarget } = event, isOver = type === "dragover" || relatedTarget;
    if (!dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", !!isOver && type !== "drop");
    if (type === "drop") send([...dataTransfer.files]);
  });

const BARS = 60, wave = document.querySelector("#wave path"), calm = wave.getAttribute("d");

$("record").onclick = async () => {
  if (!navigator.mediaDevices || !self.MediaRecorder) return toast(say.insecureMicrophone);
  try {
    record(await navigator.mediaDevices.getUserMedia({ audio: true }));
  } catch { toast(say.noMicrophone) }
};

function record(stream) {
  const recorder = new MediaRecorder(stream), pieces = [], began = Date.now();
  const sound = new AudioContext(), meter = sound.createAnalyser(), samples = new Float32Array(1024);
  const levels = Array(BARS).fill(0);
  sound.createMediaStreamSource(stream).connect(meter);
  const timer = setInterval(() => {
    meter.getFloatTimeDomainData(samples);
    levels.push(Math.hypot(...samples) / 32);  // root mean square, 0 to 1
    levels.shift();
    wave.setAttribute("d", levels.map((level, number) => {
      const half = Math.max(1.5, Math.min(23, 60 * level ** 0.7)).toFixed(1);
      return `M${4 + 8 * number} ${24 - half}v${2 * half}`;
    }).join(""));
    put("recorded", clock((Date.now() - began) / 1000));
  }, 80);
  const show = isOn => { $("idle").hidden = isOn; $("recorder").hidden = !isOn };
  unsent++;  // ask before the page is left
  recorder.ondataavailable = ({ data }) => pieces.push(data);
  recorder.onstop = () => {  // the microphone may be unplugged, too
    unsent--;
    clearInterval(timer);
    sound.close();
    for (const track of stream.getTracks()) track.stop();
    wave.setAttribute("d", calm);
    show(false);
    $("record").focus();
    if (!pieces.length) return;
    const type = recorder.mimeType, [, ending] = /(webm|ogg|mp4)/.exec(type) ?? [, "webm"];
    const when = new Date(began).toLocaleString(LOCALE, { dateStyle: "short", timeStyle: "short" });
    send([new File(pieces, `${say.recording} ${when}.${ending}`, { type })]);
  };
  $("stop").onclick = () => recorder.stop();
  $("discard").onclick = () => { recorder.ondataavailable = null; pieces.length = 0; recorder.stop() };
  recorder.start(1000);
  show(true);
  $("stop").focus();
}

const audio = $("audio");

class View {
  constructor(id) {
    this.id = id;
    this.frame = null;
    this.stop = new AbortController();
    this.spans = [];
    this.segments = [];
    this.now = -1;  // the sentence that is playing
    this.hits = [];
    this.hit = -1;
    this.follows = true;
  }

  async watch() {
    const { signal } = this.stop, onLost = () => this.lose();
    try {
      for await (const frame of watch(this.id, { ...SERVER_OPTIONS, signal, onLost })) this.show(frame);
    } catch (error) {
      if (!signal.aborted) this.fail(error);
    }
  }

  close() {
    this.stop.abort();
    audio.removeAttribute("src");
    audio.load();
    for (const id of ["trouble", "work", "tools", "player", "silent", "follow"]) $(id).hidden = true;
    for (const id of ["text", "name", "facts"]) $(id).replaceChildren();
    $("search").reset();
  }

  show(frame) {
    const isFirst = !this.frame, wasEnded = !isFirst && isEnded(this.frame);
    this.frame = frame;
    if (isFirst) put("name", frame.name);
    put("facts", facts(frame));
    $("text").lang = frame.language ?? "";
    this.write(frame);
    if (isEnded(frame)) {
      if (!wasEnded) this.finish(isFirst);
    } else {
      this.progress();
    }
    entitle();
    this.keepUp();
  }

  progress() {
    const { frame } = this, speed = frame.speed && frame.speed.toFixed(frame.speed < 10 ? 1 : 0);
    $("work").hidden = false;
    $("work").classList.remove("lost");
    $("bar").value = frame.progress_percentage;
    put("percent", `${percentOf(frame)} %`);
    put("message", message(frame));
    put("pace", [left(frame), speed && `${speed}×`].filter(Boolean).join(" · "));
    $("notify").hidden = self.Notification?.permission !== "default";
    const quarter = `${frame.current_step} ${Math.floor(frame.progress_percentage / 25)}`;
    if (this.quarter !== quarter) announce(`${percentOf(frame)} %. ${message(frame)}`);
    this.quarter = quarter;
  }

  lose() {
    $("work").hidden = false;
    $("work").classList.add("lost");
    put("message", say.lost);
    put("pace", "");
    this.quarter = null;  // announced anew when it is back
    announce(say.lost);
  }

  finish(isOld) {
    const { frame } = this;
    if ($("work").contains(document.activeElement)) $("name").focus();
    $("work").hidden = true;
    if (frame.status !== "completed") this.trouble(frame.error ?? CANCELLED, true);
    $("silent").hidden = frame.status !== "completed" || this.spans.length > 0;
    $("tools").hidden = !this.spans.length && frame.status !== "completed";
    $("downloads").hidden = $("copy").hidden = $("search").hidden = !this.spans.length;
    const links = FORMATS.map(format => {
      const link = document.createElement("a"), path = `v1/jobs/${frame.job_id}/transcript`;
      link.textContent = format.replace("_", " ");
      link.href = locate(path, { format });
      if (token) link.onclick = async event => {
        if (link.href.startsWith("blob:")) return;
        event.preventDefault();
        link.href = await address(path, { format });
        link.click();
      };
      link.download = `${frame.name.replace(/\.\w{1,5}$/, "")}.${format.split("_").pop()}`;
      return link;
    });
    this.search("");
    $("downloads").replaceChildren(say.download, ...links);
    if (frame.error?.code !== "undecodable") {
      $("player").hidden = false;
      address(`v1/jobs/${frame.job_id}/audio`).then(source => { if (view === this) audio.src = source }, complain);
      showPlayer();
    }
    if (!isOld) announce(frame.message);
  }

  /** Say what has happened and what to do. */
  trouble(error, canRetry) {
    const { what, todo, detail } = explain(error), [heading, advice, said] = $("trouble").children;
    heading.textContent = what;
    advice.textContent = todo;
    said.textContent = detail && say.said(detail);
    for (const button of $("trouble").querySelectorAll("button")) button.hidden = !canRetry;
    $("trouble").className = error.code;
    $("trouble").hidden = false;
  }

  /** The job cannot be watched: there is none, or there is none any more. */
  fail(error) {
    this.close();
    this.frame = null;
    put("name", explain(error).what);
    this.trouble(error, false);
    $("trouble").firstElementChild.textContent = "";
    announce(explain(error).what);
    entitle();
  }

  // Only what is new is written: the text may be of a hundred hours.
  write({ offset, segments }) {
    if (offset < this.spans.length) this.takeBack(offset);
    const text = $("text"), isMore = this.spans.length > 0;
    let paragraph = text.lastElementChild;
    for (const segment of segments) {
      const before = this.segments.at(-1);
      if (!paragraph || endsParagraph(paragraph, before, segment)) {
        paragraph = document.createElement("p");
        paragraph.length = 0;
        paragraph.append(timeButton(segment.start));
        text.append(paragraph);
      }
      const span = document.createElement("span");
      span.classList.toggle("new", isMore);
      span.textContent = segment.text.trimStart();
      paragraph.append(segment.text.slice(0, -span.textContent.length || undefined), span);
      paragraph.length += segment.text.length;
      this.spans.push(span);
      this.segments.push(segment);
    }
  }

  takeBack(count) {
    for (const span of this.spans.splice(count)) { span.previousSibling.remove(); span.remove() }
    this.segments.length = count;
    while ($("text").lastElementChild?.childElementCount === 1) $("text").lastElementChild.remove();
  }

  /** Keep what is new, or what is playing, in sight, unless the reader has scrolled away. */
  keepUp() {
    const isLive = this.frame && !isEnded(this.frame), isPlaying = !audio.paused && this.now >= 0;
    if (this.follows && isLive) scrollTo(0, document.documentElement.scrollHeight);
    if (this.follows && isPlaying) {
      const { top, bottom } = this.spans[this.now].getBoundingClientRect();
      if (top < 80 || bottom > innerHeight - 140) this.spans[this.now].scrollIntoView({ block: "center" });
    }
    $("follow").hidden = this.follows || !(isLive || isPlaying);
  }

  /** Mark the sentence at a time. */
  mark(seconds) {
    const now = lastBefore(this.segments, seconds);
    if (now !== this.now) {
      this.spans[this.now]?.classList.remove("now");
      this.spans[now]?.classList.add("now");
      this.now = now;
    }
    this.keepUp();
  }

  play(seconds) {
    this.follows = true;
    audio.currentTime = seconds;
    audio.play().catch(() => {});  // the element says what is wrong
    this.mark(seconds);
  }

  /** Find text, whatever its case and accents, also across sentences. */
  search(words) {
    const sought = fold(words.trim()), starts = [];
    this.hits = [];
    this.hit = -1;
    if (sought) {
      let all = "";
      for (const { text } of this.segments) {
        starts.push({ start: all.length + text.length - text.trimStart().length });
        all += fold(text);
      }
      for (let at = all.indexOf(sought); at >= 0; at = all.indexOf(sought, at + sought.length))
        this.hits.push(this.range(starts, at, at + sought.length));
    }
    $("previous-hit").disabled = $("next-hit").disabled = !this.hits.length;
    CSS.highlights?.set("hits", new Highlight(...this.hits.slice(0, 1000)));
    this.showHit(1, sought);
  }

  range(starts, from, to) {
    const range = new Range(), first = lastBefore(starts, from), last = lastBefore(starts, to - 1);
    range.setStart(this.spans[first].firstChild, from - starts[first].start);
    range.setEnd(this.spans[last].firstChild, to - starts[last].start);
    return range;
  }

  showHit(step, sought = true) {
    const count = this.hits.length;
    this.hit = count && (this.hit + step + count) % count;
    put("found", sought ? say.hits(this.hit + 1, count) : "");
    CSS.highlights?.set("hit", new Highlight(...this.hits.slice(this.hit, this.hit + 1)));
    this.hits[this.hit]?.startContainer.parentElement.scrollIntoView({ block: "center" });
  }
}

function endsParagraph(paragraph, before, { start }) {
  const isSentence = /[.?!…。？！]["”»)]?\s*$/.test(before.text);
  return start - before.end > PAUSE_S || paragraph.length > (isSentence ? LONG : TOO_LONG);
}

function timeButton(seconds) {
  const button = document.createElement("button");
  button.className = "time";
  button.textContent = clock(seconds);
  name(button, `${say.play}: ${clock(seconds)}`);
  return button;
}

/** The place of the last that starts no later, in a list in order; -1 if there is none. */
function lastBefore(list, start) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle].start <= start) low = middle + 1; else high = middle;
  }
  return low - 1;
}

/** Text without case and accents, of the same length. */
function fold(text) {
  return text.toLowerCase().length === text.length
    ? text.toLowerCase().replace(/[^\x00-\x7f]/g, letter => letter.normalize("NFD")[0])
    : text;
}

$("job").addEventListener("click", ({ target }) => {
  const button = target.closest("[data-do]");
  if (button && view?.frame) perform(button, view.frame);
});

$("text").onclick = ({ target }) => {
  if ($("player").hidden || `${getSelection()}`) return;  // whoever selects text wants to copy it
  const span = target.matches(".time") ? target.nextElementSibling : target;
  const segment = view.segments[view.spans.indexOf(span)];
  if (segment) view.play(segment.start);
};

$("notify").onclick = async () => {
  await Notification.requestPermission();
  $("notify").hidden = Notification.permission !== "default";
};

$("copy").onclick = async () => {
  const text = [...$("text").children]
    .map(paragraph => [...paragraph.childNodes].slice(1).map(node => node.textContent).join("").trim())
    .join("\n\n");
  const isCopied = navigator.clipboard
    ? await navigator.clipboard.writeText(text).then(() => true, () => false) : copyAsOfOld(text);
  toast(isCopied ? say.copied : say.notCopied);
};

/** Copy text where there is no https, and so no clipboard. */
function copyAsOfOld(text) {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  return isCopied;
}

$("search").oninput = ({ target }) => view.search(target.value);
$("search").onsubmit = event => { event.preventDefault(); if (view.hits.length) view.showHit(1) };
$("previous-hit").onclick = () => view.showHit(-1);

// Who scrolls up wants to read in peace; who comes back to the end, to see the news.
let lastY = 0;
addEventListener("scroll", () => {
  const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
  if (view?.frame && !isEnded(view.frame)) {
    if (isAtEnd || scrollY < lastY) view.follows = isAtEnd;
    view.keepUp();
  }
  lastY = scrollY;
}, { passive: true });
for (const type of ["wheel", "touchmove"])
  addEventListener(type, () => {
    if (!view || audio.paused) return;
    view.follows = false;
    view.keepUp();
  }, { passive: true });
$("follow").onclick = () => { view.follows = true; view.keepUp() };

// Recordings of browsers do not know how long they are.
const length = () => Number.isFinite(audio.duration) ? audio.duration : view?.frame?.duration_seconds ?? 0;

function showPlayer() {
  const at = audio.currentTime, seek = $("seek"), told = `${clock(at)} / ${clock(length())}`;
  seek.max = length();
  seek.value = at;
  seek.setAttribute("aria-valuetext", told);
  put("clock", told);
  use($("play"), audio.paused ? "play" : "pause");
  name($("play"), audio.paused ? say.play : say.pause);
  put("rate", `${audio.playbackRate.toLocaleString(LOCALE)}×`);
  name($("rate"), `${say.rate}: ${$("rate").textContent}`);
}

for (const type of ["timeupdate", "play", "pause", "durationchange", "ratechange"])
  audio.addEventListener(type, () => {
    showPlayer();
    if (view && (!audio.paused || view.now >= 0)) view.mark(audio.currentTime);
  });
audio.onerror = async () => {
  if (!audio.hasAttribute("src")) return;
  $("player").hidden = true;
  const error = await ask("GET", `v1/jobs/${view.id}/audio`, { Range: "bytes=0-0" }).catch(error => error);
  toast(error.code ? explain(error).what : say.unplayable);
};
$("play").onclick = () => audio.paused ? view.play(audio.ended ? 0 : audio.currentTime) : audio.pause();
$("seek").oninput = ({ target }) => { audio.currentTime = target.value; view.mark(+target.value) };
$("rate").onclick = () => {
  audio.playbackRate = RATES[(RATES.indexOf(audio.playbackRate) + 1) % RATES.length];
};
const step = by => {
  const { segments } = view, now = lastBefore(segments, audio.currentTime);
  view.play(segments[Math.max(0, Math.min(segments.length - 1, now + by))]?.start ?? 0);
};
$("before").onclick = () => step(-1);
$("after").onclick = () => step(1);

let homeY = 0;

function route() {
  const [, id] = /^#\/jobs\/(.+)$/.exec(location.hash) ?? [];
  if (view ? view.id === id : !id && !$("home").hidden) return;
  const isArrival = !view && $("home").hidden;  // the focus stays where browsers begin
  if (!view) homeY = scrollY;
  view?.close();
  view = id ? new View(id) : null;
  $("home").hidden = !!id;
  $("job").hidden = !id;
  if (view) view.watch(); else showList();
  scrollTo(0, lastY = view ? 0 : homeY);
  if (!isArrival) (view ? $("name") : $("home").querySelector("h1")).focus({ preventScroll: true });
  entitle();
}

document.documentElement.lang = lang;
for (const element of document.querySelectorAll("[data-say]")) element.textContent = say[element.dataset.say];
for (const element of document.querySelectorAll("[data-name]")) name(element, say[element.dataset.name]);
document.querySelector("#search input").placeholder = say.search;
put("language", say.other);
$("language").onclick = () => { remembered("language", LANGUAGES.find(code => code !== lang)); location.reload() };
addEventListener("hashchange", route);
history.scrollRestoration = "manual";
route();
keepList().catch(complain);
