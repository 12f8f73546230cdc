// The attention explorer (gpt2lib/explorer.py): what every head reads, as pictures and as
// tables. One module for anywidget, the site and HTML that stands alone; gpt2lib.figures
// makes a classic script of it. Text from Python reaches the page through textContent and
// attributes only.

const STYLE = `
  .panel {
    --accent: var(--book-accent, #2481be);
    --faint: color-mix(in srgb, currentColor 30%, transparent);
    container-type: inline-size;
    position: relative;
    margin: 0.5rem 0;
    padding: 0.75rem 1rem;
    border: 1px solid var(--faint);
    border-radius: 0.5rem;
    color: inherit;
    font-family: var(--book-sans, inherit);
    font-size: 0.9rem;
    line-height: 1.5;
    text-align: start;
    overflow-wrap: anywhere;
  }
  .watch {
    position: absolute;
    inline-size: 1px;
    block-size: 0;
  }
  .watch, .watch canvas { transition: color 1ms; }
  p { margin: 0; }
  select, button, input[type="text"] {
    box-sizing: border-box;
    min-inline-size: 1.5rem;
    min-block-size: 1.5rem;
    border: 1px solid color-mix(in srgb, currentColor 55%, transparent);
    border-radius: 0.25rem;
    background: none;
    color: inherit;
    font: inherit;
  }
  button { padding: 0.15rem 0.6rem; cursor: pointer; }
  button:hover { background: color-mix(in srgb, currentColor 8%, transparent); }
  select { max-inline-size: 100%; padding: 0.15rem 0.3rem; }
  option { background: Canvas; color: CanvasText; }
  :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
  bdi {
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
    white-space: pre;
  }
  canvas { display: block; color: var(--accent); }
  b { font-weight: 600; }
  small { font-size: 0.8rem; }

  .fields, .live form {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: 0.4rem 1.25rem;
  }
  .fields { margin-block: 0.25rem 0.5rem; }
  .fields label { display: flex; align-items: center; gap: 0.5rem; min-inline-size: 0; }
  .fields select { min-inline-size: 0; flex: 0 1 auto; }
  input[type="range"] {
    inline-size: 8rem;
    min-block-size: 1.5rem;
    margin: 0;
    accent-color: var(--accent);
  }
  input[type="checkbox"] {
    inline-size: 1rem;
    block-size: 1rem;
    margin: 0;
    accent-color: var(--accent);
  }
  output { min-inline-size: 4ch; font-weight: 600; font-variant-numeric: tabular-nums; }
  .choice { display: flex; }
  .choice button { border-radius: 0; margin-inline-start: -1px; }
  .choice button:first-child {
    border-start-start-radius: 0.25rem;
    border-end-start-radius: 0.25rem;
  }
  .choice button:last-child {
    border-start-end-radius: 0.25rem;
    border-end-end-radius: 0.25rem;
  }
  .choice [aria-checked="true"], button[aria-pressed="true"]:not(.token) {
    box-shadow: inset 0 -3px var(--accent);
    font-weight: 600;
  }

  .live { margin-block-end: 0.75rem; }
  .live form { gap: 0.4rem 0.75rem; }
  .live .fields { flex: 1 1 20rem; max-inline-size: 60rem; margin: 0; }
  .live label { flex: 1 1 16rem; }
  .live input {
    flex: 1;
    inline-size: 100%;
    padding: 0.15rem 0.4rem;
    font-family: ui-monospace, Menlo, Consolas, monospace;
  }
  .live .busy { min-block-size: 1.5rem; }
  .alert {
    margin-block-start: 0.5rem;
    padding: 0.25rem 0.6rem;
    border: 1px solid currentColor;
    border-inline-start-width: 4px;
    border-radius: 0.25rem;
  }

  .strip {
    display: flex;
    flex-wrap: wrap;
    gap: 2px;
    max-block-size: 11rem;
    padding: 4px;
    margin: 0 -4px 0.25rem;
    overflow: auto;
  }
  .token {
    position: relative;
    max-inline-size: 10rem;
    padding: 0 0.25rem 0.2rem;
    overflow: hidden;
    border-color: transparent;
    background: color-mix(in srgb, var(--accent) calc(38% * var(--shade, 0)), transparent);
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  .token::after { /* the weight as a length, for eyes that shades do not serve */
    content: "";
    position: absolute;
    inset-inline: 0;
    inset-block-end: 0;
    block-size: calc(4px * var(--weight, 0));
    background: var(--accent);
    forced-color-adjust: none;
    print-color-adjust: exact;
  }
  .token.reader { border-color: currentColor; }
  .token[aria-pressed="true"] { border-width: 2px; font-weight: 700; }

  .body { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0.75rem 2rem; }
  .body > * { min-inline-size: 0; }
  .actions, .off { display: flex; flex-wrap: wrap; gap: 0.4rem; margin-block-start: 0.5rem; }
  .hint { margin-block-end: 0.75rem; font-size: 0.8rem; }
  .heads {
    display: grid;
    justify-content: start;
    gap: 3px;
    padding: 4px;
    margin: 0 -4px;
    overflow: auto;
    max-block-size: 40rem;
  }
  .heads span {
    align-self: center;
    font-size: 0.75rem;
    text-align: center;
    font-variant-numeric: tabular-nums;
    line-height: 1.3;
    white-space: nowrap;
  }
  .heads.by-layer { grid-template-columns: auto repeat(var(--heads), minmax(1.5rem, 3.5rem)); }
  .heads.by-layer > span:first-child, .heads .layer {
    padding-inline-end: 0.3rem;
    text-align: end;
  }
  .heads.by-score {
    grid-template-columns: repeat(auto-fill, minmax(3.4rem, 1fr));
    justify-content: stretch;
    max-block-size: 36rem;
  }
  .heads button {
    position: relative;
    display: grid;
    padding: 0;
    overflow: hidden;
    border-color: var(--faint);
    border-radius: 2px;
  }
  .heads button span { white-space: pre-line; }
  .by-layer button span { display: none; }
  .heads canvas { inline-size: 100%; aspect-ratio: 1; image-rendering: pixelated; }
  .heads button:focus-visible { outline-offset: 0; }
  .heads [aria-checked="true"] {
    border-color: currentColor;
    outline: 2px solid currentColor;
    outline-offset: 0;
  }
  .heads [aria-checked="true"]:focus-visible { outline: 3px solid var(--accent); }
  .heads .pinned::before {
    content: "";
    position: absolute;
    inset: 0;
    border: 2px dashed currentColor;
  }
  .heads .silent::after {
    content: "×";
    position: absolute;
    inset: 0;
    display: grid;
    place-items: center;
    aspect-ratio: 1;
    font-size: 1.25rem;
    line-height: 1;
  }
  .heads .silent canvas { opacity: 0.25; }

  .panes {
    display: grid;
    grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr));
    gap: 1.25rem 1.5rem;
  }
  .pane { container: pane / inline-size; min-inline-size: 0; }
  .split { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 2rem; }
  .steps { max-inline-size: 40rem; }
  .about { min-block-size: 1.5rem; }
  .pane > small { display: block; margin-block-end: 0.25rem; }
  .about bdi {
    display: inline-block;
    max-inline-size: 12rem;
    overflow: hidden;
    text-overflow: ellipsis;
    vertical-align: bottom;
  }
  .readout { min-block-size: 1.5rem; margin-block: 0.4rem 0; }
  .floor { font-size: 0.8rem; }
  .reads { margin-block-start: 0.4rem; }
  .readout bdi, td bdi, th bdi { font-size: 0.95em; }
  .scroll { max-block-size: 34rem; padding: 3px; margin: 0 -3px; overflow: auto; }

  .heads, .matrix, .sheet { direction: ltr; }
  .matrix {
    display: grid;
    grid-template-columns: minmax(0, max-content) minmax(0, 30rem);
    inline-size: fit-content;
    max-inline-size: 100%;
    margin-block-start: 0.25rem;
  }
  .matrix.fixed { grid-template-columns: auto; max-inline-size: none; }
  .tops, .sides {
    display: grid;
    font-size: clamp(9px, calc(var(--cell) * 0.9), 0.8rem);
    line-height: 1;
  }
  .tops {
    grid-column: 2;
    grid-template-columns: repeat(var(--n), minmax(0, 1fr));
    align-items: end;
    padding-block-end: 3px;
  }
  .tops bdi {
    max-inline-size: 6rem;
    margin: 0 auto;
    writing-mode: vertical-rl;
    rotate: 180deg;
  }
  .sides {
    grid-template: repeat(var(--n), minmax(0, 1fr)) / minmax(0, 1fr);
    align-items: center;
    max-inline-size: 6.5rem;
    padding-inline-end: 4px;
    text-align: right; /* in any direction of writing */
  }
  .tops bdi, .sides bdi { display: block; overflow: clip visible; text-overflow: ellipsis; }
  .tops bdi { overflow: visible clip; }
  .single .tops bdi { overflow: visible; writing-mode: horizontal-tb; rotate: none; }
  
  .tops .on, .sides .on { font-weight: 700; text-decoration: underline; }
  .matrix.bare :is(.tops, .sides) { display: none; }
  .square {
    position: relative;
    grid-column: 2;
    inline-size: calc(var(--n) * 2.25rem);
    max-inline-size: min(100%, 30rem);
    aspect-ratio: 1;
    cursor: crosshair;
    touch-action: pan-x pan-y;
  }
  .fixed .square { inline-size: calc(var(--n) * 4px); max-inline-size: none; }
  .square canvas { inline-size: 100%; block-size: 100%; image-rendering: pixelated; }
  .square i { position: absolute; box-sizing: border-box; pointer-events: none; }
  .square .row, .square .column {
    border: 1px solid color-mix(in srgb, currentColor 45%, transparent);
  }
  .square .cell { border: 2px solid currentColor; margin: -1px; padding: 1px; }
  .key {
    display: flex;
    flex-wrap: wrap;
    gap: 0.15rem 0.7rem;
    margin-block-start: 0.4rem;
    font-size: 0.8rem;
  }
  .key span {
    display: flex;
    align-items: center;
    gap: 0.3rem;
    font-variant-numeric: tabular-nums;
  }
  .key i {
    inline-size: 0.9rem;
    block-size: 0.9rem;
    border: 1px solid var(--faint);
    background: color-mix(in srgb, var(--accent) var(--share), transparent);
    print-color-adjust: exact;
    forced-color-adjust: none;
  }

  .sheet {
    display: grid;
    grid-template-columns: minmax(0, max-content) minmax(5rem, 1fr) minmax(0, max-content);
    max-inline-size: 34rem;
  }
  .sheet canvas { inline-size: 100%; block-size: calc(var(--n) * 1.5rem); }
  .sheet .token {
    display: block;
    inline-size: 100%;
    max-inline-size: 8rem;
    block-size: 1.5rem;
    border-radius: 0;
    padding-block: 0;
    line-height: 1;
  }
  .sheet .token::after {
    inset-block: 0;
    block-size: auto;
    inline-size: calc(4px * var(--weight, 0));
  }
  .sheet .left .token { text-align: end; padding-inline-end: 0.5rem; }
  .sheet .left .token::after { inset-inline: auto 0; }
  .sheet .right .token { text-align: start; padding-inline-start: 0.5rem; }
  .sheet > p { font-size: 0.8rem; white-space: nowrap; }
  .sheet > p:first-child { text-align: end; }

  .bars {
    display: grid;
    grid-template-columns: minmax(0, max-content) minmax(0, 1fr) max-content;
    align-items: center;
    gap: 0.2rem 0.6rem;
    margin-block: 0.25rem;
    font-size: 0.8rem;
  }
  .bars canvas {
    inline-size: 100%;
    block-size: 2.6rem;
    background: linear-gradient(var(--faint), var(--faint)) center / 100% 1px no-repeat;
  }
  .bars p {
    max-inline-size: 10rem;
    overflow: hidden;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  .bars p:nth-child(3n) { font-variant-numeric: tabular-nums; }

  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  caption { padding-block-end: 0.15rem; font-size: 0.8rem; text-align: start; }
  th, td {
    padding: 0.05rem 0.9rem 0.05rem 0;
    font-weight: 400;
    text-align: start;
    white-space: nowrap;
  }
  thead th { font-size: 0.8rem; }
  .scroll thead :is(th, td), .whole tbody th {
    position: sticky;
    z-index: 1;
    background: var(--ground);
  }
  .scroll thead :is(th, td) { inset-block-start: -3px; }
  .whole tbody th, .whole thead td { inset-inline-start: -3px; }
  .whole thead td { z-index: 2; }
  th bdi, td bdi {
    display: inline-block;
    max-inline-size: 9rem;
    overflow: hidden;
    text-overflow: ellipsis;
    vertical-align: bottom;
  }
  .number { text-align: end; }
  .reads td:last-child, .next td:last-child { inline-size: 99%; padding-inline-end: 0; }
  .reads, .next, .sums { inline-size: 100%; }
  .track {
    position: relative;
    min-inline-size: 3rem;
    max-inline-size: 16rem;
    block-size: 0.9rem;
    background: color-mix(in srgb, currentColor 7%, transparent);
  }
  .track i {
    position: absolute;
    inset-block: 0;
    inset-inline-start: 0;
    box-sizing: border-box;
    print-color-adjust: exact;
  }
  .track .now {
    inset-block: 0.15rem;
    inline-size: calc(100% * var(--now));
    background: var(--accent);
    forced-color-adjust: none;
  }
  .track .before {
    inline-size: calc(100% * var(--before));
    min-inline-size: 2px;
    border: 1.5px solid color-mix(in srgb, currentColor 70%, transparent);
    border-radius: 2px;
  }
  .sums td:nth-child(2) { white-space: normal; }
  .sums td:last-child { padding-inline-end: 0; text-align: end; font-weight: 600; }
  .rows, .scroll, .heads { position: relative; }
  .rows { max-block-size: 22rem; }
  .rows .token { max-inline-size: 8rem; }
  .rows .on > * { border-block: 1px solid currentColor; }
  .rows .token::after { content: none; }
  .all { max-block-size: 24rem; }
  .whole td, .whole th { padding-inline-end: 0.6rem; font-size: 0.8rem; }
  .whole thead th { vertical-align: bottom; }
  .whole bdi { max-inline-size: 5rem; }
  summary {
    inline-size: fit-content;
    min-block-size: 1.5rem;
    margin-block-start: 0.4rem;
    cursor: pointer;
  }
  table + button { margin-block-start: 0.3rem; }
  .sums, .rows { margin-block-start: 0.6rem; }
  .nexts {
    display: grid;
    grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr));
    gap: 0.75rem 1.5rem;
  }

  .said, .reads caption.quiet {
    position: absolute;
    inline-size: 1px;
    block-size: 1px;
    margin: 0;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
  [hidden] { display: none !important; }
  @container (min-width: 42rem) {
    .body:not(.several) { grid-template: auto 1fr / fit-content(22rem) minmax(0, 1fr); }
    .body:not(.several) .detail { grid-area: 1 / 2 / 3 / 3; }
    .body.several { grid-template-columns: fit-content(22rem) minmax(0, 1fr); }
    .body.several .detail { grid-area: 2 / 1 / 3 / 3; }
    .body.several .nexts { grid-area: 1 / 2; }
  }
  @container (min-width: 64rem) {
    .body.several.several { grid-template: auto 1fr / fit-content(22rem) minmax(0, 1fr); }
    .body.several .detail { grid-area: 1 / 2 / 3 / 3; }
    .body.several .nexts { grid-area: 2 / 1; }
  }
  .facts { container-type: inline-size; min-inline-size: 0; }
  @container (max-width: 22rem) {
    :is(.reads, .next) :is(th, td) { padding-inline-end: 0.5rem; }
    :is(.reads, .next) bdi { max-inline-size: 5rem; }
    .track { min-inline-size: 2rem; }
  }
  @container pane (min-width: 48rem) {
    .split:has(> .facts:not([hidden])) {
      grid-template-columns: minmax(0, 37rem) minmax(19rem, 1fr);
    }
    .split .sheet, .split .scroll { max-inline-size: 32rem; }
  }
  @container (max-width: 30rem) {
    .heads.by-layer { column-gap: 1px; }
  }
  @media (forced-colors: active) {
    canvas { color: CanvasText; forced-color-adjust: none; }
    .track .now, .token::after { background: CanvasText; }
    .token:not(.reader, [aria-pressed="true"]) { border-color: Canvas; }
    .key i { background: color-mix(in srgb, CanvasText var(--share), transparent); }
  }
`;

const SCORES = {
  previous_token: "previous token",
  first_token: "first token",
  induction: "induction",
  entropy: "entropy",
};
const VIEWS = { matrix: "Matrix", lines: "Lines", steps: "Steps" };
const SHOWN = 8; // rows of what a token reads, until all are asked for

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const name = (text) => make("bdi", { textContent: text, title: text });
const button = (textContent, click) => {
  const element = make("button", { type: "button", textContent });
  element.addEventListener("click", click);
  return element;
};

// Whether any of the values differs from those given under this name the last time.
const memory = () => {
  const kept = new Map();
  return (label, ...values) => {
    const old = kept.get(label);
    kept.set(label, values);
    return !old || values.length !== old.length || values.some((v, i) => v !== old[i]);
  };
};

// Numbers and names, as they are written here.
const score = (x) => (x === null ? "–" : x.toFixed(2));
const amount = (x) => {
  if (!Number.isFinite(x)) return "∞";
  if (x === 0 || (x >= 0.001 && x < 1e5)) return Number(x.toPrecision(3)).toLocaleString("en");
  const [digits, power] = x.toExponential(2).split("e");
  return `${digits}·10^${Number(power)}`;
};
const signed = (x) =>
  x
    .toFixed(2)
    .replace(/^-(?!0\.00$)/, "\u2212")
    .replace("-", "");

// Text within a sentence: cut if it is long, its direction of writing kept to itself.
const short = (text) => {
  const signs = [...text];
  return `“\u2068${signs.length > 24 ? `${signs.slice(0, 23).join("")}…` : text}\u2069”`;
};
const quoted = (tokens, i) => `${short(tokens[i])} (${i})`;
const headName = ([layer, head]) => `layer ${layer}, head ${head}`;

// One text -----------------------------------------------------------------------------

const cellOf = (i, j) => (i * (i + 1)) / 2 + j; // in a lower triangle, row by row

// Numbers as base64, from Python, or as they are, from a model that runs in the page.
const decoded = (text, Type) => {
  if (typeof text !== "string") return text;
  const signs = atob(text);
  const bytes = new Uint8Array(signs.length);
  for (let n = 0; n < signs.length; n += 1) bytes[n] = signs.charCodeAt(n);
  return new Type(bytes.buffer);
};

// Scores to weights, row by row; what lies beyond the window is not read.
const softmax = (scores, unit, T, reach) => {
  const weights = new Float32Array(scores.length);
  for (let i = 0; i < T; i += 1) {
    const row = cellOf(i, 0);
    const first = Math.max(0, i + 1 - reach);
    let most = -Infinity;
    for (let j = first; j <= i; j += 1) most = Math.max(most, scores[row + j]);
    let total = 0;
    for (let j = first; j <= i; j += 1) {
      total += weights[row + j] = Math.exp((scores[row + j] - most) * unit);
    }
    for (let j = first; j <= i; j += 1) weights[row + j] /= total;
  }
  return weights;
};

// What a context holds, unpacked: each head's weights when they are first asked for.
const unpack = (context) => {
  const { tokens, window: reach, head_dim: D, summaries } = context;
  const T = tokens.length;
  const [L, H] = [summaries.entropy.length, summaries.entropy[0].length];
  const cells = cellOf(T, 0);
  const full = "scores" in context;
  const stored = decoded(full ? context.scores : context.weights, full ? Int16Array : Uint8Array);
  const parts = ["q", "k", "v"].filter((part) => part in context);
  const unpacked = (names, end, Type) =>
    Object.fromEntries(names.map((part) => [part, decoded(context[part + end], Type)]));
  const units = full && unpacked(["scores", ...parts], "_unit", Float32Array);
  const vectors = unpacked(parts, "", Int8Array);
  const known = [];

  const weights = (layer, head) => {
    const n = layer * H + head;
    const own = stored.subarray(n * cells, (n + 1) * cells);
    known[n] ??= full
      ? softmax(own, units.scores[n], T, reach ?? T)
      : Float32Array.from(own, (w) => w / 255);
    return known[n];
  };
  const scaled = (layer, head, i, j) => {
    const n = layer * H + head;
    return stored[n * cells + cellOf(i, j)] * units.scores[n];
  };
  const vector = (part, layer, head, i) => {
    const n = (layer * H + head) * T + i;
    return Array.from(vectors[part].subarray(n * D, (n + 1) * D), (x) => x * units[part][n]);
  };
  const masked = (i, j) => (j > i ? "later" : i - j >= (reach ?? T) ? "beyond" : "");
  return {
    ...context,
    T,
    L,
    H,
    D,
    full,
    hasValues: "v" in context,
    reach,
    weights,
    scaled,
    vector,
    masked,
    digits: full ? 3 : 2,
  };
};

const opened = new WeakMap();
const textOf = (context) => {
  if (!opened.has(context)) opened.set(context, unpack(context));
  return opened.get(context);
};

const shown = (p, digits) => {
  const least = 10 ** -digits;
  return p > 0 && p < least / 2 ? `<${least}` : p.toFixed(digits);
};

// Where the row i of a head has its largest weight.
const mostRead = (weights, i) => {
  const row = weights.subarray(cellOf(i, 0), cellOf(i, 0) + i + 1);
  return row.indexOf(Math.max(...row));
};

// Pictures -----------------------------------------------------------------------------

const opacity = (weight) => Math.sqrt(weight); // small weights are many, and to be seen

// The colour that the style gives an element, as red, green, blue.
const colourOf = (element) => {
  const { color } = getComputedStyle(element);
  const found = /^rgb\((\d+), (\d+), (\d+)\)$/.exec(color);
  if (found) return found.slice(1).map(Number);
  const canvas = make("canvas", { width: 1, height: 1 });
  const brush = canvas.getContext("2d");
  brush.fillStyle = color;
  brush.fillRect(0, 0, 1, 1);
  return [...brush.getImageData(0, 0, 1, 1).data.slice(0, 3)];
};

// The colour behind an element: headings that stay while rows scroll must cover them.
const groundOf = (element) => {
  for (let e = element; e; e = e.parentElement ?? e.getRootNode().host) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour && !/^transparent$|[,/] ?0\)$/.test(colour)) return colour;
  }
  return "Canvas";
};

const GROUND = 10; // of 255: what could be read, and is not

// A pixel a cell; of more than `most` tokens, the largest of some cells. The style makes
// it larger without blurring, at any resolution of the screen.
const paint = (canvas, { T, masked }, weights, [red, green, blue], floor = 0, most = T) => {
  const step = Math.ceil(T / most);
  const size = Math.ceil(T / step);
  const image = new ImageData(size, size);
  const pixels = new Uint32Array(image.data.buffer);
  const alpha = new Uint8Array(size * size);
  for (let i = 0, cell = 0; i < T; i += 1) {
    const row = Math.floor(i / step) * size;
    for (let j = 0; j <= i; j += 1, cell += 1) {
      const at = row + Math.floor(j / step);
      const weight = weights[cell];
      const own = weight >= floor ? Math.round(255 * opacity(weight)) : 0;
      const least = weight > 0 || !masked(i, j) ? GROUND : 0;
      alpha[at] = Math.max(alpha[at], own, least);
    }
  }
  const colour = red + (green << 8) + (blue << 16);
  alpha.forEach((a, at) => {
    pixels[at] = colour + a * 2 ** 24;
  });
  canvas.width = canvas.height = size;
  canvas.getContext("2d").putImageData(image, 0, 0);
};

// A brush over a canvas of as many pixels as the screen has there, or null if unseen.
const brushOf = (canvas) => {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const brush = canvas.getContext("2d");
  brush.scale(ratio, ratio);
  return { brush, width, height };
};

// Call `draw` when the element's size on the screen changes, or the screen's resolution.
const onResize = (element, draw) => {
  const observer = new ResizeObserver(draw);
  try {
    observer.observe(element, { box: "device-pixel-content-box" });
  } catch {
    observer.observe(element);
  }
  return observer;
};

// Bring a part of an area that scrolls into sight; the page stays where it is.
const reveal = (area, { offsetTop: top, offsetHeight: height }) => {
  const seen = top >= area.scrollTop && top + height <= area.scrollTop + area.clientHeight;
  if (!seen) area.scrollTop = top - area.clientHeight / 2;
};

// Keys ---------------------------------------------------------------------------------

// Arrow keys, Home and End move the focus among the buttons of a box, of which Tab
// reaches one. `columns` says how far up and down go.
const rove = (box, { columns = () => 1, moved = () => {} } = {}) => {
  const items = () => [...box.querySelectorAll("button")];
  const steps = (key) =>
    ({
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: columns(),
      ArrowUp: -columns(),
      Home: -Infinity,
      End: Infinity,
    })[key];
  box.addEventListener("keydown", (event) => {
    const step = steps(event.key);
    const all = items();
    const now = all.indexOf(event.target);
    if (!step || now < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const wanted = now + step;
    if (Number.isFinite(step) && !all[wanted]) return;
    const next = all[Math.min(Math.max(wanted, 0), all.length - 1)];
    next.focus();
    moved(next);
  });
  box.addEventListener("focusin", (event) => {
    for (const item of items()) item.tabIndex = item === event.target ? 0 : -1;
  });
};

// A row of tokens that can be looked at and locked; `told` hears of both.
const makeTokens = (properties, told) => {
  const box = make("div", { role: "group", ...properties });
  const at = (event) => Number(event.target.closest("button")?.dataset.i ?? -1);
  const look = (event) => at(event) >= 0 && told.look(at(event), event.type === "focusin");
  rove(box);
  box.addEventListener("pointerover", look);
  box.addEventListener("focusin", look);
  box.addEventListener("pointerleave", () => told.look(-1));
  box.addEventListener("focusout", () => told.look(-1));
  box.addEventListener("click", (event) => at(event) >= 0 && told.lock(at(event)));
  const fill = (tokens) => {
    box.replaceChildren(
      ...tokens.map((text, i) => {
        const token = make(
          "button",
          { type: "button", className: "token", tabIndex: i ? -1 : 0, title: `${i}: ${text}` },
          make("bdi", { textContent: text }),
        );
        token.dataset.i = i;
        return token;
      }),
    );
  };
  // `weightOf(i)` shades the tokens; `reader` is the one that reads, `locked` stays.
  const mark = (weightOf, reader, locked) => {
    [...box.children].forEach((token, i) => {
      const weight = weightOf(i);
      token.style.setProperty("--shade", opacity(weight).toFixed(3));
      token.style.setProperty("--weight", weight.toFixed(3));
      token.classList.toggle("reader", i === reader);
      token.ariaPressed = i === locked;
    });
  };
  return { box, fill, mark };
};

// All heads ----------------------------------------------------------------------------

// A head's score by which the heads are sorted, else what it does most.
const kind = ({ summaries }, sort, [layer, head]) => {
  const names = summaries[sort] ? [sort] : ["previous_token", "first_token", "induction"];
  const value = (by) => summaries[by][layer][head] ?? -1;
  const best = names.reduce((a, b) => (value(b) > value(a) ? b : a));
  return [SCORES[best], score(summaries[best][layer][head])];
};

const makeHeads = (choose) => {
  const box = make("div", { role: "radiogroup", ariaLabel: "heads" });
  const isNew = memory();
  let heads = []; // in the order of the layers, as the radios
  let radios = [];
  let width = 1; // heads of a layer
  const columns = () => {
    if (box.classList.contains("by-layer")) return width;
    const { offsetTop: top } = box.firstChild;
    return radios.filter((radio) => radio.offsetTop === top).length;
  };
  const pick = (radio) => choose(heads[radios.indexOf(radio)]);
  rove(box, { columns, moved: pick });
  box.addEventListener("click", (event) => {
    const radio = event.target.closest("button");
    if (radio) pick(radio);
  });

  const build = ({ L, H }) => {
    width = H;
    heads = Array.from({ length: L * H }, (_, n) => [Math.floor(n / H), n % H]);
    radios = heads.map(() => {
      const canvas = make("canvas", { ariaHidden: "true" });
      return make("button", { type: "button", role: "radio" }, canvas, make("span"));
    });
    box.style.setProperty("--heads", H);
  };
  const label = (words, className = "") =>
    make("span", { ariaHidden: "true", className, textContent: words });
  // In the order of the layers, with their numbers, or of a score, largest first.
  const arrange = ({ summaries }, sort) => {
    const by = summaries[sort];
    box.className = `heads ${by ? "by-score" : "by-layer"}`;
    if (by) {
      const value = (n) => by[heads[n][0]][heads[n][1]] ?? -Infinity;
      const order = [...heads.keys()].sort((a, b) => value(b) - value(a) || 0);
      return order.map((n) => radios[n]);
    }
    const numbers = Array.from({ length: width }, (_, head) => label(head));
    const rows = radios.map((radio, n) =>
      n % width ? [radio] : [label(n / width, "layer"), radio],
    );
    return [label(""), ...numbers, ...rows.flat()];
  };

  const update = ({ text, sort, ink, chosen, pinned, ablated }) => {
    let arranged = false;
    if (isNew("size", text.L, text.H)) build(text);
    if (isNew("order", radios, sort, sort === "layer" || text)) {
      box.replaceChildren(...arrange(text, sort));
      arranged = true;
    }
    if (isNew("paint", text, ink)) {
      radios.forEach((radio, n) =>
        paint(radio.firstChild, text, text.weights(...heads[n]), ink, 0, 64),
      );
    }
    const same = (pair, n) => String(pair) === String(heads[n]);
    if (isNew("names", text, sort, String(pinned), String(ablated))) {
      radios.forEach((radio, n) => {
        const [label, value] = kind(text, sort, heads[n]);
        const isPinned = same(pinned, n);
        const isOff = ablated.some((pair) => same(pair, n));
        const more = `${isPinned ? ", pinned" : ""}${isOff ? ", switched off" : ""}`;
        radio.ariaLabel = `${headName(heads[n])}, ${label} ${value}${more}`;
        radio.title = radio.ariaLabel;
        radio.classList.toggle("pinned", isPinned);
        radio.classList.toggle("silent", isOff);
        radio.lastChild.textContent = `L${heads[n][0]} H${heads[n][1]}\n${value}`;
      });
    }
    if (!isNew("chosen", radios, String(chosen)) && !arranged) return;
    radios.forEach((radio, n) => {
      const isChosen = same(chosen, n);
      radio.tabIndex = isChosen ? 0 : -1;
      if (radio.ariaChecked !== String(isChosen)) radio.ariaChecked = isChosen;
      if (isChosen && arranged) reveal(box, radio);
    });
  };
  return { box, update };
};

// One head as a matrix -----------------------------------------------------------------

// `told.look(query, key)` hears where the pointer is, `told.lock` of clicks and keys.
const makeMatrix = (told) => {
  const canvas = make("canvas", { ariaHidden: "true" });
  const [row, column, cell] = ["row", "column", "cell"].map((className) =>
    make("i", { className }),
  );
  const square = make(
    "div",
    { className: "square", tabIndex: 0, role: "application" },
    canvas,
    row,
    column,
    cell,
  );
  const tops = make("div", { className: "tops", ariaHidden: "true" });
  const sides = make("div", { className: "sides", ariaHidden: "true" });
  const matrix = make("div", { className: "matrix" }, tops, sides, square);
  const scroll = make("div", {}, matrix);
  const ruler = make("div"); // as wide, and never any higher
  const legend = make(
    "p",
    { className: "key" },
    "weight",
    ...[0.02, 0.1, 0.3, 1].map((weight) => {
      const sign = make("i");
      sign.style.setProperty("--share", `${100 * opacity(weight)}%`);
      return make("span", {}, sign, String(weight));
    }),
    "rows read, columns are read",
  );
  const isNew = memory();
  let T = 1;
  let space = 0; // pixels that there are for the matrix and its names
  let beside = 0; // those that the names of rows may take
  let at = [0, 0]; // from where arrow keys go on

  const within = (n) => Math.min(Math.max(Math.floor(n), 0), T - 1);
  const cellUnder = ({ clientX, clientY }) => {
    const { left, top, width } = square.getBoundingClientRect();
    return [within(((clientY - top) / width) * T), within(((clientX - left) / width) * T)];
  };
  square.addEventListener("pointermove", (event) => {
    const under = cellUnder(event);
    if (isNew("under", ...under)) told.look(...under);
  });
  square.addEventListener("pointerleave", () => {
    isNew("under", -1, -1);
    told.look(-1, -1);
  });
  square.addEventListener("click", (event) => told.lock(...cellUnder(event)));
  square.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    told.move(...at.map((now, n) => within(now + move[n])));
  });

  // Names stand beside the cells where a cell is as high as a letter.
  const fit = () => {
    const room = space - beside - 8;
    matrix.style.setProperty("--cell", `${Math.min(room, 480) / T}px`);
    matrix.classList.toggle("bare", room < 9 * T);
  };
  const observer = onResize(ruler, ([{ contentRect }]) => {
    space = contentRect.width;
    fit();
  });

  const place = (mark, isShown, i, j, rows, columns) => {
    const percent = (n) => `${(100 * n) / T}%`;
    mark.hidden = !isShown;
    Object.assign(mark.style, {
      top: percent(i),
      left: percent(j),
      height: percent(rows),
      width: percent(columns),
    });
  };

  const update = ({ text, weights, ink, floor, label, point }) => {
    if (isNew("text", text)) {
      T = text.T;
      matrix.style.setProperty("--n", T);
      matrix.classList.toggle("fixed", T > 64);
      scroll.className = T > 64 ? "scroll" : "";
      beside = Math.min(104, 6 * Math.max(...text.tokens.map((token) => token.length)));
      matrix.classList.toggle(
        "single",
        text.tokens.every((token) => token.length < 3),
      );
      tops.replaceChildren(...text.tokens.map(name));
      sides.replaceChildren(...text.tokens.map(name));
      if (space) fit();
    }
    if (isNew("paint", weights, ink, floor)) paint(canvas, text, weights, ink, floor);
    square.ariaLabel = `weights of ${label}: arrow keys move and lock a pair, Escape lets it go`;
    const { query, key, asked } = point;
    at = [query, key < 0 ? mostRead(weights, query) : key];
    if (!isNew("point", text, query, key, asked)) return;
    const pair = asked === "pair";
    place(row, pair || asked === "query", query, 0, 1, T);
    place(column, pair || asked === "key", 0, key, T, 1);
    place(cell, pair, query, key, 1, 1);
    [...sides.children].forEach((side, i) =>
      side.classList.toggle("on", !row.hidden && i === query),
    );
    [...tops.children].forEach((top, j) => top.classList.toggle("on", !column.hidden && j === key));
  };
  return {
    element: make("div", {}, ruler, scroll, legend),
    update,
    stop: () => observer.disconnect(),
  };
};

// One head as lines between the tokens that read and those that are read -----------------

const makeLines = (told) => {
  const canvas = make("canvas", { ariaHidden: "true" });
  const left = makeTokens(
    { className: "left", ariaLabel: "tokens that read" },
    { look: (i, byKey) => told.look(i, -1, byKey), lock: (i) => told.lock(i, -1) },
  );
  const right = makeTokens(
    { className: "right", ariaLabel: "tokens that are read" },
    { look: (j, byKey) => told.look(-1, j, byKey), lock: (j) => told.lock(-1, j) },
  );
  const sheet = make(
    "div",
    { className: "sheet" },
    make("p", { textContent: "reads" }),
    make("p"),
    make("p", { textContent: "is read" }),
    left.box,
    canvas,
    right.box,
  );
  const element = make("div", { className: "scroll" }, sheet);
  const isNew = memory();
  let draw = () => {};
  const observer = onResize(canvas, () => draw());

  const drawLines = ({ text, weights, ink, floor, point }) => {
    const space = brushOf(canvas);
    if (!space) return;
    const { brush, width, height } = space;
    const middle = (i) => ((i + 0.5) * height) / text.T;
    const line = (i, j) => {
      const weight = weights[cellOf(i, j)];
      if (weight < Math.max(floor, 0.002)) return;
      brush.strokeStyle = `rgb(${ink.join(" ")} / ${opacity(weight)})`;
      brush.lineWidth = 0.75 + 3 * weight;
      brush.beginPath();
      brush.moveTo(0, middle(i));
      brush.bezierCurveTo(width / 2, middle(i), width / 2, middle(j), width, middle(j));
      brush.stroke();
    };
    const { query, key, asked } = point;
    for (let i = 0; i < text.T; i += 1) {
      for (let j = 0; j <= i; j += 1) {
        const alone = { query: i === query, pair: i === query, key: j === key }[asked] ?? true;
        if (alone) line(i, j);
      }
    }
  };

  const update = (state) => {
    const { text, weights, ink, floor, point, locked } = state;
    const { query, key, asked } = point;
    if (isNew("text", text)) {
      sheet.style.setProperty("--n", text.T);
      left.fill(text.tokens);
      right.fill(text.tokens);
    }
    if (!isNew("lines", weights, ink, floor, query, key, asked, String(locked))) return;
    const reads = (i, j) => (j > i ? 0 : weights[cellOf(i, j)]);
    const isKey = asked === "key";
    left.mark((i) => (isKey ? reads(i, key) : 0), asked && !isKey ? query : -1, locked[0]);
    right.mark((j) => (asked && !isKey ? reads(query, j) : 0), isKey ? key : -1, locked[1]);
    draw = () => drawLines(state);
    draw();
    const lockedToken = left.box.children[locked[0]] ?? right.box.children[locked[1]];
    if (lockedToken && isNew("locked", text, String(locked))) reveal(element, lockedToken);
  };
  return { element, update, stop: () => observer.disconnect() };
};

// One weight step by step --------------------------------------------------------------

const largest = (numbers) => Math.max(0, ...numbers.map(Math.abs));

// Bars up and down from the middle: the numbers of a vector beside the largest.
const drawBars = (canvas, numbers, ink, most = largest(numbers) || 1) => {
  const space = brushOf(canvas);
  if (!space) return;
  const { brush, width, height } = space;
  const step = width / numbers.length;
  brush.fillStyle = `rgb(${ink.join(" ")})`;
  numbers.forEach((x, n) => {
    const length = (-x / most) * (height / 2 - 1);
    brush.fillRect(n * step + step * 0.1, height / 2, Math.max(step * 0.8, 0.5), length);
  });
};

// A table with a heading for each column; `set(rows)` fills it, `[0]` being a row's name.
const makeTable = (className, columns) => {
  const caption = make("caption");
  const body = make("tbody");
  const heads = columns.map((text, n) =>
    make("th", { scope: "col", textContent: text, className: n ? "number" : "" }),
  );
  const table = make(
    "table",
    { className },
    caption,
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  return { table, caption, body, heads };
};

const setRows = (body, rows) => {
  while (body.rows.length > rows.length) body.lastChild.remove();
  rows.forEach((cells, n) => {
    const row =
      body.rows[n] ??
      body.appendChild(
        make(
          "tr",
          {},
          ...cells.map((_, c) =>
            c ? make("td", { className: "number" }) : make("th", { scope: "row" }),
          ),
        ),
      );
    cells.forEach((cell, c) => {
      if (cell instanceof Node) row.cells[c].replaceChildren(cell);
      else row.cells[c].textContent = cell;
    });
  });
};

const OFF = "nothing: this head is switched off";
const WHY = { later: "it comes later", beyond: "it is beyond the window" };

// The products, the score, the mask and the softmax of the row i at j, as numbers, and
// where it is known what j has to give, that and what of it is added.
const arithmetic = ({ text, layer, head, isOff }, i, j) => {
  const [q, k] = [text.vector("q", layer, head, i), text.vector("k", layer, head, j)];
  const products = q.map((x, n) => x * k[n]);
  const weights = text.weights(layer, head);
  const root = Math.sqrt(text.D);
  // What comes later has no stored score: the bytes of q and k give nearly the same.
  const scaledAt = (at) =>
    at <= i
      ? text.scaled(layer, head, i, at)
      : text.vector("k", layer, head, at).reduce((sum, x, n) => sum + x * q[n], 0) / root;
  const row = text.tokens.map((_, at) => {
    const why = text.masked(i, at);
    return { scaled: scaledAt(at), why, weight: why ? 0 : weights[cellOf(i, at)] };
  });
  const total = row.reduce((sum, { scaled, why }) => (why ? sum : sum + Math.exp(scaled)), 0);
  const v = text.hasValues ? text.vector("v", layer, head, j) : [];
  const added = v.map((x) => (isOff ? 0 : x * row[j].weight));
  return { q, k, products, root, row, total, v, added };
};

const makeSteps = (told) => {
  const isNew = memory();
  const lanes = ["q", "k", "product", "v", "added"].map(() => [
    make("p"),
    make("canvas", { ariaHidden: "true" }),
    make("p"),
  ]);
  const bars = make("div", { className: "bars" }, ...lanes.flat());
  const note = make("p");
  const sums = makeTable("sums", ["step", "how", "result"]);
  sums.heads[1].className = "";
  const row = makeTable("row", ["token read", "q·k", "scaled", "weight"]);
  const rows = make("div", { className: "scroll rows" }, row.table);
  const features = makeTable("whole", ["feature", "q", "k", "product", "v", "weight × v"]);
  const fold = make(
    "details",
    {},
    make("summary", { textContent: "These vectors as a table" }),
    make(
      "div",
      { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "q, k and their product" },
      features.table,
    ),
  );
  const element = make("div", { className: "steps" }, note, bars, sums.table, rows, fold);
  let draw = () => {};
  const observer = onResize(bars, () => draw());
  rove(row.body);
  row.body.addEventListener("click", (event) => {
    const token = event.target.closest("button");
    if (token) told.key(Number(token.dataset.i));
  });

  const tokenButton = (text, j) => {
    const token = make(
      "button",
      { type: "button", className: "token", tabIndex: j ? -1 : 0, title: `${j}: ${text}` },
      make("bdi", { textContent: text }),
    );
    token.dataset.i = j;
    return token;
  };
  const fillRow = (text, cells, j) => {
    if (isNew("tokens", text)) {
      row.body.replaceChildren();
      setRows(
        row.body,
        text.tokens.map((token, n) => [tokenButton(token, n), "", "", ""]),
      );
    }
    cells.forEach((values, n) => {
      const line = row.body.rows[n];
      line.classList.toggle("on", n === j);
      line.cells[0].firstChild.ariaPressed = n === j;
      values.forEach((value, c) => {
        line.cells[c + 1].textContent = value;
      });
    });
    if (isNew("chosen", text, j)) reveal(rows, row.body.rows[j]);
  };

  const showFull = (state, i, j) => {
    const { text, ink, isOff } = state;
    const found = arithmetic(state, i, j);
    const { q, k, products, root, row: cells, total, v, added } = found;
    const { scaled, why, weight } = cells[j];
    const [reader, read] = [quoted(text.tokens, i), quoted(text.tokens, j)];
    const labels = [`q of ${reader}`, `k of ${read}`, "product", `v of ${read}`, "added"];
    const vectors = [q, k, products, v, added];
    vectors.forEach((numbers, n) => {
      const [label, , most] = lanes[n];
      for (const part of lanes[n]) part.hidden = !numbers.length;
      label.textContent = label.title = labels[n];
      most.textContent = `±${largest(numbers).toFixed(2)}`;
    });
    const scaleOf = (n) => (vectors[n] === added ? largest(v) || 1 : undefined);
    draw = () =>
      vectors.forEach((numbers, n) => drawBars(lanes[n][1], numbers, ink, scaleOf(n)));
    draw();
    const most = largest(added).toFixed(2);
    note.textContent = `${text.D} features, a bar each: above the line more than 0, below it less.`;
    sums.caption.textContent = `How much ${reader} reads ${read}`;
    setRows(sums.body, [
      ["q·k", `the sum of the ${text.D} products`, signed(scaled * root)],
      ["scaled", `divided by √${text.D} = ${root.toFixed(2)}`, signed(scaled)],
      [
        "mask",
        why ? `${read} cannot be read: ${WHY[why]}` : `${read} may be read`,
        why ? "−∞" : signed(scaled),
      ],
      [
        "softmax",
        why
          ? "e to the power of −∞ is 0"
          : `e to that power, ${amount(Math.exp(scaled))}, over the row's sum, ${amount(total)}`,
        shown(weight, 3),
      ],
      ...(text.hasValues
        ? [["added", isOff ? OFF : `${shown(weight, 3)} times v of ${read}`, `±${most}`]]
        : []),
    ]);
    for (const line of sums.body.rows) line.cells[1].className = "";
    row.caption.textContent = `The row of ${reader}: all that it could read`;
    fillRow(
      text,
      cells.map((cell) => [
        signed(cell.scaled * root),
        cell.why ? "−∞" : signed(cell.scaled),
        shown(cell.weight, 3),
      ]),
      j,
    );
    features.caption.textContent = sums.caption.textContent;
    if (isNew("values", text.hasValues)) {
      features.body.replaceChildren(); // their rows have more cells, or fewer
      for (const head of features.heads.slice(4)) head.hidden = !text.hasValues;
    }
    const byFeature = () =>
      setRows(
        features.body,
        q.map((x, n) => [
          n,
          ...[x, k[n], products[n], ...(text.hasValues ? [v[n], added[n]] : [])].map(signed),
        ]),
      );
    fold.ontoggle = () => fold.open && byFeature();
    fold.ontoggle();
  };

  const update = (state) => {
    const { text, weights, point, ink, layer, head, isOff } = state;
    const i = point.query;
    const j = point.key < 0 ? mostRead(weights, i) : point.key;
    if (!isNew("pair", text, weights, ink, layer, head, isOff, i, j)) return;
    for (const part of [bars, sums.table, fold]) part.hidden = !text.full;
    row.heads[1].hidden = row.heads[2].hidden = !text.full;
    if (text.full) return showFull(state, i, j);
    note.textContent =
      "Of this text the page holds the weights alone. A notebook with a kernel " +
      "has q and k: widget().";
    row.caption.textContent = `What ${quoted(text.tokens, i)} reads`;
    fillRow(
      text,
      text.tokens.map((_, n) => ["", "", n > i ? "0" : shown(weights[cellOf(i, n)], 2)]),
      j,
    );
  };
  return { element, update, stop: () => observer.disconnect() };
};

// The whole of one head, beside what one token reads --------------------------------------

// The head's matrix as a table, made row by row so that the page does not stand still.
const makeWhole = () => {
  const corner = make("td");
  const head = make("tr");
  const body = make("tbody");
  const caption = make("caption");
  const table = make("table", { className: "whole" }, caption, make("thead", {}, head), body);
  const scroll = make(
    "div",
    { className: "scroll all", tabIndex: 0, role: "group", ariaLabel: "the whole head" },
    table,
  );
  const fold = make(
    "details",
    {},
    make("summary", { textContent: "The whole head as a table" }),
    scroll,
  );
  const isNew = memory();
  let state = null;
  let frame = 0;
  const rowOf = ({ text, weights }, i) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name(text.tokens[i])),
      ...text.tokens
        .slice(0, i + 1)
        .map((_, j) =>
          make("td", { className: "number", textContent: shown(weights[cellOf(i, j)], 2) }),
        ),
      ...(i + 1 < text.T ? [make("td", { colSpan: text.T - i - 1 })] : []),
    );
  const fill = (from) => {
    const { text } = state;
    let cells = 0;
    let i = from;
    for (; i < text.T && cells < 700; i += 1) {
      body.append(rowOf(state, i));
      cells += i + 1;
    }
    frame = i < text.T ? requestAnimationFrame(() => fill(i)) : 0;
  };
  const show = () => {
    if (!fold.open || !isNew("head", state.text, state.weights)) return;
    cancelAnimationFrame(frame);
    caption.textContent = `${state.label}: rows read, columns are read`;
    head.replaceChildren(
      corner,
      ...state.text.tokens.map((token) =>
        make("th", { scope: "col", className: "number" }, name(token)),
      ),
    );
    body.replaceChildren();
    fill(0);
  };
  fold.addEventListener("toggle", show);
  const update = (now) => {
    state = now;
    show();
  };
  return { element: fold, update, stop: () => cancelAnimationFrame(frame) };
};

const makeReads = () => {
  const { table, caption, body } = makeTable("reads", ["position", "token", "weight", ""]);
  table.tHead.rows[0].cells[1].className = "";
  table.tHead.rows[0].cells[3].replaceWith(make("td"));
  const isNew = memory();
  let all = false;
  let state = null;
  const more = button("", () => {
    all = !all;
    show();
  });
  const show = () => {
    const { text, weights, point } = state;
    const i = point.query;
    const order = Array.from({ length: i + 1 }, (_, j) => j);
    const weightOf = (j) => weights[cellOf(i, j)];
    order.sort((a, b) => weightOf(b) - weightOf(a));
    const rows = order.slice(0, all ? undefined : SHOWN);
    caption.textContent = `What ${quoted(text.tokens, i)} reads`;
    const rest = order.slice(rows.length).reduce((sum, j) => sum + weightOf(j), 0);
    const lines = rows.map((j) => [String(j), name(text.tokens[j]), weightOf(j)]);
    if (rest) lines.push(["others", `${order.length - rows.length} of them`, rest]);
    setRows(
      body,
      lines.map(([at, token, weight]) => {
        const track = make(
          "div",
          { className: "track", ariaHidden: "true" },
          make("i", { className: "now" }),
        );
        track.style.setProperty("--now", weight);
        return [at, token, shown(weight, text.digits), track];
      }),
    );
    for (const row of body.rows) row.cells[1].className = "";
    more.textContent = all ? `Show ${SHOWN}` : `Show all ${order.length}`;
    more.hidden = order.length <= SHOWN;
  };
  const update = (now) => {
    state = now;
    if (isNew("row", now.text, now.weights, now.point.query)) show();
  };
  return { element: make("div", {}, table, more), update, stop() {} };
};

// A head on a text ---------------------------------------------------------------------

const PICTURES = { matrix: makeMatrix, lines: makeLines, steps: makeSteps };

const belowFloor = (weights, floor) =>
  weights.reduce((count, weight) => count + (weight < floor), 0);

// What the pictures show of one pair, or of the token that is looked at, in words.
const inWords = ({ text, weights, point: { query, key, asked } }) => {
  const named = (i) => quoted(text.tokens, i);
  const weight = (i, j) => shown(weights[cellOf(i, j)], text.digits);
  if (asked === "pair") {
    const why = text.masked(query, key);
    if (why) return `${named(query)} cannot read ${named(key)}: ${WHY[why]}`;
    return `${named(query)} reads ${named(key)}: ${weight(query, key)}`;
  }
  if (asked === "key") {
    let best = key;
    for (let i = key; i < text.T; i += 1) {
      if (weights[cellOf(i, key)] > weights[cellOf(best, key)]) best = i;
    }
    return `${named(key)} is read most by ${named(best)}: ${weight(best, key)}`;
  }
  const most = mostRead(weights, query);
  return `${named(query)} reads ${named(most)} most: ${weight(query, most)}`;
};

const makePane = (host) => {
  const title = make("p", { className: "about" });
  const scores = make("p");
  const slot = make("div");
  const readout = make("p", { className: "readout" });
  const limit = make("p", { className: "floor" });
  const reads = makeReads();
  const whole = makeWhole();
  const facts = make("div", { className: "facts" }, readout, limit, reads.element);
  const element = make(
    "div",
    { className: "pane", role: "group" },
    title,
    make("small", {}, scores),
    make("div", { className: "split" }, slot, facts),
    whole.element,
  );
  const isNew = memory();
  let state = null;
  let picture = null;
  const told = {
    look: (query, key, byKey) => host.look(state.index, query, key, byKey),
    lock: (query, key) => host.lock(state.index, query, key),
    move: (query, key) => host.move(state.index, query, key),
    key: (key) => host.move(state.index, state.point.query, key),
  };

  const update = (now) => {
    const { text, layer, head, view, floor, note, named } = now;
    const weights = text.weights(layer, head);
    state = { ...now, weights, label: headName([layer, head]) };
    if (isNew("view", view)) {
      picture?.stop();
      picture = PICTURES[view](told);
      slot.replaceChildren(picture.element);
    }
    if (isNew("head", text, layer, head, note, named)) {
      element.ariaLabel = `${state.label} on ${short(text.text)}`;
      title.replaceChildren(
        make("b", { textContent: state.label }),
        note,
        ...(named ? [" on ", name(text.text)] : []),
      );
      scores.textContent = Object.entries(SCORES)
        .map(([by, label]) => `${label} ${score(text.summaries[by][layer][head])}`)
        .join(" · ");
    }
    picture.update(state);
    facts.hidden = view === "steps";
    limit.hidden = !floor;
    readout.textContent = inWords(state);
    if (isNew("floor", weights, floor)) {
      limit.textContent = floor
        ? `${belowFloor(weights, floor)} of ${weights.length} weights ` +
          `below ${floor.toFixed(2)} not drawn`
        : "";
    }
    reads.update(state);
    whole.update(state);
  };
  const stop = () => {
    picture.stop();
    whole.stop();
  };
  return { element, update, stop, said: () => `${state.label}: ${inWords(state)}` };
};

// What comes next: the likeliest tokens, before and after where heads are switched off.
const makeNext = () => {
  const element = make("div", { className: "facts" });
  const isNew = memory();
  const update = ({ text, named }) => {
    if (!isNew("text", text, named)) return;
    const twice = text.next[0].length > 2;
    const columns = twice ? ["token", "before", "after", ""] : ["token", "probability", ""];
    const { table, caption, body } = makeTable("next", columns);
    table.tHead.rows[0].lastChild.replaceWith(make("td"));
    caption.textContent = `The likeliest next tokens${named ? ` after ${short(text.text)}` : ""}`;
    setRows(
      body,
      text.next.map(([token, now, before]) => {
        const track = make(
          "div",
          { className: "track", ariaHidden: "true" },
          make("i", { className: "before", hidden: !twice }),
          make("i", { className: "now" }),
        );
        track.style.setProperty("--now", now);
        track.style.setProperty("--before", before ?? 0);
        return [name(token), ...(twice ? [shown(before, 3)] : []), shown(now, 3), track];
      }),
    );
    element.replaceChildren(table);
  };
  return { element, update };
};

// Controls -----------------------------------------------------------------------------

// Buttons of which one is chosen.
const makeChoice = (label, options, choose) => {
  const box = make("div", { className: "choice", role: "radiogroup", ariaLabel: label });
  const radios = Object.entries(options).map(([value, text]) => {
    const radio = button(text, () => choose(value));
    radio.role = "radio";
    radio.dataset.value = value;
    return radio;
  });
  box.append(...radios);
  rove(box, { moved: (radio) => choose(radio.dataset.value) });
  const update = (value) => {
    for (const radio of radios) {
      radio.ariaChecked = radio.dataset.value === value;
      radio.tabIndex = radio.dataset.value === value ? 0 : -1;
    }
  };
  return { box, update };
};

const makeSelect = (label, options, choose) => {
  const select = make(
    "select",
    {},
    ...options.map(([value, text]) => make("option", { value, textContent: text })),
  );
  select.addEventListener("change", () => choose(select.value));
  return { select, element: make("label", {}, label, select) };
};

// What only works where Python listens: other texts, and heads switched off.
const makeLive = (model, set) => {
  const fields = make("div", { className: "fields" });
  const busy = make("p", { className: "busy", role: "status" });
  const alert = make("p", { role: "alert" });
  const form = make(
    "form",
    {},
    fields,
    make("button", { type: "submit", textContent: "Read" }),
    busy,
  );
  const toggle = button("", () => switchTo(chosen(), !isOff(chosen())));
  const list = make("p", { className: "off" });
  const element = make("div", { className: "live" }, form, alert);
  const isNew = memory();
  let inputs = [];
  let asked = null; // how often Python had answered when it was last asked

  const chosen = () => [model.get("layer"), model.get("head")];
  const isOff = (pair) => model.get("ablated").some((other) => String(other) === String(pair));
  const ask = (values) => {
    asked = [model.get("answered")];
    set(values);
  };
  const switchTo = (pair, off) => {
    const others = model.get("ablated").filter((other) => String(other) !== String(pair));
    ask({ ablated: off ? [...others, pair] : others });
    toggle.focus();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompts = inputs.map(({ value }) => value);
    const known = model.get("prompts");
    if (prompts.some((prompt, n) => prompt !== known[n])) ask({ prompts });
  });

  const update = (indexes) => {
    const prompts = model.get("prompts");
    element.hidden = !prompts.length; // texts come from elsewhere
    if (prompts.length !== inputs.length) {
      const type = { type: "text", autocomplete: "off", spellcheck: false };
      inputs = prompts.map(() => make("input", type));
      const label = (n) => (prompts.length > 1 ? `text ${n + 1}` : "text");
      fields.replaceChildren(...inputs.map((input, n) => make("label", {}, label(n), input)));
    }
    if (isNew("prompts", prompts)) inputs.forEach((input, n) => (input.value = prompts[n]));
    inputs.forEach((input, n) => {
      input.parentElement.hidden = !indexes.includes(n);
    });
    if (asked && asked[0] !== model.get("answered")) asked = null;
    if (isNew("busy", asked)) busy.textContent = asked ? "Python is working …" : "";
    const message = model.get("message");
    if (isNew("message", message)) alert.textContent = message;
    alert.className = message ? "alert" : "";
    toggle.textContent = isOff(chosen()) ? "Switch this head on" : "Switch off this head";
    if (!isNew("off", String(model.get("ablated")))) return;
    list.replaceChildren(
      ...model
        .get("ablated")
        .map((pair) => button(`Restore ${headName(pair)}`, () => switchTo(pair, false))),
    );
  };
  return { element, toggle, list, update };
};

// All of it ----------------------------------------------------------------------------

const TRAITS = (
  "contexts prompts layer head context query key pinned both view threshold sort ablated " +
  "message answered"
).split(" ");

function render({ model, el }) {
  const get = (trait) => model.get(trait);
  const probe = make("canvas", { width: 0, height: 0, ariaHidden: "true" });
  const watch = make("div", { className: "watch" }, probe);
  const said = make("p", { className: "said", role: "status", ariaLive: "polite" });
  const strips = make("div");
  const panes = make("div", { className: "panes" });
  const nexts = make("div", { className: "nexts" });
  const isNew = memory();
  let ink = []; // red, green, blue
  let preview = null; // the text, and positions in it, that are looked at
  let rows = []; // a strip for each text that is shown
  let shownPanes = [];
  let shownNexts = [];
  let waiting; // the timer of the live region
  let own = false; // whether a change comes from here

  const say = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      said.textContent = shownPanes.map((pane) => pane.said()).join(". ");
    }, 400);
  };
  const changed = () => {
    update();
    say();
  };
  const set = (values) => {
    own = true;
    for (const [trait, value] of Object.entries(values)) model.set(trait, value);
    model.save_changes();
    own = false;
    changed();
  };

  const at = () => Math.min(get("context"), get("contexts").length - 1);
  const size = (index) => get("contexts")[index].tokens.length;
  // Which text is the chosen one; positions that it does not have are let go.
  const show = (context) => {
    const fits = Math.max(get("query"), get("key")) < size(context);
    preview = null;
    set(fits ? { context } : { context, query: -1, key: -1 });
  };
  const host = {
    look(index, query, key = -1, byKey = false) {
      preview = query < 0 && key < 0 ? null : { index, query, key };
      update();
      if (byKey) say();
    },
    move(context, query, key) {
      preview = null;
      set({ context, query, key });
    },
    lock(context, query, key = -1) {
      const again = context === at() && query === get("query") && key === get("key");
      host.move(context, again ? -1 : query, again ? -1 : key);
    },
  };

  // The row and the column to be shown of a text, and which of them somebody asked for.
  const pointIn = (index) => {
    const T = size(index);
    const { query, key } =
      preview?.index === index ? preview : { query: get("query"), key: get("key") };
    const [hasRow, hasColumn] = [query, key].map((place) => place >= 0 && place < T);
    const asked = hasRow ? (hasColumn ? "pair" : "query") : hasColumn ? "key" : "";
    const kept = get("query"); // while a column is looked at, the row stays
    const row = hasRow ? query : kept >= 0 && kept < T ? kept : T - 1;
    return { query: row, key: hasColumn ? key : -1, asked };
  };

  const heads = makeHeads(([layer, head]) => set({ layer, head }));
  const views = makeChoice("view", VIEWS, (view) => set({ view }));
  const sort = makeSelect("order of heads", [["layer", "layer"], ...Object.entries(SCORES)], (by) =>
    set({ sort: by }),
  );
  const texts = makeSelect("text", [], (index) => show(Number(index)));
  const both = make("input", { type: "checkbox" });
  both.addEventListener("change", () => set({ both: both.checked }));
  const bothLabel = make("span");
  const side = make("label", {}, both, bothLabel);
  const slider = make("input", { type: "range", min: 0, max: 1, step: 0.01 });
  const floorShown = make("output", { ariaLive: "off" });
  slider.addEventListener("input", () => set({ threshold: slider.valueAsNumber }));
  const floor = make("label", {}, "hide below", slider, floorShown);
  const compare = button("", () =>
    set({ pinned: get("pinned").length ? [] : [get("layer"), get("head")] }),
  );
  const live = get("live") ? makeLive(model, set) : null;

  const showControls = (contexts, indexes) => {
    if (isNew("contexts", contexts)) {
      texts.select.replaceChildren(
        ...contexts.map(({ text }, value) => make("option", { value, textContent: text })),
      );
      texts.element.parentElement.hidden = contexts.length < 2;
      bothLabel.textContent =
        contexts.length > 2 ? "all texts side by side" : "both texts side by side";
    }
    texts.select.value = at();
    both.checked = get("both");
    views.update(get("view"));
    sort.select.value = get("sort");
    slider.value = get("threshold");
    floorShown.textContent = get("threshold").toFixed(2);
    floor.hidden = get("view") === "steps";
    const pinned = get("pinned");
    compare.textContent = pinned.length ? `Unpin ${headName(pinned)}` : "Compare";
    compare.ariaPressed = pinned.length > 0;
    live?.update(indexes);
  };

  // As many strips, panes or tables as there is to show; those that stay are kept.
  const fitNumber = (kept, wanted, box, makeOne) => {
    while (kept.length > wanted) {
      const gone = kept.pop();
      gone.stop?.();
      gone.element.remove();
    }
    while (kept.length < wanted) {
      const one = makeOne();
      kept.push(one);
      box.append(one.element);
    }
  };
  const makeStrip = () => {
    const strip = { index: 0, isNew: memory() };
    strip.tokens = makeTokens(
      { className: "strip" },
      {
        look: (i, byKey) => host.look(strip.index, i, -1, byKey),
        lock: (i) => host.lock(strip.index, i),
      },
    );
    strip.element = strip.tokens.box;
    strip.update = (index, text, weights, query) => {
      strip.index = index;
      if (strip.isNew("text", text)) strip.tokens.fill(text.tokens);
      strip.element.ariaLabel = `tokens of ${short(text.text)}`;
      const locked = index === at() ? get("query") : -1;
      if (!strip.isNew("row", weights, query, locked)) return;
      strip.tokens.mark((j) => (j > query ? 0 : weights[cellOf(query, j)]), query, locked);
    };
    return strip;
  };

  const update = () => {
    const contexts = get("contexts");
    const several = get("both") && contexts.length > 1;
    const indexes = several ? contexts.map((_, index) => index) : [at()];
    const [chosen, pinned] = [[get("layer"), get("head")], get("pinned")];
    const comparing = pinned.length > 0 && String(pinned) !== String(chosen);
    const pairs = comparing ? [pinned, chosen] : [chosen];
    const text = textOf(contexts[at()]);
    showControls(contexts, indexes);
    heads.update({ text, sort: get("sort"), ink, chosen, pinned, ablated: get("ablated") });

    const all = indexes.flatMap((index) => pairs.map((pair) => ({ index, pair })));
    fitNumber(rows, indexes.length, strips, makeStrip);
    fitNumber(shownPanes, all.length, panes, () => makePane(host));
    fitNumber(shownNexts, indexes.length, nexts, makeNext);
    body.classList.toggle("several", all.length > 1);
    indexes.forEach((index, n) => {
      const one = textOf(contexts[index]);
      rows[n].update(index, one, one.weights(...chosen), pointIn(index).query);
      shownNexts[n].update({ text: one, named: several });
    });
    all.forEach(({ index, pair: [layer, head] }, n) => {
      const note = comparing ? (n % 2 ? ", chosen" : ", pinned") : "";
      const locked = index === at() ? [get("query"), get("key")] : [-1, -1];
      shownPanes[n].update({
        index,
        text: textOf(contexts[index]),
        layer,
        head,
        isOff: get("ablated").some((pair) => String(pair) === String([layer, head])),
        note,
        named: several,
        ink,
        locked,
        view: get("view"),
        floor: get("threshold"),
        point: pointIn(index),
      });
    });
  };

  const body = make(
    "div",
    { className: "body" },
    make(
      "div",
      {},
      make("div", { className: "fields" }, sort.element),
      heads.box,
      make("div", { className: "actions" }, compare, ...(live ? [live.toggle] : [])),
      ...(live ? [live.list] : []),
    ),
    make(
      "div",
      { className: "detail" },
      make("div", { className: "fields" }, views.box, floor),
      panes,
    ),
    nexts,
  );
  const hint = make("p", {
    className: "hint",
    textContent: "The framed token reads the shaded ones.",
  });
  const panel = make(
    "div",
    { className: "panel", role: "group", ariaLabel: "attention explorer" },
    watch,
    ...(live ? [live.element] : []),
    make("div", { className: "fields" }, texts.element, side),
    strips,
    hint,
    body,
    said,
  );
  // JupyterLab would cancel the Enter that sends a text.
  panel.addEventListener("beforeinput", (event) => event.stopPropagation());
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!preview && get("query") < 0 && get("key") < 0) return;
    event.stopPropagation();
    host.move(at(), -1, -1);
  });

  // The style's colours change with the page's theme, and are there once it is attached.
  const recolour = () => {
    const now = colourOf(probe);
    const ground = groundOf(panel);
    panel.style.setProperty("--ground", ground);
    const [red, green, blue] = ground.match(/^rgb/) ? ground.match(/[\d.]+/g).map(Number) : [];
    if (blue >= 0) panel.style.colorScheme = red + green + blue < 382 ? "dark" : "light";
    if (String(now) === String(ink)) return;
    ink = now;
    update();
  };
  for (const end of ["transitionend", "transitioncancel"]) {
    watch.addEventListener(end, recolour); // cancelled where a theme comes in steps
  }
  const observer = new ResizeObserver(recolour);

  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's keys stay outside
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  root.replaceChildren(make("style", { textContent: STYLE }), panel);
  recolour();
  observer.observe(watch);

  const heard = () => own || changed();
  for (const trait of TRAITS) model.on(`change:${trait}`, heard);
  return () => {
    clearTimeout(waiting);
    observer.disconnect();
    for (const pane of shownPanes) pane.stop();
    for (const trait of TRAITS) model.off(`change:${trait}`, heard);
  };
}

export default { render };
