// What a person has said about one video since its revision: prompts, undo, drafts; and the masks.
// Knows neither the network nor the screen.

import { differences, encodeRuns } from "./wire.js";

const NOTHING = Object.freeze({ edits: new Map(), added: new Map(), removed: new Set() });
const keyOf = (objectId, frame) => `${objectId}:${frame}`;
const isEmpty = (prompt) => !prompt || !(prompt.points?.length || prompt.box || prompt.mask);

// Prompts have the API's form: {object_id, frame_index, points: [{x, y, positive}], box, mask}.
// Coordinates are pixels of the video. A state is never changed, so undo only goes back in a list.
export class Session extends EventTarget {
  #states = [NOTHING];
  #at = 0;

  constructor(video) {
    super();
    this.rebase(video);
  }

  // The same words, said about a newer revision.
  rebase(video) {
    this.video = video;
    this.base = new Map();
    for (const track of video.tracks) {
      for (const prompt of track.prompts) this.base.set(keyOf(track.object_id, prompt.frame_index), prompt);
    }
  }

  get #now() {
    return this.#states[this.#at];
  }
  get canUndo() {
    return this.#at > 0;
  }
  get canRedo() {
    return this.#at < this.#states.length - 1;
  }
  get isChanged() {
    const { edits, added, removed } = this.#now;
    return edits.size + added.size + removed.size > 0;
  }
  get corrections() {
    const { edits, removed } = this.#now;
    return edits.size + removed.size;
  }

  objects() {
    const { added, removed } = this.#now;
    const known = this.video.tracks.map((track) => ({
      object_id: track.object_id,
      category: track.category,
      track,
      isNew: false,
      isRemoved: removed.has(track.object_id),
    }));
    const fresh = [...added].map(([object_id, { category }]) => ({
      object_id,
      category,
      track: null,
      isNew: true,
      isRemoved: false,
    }));
    return [...known, ...fresh].sort((a, b) => a.object_id - b.object_id);
  }

  object(objectId) {
    return this.objects().find((object) => object.object_id === objectId) ?? null;
  }

  // What counts for an object on a frame: what was said last, null if nothing.
  prompt(objectId, frame) {
    const key = keyOf(objectId, frame);
    const { edits } = this.#now;
    const prompt = edits.has(key) ? edits.get(key) : this.base.get(key);
    return isEmpty(prompt) ? null : prompt;
  }

  promptsOn(frame) {
    return this.objects()
      .filter((object) => !object.isRemoved)
      .map((object) => this.prompt(object.object_id, frame))
      .filter(Boolean);
  }

  promptedFrames(objectId) {
    const frames = new Set();
    for (const prompt of [...this.base.values(), ...this.#now.edits.values()]) {
      if (prompt.object_id === objectId && this.prompt(objectId, prompt.frame_index)) frames.add(prompt.frame_index);
    }
    return [...frames].sort((a, b) => a - b);
  }

  // Only what changed since the revision; an empty prompt withdraws one.
  edits() {
    const categories = new Map(this.objects().map((object) => [object.object_id, object.category]));
    return [...this.#now.edits.values()].map((prompt) => {
      const category = categories.get(prompt.object_id) || null;
      return { points: [], box: null, mask: null, ...prompt, category };
    });
  }

  editsOn(frame) {
    return this.edits().filter((prompt) => prompt.frame_index === frame);
  }

  editedObjects() {
    const ids = [...this.#now.edits.values()].map((prompt) => prompt.object_id);
    return new Set(ids.filter((id) => !this.#now.removed.has(id)));
  }

  removedObjects() {
    return [...this.#now.removed];
  }

  addPoint(objectId, frame, x, y, positive) {
    const { points, ...rest } = this.#draftOf(objectId, frame);
    this.#set({ ...rest, mask: null, points: [...points, { x, y, positive }] });
  }

  removePoint(objectId, frame, index) {
    const prompt = this.#draftOf(objectId, frame);
    this.#set({ ...prompt, points: prompt.points.filter((_, i) => i !== index) });
  }

  setBox(objectId, frame, box) {
    this.#set({ ...this.#draftOf(objectId, frame), mask: null, box });
  }

  clear(objectId, frame) {
    if (this.prompt(objectId, frame)) this.#set({ object_id: objectId, frame_index: frame, points: [], box: null });
  }

  // A mask without a pixel says that the object is not there.
  markAbsent(objectId, frame) {
    const { height, width } = this.video;
    const mask = { size: [height, width], counts: encodeRuns([height * width]) };
    this.#set({ object_id: objectId, frame_index: frame, points: [], box: null, mask });
  }

  addObject(category = "") {
    const id = Math.max(0, ...this.objects().map((object) => object.object_id)) + 1;
    this.#push({ added: new Map(this.#now.added).set(id, { category }) });
    return id;
  }

  setCategory(objectId, category) {
    this.#push({ added: new Map(this.#now.added).set(objectId, { category }) });
  }

  removeObject(objectId) {
    const { edits, added, removed } = this.#now;
    const kept = new Map([...edits].filter(([, prompt]) => prompt.object_id !== objectId));
    const others = new Map([...added].filter(([id]) => id !== objectId));
    const gone = added.has(objectId) ? removed : new Set(removed).add(objectId);
    this.#push({ edits: kept, added: others, removed: gone });
  }

  keepObject(objectId) {
    this.#push({ removed: new Set([...this.#now.removed].filter((id) => id !== objectId)) });
  }

  undo() {
    if (this.canUndo) this.#go(this.#states, this.#at - 1);
  }

  redo() {
    if (this.canRedo) this.#go(this.#states, this.#at + 1);
  }

  forget() {
    this.#go([NOTHING], 0);
  }

  toJSON() {
    const { edits, added, removed } = this.#now;
    return { base_revision: this.video.revision, edits: [...edits], added: [...added], removed: [...removed] };
  }

  restore({ edits, added, removed }) {
    this.#push({ edits: new Map(edits), added: new Map(added), removed: new Set(removed) });
  }

  // As a draft of the service's own says.
  restoreDraft({ prompts, objects }) {
    const known = new Set(this.video.tracks.map((track) => track.object_id));
    this.restore({
      edits: prompts.map((prompt) => [keyOf(prompt.object_id, prompt.frame_index), prompt]),
      added: prompts.filter((p) => !known.has(p.object_id)).map((p) => [p.object_id, { category: p.category ?? "" }]),
      removed: objects.filter((object) => object.removed).map((object) => object.object_id),
    });
  }

  // Whether these prompts are what was said here; coordinates come back as 32-bit numbers.
  says(prompts) {
    const words = (list) => list.map(({ object_id, frame_index, points, box, mask }) => JSON.stringify([
      object_id, frame_index, points?.map(({ x, y, positive }) => [Math.fround(x), Math.fround(y), positive]),
      box && [box.x0, box.y0, box.x1, box.y1].map(Math.fround), mask?.counts ?? null,
    ]));
    return words(this.edits()).sort().join() === words(prompts).sort().join();
  }

  // Where masks would be computed again, both ends included; null if nothing is to be.
  span(kind, custom) {
    const edits = this.edits().filter((prompt) => !this.#now.removed.has(prompt.object_id));
    if (!edits.length) return null;
    if (kind === "custom" && custom) return custom;
    const ends = edits.map(({ object_id, frame_index }) => {
      const [first, last] = this.labelledSpan(object_id);
      if (kind !== "neighbours") return [first, last];
      const edited = new Set(edits.filter((e) => e.object_id === object_id).map((e) => e.frame_index));
      const fixed = this.promptedFrames(object_id).filter((frame) => !edited.has(frame));
      const before = fixed.filter((frame) => frame < frame_index).at(-1);
      const after = fixed.find((frame) => frame > frame_index);
      return [before === undefined ? first : before + 1, after === undefined ? last : after - 1];
    });
    return [Math.min(...ends.map(([first]) => first)), Math.max(...ends.map(([, end]) => end))];
  }

  // Frames that an object is looked for on: those it was labelled on; a new one, where any was.
  labelledSpan(objectId) {
    const own = this.video.tracks.filter((track) => track.object_id === objectId);
    const tracks = own.length ? own : this.video.tracks;
    if (!tracks.length) return [0, this.video.num_frames - 1];
    return [Math.min(...tracks.map((track) => track.first_frame)), Math.max(...tracks.map((track) => track.last_frame))];
  }

  #draftOf(objectId, frame) {
    const prompt = this.prompt(objectId, frame);
    return { box: null, ...prompt, points: prompt?.points ?? [], object_id: objectId, frame_index: frame };
  }

  #set(prompt) {
    const edits = new Map(this.#now.edits);
    const key = keyOf(prompt.object_id, prompt.frame_index);
    if (isEmpty(prompt) && isEmpty(this.base.get(key))) edits.delete(key);
    else edits.set(key, prompt);
    this.#push({ edits });
  }

  #push(change) {
    this.#go([...this.#states.slice(0, this.#at + 1), { ...this.#now, ...change }], this.#at + 1);
  }

  #go(states, at) {
    const before = this.#now;
    this.#states = states;
    this.#at = at;
    const frames = framesThatDiffer(before.edits, this.#now.edits);
    this.dispatchEvent(new CustomEvent("change", { detail: { frames } }));
  }
}

function framesThatDiffer(a, b) {
  const frames = new Set();
  for (const [key, prompt] of [...a, ...b]) if (a.get(key) !== b.get(key)) frames.add(prompt.frame_index);
  return frames;
}

// Masks by frame and object: as the revision has them, as a draft would, and as the last click says.
export class Masks {
  constructor(numFrames) {
    this.numFrames = numFrames;
    this.base = new Map();
    this.draft = new Map();
    this.preview = new Map();
    this.rows = new Map(); // object → what the timeline shows of it
  }

  row(objectId) {
    if (!this.rows.has(objectId)) {
      const numbers = () => new Float32Array(this.numFrames).fill(NaN);
      this.rows.set(objectId, {
        score: numbers(), area: numbers(), draftScore: numbers(), draftArea: numbers(), gained: numbers(), lost: numbers(),
      });
    }
    return this.rows.get(objectId);
  }

  addBase({ frame_index, height, width, masks }) {
    for (const mask of masks) {
      const row = this.row(mask.object_id);
      row.score[frame_index] = scoreOf(mask);
      row.area[frame_index] = mask.area_px;
      if (mask.counts !== null) put(this.base, frame_index, { ...mask, height, width });
    }
  }

  addDraft({ frame_index, height, width, masks }) {
    for (const mask of masks) {
      put(this.draft, frame_index, { ...mask, height, width });
      this.preview.get(frame_index)?.delete(mask.object_id);
      const row = this.row(mask.object_id);
      row.draftScore[frame_index] = scoreOf(mask);
      row.draftArea[frame_index] = mask.area_px;
      const before = this.base.get(frame_index)?.get(mask.object_id);
      const area = row.area[frame_index] || 0;
      const [lost, gained] = before
        ? differences(before.counts, mask.counts)
        : [Math.max(area - mask.area_px, 0), Math.max(mask.area_px - area, 0)];
      const whole = Math.max(area, mask.area_px, 1);
      row.gained[frame_index] = gained / whole;
      row.lost[frame_index] = lost / whole;
    }
  }

  setPreview({ frame_index, height, width, masks }) {
    this.preview.delete(frame_index);
    for (const mask of masks) put(this.preview, frame_index, { ...mask, height, width });
  }

  // What the timeline shows of an object: where the draft has something, the draft.
  timeline(objectId) {
    const { score, area, draftScore, draftArea, gained, lost } = this.row(objectId);
    const hasDraft = draftArea.some((value) => !Number.isNaN(value));
    const over = (draft, base) => (hasDraft ? base.map((value, i) => (Number.isNaN(draft[i]) ? value : draft[i])) : base);
    return { score: over(draftScore, score), area: over(draftArea, area), gained, lost, hasDraft };
  }

  // The draft is the revision now.
  keepDraft() {
    for (const [frame_index, masks] of this.draft) {
      for (const mask of masks.values()) this.addBase({ frame_index, height: mask.height, width: mask.width, masks: [mask] });
    }
    this.dropDraft();
  }

  dropDraft() {
    this.draft.clear();
    this.preview.clear();
    for (const row of this.rows.values()) {
      for (const numbers of [row.draftScore, row.draftArea, row.gained, row.lost]) numbers.fill(NaN);
    }
  }

  dropPreview(frames) {
    for (const frame of frames) this.preview.delete(frame);
  }

  // [mask, look] of an object on a frame; look is preview, draft, or that of the revision: kept.
  shown(objectId, frame) {
    for (const [look, book] of [["preview", this.preview], ["draft", this.draft], ["kept", this.base]]) {
      const mask = book.get(frame)?.get(objectId);
      if (mask) return [mask, look];
    }
    return [null, "kept"];
  }
}

function put(book, frame, mask) {
  if (!book.has(frame)) book.set(frame, new Map());
  book.get(frame).set(mask.object_id, mask);
}

// How sure the model is that the object is there and where it ends, 0 to 1; NaN where it did not say.
export function scoreOf({ object_score, stability }) {
  if (object_score === null || object_score === undefined) return NaN;
  return (1 / (1 + Math.exp(-object_score))) * (stability ?? 1);
}
