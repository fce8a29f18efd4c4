// The video at work: what a person does goes to its session and the service, and what comes back is
// kept. Knows nothing of the screen; tells it by events: change, told {text, kind}, asked {why},
// opened, met {detail, theirs} for a conflict, judged {objectId}.

import { Masks, Session } from "./session.js";
import { Pictures, ServiceError, path } from "./wire.js";

const CLIENT = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");
const MASKS_AT_ONCE = 60_000; // masks of a video up to which all are fetched; beyond, those near
const WINDOW = 64; // frames of masks fetched round the playhead of a longer video

export class Desk extends EventTarget {
  #isChangePlanned = false;

  constructor(wire) {
    super();
    this.wire = wire;
    this.open = null;
    this.spanKind = "whole";
    this.untilConverged = true;
  }

  // Opening a video.

  async take(videoId, { frame = 0, objectId = null } = {}) {
    if (this.open?.video.video_id === videoId && !this.open.isStale) {
      if (objectId !== null) this.pick(objectId);
      return this.go(frame);
    }
    this.stop();
    await this.attempt(async () => {
      const video = await this.wire.json("GET", `${path("videos", videoId)}?warm=true`);
      this.#close();
      const here = {
        video,
        session: new Session(video),
        masks: new Masks(video.num_frames),
        pictures: new Pictures(this.wire, video),
        picture: null, frame: -1, wanted: 0, isPlaying: false,
        objectId: objectId ?? video.tracks[0]?.object_id ?? null, hidden: new Set(), customSpan: null,
        preview: null, sequence: 0, previewMs: null,
        propagating: null, done: 0, toDo: 0, draft: null, isSaved: false, isStale: false,
        loading: new AbortController(), isLong: false, windows: new Set(),
      };
      this.open = here;
      here.session.addEventListener("change", (event) => this.#said(event.detail.frames));
      this.#tell("opened");
      this.#loadMasks(here);
      await this.#restoreDraft(here);
      await this.go(frame);
    });
  }

  #close() {
    const here = this.open;
    if (!here) return;
    here.propagating?.abort();
    here.preview?.abort();
    here.loading.abort();
    here.pictures.close();
    this.open = null;
  }

  // Of a short video all masks; of a long one the scores, and the masks round the playhead.
  async #loadMasks(here) {
    here.isLong = here.video.num_frames * Math.max(here.video.tracks.length, 1) > MASKS_AT_ONCE;
    await this.#loadLines(here, here.isLong ? "?counts=false" : "");
    this.#loadWindow(here);
  }

  async #loadWindow(here) {
    const first = Math.floor(here.wanted / WINDOW) * WINDOW;
    if (!here.isLong || here.windows.has(first)) return;
    here.windows.add(first);
    await this.#loadLines(here, `?frames=${first}:${first + WINDOW - 1}`);
  }

  async #loadLines(here, query) {
    const { masks, loading } = here;
    const where = `${path("videos", here.video.video_id, "masks")}${query}`;
    try {
      for await (const line of this.wire.lines("GET", where, undefined, loading.signal)) {
        masks.addBase(line);
        this.change();
      }
    } catch (error) {
      this.fault(error);
    }
  }

  // Frames. The one shown is `frame`: picture and masks change together; `wanted` may be ahead.

  async go(frame) {
    const here = this.open;
    if (!here) return;
    const wanted = Math.min(Math.max(frame, 0), here.video.num_frames - 1);
    const direction = wanted < here.wanted ? -1 : 1;
    here.wanted = wanted;
    this.change();
    this.#loadWindow(here);
    try {
      const picture = await here.pictures.get(wanted);
      if (here !== this.open || here.wanted !== wanted) return;
      here.picture = picture;
      here.frame = wanted;
      this.change();
      if (!here.masks.preview.has(wanted)) this.#askPreview(here);
      here.pictures.prefetch(wanted, direction);
    } catch (error) {
      this.fault(error);
    }
  }

  step(frames) {
    if (!this.open) return;
    this.stop();
    this.go(this.open.wanted + frames);
  }

  play() {
    const here = this.open;
    if (!here || here.isPlaying) return this.stop();
    here.isPlaying = true;
    const pause = 1000 / Math.min(here.video.fps || 25, 60);
    let due = performance.now();
    const tick = (now) => {
      if (here !== this.open || !here.isPlaying) return;
      if (now >= due && here.frame === here.wanted) {
        if (here.wanted + 1 >= here.video.num_frames) return this.stop();
        due = Math.max(due + pause, now - pause); // late frames are shown late, never left out
        this.go(here.wanted + 1);
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.change();
  }

  stop() {
    if (!this.open?.isPlaying) return;
    this.open.isPlaying = false;
    this.change();
  }

  goToFlag(direction) {
    const here = this.open;
    if (!here) return;
    this.stop();
    const flags = here.video.tracks.flatMap((track) => track.flags.map((flag) => [flag.frame_index, track.object_id]));
    const ahead = flags.filter(([frame]) => (frame - here.wanted) * direction > 0);
    if (!ahead.length) return this.say(direction > 0 ? "No flag after this frame." : "No flag before this frame.");
    const nearest = Math.min(...ahead.map(([frame]) => frame * direction)) * direction;
    const objects = ahead.filter(([frame]) => frame === nearest).map(([, objectId]) => objectId);
    if (!objects.includes(here.objectId)) this.pick(objects[0]);
    this.go(nearest);
  }

  // What a person says about an object on the frame shown.

  pick(objectId) {
    if (!this.open) return;
    this.open.objectId = objectId;
    this.change();
  }

  toggleHidden(objectId) {
    const { hidden } = this.open;
    if (!hidden.delete(objectId)) hidden.add(objectId);
    this.change();
  }

  tell(how) {
    const here = this.open;
    if (!here || here.frame < 0) return;
    if (here.propagating) return this.say("Wait for the propagation, or cancel it with Esc.");
    this.stop();
    here.objectId ??= here.session.addObject();
    const object = here.session.object(here.objectId);
    if (object?.isRemoved) return this.say(`Object ${here.objectId} is to be removed; bring it back first.`);
    const [first, last] = here.session.labelledSpan(here.objectId);
    if (here.frame < first || here.frame > last) return this.say(`Object ${here.objectId} is labelled on frames ${first} to ${last} only.`);
    how(here.session, here.objectId, here.frame);
  }

  newObject() {
    if (!this.open || this.open.propagating) return;
    this.pick(this.open.session.addObject());
    this.say(`Object ${this.open.objectId}: click on it.`);
  }

  removeOrKeep() {
    const here = this.open;
    if (!here || here.propagating) return;
    const { isRemoved } = here.session.object(here.objectId);
    if (isRemoved) here.session.keepObject(here.objectId);
    else here.session.removeObject(here.objectId);
  }

  undo() {
    if (!this.open?.propagating) this.open?.session.undo();
  }

  redo() {
    if (!this.open?.propagating) this.open?.session.redo();
  }

  #said(frames) {
    const here = this.open;
    const { session, masks, video } = here;
    masks.dropPreview(frames);
    if (!session.object(here.objectId)) here.objectId = session.objects()[0]?.object_id ?? null;
    if (here.draft) this.#forgetDraft(here);
    here.isSaved = false;
    if (session.isChanged) localStorage.setItem(draftKey(video), JSON.stringify(session));
    else localStorage.removeItem(draftKey(video));
    this.#askPreview(here);
    this.change();
  }

  // Masks of the frame shown with what was said on it; an answer that came too late is dropped.
  async #askPreview(here) {
    here.preview?.abort();
    here.preview = null;
    const prompts = here.session.editsOn(here.frame).filter((p) => p.points.length || p.box || p.mask);
    if (!prompts.length || here.draft || here.propagating) return;
    const asked = (here.preview = new AbortController());
    const body = {
      base_revision: here.session.video.revision, frame_index: here.frame, prompts, client: CLIENT, sequence: ++here.sequence,
    };
    const began = performance.now();
    try {
      const answer = await this.wire.json("POST", path("videos", here.video.video_id, "preview"), body, asked.signal);
      if (here.preview !== asked) return;
      here.masks.setPreview(answer);
      here.previewMs = Math.round(performance.now() - began);
    } catch (error) {
      if (here.preview !== asked || error.code === "superseded") return;
      if (error.status === 503) {
        const again = () => here === this.open && here.preview === asked && this.#askPreview(here);
        setTimeout(again, 1000 * (error.detail?.retry_after_s ?? 1));
        return;
      }
      if (error.code === "conflict") this.#meetConflict(here, error.detail);
      else this.fault(error);
    }
    here.preview = null;
    this.change();
  }

  // Propagating, saving, judging.

  get span() {
    return this.open.session.span(this.spanKind, this.open.customSpan);
  }

  isInSpan(objectId, frame) {
    const span = this.span;
    return span !== null && this.open.session.editedObjects().has(objectId) && frame >= span[0] && frame <= span[1];
  }

  chooseSpan(kind, custom = null) {
    if (kind === "custom" && this.open) this.open.customSpan = custom ?? this.open.customSpan ?? this.span;
    this.spanKind = kind;
    this.change();
  }

  async propagate({ asDraft }) {
    const here = this.open;
    if (!here || here.propagating) return false;
    const { session, masks } = here;
    const span = this.span;
    if (!span && (asDraft || !session.removedObjects().length)) return false;
    this.stop();
    const stopped = (here.propagating = new AbortController());
    here.preview?.abort();
    Object.assign(here, { done: 0, toDo: span ? span[1] - span[0] + 1 : 0 });
    await this.#forgetDraft(here);
    const known = asDraft ? new Set((await this.#drafts(here)).map((draft) => draft.draft_id)) : null;
    const body = {
      base_revision: session.video.revision,
      prompts: session.edits(),
      remove_object_ids: session.removedObjects(),
      span: span ? { first_frame: span[0], last_frame: span[1] } : {},
      until_converged: this.untilConverged,
      draft: asDraft,
      request_id: `${CLIENT}-${Date.now().toString(36)}`,
    };
    this.change();
    try {
      const where = path("videos", here.video.video_id, "refinements");
      for await (const line of this.wire.lines("POST", where, body, stopped.signal)) {
        if (here !== this.open) return false;
        if (line.result) this.#finish(here, line.result);
        else {
          masks.addDraft(line.frame);
          here.done++;
          this.change();
        }
      }
      return true;
    } catch (error) {
      if (here !== this.open) return false;
      if (error.name === "AbortError") await this.#keepCancelled(here, known);
      else if (error.code === "conflict") await this.#meetConflict(here, error.detail);
      else this.fault(error);
      return false;
    } finally {
      here.propagating = null;
      this.change();
    }
  }

  cancel() {
    this.open?.propagating?.abort();
  }

  #finish(here, result) {
    if (result.revision !== null) return this.#committed(here, result);
    here.draft = result;
    this.say(`Draft ready: ${result.frames_computed} frames computed anew. Look through it, then save.`);
  }

  // The service keeps what was computed until then; it is found, for it can be saved all the same.
  async #keepCancelled(here, known) {
    for (let attempt = 1; known && attempt <= 6; attempt++) {
      const found = (await this.#drafts(here)).find((draft) => !known.has(draft.draft_id));
      if (found) {
        here.draft = found;
        return this.say("Cancelled. What was computed until then is kept as a draft.");
      }
      await new Promise((resolve) => setTimeout(resolve, 250 * attempt));
    }
    here.masks.dropDraft();
    this.say("Cancelled. Your corrections are still there.");
  }

  async #drafts(here) {
    const answer = await this.wire.json("GET", path("videos", here.video.video_id, "drafts")).catch(() => null);
    return answer?.drafts ?? [];
  }

  async #forgetDraft(here) {
    const { draft, masks, video } = here;
    here.draft = null;
    masks.dropDraft();
    if (!draft) return;
    const where = path("videos", video.video_id, "drafts", draft.draft_id);
    await this.wire.json("DELETE", where).catch((error) => this.fault(error));
  }

  // Whether it is saved now.
  async save() {
    const here = this.open;
    if (!here || here.propagating || !here.session.isChanged) return false;
    if (!here.draft) return (await this.propagate({ asDraft: false })) && here.isSaved;
    return this.attempt(async () => {
      try {
        const where = path("videos", here.video.video_id, "drafts", here.draft.draft_id, "commit");
        this.#committed(here, await this.wire.json("POST", where));
        return true;
      } catch (error) {
        if (error.code !== "conflict") throw error;
        await this.#meetConflict(here, error.detail);
        return false;
      }
    });
  }

  #committed(here, result) {
    here.draft = null;
    here.masks.keepDraft();
    here.session.forget();
    Object.assign(here, { customSpan: null, isSaved: true });
    this.say(`Saved as revision ${result.revision}.`);
    return this.refresh();
  }

  // The newest facts about the video; its masks are here already.
  async refresh() {
    const here = this.open;
    const video = await this.wire.json("GET", path("videos", here.video.video_id)).catch((error) => this.fault(error));
    if (!video || here !== this.open) return;
    here.video = video;
    here.session.rebase(video);
    this.change();
  }

  async discard() {
    const here = this.open;
    if (!here || here.propagating) return;
    await this.#forgetDraft(here);
    here.session.forget();
    here.customSpan = null;
    this.say("Changes discarded.");
  }

  // What is not saved yet is saved first.
  async judge(review) {
    const here = this.open;
    if (!here || here.objectId === null || here.propagating) return;
    if (here.session.isChanged && !(await this.save())) return;
    await this.attempt(async () => {
      await this.refresh();
      const { objectId, video } = here;
      const body = { base_revision: video.revision, review, object_ids: [objectId] };
      try {
        await this.wire.json("POST", path("videos", video.video_id, "accept"), body);
      } catch (error) {
        if (error.code !== "conflict") throw error;
        return this.#meetConflict(here, error.detail);
      }
      this.say(`${video.video_id}, object ${objectId}: ${review}.`);
      here.isStale = true; // its revision is one more
      this.#tell("judged", { videoId: video.video_id, objectId });
    });
  }

  async restore(revision) {
    const here = this.open;
    await this.attempt(async () => {
      const body = { base_revision: here.video.revision, revision };
      const result = await this.wire.json("POST", path("videos", here.video.video_id, "restore"), body);
      here.isStale = true;
      await this.take(here.video.video_id, { frame: here.frame, objectId: here.objectId });
      this.say(`Revision ${result.revision} shows the masks of revision ${revision}.`);
    });
  }

  // Drafts of last time, and conflicts.

  async #restoreDraft(here) {
    const kept = JSON.parse(localStorage.getItem(draftKey(here.video)) ?? "null");
    const drafts = await this.#drafts(here);
    if (here !== this.open) return;
    if (kept) here.session.restore(kept);
    if (kept && kept.base_revision !== here.video.revision) {
      return this.#meetConflict(here, { base_revision: kept.base_revision, newest_revision: here.video.revision });
    }
    const draft = drafts.filter((one) => !one.is_stale).at(-1);
    if (draft && (!kept || here.session.says(draft.prompts))) {
      if (!kept) here.session.restoreDraft(draft);
      const where = path("videos", here.video.video_id, "drafts", draft.draft_id, "masks");
      for await (const frame of this.wire.lines("GET", where)) here.masks.addDraft(frame);
      here.draft = draft;
      return this.say("Your draft from last time is here. Look through it, then save or discard.");
    }
    if (kept) this.say("Your corrections from last time are here, not yet propagated.");
  }

  async #meetConflict(here, detail) {
    const theirs = await this.wire.json("GET", path("videos", here.video.video_id));
    if (here === this.open) this.#tell("met", { detail, theirs });
  }

  // choice: "theirs" drops what is not saved, "mine" puts it on their revision.
  async settle(choice, theirs) {
    const here = this.open;
    await this.#forgetDraft(here);
    here.loading.abort();
    Object.assign(here, {
      video: theirs, masks: new Masks(theirs.num_frames), windows: new Set(), loading: new AbortController(),
    });
    here.session.rebase(theirs);
    if (choice === "theirs") here.session.forget();
    this.#loadMasks(here);
    this.#said(new Set([here.frame]));
    this.say(choice === "theirs" ? `You see revision ${theirs.revision}.` : `Your corrections stand on revision ${theirs.revision} now. Propagate them again.`);
  }

  // Telling.

  change() {
    if (this.#isChangePlanned) return;
    this.#isChangePlanned = true;
    requestAnimationFrame(() => {
      this.#isChangePlanned = false;
      this.#tell("change");
    });
  }

  say(text, kind = "news") {
    this.#tell("told", { text, kind });
  }

  fault(error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ServiceError)) console.error(error);
    if (error.status === 401) this.#tell("asked", { why: this.wire.token ? "The service does not know this token." : "" });
    else if (error.status === 403) this.say(`This token may not do that: ${error.message}`, "fault");
    else if (error.status === 503) this.say("The service is busy. Try again in a moment; nothing is lost.", "fault");
    else this.say(error.message, "fault");
  }

  async attempt(job) {
    try {
      return await job();
    } catch (error) {
      this.fault(error);
      return false;
    }
  }

  #tell(what, detail) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }
}

const draftKey = (video) => `maskmill:draft:${video.video_id}`;
