// The model at work beside the page (play-panel.js), in a thread of its own, so that the
// page never stands still. It answers what the page asks, one message after the other; a
// newer question overtakes an older one, unless it only asks for other knobs.

import { BPETokenizer, KVCache, attention_weights, draw, head_scores, logit_lens, next_logits, next_token_probabilities, read, work } from "./gpt2.js";

const SLICE = 16; // positions that are computed without a look at new messages
const SPARE = 128; // tokens at the end of a long text that can be edited at little cost
const PATIENCE = 8; // milliseconds without such a look
const FRAME = 33; // milliseconds between two reports of a text that grows
const ROWS = 12; // tokens of a distribution that the page shows
const MOST = 64; // tokens whose attention the page shows: the last ones of a longer text

let opened = null; // model, tokenizer and what the page may know of them
let memories = new Map(); // heads switched off -> what was read without them
let last = null; // the distribution that stands: its logits, and those with all heads on
let current = 0; // the newest question
let growing = null; // the text that is being written: its knobs

const answer = (id, kind, more = {}) => postMessage({ id, kind, ...more });

// Names ----------------------------------------------------------------------------------

const BLANK =
  /[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]/u;

// The text with nothing hidden: ␣ at its ends, ↵, codes for what has no shape.
const readable = (text) => {
  const shape = (sign) => {
    if (sign === " " || !(/[\p{C}\p{Z}]/u.test(sign) || BLANK.test(sign))) return sign;
    const code = sign.codePointAt(0);
    const [letter, digits] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
    return { 9: "\\t", 13: "\\r" }[code] ?? `\\${letter}${code.toString(16).padStart(digits, "0")}`;
  };
  const ends = text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  const seen = Array.from(ends.replaceAll("\n", "↵"), shape).join("");
  return (/^\p{M}/u.test(seen) ? `◌${seen}` : seen) || "(empty)";
};

const name_of = (i) => readable(opened.tokenizer.decode([i]));

// Reading --------------------------------------------------------------------------------

class Overtaken extends Error {}

// Lets messages in. They arrive between two tasks; a timer would wait for 4 milliseconds.
const { port1, port2 } = new MessageChannel();
const waiting = [];
port1.onmessage = () => waiting.shift()();
const pause = () =>
  new Promise((resolve) => {
    waiting.push(resolve);
    port2.postMessage(null);
  });

// Runs what one question needs, counting, and stops once it is overtaken.
class Task {
  constructor(id) {
    this.id = id;
    this.paused = performance.now();
    this.take_work();
  }

  compute(function_) {
    const start = performance.now();
    const before = work.multiply_adds;
    const result = function_();
    this.milliseconds += performance.now() - start;
    this.multiplyAdds += work.multiply_adds - before;
    return result;
  }

  async breathe() {
    if (performance.now() - this.paused > PATIENCE) {
      await pause();
      this.paused = performance.now();
    }
    if (this.id !== current) throw new Overtaken();
  }

  // What was done since this was last asked.
  take_work() {
    const { positions, multiplyAdds, milliseconds } = this;
    Object.assign(this, { positions: 0, multiplyAdds: 0, milliseconds: 0 });
    return { positions, multiplyAdds, milliseconds };
  }
}

// How many tokens the last output depends on: with rotary positions each layer reaches
// block_size - 1 further back.
const reach_of = ({ n_layer, block_size, position }) =>
  position === "rotary" ? n_layer * (block_size - 1) + 1 : Infinity;

// What was read with some heads switched off: ids, and their keys and values.
class Memory {
  constructor() {
    this.cache = new KVCache(opened.model.config);
    this.ids = [];
    this.start = 0; // where reading began
  }

  // Keeps what `ids` begin with, too; their last one is always read anew. Where a long text
  // is read for the first time, what its end does not depend on is left out.
  rewind(ids) {
    const { cache, start } = this;
    const reach = reach_of(opened.model.config);
    const end = Math.min(start + cache.length, ids.length - 1);
    const anew = Math.max(0, ids.length - reach - SPARE); // where reading would begin
    let same = 0;
    while (same < end && this.ids[same] === ids[same]) same += 1;
    const kept = same - start;
    const isEnough = start === 0 || kept >= reach - 1;
    if (kept > 0 && same >= anew && isEnough && cache.holds(kept)) {
      cache.length = kept;
    } else {
      cache.length = 0;
      this.start = anew;
    }
    this.ids = ids;
    return this.start ? ids.slice(this.start) : ids;
  }
}

const ALL = "[]"; // no head is off
const memory_of = (off) => {
  const key = JSON.stringify(off);
  if (!memories.has(key)) {
    for (const old of memories.keys()) if (old !== ALL) memories.delete(old);
    memories.set(key, new Memory());
  }
  return memories.get(key);
};

// The logits of what follows `ids`, as next_logits gives them, slice by slice. Without the
// cache, and past the window of learned positions, everything is read anew.
const logits_after = async (ids, { off, useCache }, task, { found = null, tell } = {}) => {
  const { model } = opened;
  const { position, block_size } = model.config;
  const isPast = position === "learned" && ids.length > block_size;
  const isKept = useCache && !isPast;
  const memory = isKept ? memory_of(off) : null;
  const cache = memory?.cache ?? new KVCache(model.config);
  const text = memory?.rewind(ids) ?? (isPast ? ids.slice(-block_size) : ids);
  task.positions += text.length - cache.length;
  while (text.length - cache.length > SLICE) {
    const slice = text.slice(cache.length, cache.length + SLICE);
    task.compute(() => model.forward(slice, { cache, off, last_only: true }));
    await task.breathe();
    tell?.(cache.length, text.length);
  }
  const logits = task.compute(() => next_logits(model, text, cache, { off, found }));
  await task.breathe();
  return logits;
};

// What the page shows --------------------------------------------------------------------

const entropy_of = (p) => p.reduce((sum, x) => (x > 0 ? sum - x * Math.log(x) : sum), 0);

// The indices of the n largest numbers, falling.
const largest = (numbers, n) => {
  const found = [];
  numbers.forEach((number, i) => {
    if (found.length === n && number <= numbers[found[n - 1]]) return;
    const place = found.findIndex((other) => number > numbers[other]);
    found.splice(place < 0 ? found.length : place, 0, i);
    found.length = Math.min(found.length, n);
  });
  return found;
};

const distribution = (knobs, { logits, all_on, tokenizer } = last) => {
  const before = next_token_probabilities(logits);
  const after = next_token_probabilities(logits, knobs);
  const whole = all_on && next_token_probabilities(all_on);
  const height = whole ? before.map((p, i) => Math.max(p, whole[i])) : before;
  const rows = largest(height, ROWS).map((i) => ({
    id: i,
    name: readable(tokenizer.decode([i])),
    piece: tokenizer.decode([i]),
    before: before[i],
    after: after[i] > 0 ? after[i] : null,
    ...(whole ? { whole: whole[i] } : {}),
  }));
  const kept = after.reduce((n, p) => (p > 0 ? n + 1 : n), 0);
  return {
    rows,
    kept,
    of: after.length,
    entropy: entropy_of(after),
    entropyBefore: entropy_of(before),
  };
};

const lens_of = (found) => {
  const layers = logit_lens(opened.model, found).map((logits) => next_token_probabilities(logits));
  const [final] = largest(layers.at(-1), 1);
  return layers.map((p, n) => ({
    layer: n - 1,
    rows: largest(p, 3).map((i) => ({ name: name_of(i), p: p[i] })),
    pLast: p[final],
    entropy: entropy_of(p),
  }));
};

const join = (arrays) => {
  const joined = new Float32Array(arrays.reduce((n, array) => n + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    joined.set(array, at);
    at += array.length;
  }
  return joined;
};

// (T, H * D) -> (H, T, D)
const by_head = (x, { n_head, n_embd, head_dim }) =>
  join(
    Array.from({ length: n_head }, (_, head) =>
      join(
        Array.from({ length: x.length / n_embd }, (_, t) => {
          const start = t * n_embd + head * head_dim;
          return x.subarray(start, start + head_dim);
        }),
      ),
    ),
  );

// The lower triangles of (H, T, T), row by row.
const triangles = (squares, n_head, T) =>
  join(
    Array.from({ length: n_head * T }, (_, row) =>
      squares.subarray(row * T, row * T + (row % T) + 1),
    ),
  );

// Queries, keys, values and scores of all heads, as attention-explorer.js takes them.
const attention_of = async (ids, off, task) => {
  const { model, tokenizer } = opened;
  const { config } = model;
  const { n_layer, n_head, block_size, head_dim } = config;
  const shown = ids.slice(-(config.position === "learned" ? Math.min(MOST, block_size) : MOST));
  const T = shown.length;
  const found = Array.from({ length: n_layer }, () => ({ q: [], k: [], v: [] }));
  const cache = new KVCache(config);
  while (cache.length < T) {
    const slice = shown.slice(cache.length, cache.length + SLICE);
    const seen = [];
    model.forward(slice, { cache, off, found: seen, last_only: true });
    seen.forEach((layer, n) => {
      for (const part of ["q", "k", "v"]) found[n][part].push(layer[part]);
    });
    await task.breathe();
  }
  const window = config.position === "rotary" && block_size < T ? block_size : null;
  const summaries = { previous_token: [], first_token: [], induction: [], entropy: [] };
  const parts = { scores: [], q: [], k: [], v: [] };
  for (const layer of found) {
    const [q, k, v] = [layer.q, layer.k, layer.v].map(join); // (T, C) each
    const options = { ...config, window: window ?? T };
    const { scores, weights } = attention_weights(q, k, options); // (H, T, T) each
    parts.scores.push(triangles(scores, n_head, T));
    for (const [part, x] of Object.entries({ q, k, v })) parts[part].push(by_head(x, config));
    const heads = Array.from({ length: n_head }, (_, head) =>
      head_scores(weights.subarray(head * T * T, (head + 1) * T * T), shown),
    );
    for (const by of Object.keys(summaries)) summaries[by].push(heads.map((head) => head[by]));
    await task.breathe();
  }
  const units = (n) => new Float32Array(n).fill(1);
  const vectors = n_layer * n_head * T;
  return {
    note:
      T < ids.length
        ? `Shown: the last ${T} of ${ids.length} tokens, read as a text of their own.`
        : "",
    context: {
      text: readable(tokenizer.decode(shown)),
      tokens: shown.map(name_of),
      window,
      head_dim,
      summaries,
      next: distribution({}).rows.slice(0, 10).map(({ name, before, whole }) =>
        whole === undefined ? [name, before] : [name, before, whole],
      ),
      ...Object.fromEntries(Object.entries(parts).map(([part, x]) => [part, join(x)])),
      scores_unit: units(n_layer * n_head),
      q_unit: units(vectors),
      k_unit: units(vectors),
      v_unit: units(vectors),
    },
  };
};

// Questions ------------------------------------------------------------------------------

const ids_of = ({ text, off }) => {
  if (!opened) throw new Error("There is no model yet.");
  const { n_layer, n_head } = opened.model.config;
  const is_index = (i, n) => Number.isInteger(i) && i >= 0 && i < n;
  if (!off.every(([layer, head]) => is_index(layer, n_layer) && is_index(head, n_head))) {
    throw new Error("The model has no such head to switch off.");
  }
  const ids = opened.tokenizer.encode(text);
  if (!ids.length) throw new Error("There is no text yet: the model continues one.");
  return ids;
};

const open = ({ id, bytes }) => {
  const { model, tokenizer, ...file } = read(bytes);
  opened = { model, tokenizer };
  memories = new Map();
  last = null;
  const isBytes = tokenizer instanceof BPETokenizer;
  const info = {
    ...file,
    bytes: bytes.byteLength,
    config: { ...model.config },
    tokenizer: isBytes ? "bytes" : "characters",
    characters: isBytes ? null : tokenizer.characters.join(""),
  };
  answer(id, "opened", { info });
};

// Leaves in `last` what follows `ids`: with the heads off, and with all of them.
const look = async (ids, asked, task, options) => {
  const logits = await logits_after(ids, asked, task, options);
  const done = task.take_work();
  const all = { ...asked, off: [] };
  const all_on = asked.off.length ? await logits_after(ids, all, task) : null;
  task.take_work(); // not counted: it is there to compare
  last = { logits, all_on, tokenizer: opened.tokenizer };
  return done;
};

const read_text = async (asked) => {
  const { id, off, knobs, lens, attention } = asked;
  const task = new Task(id);
  await pause(); // many changes may have come at once: only the last counts
  await task.breathe();
  const ids = ids_of(asked);
  const start = performance.now();
  const tell = (done, of) => {
    if (performance.now() - start > 100) answer(id, "reading", { done, of });
  };
  const found = lens ? [] : null;
  const done = await look(ids, asked, task, { found, tell });
  const reading = {
    tokens: ids.length,
    next: distribution(knobs),
    work: done,
    lens: lens ? lens_of(found) : null,
    attention: attention ? await attention_of(ids, off, task) : null,
  };
  answer(id, "read", { reading });
};

// Numbers from 0 to 1 that a seed repeats, as tests need them, by the rule of Park and
// Miller (1988).
const random_from = (seed) => {
  let state = 1 + (Math.abs(Math.trunc(seed)) % 2147483645);
  const random = () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  for (let n = 0; n < 3; n += 1) random(); // the first numbers of a small seed are small
  return random;
};

const generate = async (asked) => {
  const { id, count, greedy, seed } = asked;
  const task = new Task(id);
  const ids = ids_of(asked);
  const random = seed === null || seed === undefined ? Math.random : random_from(seed);
  const decode = opened.tokenizer.decoder();
  const total = { positions: 0, multiplyAdds: 0, milliseconds: 0 };
  const own = { knobs: asked.knobs };
  let [piece, tokens, standing] = ["", 0, null]; // what stands, and is not yet reported
  let told = performance.now();
  growing = own;
  const report = () => {
    const next = distribution(own.knobs, standing);
    answer(id, "grown", { piece, tokens, next, work: { ...total } });
    piece = "";
    told = performance.now();
    for (const part of Object.keys(total)) total[part] = 0;
  };
  const read_on = async () => {
    const done = await look(ids, asked, task);
    [tokens, standing] = [ids.length, last];
    return done;
  };
  try {
    await read_on(); // what stood before: the costs of no new token
    for (let n = 0; n < count; n += 1) {
      const knobs = greedy ? { top_k: 1 } : own.knobs;
      const token = draw(next_token_probabilities(standing.logits, knobs), random);
      ids.push(token);
      const done = await read_on();
      for (const part of Object.keys(total)) total[part] += done[part];
      piece += decode(token);
      if (performance.now() - told > FRAME) report();
    }
    report();
    answer(id, "done", { why: "count" });
  } catch (error) {
    if (!(error instanceof Overtaken)) throw error;
    if (piece) report(); // what was written stays
    answer(id, "done", { why: "stopped" });
  }
};

const choose = ({ id, knobs }) => {
  if (growing) growing.knobs = knobs; // they hold for a text that is being written, too
  if (!last) throw new Error("There is no text yet: the model continues one.");
  answer(id, "chosen", { next: distribution(knobs) });
};

const QUESTIONS = { open, read: read_text, generate, choose, stop: () => {} };

onmessage = async ({ data }) => {
  const { id, ask } = data;
  if (ask !== "choose") current = id; // what runs is overtaken
  try {
    await QUESTIONS[ask](data);
  } catch (error) {
    if (error instanceof Overtaken) return answer(id, "dropped");
    answer(id, ask === "generate" ? "done" : "failed", {
      why: "failed",
      message: error.message,
      ...(error.unknown ? { unknown: error.unknown } : {}),
    });
  }
};
