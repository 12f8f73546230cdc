// GPT-2 in JavaScript, by hand: what the page runs. It follows gpt2lib part by part,
// with Python's names, in the book's order. There is one text, so B is left out: a
// tensor (T, C) is a Float32Array of T rows of C numbers, one row after the other.

// Phase 0: sizes ------------------------------------------------------------------

// A value as an error may quote it, whatever a file holds.
const quote = (value) => String(JSON.stringify(value)).slice(0, 40);

export class GPT2Config {
  constructor({ n_layer, n_head, n_embd, vocab_size, block_size, position }) {
    const sizes = { n_layer, n_head, n_embd, vocab_size, block_size };
    for (const [name, value] of Object.entries(sizes)) {
      if (!Number.isInteger(value) || value < 1) {
        throw new Error(
          `${name} must be an integer of at least 1, got ${quote(value)}`,
        );
      }
    }
    if (n_embd % n_head !== 0) {
      throw new Error(
        `n_embd must be a multiple of n_head, got ${n_embd} and ${n_head}`,
      );
    }
    if (position !== "learned" && position !== "rotary") {
      throw new Error(`position must be "learned" or "rotary", got ${quote(position)}`);
    }
    if (position === "rotary" && (n_embd / n_head) % 2 !== 0) {
      throw new Error(
        `rotary positions need an even n_embd / n_head, got ${n_embd / n_head}`,
      );
    }
    Object.assign(this, sizes, { position, head_dim: n_embd / n_head });
  }
}

// Phase 1: the parts of a block ---------------------------------------------------

// What has been computed since the page set it to 0.
export const work = { multiply_adds: 0 };

// y[to + r] += row r of a matrix times x[from ...], for all its rows of n numbers,
// which begin `stride` apart. Four rows at a time: each number of x is then fetched
// once for four products.
const multiply = (matrix, begin, stride, n_rows, n, x, from, y, to) => {
  let r = 0;
  for (; r + 4 <= n_rows; r += 4) {
    const row0 = begin + r * stride;
    const row1 = row0 + stride;
    const row2 = row1 + stride;
    const row3 = row2 + stride;
    let sum0 = y[to + r];
    let sum1 = y[to + r + 1];
    let sum2 = y[to + r + 2];
    let sum3 = y[to + r + 3];
    for (let i = 0; i < n; i += 1) {
      const number = x[from + i];
      sum0 += matrix[row0 + i] * number;
      sum1 += matrix[row1 + i] * number;
      sum2 += matrix[row2 + i] * number;
      sum3 += matrix[row3 + i] * number;
    }
    y[to + r] = sum0;
    y[to + r + 1] = sum1;
    y[to + r + 2] = sum2;
    y[to + r + 3] = sum3;
  }
  for (; r < n_rows; r += 1) {
    let sum = y[to + r];
    for (let i = 0; i < n; i += 1) sum += matrix[begin + r * stride + i] * x[from + i];
    y[to + r] = sum;
  }
  work.multiply_adds += n_rows * n;
};

// y[to ...] += the sum of all rows, each times its number in x: the same, transposed.
const add_rows = (matrix, begin, stride, n_rows, n, x, y, to) => {
  let r = 0;
  for (; r + 4 <= n_rows; r += 4) {
    const row0 = begin + r * stride;
    const row1 = row0 + stride;
    const row2 = row1 + stride;
    const row3 = row2 + stride;
    const x0 = x[r];
    const x1 = x[r + 1];
    const x2 = x[r + 2];
    const x3 = x[r + 3];
    for (let i = 0; i < n; i += 1) {
      y[to + i] +=
        x0 * matrix[row0 + i] +
        x1 * matrix[row1 + i] +
        x2 * matrix[row2 + i] +
        x3 * matrix[row3 + i];
    }
  }
  for (; r < n_rows; r += 1) {
    for (let i = 0; i < n; i += 1) y[to + i] += x[r] * matrix[begin + r * stride + i];
  }
  work.multiply_adds += n_rows * n;
};

export class Linear {
  constructor(weight, bias = null) {
    this.weight = weight; // (out, in)
    this.bias = bias ?? new Float32Array(0); // (out,)
  }

  // x: (T, in) -> (T, out)
  forward(x, n_in) {
    const n_out = this.weight.length / n_in;
    const T = x.length / n_in;
    const y = new Float32Array(T * n_out);
    for (let t = 0; t < T; t += 1) {
      y.set(this.bias, t * n_out);
      multiply(this.weight, 0, n_in, n_out, n_in, x, t * n_in, y, t * n_out);
    }
    return y;
  }
}

export class LayerNorm {
  constructor(weight, bias) {
    this.weight = weight; // (C,)
    this.bias = bias; // (C,)
  }

  forward(x) {
    const { weight, bias } = this;
    const C = weight.length;
    const y = new Float32Array(x.length); // (T, C)
    for (let start = 0; start < x.length; start += C) {
      let mean = 0;
      for (let i = 0; i < C; i += 1) mean += x[start + i] / C;
      let variance = 0;
      for (let i = 0; i < C; i += 1) variance += (x[start + i] - mean) ** 2 / C;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let i = 0; i < C; i += 1) {
        y[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
      }
    }
    return y;
  }
}

// The largest becomes exp(0), so that nothing overflows; the sum is 1 afterwards.
const softmax = (scores, n) => {
  let most = -Infinity;
  for (let j = 0; j < n; j += 1) most = Math.max(most, scores[j]);
  let total = 0;
  for (let j = 0; j < n; j += 1) {
    scores[j] = Math.exp(scores[j] - most);
    total += scores[j];
  }
  for (let j = 0; j < n; j += 1) scores[j] /= total;
};

// q: (T, C), the last T of the S positions of k and v, (S, C) each. Returns (T, C). In
// a row, the D numbers of head 0 come first, then those of head 1. `weights`, if given,
// takes what each position reads: (H, T, S).
export const causal_attention = (
  q,
  k,
  v,
  { n_head, n_embd, window, weights = null },
) => {
  const [T, S] = [q.length / n_embd, k.length / n_embd];
  const D = n_embd / n_head;
  const scores = new Float32Array(S);
  const scaled = q.map((number) => number / Math.sqrt(D)); // (T, C)
  const y = new Float32Array(q.length); // (T, C)
  for (let t = 0; t < T; t += 1) {
    const last = S - T + t; // no future
    const first = Math.max(0, last - window + 1); // nothing beyond the window
    const n = last - first + 1;
    for (let head = 0; head < n_head; head += 1) {
      const own = t * n_embd + head * D;
      const read = first * n_embd + head * D;
      scores.fill(0, 0, n);
      multiply(k, read, n_embd, n, D, scaled, own, scores, 0);
      softmax(scores, n);
      add_rows(v, read, n_embd, n, D, scores, y, own);
      if (weights) weights.set(scores.subarray(0, n), (head * T + t) * S + first);
    }
  }
  return y;
};

export class MultiHeadSelfAttention {
  constructor(config, { qkv, proj }) {
    this.config = config;
    this.rotary =
      config.position === "rotary" ? new RotaryEmbedding(config.head_dim) : null;
    this.window = this.rotary ? config.block_size : Infinity;
    this.qkv = qkv; // Linear, C -> 3C
    this.proj = proj; // Linear, C -> C
  }

  // x: (T, C) -> (T, C). `off` names heads that gather nothing; `found` takes q, k, v.
  forward(x, { cache = null, off = [], found = null } = {}) {
    const { n_head, n_embd, head_dim } = this.config;
    const [q, k, v] = columns(this.qkv.forward(x, n_embd), 3, n_embd); // (T, C) each
    if (this.rotary) {
      const start = cache ? cache.length : 0;
      this.rotary.turn(q, start, n_head);
      this.rotary.turn(k, start, n_head);
    }
    if (found) Object.assign(found, { q, k, v });
    const options = { n_head, n_embd, window: this.window };
    const y = cache ? cache.attend(q, k, v) : causal_attention(q, k, v, options);
    for (const head of off) {
      for (let start = head * head_dim; start < y.length; start += n_embd) {
        y.fill(0, start, start + head_dim);
      }
    }
    return this.proj.forward(y, n_embd);
  }
}

// (T, n * width) as n tensors (T, width).
const columns = (x, n, width) => {
  const T = x.length / (n * width);
  return Array.from({ length: n }, (_, part) => {
    const y = new Float32Array(T * width);
    for (let t = 0; t < T; t += 1) {
      const start = (t * n + part) * width;
      y.set(x.subarray(start, start + width), t * width);
    }
    return y;
  });
};

// The tanh form, as in GPT-2: 0.5 x (1 + tanh(u)) is x / (1 + exp(-2u)).
const ROOT = Math.sqrt(2 / Math.PI);
const gelu = (x) => x / (1 + Math.exp(-2 * ROOT * (x + 0.044715 * x * x * x)));

export class FeedForward {
  constructor({ expand, proj }) {
    this.expand = expand; // Linear, C -> 4C
    this.proj = proj; // Linear, 4C -> C
  }

  forward(x, n_embd) {
    const hidden = this.expand.forward(x, n_embd); // (T, 4C)
    for (let i = 0; i < hidden.length; i += 1) hidden[i] = gelu(hidden[i]);
    return this.proj.forward(hidden, 4 * n_embd); // (T, C)
  }
}

const add = (x, y) => {
  const sum = new Float32Array(x.length);
  for (let i = 0; i < x.length; i += 1) sum[i] = x[i] + y[i];
  return sum;
};

export class TransformerBlock {
  constructor(config, { norm1, attention, norm2, feedforward }) {
    this.n_embd = config.n_embd;
    Object.assign(this, { norm1, attention, norm2, feedforward });
  }

  forward(x, options) {
    x = add(x, this.attention.forward(this.norm1.forward(x), options)); // (T, C)
    x = add(x, this.feedforward.forward(this.norm2.forward(x), this.n_embd)); // (T, C)
    return x;
  }
}

export class GPT2Model {
  constructor(blocks, norm) {
    this.blocks = blocks;
    this.norm = norm;
  }

  // `off`: pairs [layer, head] that gather nothing. `found`, an array, takes for each
  // layer q, k, v and the stream before it, resid_pre, and after it, resid_post.
  forward(x, { cache = null, off = [], found = null } = {}) {
    this.blocks.forEach((block, layer) => {
      const seen = found ? { resid_pre: x } : null;
      x = block.forward(x, {
        cache: cache?.layers[layer],
        off: off.filter((pair) => pair[0] === layer).map((pair) => pair[1]),
        found: seen,
      });
      found?.push({ ...seen, resid_post: x });
    });
    const n_embd = this.norm.weight.length;
    if (cache) cache.length += x.length / n_embd; // all have read
    return this.norm.forward(x);
  }
}

// Phase 2: text to ids ------------------------------------------------------------

export class CharTokenizer {
  constructor(characters) {
    this.characters = [...characters];
    this.vocab_size = this.characters.length;
    this.ids = new Map(this.characters.map((character, i) => [character, i]));
    if (!this.vocab_size || this.ids.size !== this.vocab_size) {
      throw new Error("characters must be one or more distinct characters");
    }
  }

  // Throws an error whose `unknown` lists what the vocabulary lacks.
  encode(text) {
    const unknown = new Set([...text].filter((character) => !this.ids.has(character)));
    if (unknown.size) {
      const message = `The model knows ${this.vocab_size} characters, and not these`;
      throw Object.assign(new Error(message), { unknown: [...unknown].join("") });
    }
    return Array.from(text, (character) => this.ids.get(character));
  }

  decode(ids) {
    return ids.map((i) => this.characters[i]).join("");
  }

  // Decodes id after id.
  decoder() {
    return (i) => this.characters[i];
  }
}

// The bytes in the order of GPT-2's first 256 tokens: those that can be seen, first.
const byte_alphabet = () => {
  const ranges = [
    ["!", "~"],
    ["¡", "¬"],
    ["®", "ÿ"],
  ];
  const visible = ranges.flatMap(([first, last]) => {
    const [start, end] = [first.charCodeAt(0), last.charCodeAt(0)];
    return Array.from({ length: end - start + 1 }, (_, i) => start + i);
  });
  const hidden = Array.from({ length: 256 }, (_, byte) => byte);
  return [...visible, ...hidden.filter((byte) => !visible.includes(byte))];
};

const SPLIT = new RegExp(
  "'s|'t|'re|'ve|'m|'ll|'d" + // endings of English contractions
    "| ?\\p{L}+| ?\\p{N}+" + // letters of any script; digits of any script
    "| ?[^\\p{White_Space}\\p{L}\\p{N}]+" + // other signs
    "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
  "gu",
);
const END_OF_TEXT = "<|endoftext|>";
const AS_IT_IS = { ignoreBOM: true }; // a byte order mark at the start stays, too

// Merge neighbours by rank, lowest first, until no merge is left.
const apply_merges = (ids, merges) => {
  for (;;) {
    let lowest = Infinity;
    for (let i = 0; i + 1 < ids.length; i += 1) {
      lowest = Math.min(lowest, merges.get(pair_key(ids[i], ids[i + 1])) ?? Infinity);
    }
    if (lowest === Infinity) return ids;
    const merged = [];
    for (const i of ids) {
      const is_pair =
        merged.length && merges.get(pair_key(merged.at(-1), i)) === lowest;
      if (is_pair) merged[merged.length - 1] = lowest;
      else merged.push(i);
    }
    ids = merged;
  }
};
const pair_key = (left, right) => left * 2 ** 24 + right;

export class BPETokenizer {
  constructor(merges) {
    const alphabet = byte_alphabet();
    this.tokens = alphabet.map((byte) => [byte]);
    this.byte_ids = new Map(alphabet.map((byte, i) => [byte, i]));
    this.merges = new Map();
    for (const [left, right] of merges) {
      this.merges.set(pair_key(left, right), this.tokens.length);
      this.tokens.push([...this.tokens[left], ...this.tokens[right]]);
    }
    this.tokens.push([...new TextEncoder().encode(END_OF_TEXT)]);
    if (new Set(this.tokens.map(String)).size < this.tokens.length) {
      throw new Error("merges make the same token twice");
    }
    this.vocab_size = this.tokens.length;
  }

  encode(text) {
    const encoder = new TextEncoder();
    return (text.match(SPLIT) ?? []).flatMap((chunk) => {
      const ids = Array.from(encoder.encode(chunk), (byte) => this.byte_ids.get(byte));
      return apply_merges(ids, this.merges);
    });
  }

  decode(ids) {
    const bytes = Uint8Array.from(ids.flatMap((i) => this.tokens[i]));
    return new TextDecoder("utf-8", AS_IT_IS).decode(bytes);
  }

  // Decodes id after id, and holds back half a character.
  decoder() {
    const decoder = new TextDecoder("utf-8", AS_IT_IS);
    return (i) => decoder.decode(Uint8Array.from(this.tokens[i]), { stream: true });
  }
}

// Row `i` of a table, for each of the indices: (T,) -> (T, C).
const embedding = (table, indices, C) => {
  const x = new Float32Array(indices.length * C);
  indices.forEach((i, t) => x.set(table.subarray(i * C, (i + 1) * C), t * C));
  return x;
};

// Phase 3: ids to logits ----------------------------------------------------------

export class GPT2LMHeadModel {
  constructor(config, { token_embedding, position_embedding, transformer }) {
    this.config = config;
    this.token_embedding = token_embedding; // (V, C)
    this.position_embedding = position_embedding; // (block_size, C), or null if rotary
    this.transformer = transformer;
    this.lm_head = new Linear(token_embedding); // one weight for both
  }

  // tokens: (T,) -> logits (T, V), or (1, V) of the last position alone. Positions go
  // on at cache.length where there is a cache.
  forward(tokens, { cache = null, last_only = false, off = [], found = null } = {}) {
    const { n_embd, position, block_size } = this.config;
    const start = cache ? cache.length : 0;
    let x = embedding(this.token_embedding, tokens, n_embd); // (T, C)
    if (position === "learned") {
      if (start + tokens.length > block_size) {
        throw new Error(
          `there are ${block_size} positions, got ${start + tokens.length}`,
        );
      }
      const positions = tokens.map((_, t) => start + t); // (T,)
      x = add(x, embedding(this.position_embedding, positions, n_embd)); // (T, C)
    }
    x = this.transformer.forward(x, { cache, off, found }); // (T, C)
    if (last_only) x = x.subarray(x.length - n_embd); // (1, C)
    return this.lm_head.forward(x, n_embd);
  }
}

// Phase 4: logits to text ---------------------------------------------------------

// Ids by falling number; among equals the earlier comes first.
const by_size = (numbers) =>
  Uint32Array.from(numbers, (_, i) => i).sort(
    (a, b) => numbers[b] - numbers[a] || a - b,
  );

export const keep_top_k = (logits, top_k) => {
  const kept = new Float64Array(logits.length).fill(-Infinity); // (V,)
  for (const i of by_size(logits).subarray(0, top_k)) kept[i] = logits[i];
  return kept;
};

const probabilities_of = (logits) => {
  const p = Float64Array.from(logits);
  softmax(p, p.length);
  return p;
};

// The fewest whose probability reaches top_p; the one that crosses it stays.
export const keep_nucleus = (logits, top_p) => {
  const p = probabilities_of(logits);
  const kept = new Float64Array(logits.length).fill(-Infinity); // (V,)
  let before = 0; // what the more probable ones have
  for (const i of by_size(p)) {
    // What falls short by rounding alone has reached it.
    if (top_p < 1 ? before >= top_p * (1 - 1e-6) : p[i] === 0) break;
    kept[i] = logits[i];
    before += p[i];
  }
  return kept;
};

// null stands for no knob, as None does in Python.
const check_knobs = (temperature, top_k, top_p) => {
  if (!(temperature > 0 && temperature < Infinity)) {
    throw new Error(`temperature must be a finite number above 0, got ${temperature}`);
  }
  if (top_k !== null && !(Number.isInteger(top_k) && top_k >= 1)) {
    throw new Error(`top_k must be an integer from 1 on, got ${top_k}`);
  }
  if (top_p !== null && !(top_p > 0 && top_p <= 1)) {
    throw new Error(`top_p must be in (0, 1], got ${top_p}`);
  }
};

// Divides by the temperature, keeps the top_k largest, then the nucleus of those.
export const next_token_probabilities = (
  logits,
  { temperature = 1, top_k = null, top_p = null } = {},
) => {
  check_knobs(temperature, top_k, top_p);
  let rest = top_k ? keep_top_k(logits, top_k) : Float64Array.from(logits);
  const largest = rest.reduce((a, b) => Math.max(a, b), -Infinity);
  rest = rest.map((logit) => (logit - largest) / temperature); // (V,)
  if (top_p) rest = keep_nucleus(rest, top_p);
  return probabilities_of(rest);
};

// An id, each as often as its probability says.
export const draw = (probabilities, random) => {
  let left = random() * probabilities.reduce((a, b) => a + b, 0);
  for (let i = 0; i < probabilities.length; i += 1) {
    left -= probabilities[i];
    if (left < 0) return i;
  }
  return by_size(probabilities)[0]; // rounding left a little
};

// The logits of what follows `text`, however long it is. Past the window, learned
// positions must count from 0 again, so nothing that was kept is of use.
export const next_logits = (model, text, cache, options = {}) => {
  const { block_size, position } = model.config;
  if (position === "learned" && text.length > block_size) {
    [text, cache] = [text.slice(-block_size), null];
  }
  const start = cache ? cache.length : 0;
  const logits = model.forward(text.slice(start), {
    ...options,
    cache,
    last_only: true,
  }); // (V,)
  if (!logits.every(Number.isFinite)) {
    throw new Error("the model's logits are not numbers: are its weights damaged?");
  }
  return logits;
};

export function* generate_stream(model, tokens, max_new_tokens, options = {}) {
  const {
    greedy = false,
    use_cache = true,
    random = Math.random,
    off = [],
    ...knobs
  } = options;
  const cache = use_cache ? new KVCache(model.config) : null;
  const text = [...tokens];
  for (let n = 0; n < max_new_tokens; n += 1) {
    const logits = next_logits(model, text, cache, { off });
    const token = greedy
      ? by_size(logits)[0]
      : draw(next_token_probabilities(logits, knobs), random);
    text.push(token);
    yield token;
  }
}

// Phase 5: looking inside ---------------------------------------------------------

// What the model would predict after each layer, from the last position's stream: the
// logits after the embedding, then after each block.
export const logit_lens = (model, found) => {
  const { n_embd } = model.config;
  const streams = [found[0].resid_pre, ...found.map(({ resid_post }) => resid_post)];
  return streams.map((x) => {
    const last = x.subarray(x.length - n_embd); // (1, C)
    return model.lm_head.forward(model.transformer.norm.forward(last), n_embd); // (V,)
  });
};

// q and k of one text, (T, C) each -> the scaled scores and the weights, (H, T, T).
export const attention_weights = (q, k, { n_head, n_embd, window }) => {
  const [T, D] = [q.length / n_embd, n_embd / n_head];
  const scores = new Float32Array(n_head * T * T);
  const weights = new Float32Array(n_head * T * T);
  const scaled = q.map((number) => number / Math.sqrt(D)); // (T, C)
  for (let head = 0; head < n_head; head += 1) {
    for (let t = 0; t < T; t += 1) {
      const row = (head * T + t) * T;
      const own = t * n_embd + head * D;
      multiply(k, head * D, n_embd, t + 1, D, scaled, own, scores, row);
      const first = Math.max(0, t + 1 - window);
      const read = weights.subarray(row + first, row + t + 1);
      read.set(scores.subarray(row + first, row + t + 1));
      softmax(read, read.length);
    }
  }
  return { scores, weights };
};

// The four scores of a head, whose weights are (T, T); null where there is no position
// to take one from.
export const head_scores = (weights, tokens) => {
  const T = tokens.length;
  const mean = (numbers) =>
    numbers.length ? numbers.reduce((a, b) => a + b, 0) / numbers.length : null;
  const rows = tokens.map((_, i) => weights.subarray(i * T, (i + 1) * T));
  const entropy = (row) =>
    row.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
  // Where an induction head should look: at what followed this token before.
  const induction = rows.flatMap((row, i) => {
    const followed = tokens
      .slice(0, i)
      .map((_, j) => j > 0 && tokens[j - 1] === tokens[i]);
    if (!followed.includes(true)) return [];
    return [followed.reduce((sum, isPlace, j) => (isPlace ? sum + row[j] : sum), 0)];
  });
  return {
    previous_token: mean(rows.slice(1).map((row, i) => row[i])),
    first_token: mean(rows.slice(1).map((row) => row[0])),
    induction: mean(induction),
    entropy: mean(rows.map(entropy)),
  };
};

// Phase 6: rotary positions, the cache --------------------------------------------

export class RotaryEmbedding {
  constructor(head_dim, base = 10000) {
    this.head_dim = head_dim;
    const half = head_dim / 2;
    this.rates = Float64Array.from({ length: half }, (_, i) => base ** (-i / half));
  }

  // x: (T, H * D), from position `start` on, turned in place: in each head, feature i
  // and feature i + D/2 are a pair.
  turn(x, start, n_head) {
    const [D, half] = [this.head_dim, this.head_dim / 2];
    const T = x.length / (n_head * D);
    for (let t = 0; t < T; t += 1) {
      this.rates.forEach((rate, i) => {
        const angle = (start + t) * rate;
        const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
        for (let head = 0; head < n_head; head += 1) {
          const at = (t * n_head + head) * D + i;
          const [a, b] = [x[at], x[at + half]];
          x[at] = a * cos - b * sin;
          x[at + half] = a * sin + b * cos;
        }
      });
    }
  }
}

// The keys and values of one layer. When the buffer is full, the last block_size - 1
// positions move to its front.
export class LayerCache {
  constructor(config, capacity) {
    this.config = config;
    this.length = 0; // positions that the whole model has read: KVCache sets it
    this.first = 0; // the position in the first slot
    this.keys = new Float32Array(capacity * config.n_embd); // (S, C)
    this.values = new Float32Array(capacity * config.n_embd);
  }

  // q, k, v: (T, C) of new positions. Appends k and v; returns what q reads, (T, C).
  attend(q, k, v) {
    const { n_head, n_embd, block_size } = this.config;
    const T = q.length / n_embd;
    if (this.length === 0) this.first = 0;
    let slot = this.length - this.first;
    if ((slot + T) * n_embd > this.keys.length) {
      const kept = Math.min(slot, block_size - 1);
      const size = Math.max(this.keys.length, (kept + T) * n_embd);
      for (const name of ["keys", "values"]) {
        const old = this[name].subarray((slot - kept) * n_embd, slot * n_embd);
        const rolled = size > this[name].length ? new Float32Array(size) : this[name];
        rolled.set(old); // set() copies as if through a second array
        this[name] = rolled;
      }
      [this.first, slot] = [this.length - kept, kept];
    }
    this.keys.set(k, slot * n_embd);
    this.values.set(v, slot * n_embd);
    const oldest = Math.max(0, slot + 1 - block_size); // of what the first of q reads
    const [start, end] = [oldest * n_embd, (slot + T) * n_embd];
    const [keys, values] = [
      this.keys.subarray(start, end),
      this.values.subarray(start, end),
    ];
    return causal_attention(q, keys, values, { n_head, n_embd, window: block_size });
  }
}

export class KVCache {
  constructor(config) {
    this.config = config;
    const capacity = (config.position === "rotary" ? 2 : 1) * config.block_size;
    const layers = Array.from({ length: config.n_layer });
    this.layers = layers.map(() => new LayerCache(config, capacity));
  }

  // The number of positions read so far, the same for all layers.
  get length() {
    return this.layers[0].length;
  }

  set length(length) {
    for (const layer of this.layers) layer.length = length;
  }

  // Whether all that position `length` would read is still there.
  holds(length) {
    const { block_size } = this.config;
    return (
      length <= this.length &&
      this.layers[0].first <= Math.max(0, length + 1 - block_size)
    );
  }
}

// A model's file, as gpt2lib/web.py writes it -------------------------------------

const MAGIC = "GPT2PAGE";
const VERSION = 1;
const MOST_HEADER = 16 * 2 ** 20; // bytes
const MOST_PARAMETERS = 200e6; // in memory each takes 4 bytes
const MOST_CACHED = 400e6; // numbers of keys and values
const MOST_TOKEN_BYTES = 1000; // of a token; the longest of GPT-2's has 128
const BYTES = { float32: 4, float16: 2, int8: 1 };

// Name and shape of every tensor, in the order of the file.
const tensor_shapes = ({ n_layer, n_embd: C, vocab_size, block_size, position }) => {
  const block = (i) => [
    [`transformer.blocks.${i}.norm1.weight`, C],
    [`transformer.blocks.${i}.norm1.bias`, C],
    [`transformer.blocks.${i}.attention.qkv.weight`, 3 * C, C],
    [`transformer.blocks.${i}.attention.qkv.bias`, 3 * C],
    [`transformer.blocks.${i}.attention.proj.weight`, C, C],
    [`transformer.blocks.${i}.attention.proj.bias`, C],
    [`transformer.blocks.${i}.norm2.weight`, C],
    [`transformer.blocks.${i}.norm2.bias`, C],
    [`transformer.blocks.${i}.feedforward.expand.weight`, 4 * C, C],
    [`transformer.blocks.${i}.feedforward.expand.bias`, 4 * C],
    [`transformer.blocks.${i}.feedforward.proj.weight`, C, 4 * C],
    [`transformer.blocks.${i}.feedforward.proj.bias`, C],
  ];
  return [
    ["token_embedding.weight", vocab_size, C],
    ...(position === "learned" ? [["position_embedding.weight", block_size, C]] : []),
    ...Array.from({ length: n_layer }, (_, i) => block(i)).flat(),
    ["transformer.norm.weight", C],
    ["transformer.norm.bias", C],
  ];
};

// The checksum of zip files and PNG images.
const crc32 = (bytes) => {
  const table = Uint32Array.from({ length: 256 }, (_, byte) => {
    let rest = byte;
    for (let bit = 0; bit < 8; bit += 1)
      rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
    return rest;
  });
  let sum = 0xffffffff;
  for (let i = 0; i < bytes.length; i += 1)
    sum = table[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
};

// The value of each of the 65,536 numbers of 16 bits.
const halves = () =>
  Float32Array.from({ length: 2 ** 16 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });

// Reads tensor after tensor, each as float32. Copies, since no number need be aligned.
const make_reader = (buffer, start, precision) => {
  let at = start;
  const half = precision === "float16" ? halves() : null;
  const take = (Type, n) => {
    const end = at + n * Type.BYTES_PER_ELEMENT;
    const numbers = new Type(buffer.slice(at, end));
    at = end;
    return numbers;
  };
  return (n_rows, width) => {
    if (width === undefined) return take(Float32Array, n_rows);
    const n = n_rows * width;
    if (precision === "float32") return take(Float32Array, n);
    const numbers = new Float32Array(n);
    if (precision === "float16") {
      const bits = take(Uint16Array, n);
      for (let i = 0; i < n; i += 1) numbers[i] = half[bits[i]];
      return numbers;
    }
    const scales = take(Float32Array, n_rows);
    const whole = take(Int8Array, n);
    for (let r = 0, i = 0; r < n_rows; r += 1) {
      for (const end = i + width; i < end; i += 1) numbers[i] = whole[i] * scales[r];
    }
    return numbers;
  };
};

const is_object = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);

// Each merge is a pair of earlier tokens. Their lengths are added up beforehand: with a
// few dozen merges a token could be made longer than any memory.
const check_merges = (merges) => {
  const lengths = Array(256).fill(1); // bytes
  merges.forEach((pair, n) => {
    const is_earlier = (i) => Number.isInteger(i) && i >= 0 && i < 256 + n;
    if (!Array.isArray(pair) || pair.length !== 2 || !pair.every(is_earlier)) {
      throw new Error(`merge ${n} must be a pair of earlier tokens`);
    }
    lengths.push(lengths[pair[0]] + lengths[pair[1]]);
    if (lengths.at(-1) > MOST_TOKEN_BYTES) {
      throw new Error(
        `merge ${n} makes a token of more than ${MOST_TOKEN_BYTES} bytes`,
      );
    }
  });
};

const make_tokenizer = (stated, vocab_size) => {
  const { kind, characters, merges } = is_object(stated) ? stated : {};
  let tokenizer;
  if (kind === "characters" && typeof characters === "string") {
    tokenizer = new CharTokenizer(characters);
  } else if (kind === "bytes" && Array.isArray(merges)) {
    check_merges(merges);
    tokenizer = new BPETokenizer(merges);
  } else {
    throw new Error('tokenizer must be of the kind "characters" or "bytes"');
  }
  if (tokenizer.vocab_size !== vocab_size) {
    const found = `${tokenizer.vocab_size} tokens, the model ${vocab_size}`;
    throw new Error(`the tokenizer has ${found}`);
  }
  return tokenizer;
};

const parse_header = (bytes) => {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  const header = JSON.parse(text);
  if (!is_object(header)) throw new Error("it must be an object");
  const { name, precision, config, tokenizer } = header;
  if (typeof name !== "string" || [...name].length > 200) {
    throw new Error("name must be a text of at most 200 characters");
  }
  if (typeof precision !== "string" || !Object.hasOwn(BYTES, precision)) {
    throw new Error(`precision must be one of ${Object.keys(BYTES).join(", ")}`);
  }
  if (!is_object(config)) throw new Error("config is missing");
  const { vocab_size, n_layer, n_embd, block_size } = config;
  const sizes = new GPT2Config(config);
  const roughly = (vocab_size + block_size + 12 * n_layer * n_embd) * n_embd;
  const cached = 4 * n_layer * block_size * n_embd;
  if (n_layer > 1000 || roughly > MOST_PARAMETERS || cached > MOST_CACHED) {
    const limits = `${MOST_PARAMETERS / 1e6} and ${MOST_CACHED / 1e6} million numbers`;
    throw new Error(`weights, or block_size, are larger than a page bears: ${limits}`);
  }
  return {
    name,
    precision,
    config: sizes,
    tokenizer: make_tokenizer(tokenizer, vocab_size),
  };
};

const count = (n) => n.toLocaleString("en");

// What the file says of itself, once its size and its checksum are seen to be right.
const check_file = (buffer) => {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  if (bytes.length < 20 || String.fromCharCode(...bytes.subarray(0, 8)) !== MAGIC) {
    throw new Error("This is not a model's file: python -m gpt2lib.web writes them.");
  }
  const version = view.getUint32(8, true);
  if (version !== VERSION) {
    const advice = "write it again with the gpt2lib of this book";
    throw new Error(
      `The file is of version ${version}, this page reads ${VERSION}: ${advice}.`,
    );
  }
  const end = 16 + view.getUint32(12, true);
  if (end - 16 > MOST_HEADER) throw new Error("The file's header is too long.");
  if (end > bytes.length) throw new Error("The file ends within its header.");
  let header;
  try {
    header = parse_header(bytes.subarray(16, end));
  } catch (error) {
    throw new Error(`The file's header cannot be used: ${error.message}.`);
  }
  const shapes = tensor_shapes(header.config);
  const sizes = shapes.map(([, n_rows, width]) => {
    if (width === undefined) return 4 * n_rows;
    const scales = header.precision === "int8" ? 4 * n_rows : 0;
    return n_rows * width * BYTES[header.precision] + scales;
  });
  const wanted = sizes.reduce((a, b) => a + b, end + 4);
  if (bytes.length !== wanted) {
    const fault = bytes.length < wanted ? "ends early" : "goes on after its end";
    const found = `${count(bytes.length)} bytes instead of ${count(wanted)}`;
    throw new Error(`The file ${fault}: ${found}.`);
  }
  if (crc32(bytes.subarray(0, -4)) !== view.getUint32(bytes.length - 4, true)) {
    throw new Error("The file is damaged: its checksum does not fit.");
  }
  return { ...header, shapes, start: end };
};

const build = (config, tensors) => {
  const linear = (name) =>
    new Linear(tensors[`${name}.weight`], tensors[`${name}.bias`]);
  const norm = (name) =>
    new LayerNorm(tensors[`${name}.weight`], tensors[`${name}.bias`]);
  const blocks = Array.from({ length: config.n_layer }, (_, i) => {
    const block = `transformer.blocks.${i}`;
    const [attention, feedforward] = [`${block}.attention`, `${block}.feedforward`];
    return new TransformerBlock(config, {
      norm1: norm(`${block}.norm1`),
      attention: new MultiHeadSelfAttention(config, {
        qkv: linear(`${attention}.qkv`),
        proj: linear(`${attention}.proj`),
      }),
      norm2: norm(`${block}.norm2`),
      feedforward: new FeedForward({
        expand: linear(`${feedforward}.expand`),
        proj: linear(`${feedforward}.proj`),
      }),
    });
  });
  return new GPT2LMHeadModel(config, {
    token_embedding: tensors["token_embedding.weight"],
    position_embedding: tensors["position_embedding.weight"] ?? null,
    transformer: new GPT2Model(blocks, norm("transformer.norm")),
  });
};

// Checks the whole file before anything of it is used. Throws an error that says what
// is wrong; a file holds numbers and names only, and nothing in it is ever run.
export const read = (buffer) => {
  const { name, precision, config, tokenizer, shapes, start } = check_file(buffer);
  const next_tensor = make_reader(buffer, start, precision);
  const tensors = {};
  let parameters = 0;
  for (const [tensor, ...shape] of shapes) {
    const numbers = next_tensor(...shape);
    const total = numbers.reduce((a, b) => a + b, 0); // NaN or infinite if any of them is
    if (!Number.isFinite(total)) {
      throw new Error(`The file's ${tensor} holds what is no finite number.`);
    }
    tensors[tensor] = numbers;
    parameters += numbers.length;
  }
  return { name, precision, parameters, tokenizer, model: build(config, tensors) };
};
