// A frame, the masks over it and the prompts over those; clicks and boxes drawn on it.
// Knows nothing of the service; tells what a person did in pixels of the video.

import { eachStretch } from "./wire.js";

// Apart also for the colour-blind; objects carry their number besides.
export const PALETTE = ["#5cb6f2", "#f0a63c", "#43c59a", "#ef7f6b", "#c994e0", "#e6d85a", "#7f9bf5", "#a9c95a", "#e08bb4"];
export const colourOf = (objectId) => PALETTE[(Math.max(objectId, 1) - 1) % PALETTE.length];

const HIT_PX = 11; // how near a click must be to a point to mean it; screen pixels
const DRAG_PX = 5; // what moves less is a click
const OUTLINE = [[1, 0], [-1, 0], [0, 1], [0, -1], [0.7, 0.7], [-0.7, 0.7], [0.7, -0.7], [-0.7, -0.7]];

export class Stage extends EventTarget {
  // Events: point {x, y, positive}, box {x0, y0, x1, y1}, remove {index}, pick {objectId}.
  #canvas;
  #ctx;
  #layer = document.createElement("canvas");
  #bitmaps = new WeakMap();
  #drag = null;
  #hover = null;
  #waiting = false;

  constructor(canvas) {
    super();
    this.#canvas = canvas;
    this.#ctx = canvas.getContext("2d");
    this.picture = null;
    this.size = [0, 0]; // of the video, width and height
    this.layers = []; // {objectId, mask, look: kept | old | preview | draft, selected}
    this.changes = []; // {before, after}: masks to compare in two colours
    this.prompts = []; // {prompt, selected, pending}
    this.opacity = 0.45;
    this.hidden = false;
    this.sign = "positive"; // positive, negative or box: what a plain click says
    this.zoom = 1;
    this.centre = [0.5, 0.5]; // of the view, as parts of the picture
    this.#listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  open(width, height) {
    this.size = [width, height];
    this.picture = null;
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.centre = [0.5, 0.5];
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

  // Video pixels to pixels of the element.
  toScreen(x, y) {
    const { scale, left, top } = this.#view();
    return [left + x * scale, top + y * scale];
  }

  #view() {
    const [width, height] = this.size;
    const { clientWidth, clientHeight } = this.#canvas;
    const margin = 12;
    const fit = Math.min((clientWidth - 2 * margin) / width, (clientHeight - 2 * margin) / height);
    const scale = Math.max(fit, 0.01) * this.zoom;
    return {
      scale,
      left: clientWidth / 2 - this.centre[0] * width * scale,
      top: clientHeight / 2 - this.centre[1] * height * scale,
    };
  }

  #paint() {
    const canvas = this.#canvas;
    const ratio = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    for (const one of [canvas, this.#layer]) {
      if (one.width !== wide || one.height !== high) Object.assign(one, { width: wide, height: high });
    }
    const ctx = this.#ctx;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const [width, height] = this.size;
    if (!width) return;
    const view = this.#view();
    ctx.imageSmoothingEnabled = view.scale < 3; // further in, pixels are what one wants to see
    if (this.picture) ctx.drawImage(this.picture, view.left, view.top, width * view.scale, height * view.scale);
    else {
      ctx.fillStyle = styleOf("--panel");
      ctx.fillRect(view.left, view.top, width * view.scale, height * view.scale);
    }
    if (!this.hidden) {
      if (this.changes.length) for (const change of this.changes) this.#paintChange(change, view, ratio);
      else for (const layer of this.layers) this.#paintMask(layer, view, ratio);
    }
    for (const shown of this.prompts) this.#paintPrompt(shown);
    if (this.#drag?.box) this.#paintRectangle(this.#drag.box, styleOf("--accent"), true);
  }

  #paintMask({ objectId, mask, look, selected }, view, ratio) {
    if (!mask.area_px) return;
    const colour = colourOf(objectId);
    const area = this.#onLayer(mask, view, ratio, (ctx, stamp) => {
      stamp(0, 0);
      ctx.globalCompositeOperation = "source-in";
      ctx.fillStyle = look === "old" ? hatched(ctx, colour, ratio) : colour;
      ctx.fillRect(0, 0, this.#layer.width, this.#layer.height);
    });
    this.#pasteLayer(area, look === "old" ? this.opacity * 0.6 : this.opacity, ratio);
    const reach = (selected ? 2.2 : 1.2) * ratio;
    this.#onLayer(mask, view, ratio, (ctx, stamp) => {
      for (const [dx, dy] of OUTLINE) stamp(dx * reach, dy * reach);
      ctx.globalCompositeOperation = "source-in";
      ctx.fillStyle = colour;
      ctx.fillRect(0, 0, this.#layer.width, this.#layer.height);
      ctx.globalCompositeOperation = "destination-out";
      stamp(0, 0);
    });
    this.#pasteLayer(area, look === "old" ? 0.4 : 0.95, ratio);
    this.#paintNumber(objectId, mask, selected, look, view);
  }

  // What only the new mask has, and, hatched, what only the old one had.
  #paintChange({ before, after }, view, ratio) {
    const pairs = [[after, before, styleOf("--gained"), false], [before, after, styleOf("--lost"), true]];
    for (const [one, other, colour, striped] of pairs) {
      if (!one?.area_px) continue;
      const area = this.#onLayer(one, view, ratio, (ctx, stamp) => {
        stamp(0, 0);
        ctx.globalCompositeOperation = "destination-out";
        if (other?.area_px) stamp(0, 0, other);
        ctx.globalCompositeOperation = "source-in";
        ctx.fillStyle = striped ? hatched(ctx, colour, ratio) : colour;
        ctx.fillRect(0, 0, this.#layer.width, this.#layer.height);
      });
      this.#pasteLayer(area, 0.85, ratio);
    }
    if (after?.area_px) this.#paintOutline(after, view, ratio);
  }

  #paintOutline(mask, view, ratio) {
    const area = this.#onLayer(mask, view, ratio, (ctx, stamp) => {
      for (const [dx, dy] of OUTLINE) stamp(dx * ratio, dy * ratio);
      ctx.globalCompositeOperation = "destination-out";
      stamp(0, 0);
    });
    this.#pasteLayer(area, 0.8, ratio);
  }

  // Lets `paint` work on the spare canvas, where `stamp` sets the mask down; the area it used.
  #onLayer(mask, view, ratio, paint) {
    const ctx = this.#layer.getContext("2d");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.globalCompositeOperation = "source-over";
    const [x0, y0, x1, y1] = mask.box;
    const edge = 4 * ratio;
    const left = Math.max(0, Math.floor((view.left + x0 * view.scale) * ratio - edge));
    const top = Math.max(0, Math.floor((view.top + y0 * view.scale) * ratio - edge));
    const right = Math.min(this.#layer.width, Math.ceil((view.left + x1 * view.scale) * ratio + edge));
    const bottom = Math.min(this.#layer.height, Math.ceil((view.top + y1 * view.scale) * ratio + edge));
    const area = [left, top, Math.max(right - left, 0), Math.max(bottom - top, 0)];
    ctx.save();
    ctx.beginPath();
    ctx.rect(...area);
    ctx.clip();
    ctx.clearRect(...area);
    ctx.imageSmoothingEnabled = view.scale < 3;
    const stamp = (dx, dy, other = mask) => {
      const [ox, oy, ex, ey] = other.box;
      const scale = view.scale * ratio;
      const [x, y] = [(view.left + ox * view.scale) * ratio + dx, (view.top + oy * view.scale) * ratio + dy];
      ctx.drawImage(this.#bitmapOf(other), x, y, (ex - ox) * scale, (ey - oy) * scale);
    };
    paint(ctx, stamp);
    ctx.restore();
    return area;
  }

  #pasteLayer([x, y, width, height], alpha, ratio) {
    if (!width || !height) return;
    const ctx = this.#ctx;
    ctx.globalAlpha = alpha;
    ctx.drawImage(this.#layer, x, y, width, height, x / ratio, y / ratio, width / ratio, height / ratio);
    ctx.globalAlpha = 1;
  }

  // The mask within its box, white where it is.
  #bitmapOf(mask) {
    let bitmap = this.#bitmaps.get(mask);
    if (bitmap) return bitmap;
    const [x0, y0, x1, y1] = mask.box;
    const [width, height] = [x1 - x0, y1 - y0];
    const pixels = new Uint32Array(width * height);
    eachStretch(mask.counts, mask.height, mask.width, (column, top, bottom) => {
      for (let row = top; row < bottom; row++) pixels[(row - y0) * width + column - x0] = 0xffffffff;
    });
    bitmap = Object.assign(document.createElement("canvas"), { width, height });
    bitmap.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
    this.#bitmaps.set(mask, bitmap);
    return bitmap;
  }

  #paintNumber(objectId, mask, selected, look, view) {
    const ctx = this.#ctx;
    const [x, y] = this.toScreen(mask.box[0], mask.box[1]);
    const label = look === "old" ? `${objectId} old` : String(objectId);
    ctx.font = `${selected ? 700 : 600} 11px system-ui, sans-serif`;
    const width = ctx.measureText(label).width + 10;
    const left = Math.max(view.left, 0, x);
    const top = Math.max(view.top, 0, y - 19);
    ctx.globalAlpha = look === "old" ? 0.75 : 1;
    ctx.fillStyle = colourOf(objectId);
    ctx.beginPath();
    ctx.roundRect(left, top, width, 17, 5);
    ctx.fill();
    if (selected) {
      ctx.strokeStyle = "#fff";
      ctx.lineWidth = 1.5;
      ctx.stroke();
    }
    ctx.fillStyle = "#111518";
    ctx.textBaseline = "middle";
    ctx.fillText(label, left + 5, top + 9);
    ctx.globalAlpha = 1;
  }

  #paintPrompt({ prompt, selected, pending }) {
    const colour = colourOf(prompt.object_id);
    if (prompt.box) this.#paintRectangle(prompt.box, colour, false);
    (prompt.points ?? []).forEach((point, index) => {
      const isHovered = selected && this.#hover === index;
      this.#paintPoint(point, colour, selected, pending, isHovered);
    });
  }

  #paintPoint({ x, y, positive }, colour, selected, pending, isHovered) {
    const ctx = this.#ctx;
    const [cx, cy] = this.toScreen(x, y);
    const radius = isHovered ? 10 : selected ? 7.5 : 5;
    ctx.lineWidth = 2;
    ctx.fillStyle = positive ? "#f4fff8" : "#2a1310";
    ctx.strokeStyle = positive ? "#17402b" : "#ffb3a4";
    ctx.beginPath();
    ctx.arc(cx, cy, radius, 0, 7);
    ctx.fill();
    ctx.stroke();
    ctx.beginPath();
    if (isHovered) {
      ctx.moveTo(cx - 4, cy - 4);
      ctx.lineTo(cx + 4, cy + 4);
      ctx.moveTo(cx + 4, cy - 4);
      ctx.lineTo(cx - 4, cy + 4);
    } else {
      const arm = radius - 3.5;
      ctx.moveTo(cx - arm, cy);
      ctx.lineTo(cx + arm, cy);
      if (positive) {
        ctx.moveTo(cx, cy - arm);
        ctx.lineTo(cx, cy + arm);
      }
    }
    ctx.stroke();
    ctx.strokeStyle = colour;
    ctx.setLineDash(pending ? [3, 3] : []);
    ctx.beginPath();
    ctx.arc(cx, cy, radius + 3, 0, 7);
    ctx.stroke();
    ctx.setLineDash([]);
  }

  #paintRectangle({ x0, y0, x1, y1 }, colour, dashed) {
    const ctx = this.#ctx;
    const [left, top] = this.toScreen(x0, y0);
    const [right, bottom] = this.toScreen(x1, y1);
    ctx.setLineDash(dashed ? [6, 4] : []);
    ctx.lineWidth = 4;
    ctx.strokeStyle = "#0009";
    ctx.strokeRect(left, top, right - left, bottom - top);
    ctx.lineWidth = 2;
    ctx.strokeStyle = colour;
    ctx.strokeRect(left, top, right - left, bottom - top);
    ctx.setLineDash([]);
  }

  // What a person does.

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#release(event));
    canvas.addEventListener("pointercancel", () => this.abandon());
    canvas.addEventListener("pointerleave", () => this.#hoverOver(null));
    canvas.addEventListener("wheel", (event) => this.#turn(event), { passive: false });
  }

  // A box half drawn is given up; whether there was one.
  abandon() {
    const had = this.#drag !== null;
    this.#drag = null;
    this.draw();
    return had;
  }

  #press(event) {
    if (!this.picture) return;
    this.#canvas.focus({ preventScroll: true });
    this.#canvas.setPointerCapture(event.pointerId);
    const from = [event.offsetX, event.offsetY];
    this.#drag = { from, button: event.button, centre: this.centre, box: null };
    if (event.button === 1) {
      event.preventDefault();
      this.#canvas.dataset.over = "pan";
    }
  }

  #move(event) {
    const drag = this.#drag;
    const [x, y] = [event.offsetX, event.offsetY];
    if (!drag) return this.#hoverOver(this.#pointAt(x, y));
    const [dx, dy] = [x - drag.from[0], y - drag.from[1]];
    if (drag.button === 1) {
      const { scale } = this.#view();
      this.centre = [drag.centre[0] - dx / (this.size[0] * scale), drag.centre[1] - dy / (this.size[1] * scale)];
    } else if (drag.button === 0 && (drag.box || Math.hypot(dx, dy) > DRAG_PX)) {
      const [ax, ay] = this.#toVideo(...drag.from);
      const [bx, by] = this.#toVideo(x, y);
      drag.box = { x0: Math.min(ax, bx), y0: Math.min(ay, by), x1: Math.max(ax, bx), y1: Math.max(ay, by) };
    } else return;
    this.draw();
  }

  #release(event) {
    const drag = this.#drag;
    this.#drag = null;
    delete this.#canvas.dataset.over;
    if (!drag || drag.button === 1) return;
    this.draw();
    if (drag.box) {
      if (drag.box.x1 > drag.box.x0 && drag.box.y1 > drag.box.y0) this.#tell("box", drag.box);
      return;
    }
    const index = this.#pointAt(event.offsetX, event.offsetY);
    if (index !== null) return this.#tell("remove", { index });
    if (!this.#isInside(event.offsetX, event.offsetY) || this.sign === "box") return;
    const [x, y] = this.#toVideo(event.offsetX, event.offsetY);
    const negative = drag.button === 2 || event.altKey || event.shiftKey || this.sign === "negative";
    this.#tell("point", { x, y, positive: !negative });
  }

  #turn(event) {
    if (!this.picture) return;
    event.preventDefault();
    const [px, py] = this.#toVideo(event.offsetX, event.offsetY, false);
    this.zoom = Math.min(Math.max(this.zoom * Math.exp(-event.deltaY / 400), 1), 24);
    if (this.zoom === 1) return this.fit();
    const { scale } = this.#view();
    const { clientWidth, clientHeight } = this.#canvas;
    this.centre = [
      (px + (clientWidth / 2 - event.offsetX) / scale) / this.size[0],
      (py + (clientHeight / 2 - event.offsetY) / scale) / this.size[1],
    ];
    this.draw();
  }

  #tell(what, detail) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }

  #hoverOver(index) {
    if (index === this.#hover) return;
    this.#hover = index;
    if (index === null) delete this.#canvas.dataset.over;
    else this.#canvas.dataset.over = "point";
    this.draw();
  }

  // The selected object's point under the pointer; its index or null.
  #pointAt(x, y) {
    const own = this.prompts.find((shown) => shown.selected);
    const near = (own?.prompt.points ?? []).map((point, index) => {
      const [px, py] = this.toScreen(point.x, point.y);
      return [Math.hypot(px - x, py - y), index];
    });
    const [distance, index] = near.sort(([a], [b]) => a - b)[0] ?? [Infinity, null];
    return distance <= HIT_PX ? index : null;
  }

  #isInside(x, y) {
    const [px, py] = this.#toVideo(x, y, false);
    return px >= 0 && py >= 0 && px < this.size[0] && py < this.size[1];
  }

  #toVideo(x, y, inside = true) {
    const { scale, left, top } = this.#view();
    const exact = [(x - left) / scale, (y - top) / scale];
    // The API takes coordinates within the picture, to a hundredth of a pixel here.
    return exact.map((value, i) => {
      const held = inside ? Math.min(Math.max(value, 0), this.size[i] - 0.01) : value;
      return Math.round(held * 100) / 100;
    });
  }
}

function hatched(ctx, colour, ratio) {
  const step = Math.round(7 * ratio);
  const tile = Object.assign(document.createElement("canvas"), { width: step, height: step });
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = step / 2.6;
  for (const shift of [-step, 0, step]) {
    pen.beginPath();
    pen.moveTo(shift - step / 2, step * 1.5);
    pen.lineTo(shift + step * 1.5, -step / 2);
    pen.stroke();
  }
  return ctx.createPattern(tile, "repeat");
}

export function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
