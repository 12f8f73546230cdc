// The play panel (gpt2lib/play_panel.py): a model that runs in the page. Here are the text,
// the controls and the tables; the model itself runs in a worker, so that the page never
// waits for it. Until somebody touches the panel it shows an example that Python made.
// Text from Python, from the model and from files reaches the page through textContent,
// value and attributes only.

import explorer from "./attention-explorer.js";
import WORKER from "./play-worker.js" with { type: "text" };

const HERE = document.currentScript?.src; // known only while the script runs for the first time

const ROWS = 10; // of the likeliest next tokens
const MOST_TOKENS = 10_000; // of one stream
const MOST_READ = 20_000; // characters; a longer text is read from there on
const MOST_LINKED = 10_000; // characters that a link may bring
const MOST_BYTES = 300e6; // of a file of the reader's
const REST = 250; // milliseconds without a change, until attention is asked for
const PACE = 500; // milliseconds between two steps where motion is to be reduced

const STYLE = `
  .play {
    --accent: var(--book-accent, #2481be);
    --faint: color-mix(in srgb, currentColor 30%, transparent);
    --edge: color-mix(in srgb, currentColor 55%, transparent);
    container-type: inline-size;
    margin: 0.5rem 0;
    color: inherit;
    font-family: var(--book-sans, inherit);
    font-size: 0.9rem;
    line-height: 1.5;
    text-align: start;
    overflow-wrap: anywhere;
  }
  .box {
    padding: 0.75rem 1rem;
    border: 1px solid var(--faint);
    border-radius: 0.5rem;
  }
  .over .box { outline: 2px dashed var(--accent); outline-offset: -6px; }
  p { margin: 0; }
  h2, h3, h4, h5, h6 { margin: 0 0 0.25rem; font-size: 1rem; font-weight: 600; line-height: 1.5; }
  b { font-weight: 600; }
  small { font-size: 0.8rem; }
  bdi {
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
    white-space: pre;
  }
  button, textarea {
    box-sizing: border-box;
    border: 1px solid var(--edge);
    border-radius: 0.25rem;
    background: none;
    color: inherit;
    font: inherit;
  }
  button { min-block-size: 1.75rem; padding: 0.1rem 0.75rem; cursor: pointer; }
  button:hover { background: color-mix(in srgb, currentColor 8%, transparent); }
  :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
  input { min-block-size: 1.5rem; margin: 0; accent-color: var(--accent); }
  input[type="range"] { inline-size: 100%; }
  input[type="checkbox"] { inline-size: 1rem; }
  output, td, .figures { font-variant-numeric: tabular-nums; }

  .model, .head, .buttons, .checks {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: 0.4rem 0.75rem;
  }
  .model { margin-block-end: 0.6rem; }
  .model .about { flex: 1 1 18rem; }
  .state { margin-inline-start: 0.5rem; white-space: nowrap; }
  .state::before {
    content: "";
    display: inline-block;
    inline-size: 0.6rem;
    block-size: 0.6rem;
    margin-inline-end: 0.4rem;
    border: 1.5px solid currentColor;
    border-radius: 50%;
  }
  .state.runs::before {
    border-color: var(--accent);
    background: var(--accent);
    forced-color-adjust: none;
    print-color-adjust: exact;
  }
  .head { justify-content: space-between; }
  label { font-weight: 600; }
  .checks label { display: flex; align-items: center; gap: 0.4rem; font-weight: 400; }
  textarea {
    display: block;
    inline-size: 100%;
    min-block-size: 5.5rem;
    max-block-size: 80vh;
    padding: 0.4rem 0.6rem;
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
    resize: vertical;
  }
  .buttons { margin-block: 0.5rem; }
  .buttons .checks { flex: 1; justify-content: end; }
  .stream { min-inline-size: 5.5rem; }
  .message {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: 0.4rem 0.75rem;
    margin-block: 0.5rem;
    padding: 0.25rem 0.6rem;
    border: 1px solid currentColor;
    border-inline-start-width: 4px;
    border-radius: 0.25rem;
  }
  .note { margin-block: 0.25rem; }

  .parts { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem 2.5rem; }
  .parts > * { min-inline-size: 0; }
  .side {
    display: grid;
    grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
    align-content: start;
    gap: 1rem 2.5rem;
  }
  section { margin-block-start: 1rem; }
  .controls {
    display: grid;
    grid-template-columns: max-content minmax(5rem, 1fr) 4ch;
    gap: 0.25rem 0.75rem;
    max-inline-size: 34rem;
  }
  .controls > div {
    display: grid;
    grid-column: 1 / -1;
    grid-template-columns: subgrid;
    align-items: center;
    min-block-size: 2rem;
  }
  .controls label { font-weight: 400; }
  output { font-weight: 600; }

  table { inline-size: 100%; border-collapse: collapse; overflow-wrap: normal; }
  caption { overflow-wrap: anywhere; }
  caption { padding-block-end: 0.25rem; text-align: start; }
  th, td {
    padding: 0.1rem 0.9rem 0.1rem 0;
    font-weight: 400;
    text-align: start;
    white-space: nowrap;
  }
  thead th { font-size: 0.8rem; vertical-align: bottom; }
  .number { text-align: end; }
  .counts :is(th, td):last-child, .lens :is(th, td):last-child { padding-inline-end: 0; }
  .counts { max-inline-size: 26rem; }
  .counts th { white-space: normal; }
  .counts td { padding-inline-end: 0.6rem; }
  .next .token {
    display: block;
    min-inline-size: 2.25rem;
    max-inline-size: 9rem;
    min-block-size: 1.5rem;
    padding: 0 0.4rem;
    overflow: hidden;
    line-height: 1.2;
    text-align: start;
    text-overflow: ellipsis;
  }
  .next td:last-child, .next th:last-child { inline-size: 99%; padding-inline-end: 0; }
  .lens td:last-child { inline-size: 40%; }
  .lens td > span:first-child {
    display: inline-block;
    max-inline-size: 7rem;
    overflow: hidden;
    text-overflow: ellipsis;
    vertical-align: bottom;
  }
  .last { display: grid; grid-template-columns: 6ch 1fr; align-items: center; gap: 0.5rem; }

  .track, .key {
    position: relative;
    min-inline-size: 2rem;
    block-size: 1.15rem;
    background: color-mix(in srgb, currentColor 7%, transparent);
  }
  .track { /* a line at each quarter */
    background-image:
      linear-gradient(to right, transparent calc(100% - 1px), var(--faint) 0);
    background-size: 25%;
  }
  .key {
    display: inline-block;
    min-inline-size: 0;
    inline-size: 1.1rem;
    block-size: 0.8rem;
    margin-inline-end: 0.35rem;
    vertical-align: -0.08rem;
  }
  i {
    position: absolute;
    inset-inline-start: 0;
    box-sizing: border-box;
    print-color-adjust: exact;
  }
  .before {
    inset-block: 0;
    inline-size: calc(100% * var(--before, 1));
    min-inline-size: 2px;
    border: 1.5px solid color-mix(in srgb, currentColor 70%, transparent);
    border-radius: 2px;
  }
  .cut .before { border-style: dashed; }
  .after {
    inset-block: 0.25rem;
    inline-size: calc(100% * var(--after, 1));
    background: var(--accent);
    forced-color-adjust: none;
  }
  .whole {
    inset-block: -1px;
    inline-size: 3px;
    margin-inline-start: -1.5px;
    background: currentColor;
  }
  .track .whole { inset-inline-start: calc(100% * var(--whole)); }
  .key .whole { inset-inline-start: 50%; }
  .key .after { inset-block: 0.15rem; }
  .said, .file {
    position: absolute;
    inline-size: 1px;
    block-size: 1px;
    margin: 0;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
  [hidden] { display: none !important; }
  @container (min-width: 56rem) {
    .parts:has(.side) { grid-template-columns: minmax(0, 1fr) minmax(17rem, 24rem); }
  }
  @container (max-width: 34rem) {
    .box { padding-inline: 0.75rem; }
    th, td { padding-inline-end: 0.5rem; }
    .next thead th { white-space: normal; }
    .next .key { display: block; margin-inline: auto 0; }
    .next .token { max-inline-size: 5.5rem; }
    /* Bars go below, over the whole width: of the table, as Safari places none by its row. */
    .next { position: relative; }
    .next tbody :is(th, td) { padding-block-end: 1.1rem; }
    .next tbody td:last-child { vertical-align: bottom; }
    .next thead th:last-child { display: none; }
    .next .track { position: absolute; inset-inline: 0; block-size: 0.7rem; }
    .next .track .after { inset-block: 0.15rem; }
    .lens .more { display: none; }
    .lens thead th { white-space: normal; }
    .lens .track { min-inline-size: 1rem; }
    .buttons .checks { flex: none; }
  }
  @media (prefers-reduced-motion: no-preference) {
    .after { transition: inline-size 120ms ease-out; }
    .streams .after { transition: none; }
  }
  @media (forced-colors: active) {
    .after, .state.runs::before { background: CanvasText; }
  }
  @media print {
    .buttons, .model button { display: none; }
  }
`;

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const button = (textContent, click, className = "") => {
  const element = make("button", { type: "button", textContent, className });
  element.addEventListener("click", click);
  return element;
};
// Tables change many times a second: what is as it was is not touched.
const put = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

// With a comma after each thousand: toLocaleString would take a frame's time for its tables.
const whole = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ",");
const counted = (n, word) => `${whole(n)} ${word}${n === 1 ? "" : "s"}`;
const number = (p) => (p > 0 && p < 0.0005 ? "<0.001" : p.toFixed(3));
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`;
// Characters that the model lacks, so that each can be seen.
const listed = (signs) => {
  const code = (sign) => `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const names = [...signs].map((sign) => (/[\p{C}\p{Z}\p{M}]/u.test(sign) ? code(sign) : sign));
  return names.length > 20 ? `${names.slice(0, 20).join(" ")} …` : names.join(" ");
};
// Text within a sentence, its direction of writing kept to itself: its end, if it is long.
const quoted = (text) => {
  const signs = [...text.slice(-50).replaceAll("\n", "↵")];
  const cut = signs.length > 24 ? `…${signs.slice(-23).join("")}` : signs.join("");
  return `“\u2068${cut}\u2069”`;
};

// Files of weights ---------------------------------------------------------------------

const SLICE = 2 ** 20; // of base64, a multiple of 4

// Base64 to bytes, in slices, so that the page does not stand still.
const decoded = async (text) => {
  const parts = [];
  for (let at = 0; at < text.length; at += SLICE) {
    const signs = atob(text.slice(at, at + SLICE));
    const bytes = new Uint8Array(signs.length);
    for (let n = 0; n < signs.length; n += 1) bytes[n] = signs.charCodeAt(n);
    parts.push(bytes);
    await new Promise((done) => setTimeout(done));
  }
  return new Blob(parts).arrayBuffer();
};

const fetched = async (address, tell) => {
  const answer = await fetch(new URL(address, HERE));
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const parts = [];
  let size = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    size += part.value.length;
    tell(size);
  }
  return new Blob(parts).arrayBuffer();
};

// A page that was opened from a folder may fetch nothing, but it may run a script.
const scripted = async (address) => {
  globalThis.gpt2Files ??= {};
  const script = make("script", { src: new URL(`${address}.js`, HERE).href });
  await new Promise((load, fail) => {
    script.addEventListener("load", load);
    script.addEventListener("error", () => fail(new Error("the file is not there")));
    document.head.append(script);
  });
  script.remove();
  const text = globalThis.gpt2Files[address];
  delete globalThis.gpt2Files[address];
  return decoded(text);
};

const downloads = new Map(); // by address: one for all panels of a page

const download = async (address, tell) => {
  if (!downloads.has(address)) {
    const listeners = [];
    const get = location.protocol === "file:" ? scripted : fetched;
    const bytes = get(address, (size) => listeners.forEach((listener) => listener(size)));
    downloads.set(address, { bytes, listeners });
    bytes.catch(() => downloads.delete(address)); // the next try starts anew
  }
  const { bytes, listeners } = downloads.get(address);
  listeners.push(tell);
  const copy = (await bytes).slice(0); // a worker takes what it is given away
  listeners.splice(listeners.indexOf(tell), 1);
  return copy;
};

// The model of the book, and one of the reader's. `isBook` tells them apart.
const bookModel = ({ address, data }) => ({
  isBook: true,
  load: (tell) => (data ? decoded(data) : download(address, tell)),
});
const ownModel = (file) => ({
  isBook: false,
  async load() {
    if (file.size <= MOST_BYTES) return file.arrayBuffer();
    throw new Error(`it has ${megabytes(file.size)}, and ${megabytes(MOST_BYTES)} are allowed`);
  },
});

// The worker ---------------------------------------------------------------------------

const FORBIDDEN =
  "The model cannot run in this page: whoever shows it allows no workers. " +
  "Open the page in a tab of its own, or in another program.";
const LASTS = ["opened", "read", "dropped", "chosen", "done", "failed"];

// `ask(request, hear)` sends a request and lets `hear` have all its answers.
const makeEngine = (broken) => {
  const calls = new Map(); // who hears of a request, by its id
  let worker = null;
  let id = 0;

  const stop = () => {
    worker?.terminate();
    worker = null;
    calls.clear();
  };
  const hear = ({ data }) => {
    const call = calls.get(data.id);
    if (LASTS.includes(data.kind)) calls.delete(data.id);
    call?.(data);
  };
  const fail = (message) => {
    const waiting = [...calls];
    stop();
    broken(message);
    for (const [id, call] of waiting) call({ id, kind: "failed", message });
  };
  const start = () => {
    const address = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
    let answered = false;
    try {
      worker = new Worker(address);
    } catch {
      throw new Error(FORBIDDEN);
    }
    worker.addEventListener("message", (event) => {
      if (!answered) URL.revokeObjectURL(address);
      answered = true;
      hear(event);
    });
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      fail(answered ? `The model has stopped: ${event.message}` : FORBIDDEN);
    });
  };
  const ask = (request, call = () => {}, transfer = []) => {
    id += 1;
    calls.set(id, call);
    worker.postMessage({ id, ...request }, transfer);
    return id;
  };
  const open = (bytes) => {
    if (!worker) start();
    return new Promise((resolve, reject) => {
      const call = ({ kind, info, message }) =>
        kind === "opened" ? resolve(info) : reject(new Error(message));
      ask({ ask: "open", bytes }, call, [bytes]);
    });
  };
  return { ask, open, stop };
};

// The next token -----------------------------------------------------------------------

const makeTrack = (...marks) =>
  make(
    "div",
    { className: "track", ariaHidden: "true" },
    ...marks.map((className) => make("i", { className })),
  );

// A column's heading, with the sign that its numbers have in the drawing.
const heading = (text, sign) => {
  const key = make("span", { className: "key", ariaHidden: "true" });
  key.append(make("i", { className: sign }));
  return make("th", { scope: "col", className: "number" }, key, text);
};

const makeRow = (choose) => {
  const name = make("bdi");
  const token = button("", choose, "token");
  token.append(name);
  const [before, after, all] = [0, 1, 2].map(() => make("td", { className: "number" }));
  const track = makeTrack("before", "after", "whole");
  const row = make(
    "tr",
    {},
    make("th", { scope: "row" }, token),
    before,
    after,
    all,
    make("td", {}, track),
  );
  const fill = (one, isPlain, isWhole) => {
    row.hidden = !one;
    if (!one) return;
    put(name, one.name);
    token.title = `append ${one.name}`;
    put(before, number(one.before));
    put(after, one.after === null ? "cut" : number(one.after));
    put(all, isWhole ? number(one.whole) : "");
    after.hidden = isPlain;
    all.hidden = track.lastChild.hidden = !isWhole;
    track.firstChild.hidden = isPlain;
    row.classList.toggle("cut", one.after === null);
    track.style.setProperty("--before", one.before);
    track.style.setProperty("--after", one.after ?? 0);
    track.style.setProperty("--whole", one.whole ?? 0);
  };
  return { row, fill };
};

// `isPlain`: there are no knobs, so one probability says it all.
const makeNext = (isPlain, append) => {
  let shown = [];
  const rows = Array.from({ length: ROWS }, (_, n) => makeRow(() => append(shown[n])));
  const caption = make("caption");
  const heads = [
    isPlain ? heading("probability", "after") : heading("before", "before"),
    heading("after", "after"),
    heading("all heads on", "whole"),
  ];
  const summary = make("p", { className: "figures" });
  const element = make(
    "div",
    {},
    make(
      "table",
      { className: "next" },
      caption,
      make(
        "thead",
        {},
        make("tr", {}, make("th", { scope: "col", textContent: "token" }), ...heads, make("td")),
      ),
      make("tbody", {}, ...rows.map(({ row }) => row)),
    ),
    summary,
  );
  const update = (next, text) => {
    shown = next.rows;
    const isWhole = shown.some((one) => one.whole !== undefined);
    heads[1].hidden = isPlain;
    heads[2].hidden = !isWhole;
    put(caption, `What may follow ${quoted(text)}: a token's button appends it`);
    rows.forEach(({ fill }, n) => fill(shown[n], isPlain, isWhole));
    const { entropy, entropyBefore, kept, of } = next;
    const knobs = `${entropy.toFixed(2)} nats (${entropyBefore.toFixed(2)} before), `;
    const all = `${whole(kept)} of ${whole(of)} tokens kept`;
    put(summary, `entropy ${isPlain ? `${entropy.toFixed(2)} nats` : knobs + all}`);
  };
  const inWords = () =>
    shown
      .slice(0, 3)
      .map(({ name, before, after }) => `${name} ${number(after ?? before)}`)
      .join(", ");
  return { element, update, inWords };
};

// Controls -----------------------------------------------------------------------------

const STARTS = { temperature: 1, top_k: null, top_p: null };

// A slider for each knob, as in the sampling panel. Those that cut are off at their right end.
const makeKnobs = (changed) => {
  const values = { ...STARTS };
  const sliders = [
    { name: "temperature", min: 0.1, max: 3, step: 0.05, digits: 2 },
    { name: "top_k", min: 1, max: 51, step: 1, digits: 0 },
    { name: "top_p", min: 0.05, max: 1, step: 0.01, digits: 2 },
  ].map(({ name, min, max, step, digits }) => {
    const input = make("input", { type: "range", id: name, min, max, step });
    const output = make("output", { htmlFor: name, ariaLive: "off" });
    const label = make("label", { htmlFor: name, textContent: name.replace("_", "-") });
    const show = () => {
      input.value = values[name] ?? input.max;
      output.textContent = values[name] === null ? "off" : values[name].toFixed(digits);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    const read = () => {
      const isOff = STARTS[name] === null && input.value === input.max;
      values[name] = isOff ? null : input.valueAsNumber;
      show();
    };
    // What comes from a link counts if the slider goes there.
    const set = (value) => {
      values[name] = STARTS[name];
      show();
      if (!(value >= min && value <= Number(input.max))) return;
      input.value = value;
      read();
    };
    input.addEventListener("input", () => {
      read();
      changed();
    });
    show();
    return { name, input, set, row: make("div", {}, label, input, output) };
  });
  const restore = (found) => sliders.forEach(({ name, set }) => set(Number(found.get(name))));
  const fit = (vocabulary) => {
    const [, { input, set }] = sliders;
    const { top_k } = values;
    input.max = Math.min(vocabulary, 50) + 1;
    set(top_k ?? 0);
  };
  const element = make("div", { className: "controls" }, ...sliders.map(({ row }) => row));
  return { element, values, restore, fit };
};

const makeCheck = (text, changed) => {
  const input = make("input", { type: "checkbox" });
  input.addEventListener("change", changed);
  return { input, element: make("label", {}, input, text) };
};

// The counts of what was done last, with the cache and without, side by side.
const COUNTS = {
  positions: "positions computed",
  multiplyAdds: "multiply-adds",
  milliseconds: "milliseconds",
  speed: "multiply-adds a second",
  tokens: "tokens a second",
};

const makeCounts = () => {
  const columns = ["with the cache", "without"];
  const rows = Object.entries(COUNTS).map(([name, label]) => {
    const cells = columns.map(() => make("td", { className: "number", textContent: "–" }));
    return { name, cells, row: make("tr", {}, make("th", { scope: "row" }, label), ...cells) };
  });
  const heads = columns.map((textContent) =>
    make("th", { scope: "col", className: "number", textContent }),
  );
  const element = make(
    "table",
    { className: "counts" },
    make("caption", { textContent: "The last reading, or one token while it writes" }),
    make("thead", {}, make("tr", {}, make("td"), ...heads)),
    make("tbody", {}, ...rows.map(({ row }) => row)),
  );
  // For `per` tokens this was done, and they come at a `rate`, which 0 leaves open.
  const update = ({ positions, multiplyAdds, milliseconds }, useCache, per = 1, rate = 0) => {
    const texts = {
      positions: whole(positions / per),
      multiplyAdds: whole(multiplyAdds / per),
      milliseconds: (milliseconds / per).toFixed(2),
      speed: milliseconds > 0 ? `${whole(multiplyAdds / milliseconds / 1e3)} million` : "–",
      tokens: rate ? whole(rate) : "–",
    };
    for (const { name, cells } of rows) put(cells[useCache ? 0 : 1], texts[name]);
  };
  const reset = () => rows.forEach(({ cells }) => cells.forEach((cell) => put(cell, "–")));
  return { element, update, reset };
};

// How many tokens a second were written lately.
const makeRate = () => {
  const marks = [];
  return (tokens) => {
    const now = performance.now();
    marks.push([now, tokens]);
    while (now - marks[0][0] > 1000 && marks.length > 2) marks.shift();
    const written = marks.slice(1).reduce((total, [, some]) => total + some, 0);
    return written && (1000 * written) / (now - marks[0][0]);
  };
};

// The logit lens -----------------------------------------------------------------------

const PLACES = ["likeliest", "second", "third"];

const makeLens = () => {
  const last = make("th", { scope: "col" });
  const body = make("tbody");
  const heads = PLACES.map((textContent, n) =>
    make("th", { scope: "col", textContent, className: n ? "more" : "" }),
  );
  const element = make(
    "table",
    { className: "lens" },
    make("caption", {
      textContent:
        "What the model would say next if it ended there: final norm and head read the " +
        "residual stream after each layer",
    }),
    make(
      "thead",
      {},
      make("tr", {}, make("th", { scope: "col", textContent: "after" }), ...heads, last),
    ),
    body,
  );
  const makeLine = () => {
    const cells = PLACES.map((_, n) => {
      const [name, p] = [make("bdi"), make("span")];
      const cell = make("td", { className: n ? "more" : "" }, make("span", {}, name), " ", p);
      const fill = (one) => {
        put(name, one?.name ?? "");
        put(p, one ? number(one.p) : "");
      };
      return { cell, fill };
    });
    const [share, track] = [make("span"), makeTrack("after")];
    const name = make("th", { scope: "row" });
    const line = make("div", { className: "last" }, share, track);
    body.append(make("tr", {}, name, ...cells.map(({ cell }) => cell), make("td", {}, line)));
    return ({ layer, rows, pLast }) => {
      put(name, layer < 0 ? "embedding" : `layer ${layer}`);
      cells.forEach(({ fill }, n) => fill(rows[n]));
      put(share, number(pLast));
      track.style.setProperty("--after", pLast);
    };
  };
  const lines = [];
  const update = (layers) => {
    while (lines.length > layers.length) {
      lines.pop();
      body.lastChild.remove();
    }
    while (lines.length < layers.length) lines.push(makeLine());
    layers.forEach((layer, n) => lines[n](layer));
    put(last, `p of ${layers.at(-1).rows[0].name}, likeliest at the end`);
  };
  return { element, update };
};

// Attention ----------------------------------------------------------------------------

// What the explorer knows as a widget's model.
const makeTraits = (values) => {
  const heard = new Map();
  return {
    get: (name) => values[name],
    set(name, value) {
      const isSame = name !== "contexts" && String(values[name]) === String(value);
      if (isSame) return;
      values[name] = value;
      for (const call of heard.get(`change:${name}`) ?? []) call();
    },
    on: (name, call) => heard.set(name, [...(heard.get(name) ?? []), call]),
    off: (name, call) => heard.set(name, heard.get(name).filter((other) => other !== call)),
    save_changes() {},
  };
};

const VIEWS = ["matrix", "lines", "steps"];

// `changed` hears when a head was switched off or on.
const makeAttention = (changed) => {
  const traits = makeTraits({
    contexts: [],
    prompts: [],
    layer: 0,
    head: 0,
    context: 0,
    query: -1,
    key: -1,
    pinned: [],
    both: false,
    view: "matrix",
    threshold: 0,
    sort: "layer",
    ablated: [],
    message: "",
    answered: 0,
    live: true,
  });
  const note = make("p", { className: "note" });
  const slot = make("div");
  const element = make("div", {}, note, slot);
  let leave = null;
  traits.on("change:ablated", () => changed());

  const set = (values) => {
    for (const [name, value] of Object.entries(values)) traits.set(name, value);
  };
  // What another model, or another text, does not have is let go before it comes.
  const fit = ({ n_layer: layers, n_head: heads }) => {
    const has = ([layer, head]) => layer < layers && head < heads;
    set({
      layer: Math.min(traits.get("layer"), layers - 1),
      head: Math.min(traits.get("head"), heads - 1),
      pinned: has(traits.get("pinned")) ? traits.get("pinned") : [],
      ablated: traits.get("ablated").filter(has),
    });
  };
  const update = ({ context, note: text }) => {
    put(note, text);
    note.hidden = !text;
    const { entropy } = context.summaries;
    fit({ n_layer: entropy.length, n_head: entropy[0].length });
    if (Math.max(traits.get("query"), traits.get("key")) >= context.tokens.length) {
      set({ query: -1, key: -1 });
    }
    set({ contexts: [context] });
    leave ??= explorer.render({ model: traits, el: slot });
  };
  const wait = (text) => {
    put(note, text);
    note.hidden = false;
  };
  return { element, traits, set, fit, update, wait, stop: () => leave?.() };
};

// Links --------------------------------------------------------------------------------

const LINKED = "text temperature top_k top_p off greedy cache layer head view query key".split(" ");

// What the address says after #, or null if it speaks of something else.
const linked = () => {
  const found = new URLSearchParams(location.hash.slice(1));
  return LINKED.some((name) => found.has(name)) ? found : null;
};

// Heads as "0.1,3.2", those that the model does not have left out.
const headsIn = (text, { n_layer: layers, n_head: heads }) =>
  [...new Set((text ?? "").split(","))]
    .filter((pair) => /^\d{1,3}\.\d{1,3}$/.test(pair))
    .map((pair) => pair.split(".").map(Number))
    .filter(([layer, head]) => layer < layers && head < heads);

const indexIn = (text, end, otherwise = 0) =>
  /^\d{1,3}$/.test(text) && Number(text) < end ? Number(text) : otherwise;

// What is read of a long text. It begins at a whole thousand, so that one more character
// does not move the beginning, and what was read of it can be kept.
const lastOf = (text) =>
  text.length > MOST_READ ? text.slice(1000 * Math.ceil((text.length - MOST_READ) / 1000)) : text;

// All of it ----------------------------------------------------------------------------

const EMPTY = "Type something: the model continues a text.";
const MADE = "an example made beforehand";
const RUNS = "running in this page";

// Headings of the panel stand one level below the heading that it stands under.
const levelIn = (el) => {
  const above = el.closest("section")?.querySelector("h1, h2, h3, h4, h5");
  return 1 + Number(above?.tagName[1] ?? 1);
};

function render({ model, el }) {
  const state = Object.fromEntries(
    ["show", "text", "info", "address", "data", "example", "link"].map((k) => [k, model.get(k)]),
  );
  const has = (part) => state.show.includes(part);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const book = bookModel(state);
  const leaving = new AbortController();
  const timers = {};

  let source = book; // where the model that runs, or shall run, comes from
  let info = state.info;
  let waking = null; // a promise of whether the model runs, once somebody asked for it
  let isReady = false; // it runs
  let turn = 0; // of loading: one that was overtaken must not go on
  let latest = 0; // the id of the newest request for a reading
  let stands = false; // whether that reading is there
  let remark = ""; // a note that stays until the next change
  let lacking = ""; // characters of the text that the model does not know
  let length = state.example.tokens; // of the text, or null while nobody knows
  let queue = []; // numbers of tokens to be written, one after the other
  let job = null; // what is being written
  let grown = null; // what was written since the page was last painted
  let frame = 0;

  // What there is to see ---------------------------------------------------------------

  const about = make("b", { dir: "auto" });
  const facts = make("span");
  const status = make("span", { className: "state" });
  const picker = make("input", { type: "file", accept: ".gpt2", className: "file", tabIndex: -1 });
  const opener = button("Open a model file", () => picker.click());
  const back = button("Back to the book's model", () => swap(book));
  const text = make("textarea", { id: "text", rows: 5, spellcheck: false, dir: "auto" });
  const size = make("span", { className: "figures" });
  const aboutModel = make("div", { role: "alert" });
  const aboutText = make("div", { role: "alert" });
  const note = make("p", { className: "note", role: "status" });
  const said = make("p", { className: "said", role: "status", ariaLive: "polite" });
  const next = makeNext(!has("sampling"), ({ piece }) => append(piece));
  const knobs = makeKnobs(() => knobsChanged());
  const greedy = makeCheck("greedy", () => restart());
  const cache = makeCheck("KV cache", () => restart() || read({ isNew: true }));
  const counts = makeCounts();
  const lens = makeLens();
  const heads = makeAttention(() => restart() || read({ isNew: true, attention: true }));
  const streamer = button("Stream", () => (job || queue.length ? halt() : write(MOST_TOKENS)));

  const after = (name, delay, call) => {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(call, delay);
  };
  const say = (words) =>
    after("say", 500, () => put(said, `${words}Likeliest next: ${next.inWords()}`));
  const tell = (words) => {
    put(note, words);
    note.hidden = !words;
  };
  // What must be heard at once, and perhaps a button that mends it.
  const warn = (place, words, mend) => {
    if (words && words === place.querySelector("span")?.textContent) return;
    const message = make("div", { className: "message" }, make("span", { textContent: words }));
    if (mend) message.append(mend);
    place.replaceChildren(...(words ? [message] : []));
  };
  const showStatus = (words) => {
    put(status, words);
    status.classList.toggle("runs", words === RUNS);
  };
  const showModel = () => {
    const { config, name, parameters, precision, bytes } = info;
    about.textContent = name;
    facts.textContent =
      `: ${counted(config.n_layer, "layer")} of ${counted(config.n_head, "head")}, ` +
      `${counted(parameters, "parameter")}, ${precision}, ${megabytes(bytes)}`;
    if (root.activeElement === back && source.isBook) opener.focus();
    back.hidden = source.isBook;
    knobs.fit(config.vocab_size);
    heads.fit(config);
  };
  const showLength = (tokens) => {
    length = tokens;
    put(size, counted(tokens, "token"));
  };
  const showButtons = () => {
    put(streamer, job || queue.length ? "Stop" : "Stream");
    play.classList.toggle("streams", job !== null);
  };
  const show = (reading, of) => {
    warn(aboutText, "");
    const end = lastOf(text.value);
    const cut = `Only the last ${whole(end.length)} characters are read. `;
    tell((end === text.value ? "" : cut) + remark);
    showLength(reading.tokens);
    next.update(reading.next, of);
    if (reading.lens) lens.update(reading.lens);
    if (reading.attention) heads.update(reading.attention);
  };

  // The model comes, and goes ----------------------------------------------------------

  const load = async (wanted) => {
    const mine = (turn += 1);
    const progress = (size) => {
      const share = Math.min(99, Math.floor((100 * size) / state.info.bytes));
      if (mine === turn) showStatus(`loading ${share} %`);
    };
    progress(0);
    const bytes = await wanted.load(progress);
    const opened = mine === turn && (await engine.open(bytes));
    if (mine !== turn) return false;
    [source, info, isReady] = [wanted, opened, true];
    counts.reset();
    warn(aboutModel, "");
    showModel();
    showStatus(RUNS);
    if (!queue.length) read({ isNew: true });
    return true;
  };
  const sleep = () => {
    turn += 1;
    clearTimeout(timers.rest);
    engine.stop();
    forget();
    [waking, isReady] = [null, false];
    showStatus(info === state.info ? MADE : "not running");
  };
  const engine = makeEngine((message) => {
    sleep();
    warn(aboutModel, message);
  });

  // The weights come with the first touch; if they did not, with the next.
  const wake = () => {
    waking ??= load(source).catch(({ message }) => {
      sleep();
      const words = `The model could not be loaded: ${message}. Touch the panel to try again.`;
      const isForbidden = message === FORBIDDEN;
      if (!isForbidden) downloads.delete(state.address); // what came may be damaged
      warn(aboutModel, isForbidden ? FORBIDDEN : words);
      return false;
    });
    return waking;
  };
  // Another model. If it is refused, the one that runs goes on.
  const swap = async (wanted) => {
    forget();
    await waking;
    try {
      if (await load(wanted)) waking = Promise.resolve(true);
    } catch ({ message }) {
      const words = wanted.isBook ? "The book's model was not loaded" : "The file was not opened";
      warn(aboutModel, `${words}: ${message}`);
      showStatus(isReady ? RUNS : MADE);
      if (isReady) read({ isNew: true });
    }
  };

  // Reading ----------------------------------------------------------------------------

  const settings = () => ({
    text: lastOf(text.value),
    off: heads.traits.get("ablated"),
    useCache: cache.input.checked,
    knobs: { ...knobs.values },
  });
  const isEmpty = () => {
    if (!text.value) warn(aboutText, EMPTY);
    return !text.value;
  };

  // `isNew`: the costs of this reading are to be counted, as the text or a setting is new.
  // Where they are not, it need not be done without the cache. `words` are what is to be
  // said of how the text came to be what it is.
  const read = ({ isNew = false, attention = false, words = "" } = {}) => {
    clearTimeout(timers.rest);
    if (!isReady) return wake();
    stands = false;
    const asked = settings();
    asked.useCache ||= !isNew;
    if (isEmpty()) {
      showLength(0);
      latest = engine.ask({ ask: "stop" });
    } else {
      latest = engine.ask({ ...asked, ask: "read", lens: has("lens"), attention }, (answer) => {
        if (answer.id !== latest) return;
        if (answer.kind === "failed") refused(answer);
        else if (answer.kind === "reading") {
          tell(`reading: ${whole(answer.done)} of ${whole(answer.of)} positions`);
        } else if (answer.kind === "read") {
          stands = true;
          if (isNew) counts.update(answer.reading.work, asked.useCache);
          show(answer.reading, asked.text);
          if (isNew || words) say(words);
          if (attention || !has("attention")) return;
          after("rest", REST, () => read({ attention: true }));
        }
      });
    }
  };
  const refused = ({ message, unknown = "" }) => {
    tell("");
    lacking = unknown;
    const mend = unknown && button("Leave them out", leaveOut);
    warn(aboutText, unknown ? `${message}: ${listed(unknown)}` : message, mend);
  };
  const leaveOut = () => {
    const signs = new Set(lacking);
    text.value = [...text.value].filter((sign) => !signs.has(sign)).join("");
    text.focus();
    edited();
  };

  // Writing ----------------------------------------------------------------------------

  // Put a number of tokens on the list. They are written when the model is there and free.
  const write = async (count) => {
    if (isEmpty()) return;
    if (job?.isStream) engine.ask({ ask: "stop" });
    queue.push(count);
    showButtons();
    if (await wake()) goOn();
  };
  const goOn = () => {
    if (job || !queue.length) return;
    clearTimeout(timers.rest);
    const { text: prompt, ...chosen } = settings();
    const count = queue.shift();
    const { useCache } = chosen;
    const mine = { isStream: count > 1, useCache, tokens: 0, text: "", rate: makeRate() };
    job = mine;
    [latest, stands, remark] = [0, false, ""];
    tell("");
    showButtons();
    const more = { ask: "generate", count, greedy: greedy.input.checked, seed: null };
    engine.ask({ text: prompt, ...chosen, ...more }, (answer) => {
      if (job !== mine) return;
      if (answer.kind === "grown") grow(answer);
      else if (answer.kind !== "reading") ended(answer);
    });
  };

  // The page is painted once a frame, however fast the tokens come.
  const grow = ({ piece, tokens, next: distribution, work }) => {
    grown ??= { piece: "", work: { positions: 0, multiplyAdds: 0, milliseconds: 0 } };
    grown.piece += piece;
    grown.tokens = tokens;
    grown.next = distribution ?? grown.next; // a text that was stopped has none
    for (const name of Object.keys(grown.work)) grown.work[name] += work[name];
    if (still.matches) timers.flush ??= setTimeout(flush, PACE);
    else frame ||= requestAnimationFrame(flush);
  };
  const flush = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timers.flush);
    [frame, timers.flush] = [0, null];
    if (!grown) return;
    const { piece, tokens, work, next: distribution } = grown;
    const added = tokens - (length ?? tokens);
    grown = null;
    job.tokens += added;
    job.text += piece;
    addText(piece);
    showLength(tokens);
    if (distribution) next.update(distribution, text.value);
    if (!work.positions) return; // all that was done is counted already
    counts.update(work, job.useCache, added || 1, job.isStream ? job.rate(added) : 0);
  };
  // The text's end stays in sight if it was, and the caret at the end if it was.
  const addText = (piece) => {
    const end = text.value.length;
    const isSeen = text.scrollTop + text.clientHeight > text.scrollHeight - 8;
    text.setRangeText(piece, end, end, text.selectionStart === end ? "end" : "preserve");
    if (isSeen) text.scrollTop = text.scrollHeight;
  };
  const ended = (answer) => {
    const { kind, why } = answer;
    flush();
    const { isStream, tokens, text: added, again } = job;
    job = null;
    if (kind === "failed" || why === "failed") {
      queue = [];
      showButtons();
      return refused(answer);
    }
    if (again) queue.unshift(MOST_TOKENS);
    showButtons();
    if (queue.length) return goOn();
    if (isStream && why === "count") remark = `The stream ends after ${whole(MOST_TOKENS)} tokens.`;
    read({ words: `added ${isStream ? counted(tokens, "token") : quoted(added)}. ` });
  };
  const halt = () => {
    queue = [];
    if (job) {
      job.again = false;
      engine.ask({ ask: "stop" });
    }
    showButtons();
  };
  // With other settings, a stream goes on from where it is. Returns whether there is one.
  const restart = () => {
    if (!job?.isStream) return false;
    job.again = true;
    engine.ask({ ask: "stop" });
    return true;
  };
  // What was being written is no longer waited for, and what of it is not to be seen yet
  // never will be: the reader's change follows on what stood there. The next request stops
  // the worker.
  const forget = () => {
    grown = null;
    flush();
    [job, queue, remark] = [null, [], ""];
    showButtons();
  };

  // Changes ----------------------------------------------------------------------------

  const edited = () => {
    warn(aboutModel, "");
    forget();
    length = null;
    read({ isNew: true });
  };
  const append = (piece) => {
    forget();
    addText(piece);
    length = null;
    read({ isNew: true, words: `added ${quoted(piece)}. ` });
  };
  const knobsChanged = () => {
    if (!stands && !job) return read();
    const of = settings().text;
    latest = engine.ask({ ask: "choose", knobs: { ...knobs.values } }, ({ id, kind, next: n }) => {
      if (id !== latest || kind !== "chosen" || job) return; // what is written goes by them
      next.update(n, of);
      say("");
    });
  };
  const restore = (found) => {
    forget();
    text.value = found.get("text")?.slice(0, MOST_LINKED) ?? state.text;
    if (has("sampling")) knobs.restore(found);
    greedy.input.checked = found.get("greedy") === "on";
    cache.input.checked = !has("cache") || found.get("cache") !== "off";
    const view = found.get("view");
    if (has("attention")) {
      heads.set({
        layer: indexIn(found.get("layer"), info.config.n_layer),
        head: indexIn(found.get("head"), info.config.n_head),
        view: VIEWS.includes(view) ? view : VIEWS[0],
        query: indexIn(found.get("query"), Infinity, -1), // let go if the text is shorter
        key: indexIn(found.get("key"), Infinity, -1),
        ablated: headsIn(found.get("off"), info.config),
      });
    }
    edited();
  };
  const copyLink = async () => {
    const [{ off, useCache }, traits] = [settings(), heads.traits];
    const parts = {
      text: text.value.slice(-MOST_LINKED),
      ...Object.fromEntries(Object.entries(knobs.values).filter(([, value]) => value !== null)),
      ...(off.length && { off: off.map((pair) => pair.join(".")).join(",") }),
      ...(greedy.input.checked && { greedy: "on" }),
      ...(!useCache && { cache: "off" }),
      ...Object.fromEntries(
        ["layer", "head", "view", "query", "key"]
          .map((name) => [name, traits.get(name)])
          .filter(([, value]) => value !== -1),
      ),
    };
    history.replaceState(history.state, "", `#${new URLSearchParams(parts)}`);
    try {
      await navigator.clipboard.writeText(location.href);
      remark = "The link is on the clipboard and in the address bar.";
    } catch {
      remark = "The link is in the address bar: this page may not write to the clipboard.";
    }
    tell(remark);
  };

  // All in its place -------------------------------------------------------------------

  const level = levelIn(el);
  const titled = (title, ...children) =>
    make("section", {}, make(`h${level}`, { textContent: title }), ...children);
  const beside = [
    ...(has("sampling") ? [knobs.element] : []),
    ...(has("cache") ? [counts.element] : []),
  ];
  const top = make(
    "div",
    { className: "box" },
    make(
      "div",
      { className: "model" },
      make("p", { className: "about" }, about, facts, " ", status),
      ...(has("file") ? [picker, opener, back] : []),
    ),
    aboutModel,
    make(
      "div",
      { className: "head" },
      make("label", { htmlFor: "text", textContent: "text" }),
      size,
    ),
    text,
    aboutText,
    note,
    make(
      "div",
      { className: "buttons" },
      button("Step", () => write(1)),
      streamer,
      button("Reset", () => restore(new URLSearchParams())),
      ...(state.link ? [button("Copy a link", copyLink)] : []),
      make("div", { className: "checks" }, greedy.element, has("cache") ? cache.element : ""),
    ),
    make(
      "div",
      { className: "parts" },
      next.element,
      ...(beside.length ? [make("div", { className: "side" }, ...beside)] : []),
    ),
    ...(has("lens") ? [titled("Layer by layer", lens.element)] : []),
    said,
  );
  const play = make(
    "div",
    { className: "play", role: "group", ariaLabel: "a model in this page" },
    top,
    ...(has("attention") ? [titled("Attention", heads.element)] : []),
  );

  text.autocomplete = "off";
  text.autocapitalize = "off";
  text.value = state.text;
  cache.input.checked = true;
  streamer.className = "stream";
  picker.ariaLabel = "model file";
  text.addEventListener("input", edited);
  picker.addEventListener("change", () => {
    if (picker.files[0]) swap(ownModel(picker.files[0]));
    picker.value = ""; // so that the same file can be opened again
  });
  for (const touch of ["pointerdown", "focusin", "keydown", "dragenter"]) {
    play.addEventListener(touch, wake);
  }
  play.addEventListener("keydown", ({ key }) => key === "Escape" && halt());
  // JupyterLab would cancel what is typed.
  play.addEventListener("beforeinput", (event) => event.stopPropagation());

  const carriesFile = ({ dataTransfer }) => has("file") && dataTransfer?.types.includes("Files");
  for (const drag of ["dragenter", "dragover", "dragleave", "drop"]) {
    play.addEventListener(drag, (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      play.classList.toggle("over", drag === "dragenter" || drag === "dragover");
      if (drag === "drop") swap(ownModel(event.dataTransfer.files[0]));
    });
  }

  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's keys stay outside
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  root.replaceChildren(make("style", { textContent: STYLE }), play);
  showModel();
  showStatus(MADE);
  showButtons();
  const { attention, ...example } = state.example;
  show(example, state.text);
  // The explorer comes after, so that the page stands still twice briefly, not once for long.
  if (attention) after("heads", 0, () => heads.update(attention));
  else heads.wait("The heads are shown once the model runs: touch the panel.");

  // A page that is left, or an element that is taken off it, keeps no worker.
  const { signal } = leaving;
  addEventListener("pagehide", sleep, { signal });
  el.addEventListener("removed", sleep, { signal });
  if (state.link) {
    const follow = () => {
      const found = linked();
      if (found) restore(found);
    };
    addEventListener("hashchange", follow, { signal });
    follow();
  }
  return () => {
    leaving.abort();
    sleep();
    for (const timer of Object.values(timers)) clearTimeout(timer);
    heads.stop();
  };
}

export default { render };
