// Everything on the page that is not a canvas: the queue, the videos, the objects, the head, the
// dialogs. Shows what the desk has; what is clicked goes back to it.

import { Stage, colourOf } from "./stage.js";
import { path } from "./wire.js";

export const $ = (id) => document.getElementById(id);
const words = (code) => String(code).replaceAll("_", " ");
const several = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

// An element with properties and children; what is null is left out.
export function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// The queue and the videos.

export class Lists {
  constructor(desk) {
    this.desk = desk;
    this.items = [];
    this.at = -1;
    this.videos = [];
    this.next = null;
  }

  async loadQueue() {
    const query = new URLSearchParams({ limit: 100, review: $("queue-review").value });
    if ($("queue-kind").value) query.set("kind", $("queue-kind").value);
    const answer = await this.#get(`queue?${query}`);
    if (!answer) return;
    this.items = answer.items;
    this.at = -1;
    const kinds = new Set(answer.items.flatMap((item) => [item.kind, ...item.flags.map((flag) => flag.kind)]).filter(Boolean));
    for (const option of $("queue-kind").options) kinds.delete(option.value);
    $("queue-kind").append(...[...kinds].sort().map((kind) => el("option", { value: kind }, words(kind))));
    this.showQueue();
  }

  async takeFromQueue(at) {
    this.at = at;
    const item = this.items[at];
    this.showQueue();
    $("queue-panel").classList.remove("is-open");
    await this.desk.take(item.video_id, { frame: item.frame_index, objectId: item.object_id });
  }

  // After a verdict: on with the next, if the one judged was the queue's.
  async goOn({ videoId, objectId }) {
    const item = this.items[this.at];
    if (item?.video_id !== videoId || item.object_id !== objectId) return this.desk.refresh();
    this.items.splice(this.at, 1);
    if (this.items.length) return this.takeFromQueue(this.at % this.items.length);
    await this.loadQueue();
    this.desk.refresh();
  }

  showQueue() {
    const entries = this.items.map((item, at) => {
      const why = item.kind ? `${words(item.kind)} at ${item.frame_index}` : `frame ${item.frame_index}`;
      return entry(at === this.at, () => this.takeFromQueue(at), item.video_id, `${why} · ${item.object_id} ${item.category ?? ""}`, item.doubt);
    });
    $("queue-list").replaceChildren(...entries);
    $("queue-list").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
    $("queue-note").textContent = this.items.length ? `${this.items.length} to look at, the most doubtful first` : "Nothing here. Well done.";
  }

  async loadVideos(more = false) {
    const query = new URLSearchParams({ limit: 50, sort: "doubt", search: $("video-search").value });
    if (more && this.next) query.set("cursor", this.next);
    const answer = await this.#get(`videos?${query}`);
    if (!answer) return;
    this.videos = more ? [...this.videos, ...answer.videos] : answer.videos;
    this.next = answer.next;
    this.showVideos();
  }

  showVideos() {
    const now = this.desk.open?.video.video_id;
    const entries = this.videos.map((video) => {
      const facts = [several(video.objects, "object"), video.accepted ? `${video.accepted} accepted` : null, video.flags ? several(video.flags, "flag") : null];
      const what = video.status === "failed" ? `failed: ${words(video.reason)}` : facts.filter(Boolean).join(" · ");
      return entry(video.video_id === now, () => this.#takeVideo(video.video_id), video.video_id, what, video.doubt);
    });
    $("video-list").replaceChildren(...entries);
    $("videos-more").hidden = !this.next;
    $("video-note").textContent = this.videos.length ? "" : "No video of that name.";
  }

  async #takeVideo(videoId) {
    this.at = -1;
    $("queue-panel").classList.remove("is-open");
    await this.desk.take(videoId);
    this.showVideos();
  }

  #get(where) {
    return this.desk.wire.json("GET", where).catch((error) => this.desk.fault(error));
  }
}

function entry(isCurrent, onclick, name, why, doubt) {
  const fill = el("i");
  fill.style.width = `${Math.round((doubt ?? 0) * 100)}%`;
  const title = `${name}\n${why}${doubt === null ? "" : `\ndoubt ${doubt.toFixed(2)}`}`;
  return el("li", {}, el("button", { ariaCurrent: String(isCurrent), onclick, title },
    el("span", { className: "what" }, name),
    doubt === null ? null : el("span", { className: "meter", ariaHidden: "true" }, fill),
    el("span", { className: "why" }, why),
    doubt === null ? null : el("span", { className: "doubt" }, doubt.toFixed(2)),
  ));
}

// The head, the objects, and what can be pressed now.

export function showHead({ open, span }) {
  const { session, video, draft, propagating, masks } = open;
  const isBusy = propagating !== null;
  const corrections = several(session.corrections, "correction");
  const [kind, text] = isBusy ? ["busy", `propagating: ${open.done} of at most ${open.toDo} frames`]
    : draft ? ["draft", `draft of ${corrections}, not saved`]
    : session.corrections ? ["draft", `${corrections}, not propagated`]
    : session.isChanged ? ["draft", "new object, no click yet"]
    : open.isSaved ? ["saved", "saved"] : ["", ""];
  $("title").textContent = video.video_id;
  $("facts").textContent = `${video.width}×${video.height} · ${several(video.num_frames, "frame")}${video.fps ? ` · ${Math.round(video.fps * 100) / 100}/s` : ""}`;
  $("revision").hidden = false;
  $("revision").textContent = video.revision ? `revision ${video.revision}` : "not labelled";
  $("state").dataset.kind = kind;
  $("state").textContent = text;
  const share = isBusy && open.toDo ? Math.min(100, Math.round((100 * open.done) / open.toDo)) : 0;
  $("progress").hidden = !isBusy;
  $("progress").ariaValueNow = share;
  $("progress").firstElementChild.style.width = `${share}%`;
  const ids = [...session.editedObjects()];
  $("span-text").textContent = draft ? "Propagated. Save it, or correct further."
    : span ? `Frames ${span[0]} to ${span[1]}, object${ids.length > 1 ? "s" : ""} ${ids.join(", ")}`
    : "Correct something first.";
  $("propagate").disabled = !span || isBusy || draft !== null;
  $("propagate").hidden = isBusy;
  $("cancel").hidden = !isBusy;
  $("undo").disabled = !session.canUndo || isBusy;
  $("redo").disabled = !session.canRedo || isBusy;
  $("diff").disabled = !draft && !masks.preview.size && !isBusy;
  $("save").disabled = isBusy || session.corrections === 0;
  // one thing at a time stands out: what comes next
  $("save").classList.toggle("primary", draft !== null || !span);
  $("discard").disabled = isBusy || !session.isChanged;
  for (const id of ["accept", "reject"]) $(id).disabled = isBusy || open.objectId === null;
  for (const id of ["history-open", "new-object"]) $(id).disabled = false;
}

export function showTransport({ open }) {
  const { video, masks, frame, objectId, isPlaying } = open;
  $("play").textContent = isPlaying ? "❚❚" : "▶";
  $("play").ariaLabel = isPlaying ? "Stop" : "Play";
  if (document.activeElement !== $("frame")) $("frame").value = open.wanted;
  $("frame").max = video.num_frames - 1;
  $("frame-of").textContent = `of ${video.num_frames - 1}`;
  const [mask] = masks.shown(objectId, frame);
  const score = (name, value, digits) => (value === null || value === undefined ? null : `${name} ${value.toFixed(digits)}`);
  const facts = !mask ? []
    : [mask.area_px ? `${mask.area_px.toLocaleString("en")} px` : "absent", score("object", mask.object_score, 1), score("stability", mask.stability, 2)];
  $("score").textContent = facts.filter(Boolean).join(" · ");
  const flags = video.tracks.flatMap((track) =>
    track.flags.filter((flag) => flag.frame_index === frame).map((flag) => `${words(flag.kind)} (object ${track.object_id})`),
  );
  $("frame-flag").textContent = flags.length ? `⚑ ${flags.join(", ")}` : "";
}

export function showObjects(desk) {
  const { session, objectId, hidden, frame } = desk.open;
  const edited = session.editedObjects();
  const rows = session.objects().map((object) => {
    const { object_id: id, track, isNew, isRemoved, category } = object;
    const tags = [isNew ? "new" : isRemoved ? "to be removed" : track.review, edited.has(id) ? "corrected" : null, track?.flags.length ? `⚑ ${track.flags.length}` : null];
    const swatch = el("span", { className: "swatch" }, String(id));
    swatch.style.background = colourOf(id);
    const named = el("span", {},
      el("span", { className: "name" }, category || `object ${id}`),
      el("span", { className: "tags" }, ...tags.filter(Boolean).map((tag) => el("span", {}, tag))),
    );
    const isHidden = hidden.has(id);
    return el("li", { className: isRemoved ? "is-removed" : "" },
      el("button", { className: "pick", ariaPressed: String(id === objectId), onclick: () => desk.pick(id) }, swatch, named),
      el("button", { className: "eye", ariaPressed: String(isHidden), ariaLabel: `Hide object ${id}`, title: "Hide, show", onclick: () => desk.toggleHidden(id) }, isHidden ? "○" : "●"),
    );
  });
  const had = document.activeElement?.closest?.("#objects li");
  const focused = had ? [[...$("objects").children].indexOf(had), document.activeElement.className] : null;
  $("objects").replaceChildren(...rows);
  if (focused) rows[focused[0]]?.querySelector(`.${focused[1]}`)?.focus();
  const object = session.object(objectId);
  $("object-tools").hidden = !object;
  if (!object) return;
  const { track } = object;
  $("object-name").textContent = `Object ${objectId}`;
  if (document.activeElement !== $("category")) $("category").value = object.category ?? "";
  $("category").disabled = !object.isNew;
  const facts = !track ? [["Frames", "none yet"]] : [
    ["Revision", `${track.revision} · ${track.source}`],
    ["By", track.author ?? "the model"],
    ["Frames", `${track.first_frame} – ${track.last_frame}, there on ${track.frames_present}`],
    ["Doubt", track.doubt === null ? "not scored" : track.doubt.toFixed(2)],
  ];
  $("object-facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { title: value }, value)]));
  $("clear").disabled = !session.prompt(objectId, frame) || object.isRemoved;
  $("absent").disabled = object.isRemoved;
  $("remove").textContent = object.isRemoved ? "Bring back" : "Remove";
}

// Dialogs and the line that comes and goes.

let toastTimer = 0;

export function showToast({ text, kind }) {
  Object.assign($("toast"), { textContent: text, hidden: false });
  $("toast").dataset.kind = kind;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), kind === "fault" ? 9000 : 4500);
}

export function askToken(complaint) {
  $("token-fault").hidden = !complaint;
  $("token-fault").textContent = complaint;
  $("token").value = "";
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

export async function showHistory(desk) {
  const { video, session } = desk.open;
  const answer = await desk.wire.json("GET", path("videos", video.video_id, "revisions")).catch((error) => desk.fault(error));
  if (!answer) return;
  const rows = answer.revisions.map((one, at) => {
    const who = one.author ?? (one.source === "bulk" ? "the model" : one.source);
    const what = one.restored_from !== null ? `as revision ${one.restored_from}` : `object${one.object_ids.length === 1 ? "" : "s"} ${one.object_ids.join(", ")}`;
    const when = one.created_at ? new Date(one.created_at).toLocaleString() : "";
    const restore = () => ($("history-dialog").close(), desk.restore(one.revision));
    const title = session.isChanged ? "Save or discard your changes first" : "";
    return el("li", {},
      el("b", {}, String(one.revision)),
      el("span", {}, `${who} · ${what}`, el("br"), el("span", { className: "muted" }, `${when} · ${one.review}`)),
      at === 0 ? el("span", { className: "muted" }, "current") : el("button", { disabled: session.isChanged, title, onclick: restore }, "Restore"),
    );
  });
  $("history-list").replaceChildren(...rows);
  $("history-dialog").showModal();
}

// Both sides of a conflict, and the choice between them.
export function showConflict(desk, { detail, theirs }) {
  const { session } = desk.open;
  const who = detail.author ? ` by ${detail.author}` : "";
  $("conflict-text").textContent =
    `You started from revision ${detail.base_revision}. Meanwhile revision ${detail.newest_revision} was saved${who}. ` +
    "Nothing of yours is lost: choose what is to count.";
  const newer = theirs.tracks.filter((track) => track.revision > detail.base_revision).map((track) => track.object_id);
  const ids = [...new Set([...session.editedObjects(), ...newer])].sort((a, b) => a - b);
  const rows = ids.map((id) => {
    const track = theirs.tracks.find((one) => one.object_id === id);
    const mine = session.edits().filter((prompt) => prompt.object_id === id).length;
    const their = track ? `revision ${track.revision}${track.author ? `, ${track.author}` : ""}, ${track.review}` : "not there";
    return el("tr", {}, el("th", { scope: "row" }, String(id)), el("td", {}, their), el("td", {}, mine ? several(mine, "correction") : "unchanged"));
  });
  $("conflict-rows").replaceChildren(...rows);
  const dialog = $("conflict-dialog");
  dialog.returnValue = "later";
  dialog.onclose = () => dialog.returnValue !== "later" && desk.settle(dialog.returnValue, theirs);
  if (!dialog.open) dialog.showModal();
  drawConflict(desk, ids).catch((error) => desk.fault(error));
}

let conflictStage = null;

async function drawConflict({ open, wire }, ids) {
  const { width, height, video_id } = open.video;
  const frame = Math.max(open.frame, 0);
  $("conflict-picture").style.aspectRatio = `${width} / ${height}`;
  conflictStage ??= new Stage($("conflict-picture"));
  conflictStage.open(width, height);
  conflictStage.picture = open.picture;
  conflictStage.changes = [];
  for await (const line of wire.lines("GET", `${path("videos", video_id, "masks")}?frames=${frame}:${frame}`)) {
    conflictStage.changes = ids.map((id) => {
      const before = line.masks.find((mask) => mask.object_id === id);
      return { before: before && { ...before, height, width }, after: open.masks.shown(id, frame)[0] };
    });
  }
  conflictStage.draw();
}
