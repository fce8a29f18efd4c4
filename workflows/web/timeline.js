// All frames of a video on one canvas, a row an object. Knows nothing of prompts' meaning or the
// service; draws what it is told, and tells which frame or span a person points at.

import { colourOf, styleOf } from "./stage.js";

const RULER = 22;
const ROW = 24;
const CHANGES = 12; // further height of a row whose object has a draft
const GUTTER = 104;
const GRIP_PX = 7;

export class Timeline extends EventTarget {
  // Events: seek {frame}, span {span: [first, last]}, pick {objectId}.
  #canvas;
  #ctx;
  #drag = null;
  #waiting = false;

  constructor(canvas) {
    super();
    this.#canvas = canvas;
    this.#ctx = canvas.getContext("2d");
    this.numFrames = 0;
    this.frame = 0;
    this.fps = null;
    this.rows = []; // {objectId, name, selected, score, area, gained, lost, hasDraft, prompts, flags, inSpan}
    this.span = null; // [first, last] to be propagated
    this.visible = [0, 1]; // as parts of all frames
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => (this.#drag = null));
    canvas.addEventListener("pointercancel", () => (this.#drag = null));
    canvas.addEventListener("wheel", (event) => this.#turn(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => this.draw());
  }

  open(numFrames, fps) {
    Object.assign(this, { numFrames, fps, frame: 0, rows: [], span: null, visible: [0, 1] });
    this.draw();
  }

  draw() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#paint();
    });
  }

  // Where a frame begins, in pixels of the element.
  xOf(frame) {
    const [from, to] = this.visible;
    const width = this.#canvas.clientWidth - GUTTER;
    return GUTTER + ((frame / Math.max(this.numFrames, 1) - from) / (to - from)) * width;
  }

  frameAt(x) {
    const [from, to] = this.visible;
    const part = (x - GUTTER) / (this.#canvas.clientWidth - GUTTER);
    const frame = Math.floor((from + part * (to - from)) * this.numFrames);
    return Math.min(Math.max(frame, 0), this.numFrames - 1);
  }

  #heights() {
    let top = RULER;
    return this.rows.map((row) => {
      const place = { row, top, height: ROW + (row.hasDraft ? CHANGES : 0) };
      top += place.height;
      return place;
    });
  }

  #paint() {
    const canvas = this.#canvas;
    const places = this.#heights();
    const height = Math.max(places.reduce((sum, place) => sum + place.height, RULER), RULER + ROW) + 4;
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    const width = canvas.clientWidth;
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const ctx = this.#ctx;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    if (!this.numFrames) return;
    for (const place of places) this.#paintRow(place, width);
    ctx.save();
    ctx.beginPath();
    ctx.rect(GUTTER, 0, width - GUTTER, height);
    ctx.clip();
    this.#paintSpan(places);
    for (const place of places) this.#paintMarks(place);
    this.#paintRuler(width);
    this.#paintPlayhead(height);
    ctx.restore();
    this.#describe();
  }

  #paintRow({ row, top, height }, width) {
    const ctx = this.#ctx;
    this.#paintName(row, top);
    ctx.save();
    ctx.beginPath();
    ctx.roundRect(GUTTER, top + 2, width - GUTTER, height - 4, 4);
    ctx.clip();
    ctx.fillStyle = styleOf("--row");
    ctx.fill();
    const bottom = top + ROW - 2;
    const hatch = stripes(ctx, styleOf("--line-strong"));
    const [low, high] = [styleOf("--score-low"), styleOf("--score-high")];
    const [gained, lost] = [styleOf("--gained"), styleOf("--lost")];
    for (const [x, wide, first, beyond] of this.#columns(width)) {
      const score = lowest(row.score, first, beyond);
      const isAbsent = every(row.area, first, beyond, (area) => area === 0);
      if (isAbsent) {
        ctx.fillStyle = hatch;
        ctx.fillRect(x, top + 4, wide, ROW - 6);
      } else if (!Number.isNaN(score)) {
        // High and blue-green is sure, low and brown is not: told by height and by colour.
        const tall = 3 + score ** 1.5 * (ROW - 10);
        ctx.fillStyle = `color-mix(in srgb, ${high} ${Math.round(score * 100)}%, ${low})`;
        ctx.fillRect(x, bottom - tall, wide, tall);
      }
      if (row.hasDraft) this.#paintChanges(row, top + ROW, x, wide, first, beyond, gained, lost);
    }
    ctx.restore();
  }

  #paintName(row, top) {
    const ctx = this.#ctx;
    ctx.fillStyle = colourOf(row.objectId);
    ctx.beginPath();
    ctx.roundRect(2, top + 4, 18, 16, 4);
    ctx.fill();
    ctx.font = "700 11px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    ctx.textAlign = "center";
    ctx.fillStyle = "#14181b";
    ctx.fillText(String(row.objectId), 11, top + 12.5);
    ctx.textAlign = "left";
    ctx.font = `${row.selected ? 600 : 400} 12px system-ui, sans-serif`;
    ctx.fillStyle = styleOf(row.selected ? "--text" : "--muted");
    ctx.fillText(shortened(ctx, row.name, GUTTER - 32), 26, top + 12.5);
  }

  #paintChanges(row, top, x, wide, first, beyond, gained, lost) {
    const ctx = this.#ctx;
    const middle = top + CHANGES / 2 - 2;
    const more = highest(row.gained, first, beyond);
    const less = highest(row.lost, first, beyond);
    const tall = (share) => Math.max(2, Math.sqrt(share) * (CHANGES / 2 - 1));
    if (more > 0.002) {
      ctx.fillStyle = gained;
      ctx.fillRect(x, middle - tall(more), wide, tall(more));
    }
    if (less > 0.002) {
      ctx.fillStyle = lost;
      ctx.fillRect(x, middle + 1, wide, tall(less));
    }
  }

  // [x, width, first frame, frame beyond] of each column to draw: a frame, or several in a pixel.
  *#columns(width) {
    const first = this.frameAt(GUTTER);
    const last = this.frameAt(width);
    const wide = this.xOf(1) - this.xOf(0);
    if (wide >= 2) {
      const gap = wide >= 9 ? 1 : 0;
      for (let frame = first; frame <= last; frame++) yield [this.xOf(frame), wide - gap, frame, frame + 1];
      return;
    }
    for (let x = GUTTER; x < width; x += 2) {
      const from = this.frameAt(x);
      yield [x, 2, from, Math.max(this.frameAt(x + 2), from + 1)];
    }
  }

  #paintSpan(places) {
    if (!this.span) return;
    const ctx = this.#ctx;
    const [left, right] = [this.xOf(this.span[0]), this.xOf(this.span[1] + 1)];
    ctx.strokeStyle = styleOf("--accent");
    for (const { row, top, height } of places) {
      if (!row.inSpan) continue;
      ctx.fillStyle = styleOf("--accent-soft");
      ctx.fillRect(left, top + 2, right - left, height - 4);
      ctx.setLineDash([4, 3]);
      ctx.lineWidth = 1;
      ctx.strokeRect(left + 0.5, top + 2.5, Math.max(right - left - 1, 1), height - 5);
      ctx.setLineDash([]);
      ctx.fillStyle = styleOf("--accent");
      for (const x of [left, right - 4]) {
        ctx.beginPath();
        ctx.roundRect(x, top + 6, 4, ROW - 12, 2);
        ctx.fill();
      }
    }
  }

  #paintMarks({ row, top }) {
    const ctx = this.#ctx;
    const half = Math.max((this.xOf(1) - this.xOf(0)) / 2, 0.5);
    ctx.fillStyle = styleOf("--warn");
    ctx.strokeStyle = styleOf("--row");
    ctx.lineWidth = 1.5;
    for (const { frame_index } of row.flags) {
      const x = this.xOf(frame_index) + half;
      ctx.beginPath();
      ctx.moveTo(x - 5, top + 2);
      ctx.lineTo(x + 5, top + 2);
      ctx.lineTo(x, top + 10);
      ctx.closePath();
      ctx.stroke();
      ctx.fill();
    }
    ctx.fillStyle = styleOf("--text");
    for (const frame of row.prompts) {
      ctx.beginPath();
      ctx.arc(this.xOf(frame) + half, top + ROW / 2 + 1, 4, 0, 7);
      ctx.stroke();
      ctx.fill();
    }
  }

  #paintRuler(width) {
    const ctx = this.#ctx;
    const perLabel = (70 / (width - GUTTER)) * (this.visible[1] - this.visible[0]) * this.numFrames;
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5].find((s) => s >= perLabel) ?? 2e5;
    ctx.font = "11px system-ui, sans-serif";
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    ctx.fillStyle = styleOf("--muted");
    ctx.strokeStyle = styleOf("--line-strong");
    ctx.lineWidth = 1;
    for (let frame = Math.ceil(this.frameAt(GUTTER) / step) * step; frame < this.numFrames; frame += step) {
      const x = Math.round(this.xOf(frame)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, RULER - 6);
      ctx.lineTo(x, RULER - 1);
      ctx.stroke();
      ctx.fillText(String(frame), x + 4, RULER / 2);
    }
  }

  #paintPlayhead(height) {
    const ctx = this.#ctx;
    const wide = this.xOf(1) - this.xOf(0);
    const x = this.xOf(this.frame) + wide / 2;
    ctx.fillStyle = styleOf("--text");
    ctx.globalAlpha = 0.16;
    if (wide > 4) ctx.fillRect(this.xOf(this.frame), RULER, wide - 1, height);
    ctx.globalAlpha = 1;
    ctx.fillRect(Math.round(x) - 0.75, RULER - 4, 1.5, height);
    ctx.font = "600 11px system-ui, sans-serif";
    const label = String(this.frame);
    const box = ctx.measureText(label).width + 12;
    const left = Math.min(Math.max(x - box / 2, GUTTER), this.#canvas.clientWidth - box);
    ctx.beginPath();
    ctx.roundRect(left, 1, box, 17, 5);
    ctx.fill();
    ctx.fillStyle = styleOf("--panel");
    ctx.textBaseline = "middle";
    ctx.fillText(label, left + 6, 10);
  }

  #describe() {
    const flags = this.rows.flatMap((row) =>
      row.flags.filter((flag) => flag.frame_index === this.frame).map((flag) => `object ${row.objectId}: ${flag.kind}`),
    );
    this.#canvas.setAttribute("aria-valuemax", Math.max(this.numFrames - 1, 0));
    this.#canvas.setAttribute("aria-valuenow", this.frame);
    this.#canvas.setAttribute("aria-valuetext", [`frame ${this.frame} of ${this.numFrames}`, ...flags].join(", "));
  }

  // What a person does.

  #press(event) {
    if (!this.numFrames || event.button) return;
    this.#canvas.setPointerCapture(event.pointerId);
    if (event.offsetX < GUTTER) {
      const place = this.#heights().find(({ top, height }) => event.offsetY >= top && event.offsetY < top + height);
      if (place) this.#tell("pick", { objectId: place.row.objectId });
      return;
    }
    this.#drag = this.#gripAt(event.offsetX, event.offsetY) ?? "playhead";
    this.#move(event);
  }

  #move(event) {
    if (this.#drag === null) {
      const grip = this.#gripAt(event.offsetX, event.offsetY);
      this.#canvas.style.cursor = grip === null ? "" : "ew-resize";
      return;
    }
    const frame = this.frameAt(event.offsetX);
    if (this.#drag === "playhead") this.#tell("seek", { frame });
    else {
      const [first, last] = this.span;
      const span = this.#drag === 0 ? [Math.min(frame, last), last] : [first, Math.max(frame, first)];
      this.#tell("span", { span });
    }
  }

  // Which end of the span is under the pointer: 0, 1 or null.
  #gripAt(x, y) {
    if (!this.span || y < RULER) return null;
    const ends = [this.xOf(this.span[0]), this.xOf(this.span[1] + 1)];
    const end = ends.findIndex((at) => Math.abs(at - x) <= GRIP_PX);
    return end < 0 ? null : end;
  }

  #turn(event) {
    if (!this.numFrames || event.offsetX < GUTTER) return; // over the names the wheel scrolls rows
    event.preventDefault();
    const [from, to] = this.visible;
    const size = to - from;
    const part = (event.offsetX - GUTTER) / (this.#canvas.clientWidth - GUTTER);
    const slides = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    const wider = slides ? size : size * Math.exp(event.deltaY / 400);
    const wanted = Math.min(Math.max(wider, Math.min(1, 12 / this.numFrames)), 1);
    const slide = slides ? (event.deltaX / 800) * size : 0;
    const start = Math.min(Math.max(from + part * (size - wanted) + slide, 0), 1 - wanted);
    this.visible = [start, start + wanted];
    this.draw();
  }

  // Keep the playhead in view.
  follow() {
    const at = this.frame / this.numFrames;
    const [from, to] = this.visible;
    if (at >= from && at < to) return;
    const start = Math.min(Math.max(at - (to - from) / 2, 0), 1 - (to - from));
    this.visible = [start, start + to - from];
  }

  #tell(what, detail) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }
}

function lowest(numbers, first, beyond) {
  let least = NaN;
  for (let i = first; i < beyond; i++) if (!(numbers[i] >= least)) least = Number.isNaN(numbers[i]) ? least : numbers[i];
  return least;
}

function highest(numbers, first, beyond) {
  let most = 0;
  for (let i = first; i < beyond; i++) if (numbers[i] > most) most = numbers[i];
  return most;
}

function every(numbers, first, beyond, holds) {
  for (let i = first; i < beyond; i++) if (!holds(numbers[i])) return false;
  return true;
}

function shortened(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  let short = text;
  while (short.length > 1 && ctx.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}

function stripes(ctx, colour) {
  const tile = Object.assign(document.createElement("canvas"), { width: 6, height: 6 });
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  for (const shift of [-6, 0, 6]) {
    pen.beginPath();
    pen.moveTo(shift - 3, 9);
    pen.lineTo(shift + 9, -3);
    pen.stroke();
  }
  return ctx.createPattern(tile, "repeat");
}
