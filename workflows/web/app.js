// The page: keys, buttons and canvases on one side, the desk on the other.

import { Desk } from "./desk.js";
import { $, Lists, askToken, el, showConflict, showHead, showHistory, showObjects, showToast, showTransport } from "./panels.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { Wire } from "./wire.js";

const KEYS = [
  [["Click"], "part of the object"], [["Right click", "Alt"], "not part of it"],
  [["Drag"], "a box round it"], [["Click on a point"], "take it away"],
  [["←", "→"], "one frame"], [["Shift ←", "Shift →"], "ten frames"],
  [["Space"], "play, stop"], [["[", "]"], "previous, next flag"],
  [["1 … 9"], "choose an object"], [["N"], "new object"],
  [["A"], "absent from here"], [["Del"], "clear it on this frame"],
  [["P"], "propagate"], [["Esc"], "cancel, keep as a draft"],
  [["H"], "hide masks"], [[",", "."], "fainter, stronger"],
  [["D"], "what a draft changes"], [["Ctrl S"], "save a revision"],
  [["Ctrl Z"], "undo"], [["Ctrl Shift Z"], "redo"],
  [["Enter"], "accept, next of the queue"], [["X"], "reject, next of the queue"],
  [["0", "wheel"], "whole picture, zoom"], [["?"], "this list"],
];

const desk = new Desk(new Wire());
const lists = new Lists(desk);
const stage = new Stage($("stage"));
const timeline = new Timeline($("timeline"));
Object.assign(window, { desk, stage, timeline }); // for the console, and for tests
const isOn = (id) => $(id).ariaPressed === "true";

// Showing.

function show() {
  if (!desk.open) return;
  showStage(desk.open);
  showTimeline(desk.open);
  showHead(desk);
  showTransport(desk);
  showObjects(desk);
  showWaiting(desk.open);
}

// What the stage does not show yet; the style lets it appear only when it takes a while.
function showWaiting({ frame, wanted, preview }) {
  const text = frame !== wanted ? `Loading frame ${wanted} …` : preview ? "Asking the model …" : "";
  $("waiting").hidden = !text;
  $("waiting").textContent = text;
}

function showStage({ session, masks, frame, objectId, hidden, picture, draft, preview }) {
  const objects = session.objects().filter((object) => !object.isRemoved && !hidden.has(object.object_id));
  const layers = objects.map(({ object_id: id }) => {
    const [mask, look] = masks.shown(id, frame);
    const isOld = look === "kept" && !draft && desk.isInSpan(id, frame);
    return { objectId: id, mask, look: isOld ? "old" : look, selected: id === objectId };
  });
  const changed = layers.filter(({ look }) => look === "draft" || look === "preview");
  stage.picture = picture;
  stage.layers = layers.filter((layer) => layer.mask).sort((a, b) => a.selected - b.selected);
  stage.changes = isOn("diff") ? changed.map(({ objectId: id, mask }) => ({ before: masks.base.get(frame)?.get(id), after: mask })) : [];
  stage.prompts = session.promptsOn(frame)
    .map((prompt) => ({ prompt, selected: prompt.object_id === objectId, pending: preview !== null && prompt.object_id === objectId }))
    .sort((a, b) => a.selected - b.selected);
  stage.draw();
}

function showTimeline({ session, masks, objectId, draft, wanted }) {
  const edited = session.editedObjects();
  timeline.rows = session.objects().map(({ object_id: id, category, track }) => ({
    objectId: id,
    name: category || `object ${id}`,
    selected: id === objectId,
    ...masks.timeline(id),
    prompts: session.promptedFrames(id),
    flags: track?.flags ?? [],
    inSpan: !draft && edited.has(id),
  }));
  timeline.span = draft ? null : desk.span;
  timeline.frame = wanted;
  timeline.follow();
  timeline.draw();
}

// Commands.

const aboutObject = (how) => () => desk.tell(how);
const clear = aboutObject((session, id, frame) => session.clear(id, frame));
const absent = aboutObject((session, id, frame) => session.markAbsent(id, frame));
const propagate = () => desk.propagate({ asDraft: true });
const accept = () => desk.judge("accepted");
const reject = () => desk.judge("rejected");
const help = () => $("help-dialog").showModal();

function toggle(id, then) {
  if ($(id).disabled) return;
  $(id).ariaPressed = String(!isOn(id));
  then();
}

const compare = () => toggle("diff", show);
const hide = () => toggle("hide", () => Object.assign(stage, { hidden: isOn("hide") }).draw());

function escape() {
  if (stage.abandon()) return;
  desk.cancel();
  for (const panel of ["queue", "objects"]) openPanel(panel, false);
}

function openPanel(name, isOpen) {
  $(`${name}-panel`).classList.toggle("is-open", isOpen);
  $(`toggle-${name}`).ariaExpanded = String(isOpen);
}

function setTool(name) {
  stage.sign = name;
  for (const one of ["positive", "negative", "box"]) {
    $(`tool-${one}`).ariaChecked = String(one === name);
    $(`tool-${one}`).tabIndex = one === name ? 0 : -1;
  }
}

function setTab(name) {
  for (const one of ["queue", "videos"]) {
    $(`tab-${one}`).ariaSelected = String(one === name);
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    $(one).hidden = one !== name;
  }
  if (name === "queue") lists.loadQueue();
  else lists.loadVideos();
}

function setOpacity(percent) {
  $("opacity").value = Math.min(Math.max(percent, 0), 100);
  stage.opacity = $("opacity").value / 100;
  localStorage.setItem("maskmill:opacity", $("opacity").value);
  stage.draw();
}

const COMMANDS = {
  ArrowLeft: () => desk.step(-1), ArrowRight: () => desk.step(1),
  "Shift+ArrowLeft": () => desk.step(-10), "Shift+ArrowRight": () => desk.step(10),
  Home: () => desk.step(-Infinity), End: () => desk.step(Infinity),
  " ": () => desk.play(), "[": () => desk.goToFlag(-1), "]": () => desk.goToFlag(1),
  n: () => desk.newObject(), a: absent, p: propagate, h: hide, d: compare, x: reject, Enter: accept,
  Delete: clear, Backspace: clear, Escape: escape, 0: () => stage.fit(), "?": help,
  ",": () => setOpacity(Number($("opacity").value) - 10), ".": () => setOpacity(Number($("opacity").value) + 10),
  "Ctrl+z": () => desk.undo(), "Ctrl+Shift+z": () => desk.redo(), "Ctrl+y": () => desk.redo(), "Ctrl+s": () => desk.save(),
};

function onKey(event) {
  if (document.querySelector("dialog[open]") || event.defaultPrevented || event.altKey) return;
  const { target } = event;
  const isControl = event.ctrlKey || event.metaKey;
  const isTyping = target.matches("input:not([type=range], [type=checkbox]), select, textarea");
  if (isTyping && event.key === "Escape") target.blur();
  if (isTyping && !(isControl && event.key.toLowerCase() === "s")) return;
  if (target.matches("button, a") && [" ", "Enter"].includes(event.key)) return;
  const object = !isControl && /^[1-9]$/.test(event.key) ? desk.open?.session.objects()[event.key - 1] : null;
  if (object) return desk.pick(object.object_id);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isShifted = event.shiftKey && (event.key.length > 1 || isControl);
  const command = COMMANDS[`${isControl ? "Ctrl+" : ""}${isShifted ? "Shift+" : ""}${key}`];
  if (!command) return;
  event.preventDefault();
  command();
}

// Arrows move within a group of tabs or radio buttons.
function rove(ids, choose) {
  ids.forEach((id, at) =>
    $(id).addEventListener("keydown", (event) => {
      const shift = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!shift) return;
      event.preventDefault();
      const next = ids[(at + shift + ids.length) % ids.length];
      $(next).focus();
      choose(next);
    }),
  );
}

function listen() {
  const clicks = {
    undo: () => desk.undo(), redo: () => desk.redo(), play: () => desk.play(), save: () => desk.save(),
    discard: () => desk.discard(), remove: () => desk.removeOrKeep(), "new-object": () => desk.newObject(),
    back: () => desk.step(-1), forward: () => desk.step(1), "back-10": () => desk.step(-10), "forward-10": () => desk.step(10),
    "flag-previous": () => desk.goToFlag(-1), "flag-next": () => desk.goToFlag(1), cancel: () => desk.cancel(),
    clear, absent, hide, propagate, accept, reject, diff: compare, fit: () => stage.fit(),
    "help-open": help, "help-close": () => $("help-dialog").close(),
    "history-open": () => showHistory(desk), "history-close": () => $("history-dialog").close(),
    "token-open": () => askToken(""), "token-cancel": () => $("token-dialog").close(),
    "conflict-theirs": () => $("conflict-dialog").close("theirs"), "conflict-mine": () => $("conflict-dialog").close("mine"),
    "conflict-later": () => $("conflict-dialog").close("later"), "videos-more": () => lists.loadVideos(true),
  };
  for (const [id, click] of Object.entries(clicks)) $(id).addEventListener("click", () => click());
  for (const name of ["positive", "negative", "box"]) $(`tool-${name}`).addEventListener("click", () => setTool(name));
  for (const name of ["queue", "videos"]) $(`tab-${name}`).addEventListener("click", () => setTab(name));
  for (const name of ["queue", "objects"]) {
    $(`toggle-${name}`).addEventListener("click", () => openPanel(name, !$(`${name}-panel`).classList.contains("is-open")));
  }
  rove(["tool-positive", "tool-negative", "tool-box"], (id) => setTool(id.slice(5)));
  rove(["tab-queue", "tab-videos"], (id) => setTab(id.slice(4)));
  $("span-kind").addEventListener("change", () => desk.chooseSpan($("span-kind").value));
  $("converge").addEventListener("change", () => (desk.untilConverged = $("converge").checked));
  $("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value)));
  $("frame").addEventListener("change", () => (desk.stop(), desk.go(Math.round(Number($("frame").value)) || 0)));
  $("category").addEventListener("change", () => desk.open.session.setCategory(desk.open.objectId, $("category").value.trim()));
  $("queue-review").addEventListener("change", () => lists.loadQueue());
  $("queue-kind").addEventListener("change", () => lists.loadQueue());
  $("video-search").addEventListener("input", () => lists.loadVideos());
  $("token-form").addEventListener("submit", () => {
    desk.wire.keepToken($("token").value.trim(), $("token-keep").checked);
    start();
  });
  window.addEventListener("keydown", onKey);
}

function connect() {
  const on = (source, what, then) => source.addEventListener(what, ({ detail }) => then(detail));
  on(stage, "point", ({ x, y, positive }) => desk.tell((session, id, frame) => session.addPoint(id, frame, x, y, positive)));
  on(stage, "remove", ({ index }) => desk.tell((session, id, frame) => session.removePoint(id, frame, index)));
  on(stage, "box", (box) => desk.tell((session, id, frame) => session.setBox(id, frame, box)));
  on(timeline, "seek", ({ frame }) => (desk.stop(), desk.go(frame)));
  on(timeline, "pick", ({ objectId }) => desk.pick(objectId));
  on(timeline, "span", ({ span }) => {
    $("span-kind").value = "custom";
    desk.chooseSpan("custom", span);
  });
  on(desk, "change", show);
  on(desk, "told", showToast);
  on(desk, "asked", ({ why }) => askToken(why));
  on(desk, "met", (met) => showConflict(desk, met));
  on(desk, "judged", (what) => lists.goOn(what));
  on(desk, "opened", () => {
    const { video } = desk.open;
    document.title = `${video.video_id} · maskmill`;
    $("welcome").hidden = true;
    stage.open(video.width, video.height);
    timeline.open(video.num_frames, video.fps);
  });
}

async function start() {
  const asked = new URLSearchParams(location.search);
  await lists.loadQueue();
  if (asked.get("video")) await desk.take(asked.get("video"), { frame: Number(asked.get("frame") ?? 0) });
}

// A link may bring the token; it does not stay in the address.
const brought = new URLSearchParams(location.hash.slice(1)).get("token");
if (brought) {
  desk.wire.keepToken(brought, false);
  history.replaceState(null, "", location.pathname + location.search);
}
$("keys").replaceChildren(...KEYS.flatMap(([keys, what]) => [el("span", {}, ...keys.map((key) => el("kbd", {}, key))), el("span", {}, what)]));
setOpacity(Number(localStorage.getItem("maskmill:opacity") ?? 45));
listen();
connect();
start();
