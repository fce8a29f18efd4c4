// What travels between page and service: JSON, lines of JSON, pictures, run lengths.
// Knows nothing of what the page shows.

export class ServiceError extends Error {
  // status 0: nobody answered. code, message and detail as the service says them.
  constructor(status, code, message, detail = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.detail = detail;
  }
}

export class Wire {
  constructor() {
    this.token = sessionStorage.getItem("maskmill:token") ?? localStorage.getItem("maskmill:token") ?? "";
  }

  keepToken(token, beyondThisTab) {
    this.token = token;
    sessionStorage.setItem("maskmill:token", token);
    if (beyondThisTab) localStorage.setItem("maskmill:token", token);
    else localStorage.removeItem("maskmill:token");
  }

  async json(method, path, body, signal) {
    const response = await this.#ask(method, path, body, signal);
    return response.status === 204 ? null : response.json();
  }

  // Each line of the answer as it comes. An `error` line ends it as a ServiceError.
  async *lines(method, path, body, signal) {
    const response = await this.#ask(method, path, body, signal);
    let rest = "";
    try {
      for await (const text of texts(response.body)) {
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        for (const line of lines) yield checked(JSON.parse(line));
      }
    } catch (error) {
      throw asServiceError(error);
    }
    if (rest) yield checked(JSON.parse(rest));
  }

  async picture(path, signal) {
    const response = await this.#ask("GET", path, undefined, signal);
    return createImageBitmap(await response.blob());
  }

  async #ask(method, path, body, signal) {
    const headers = { authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(`v1/${path}`, { method, headers, body: JSON.stringify(body), signal });
    } catch (error) {
      throw asServiceError(error);
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    const waited = response.headers.get("retry-after");
    throw new ServiceError(
      response.status,
      error?.code ?? "unknown",
      error?.message ?? `the service answered ${response.status}`,
      waited ? { ...error?.detail, retry_after_s: Number(waited) } : error?.detail,
    );
  }
}

export const path = (...steps) => steps.map(encodeURIComponent).join("/");

async function* texts(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {}); // nobody reads on: let the service know
  }
}

function checked(line) {
  if (line.error) throw new ServiceError(200, line.error.code, line.error.message, line.error.detail);
  return line;
}

function asServiceError(error) {
  if (error instanceof ServiceError || error.name === "AbortError") return error;
  return new ServiceError(0, "unreachable", "the service does not answer");
}

const AHEAD = 8; // frames asked for on either side before anybody looks at them
const AT_ONCE = 4;
const HELD_BYTES = 320e6; // of decoded pictures

// Frames of one video as pictures: those in demand, those near, and what was seen last.
export class Pictures {
  #held = new Map(); // frame → picture, the one used longest ago first
  #coming = new Map(); // frame → promise
  #stop = new AbortController();

  constructor(wire, video) {
    this.wire = wire;
    this.video = video;
    this.room = Math.max(2 * AHEAD + 4, Math.floor(HELD_BYTES / (4 * video.height * video.width)));
  }

  has(frame) {
    return this.#held.has(frame);
  }

  get(frame) {
    const held = this.#held.get(frame);
    if (held) {
      this.#held.delete(frame);
      this.#held.set(frame, held);
      return Promise.resolve(held);
    }
    return this.#coming.get(frame) ?? this.#ask(frame);
  }

  // Ask for the frames round one, the nearest first, more of them on the side that one moves to.
  async prefetch(frame, direction) {
    const steps = Array.from({ length: AHEAD }, (_, i) => i + 1);
    const wanted = steps.flatMap((step) => [frame + direction * step, frame - direction * step]);
    this.wanted = wanted.filter((at) => at >= 0 && at < this.video.num_frames);
    const mine = this.wanted;
    for (const at of mine) {
      while (this.#coming.size >= AT_ONCE) await Promise.race(this.#coming.values()).catch(() => {});
      if (mine !== this.wanted || this.#stop.signal.aborted) return; // somebody moved on
      if (!this.#held.has(at) && !this.#coming.has(at)) this.#ask(at).catch(() => {});
    }
  }

  close() {
    this.#stop.abort();
    for (const picture of this.#held.values()) picture.close();
    this.#held.clear();
  }

  #ask(frame) {
    const { video_id, pictures } = this.video;
    const where = `${path("videos", video_id, "frames", `${frame}.jpg`)}?v=${pictures}`;
    const promise = this.wire.picture(where, this.#stop.signal).then(
      (picture) => {
        this.#coming.delete(frame);
        this.#held.set(frame, picture);
        for (const [oldest, one] of this.#held) {
          if (this.#held.size <= this.room) break;
          this.#held.delete(oldest);
          one.close();
        }
        return picture;
      },
      (error) => {
        this.#coming.delete(frame);
        throw error;
      },
    );
    this.#coming.set(frame, promise);
    return promise;
  }
}

// Run lengths as COCO writes them: columns from the left, each downwards; zeros first. Each number
// is the difference to the one two before it, in groups of five bits, the lowest first.

export function decodeRuns(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    for (let more = true; more; shift += 5) {
      const group = counts.charCodeAt(at++) - 48;
      if (!(group >= 0 && group < 64) || shift > 30) throw new RangeError(`run lengths: bad character at ${at - 1}`);
      value |= (group & 31) << shift;
      more = (group & 32) !== 0;
      if (!more && group & 16 && shift < 30) value |= -1 << (shift + 5);
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new RangeError(`run lengths: run ${runs.length} is ${value}`);
    runs.push(value);
  }
  return runs;
}

export function encodeRuns(runs) {
  let counts = "";
  runs.forEach((run, i) => {
    let value = i > 2 ? run - runs[i - 2] : run;
    for (let more = true; more; ) {
      let group = value & 31;
      value >>= 5;
      more = group & 16 ? value !== -1 : value !== 0;
      if (more) group |= 32;
      counts += String.fromCharCode(group + 48);
    }
  });
  return counts;
}

// Calls paint(column, top, bottom) for each stretch of ones; bottom is beyond it.
export function eachStretch(counts, height, width, paint) {
  const runs = decodeRuns(counts);
  const total = runs.reduce((sum, run) => sum + run, 0);
  if (total !== height * width) throw new RangeError(`run lengths hold ${total} pixels, not ${height}×${width}`);
  let at = 0;
  runs.forEach((run, i) => {
    for (const end = at + run; at < end; ) {
      const column = Math.floor(at / height);
      const stop = Math.min(end, (column + 1) * height);
      if (i % 2) paint(column, at - column * height, stop - column * height);
      at = stop;
    }
  });
}

// Row by row, a byte a pixel, 0 or 1.
export function decodeMask(counts, height, width) {
  const mask = new Uint8Array(height * width);
  eachStretch(counts, height, width, (column, top, bottom) => {
    for (let row = top; row < bottom; row++) mask[row * width + column] = 1;
  });
  return mask;
}

// Pixels that one mask has and the other has not: [only a, only b].
export function differences(a, b) {
  const [left, right] = [decodeRuns(a), decodeRuns(b)];
  const only = [0, 0];
  let [i, j, restA, restB] = [0, 0, left[0] ?? 0, right[0] ?? 0];
  while (i < left.length && j < right.length) {
    const step = Math.min(restA, restB);
    if (i % 2 !== j % 2) only[i % 2 ? 0 : 1] += step;
    restA -= step;
    restB -= step;
    if (!restA) restA = left[++i] ?? 0;
    if (!restB) restB = right[++j] ?? 0;
  }
  return only;
}
