// The sampling panel (gpt2lib/sampling_panel.py): a distribution of the next token as
// bars, and the knobs of gpt2lib/sampling.py, computed here. One module for anywidget,
// the site and HTML that stands alone; gpt2lib.figures makes a classic script of it.
// Text from Python reaches the page through textContent and attributes only.

const SHOWN = 12; // rows, until all are asked for
const STRIP = 40; // drawn tokens to be seen

const STYLE = `
  .panel {
    --accent: var(--book-accent, #2481be);
    --faint: color-mix(in srgb, currentColor 30%, transparent);
    container-type: inline-size;
    margin: 0.5rem 0;
    padding: 0.75rem 1rem;
    border: 1px solid var(--faint);
    border-radius: 0.5rem;
    color: inherit;
    font-family: var(--book-sans, inherit);
    font-size: 1rem;
    line-height: 1.5;
    text-align: start;
  }
  .controls {
    display: grid;
    grid-template-columns: max-content minmax(6rem, 1fr) 4ch;
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
  input { inline-size: 100%; min-block-size: 1.5rem; margin: 0; accent-color: var(--accent); }
  output { font-weight: 600; font-variant-numeric: tabular-nums; }
  select, button {
    border: 1px solid color-mix(in srgb, currentColor 55%, transparent);
    border-radius: 0.25rem;
    background: none;
    color: inherit;
    font: inherit;
    font-size: 0.9rem;
  }
  select { grid-column: 2 / -1; inline-size: 100%; padding: 0.15rem 0.4rem; }
  option { background: Canvas; color: CanvasText; }
  button { padding: 0.15rem 0.75rem; cursor: pointer; }
  button:hover { background: color-mix(in srgb, currentColor 8%, transparent); }
  :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
  .summary { margin: 0.5rem 0; font-size: 0.9rem; font-variant-numeric: tabular-nums; }

  table { inline-size: 100%; border-collapse: collapse; font-size: 0.9rem; }
  th, td {
    padding: 0.1rem 0.9rem 0.1rem 0;
    font-weight: 400;
    text-align: start;
    white-space: nowrap;
  }
  thead th { padding-block-end: 0.25rem; font-size: 0.8rem; }
  tbody th { max-inline-size: 9rem; overflow: hidden; text-overflow: ellipsis; }
  .others th { min-inline-size: 8rem; white-space: normal; }
  bdi { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; }
  .others bdi { font: inherit; white-space: normal; }
  th:last-child, td:last-child { min-inline-size: 5ch; padding-inline-end: 0; text-align: end; }
  td { font-variant-numeric: tabular-nums; }
  .wide { inline-size: 99%; }
  .wide > div {
    display: grid;
    grid-template-columns: minmax(6ch, max-content) 1fr;
    align-items: center;
    gap: 0.5rem;
  }
  .one { text-align: end; }
  .edge > * { border-block-start: 1px dashed currentColor; }

  .track, .key {
    position: relative;
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
  .key .after { inset-block: 0.15rem; }
  .drawn {
    inset-block: -1px;
    inline-size: 3px;
    margin-inline-start: -1.5px;
    background: currentColor;
  }
  .track .drawn { inset-inline-start: calc(100% * var(--drawn)); }
  .key .drawn { inset-inline-start: 50%; }

  .buttons { display: flex; flex-wrap: wrap; gap: 0.5rem; margin-block: 0.75rem 0.5rem; }
  .buttons :last-child { margin-inline-start: auto; }
  .strip {
    display: flex;
    flex-wrap: wrap;
    align-items: baseline;
    gap: 0.25rem;
    min-block-size: 1.75rem;
    font-size: 0.9rem;
  }
  .strip p { margin: 0 0.25rem 0 0; }
  ol { display: contents; list-style: none; }
  li {
    max-inline-size: min(12rem, 90%);
    padding: 0 0.3rem;
    overflow: hidden;
    border: 1px solid var(--faint);
    border-radius: 0.25rem;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  caption, .said {
    position: absolute;
    inline-size: 1px;
    block-size: 1px;
    margin: 0;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
  [hidden] { display: none; }
  @container (max-width: 30rem) {
    th, td { padding-inline-end: 0.6rem; }
    tbody th { max-inline-size: 5.25rem; }
    /* Bars go below, over the whole width: of the table, as Safari places none by its row. */
    table { position: relative; }
    tbody :is(th, td) { padding-block-end: 1.1rem; vertical-align: bottom; }
    .others th { min-inline-size: 5.25rem; }
    .wide > div { display: block; }
    .one { display: none; }
    .track { position: absolute; inset-inline: 0; block-size: 0.75rem; }
    .track .after { inset-block: 0.15rem; }
  }
  @media (prefers-reduced-motion: no-preference) {
    .after { transition: inline-size 120ms ease-out; }
  }
  @media (forced-colors: active) {
    .after { background: CanvasText; }
  }
`;

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

// The tokens come in order, the rest in groups of nearly equal ones. Each entry is a
// number of tokens, the log of their mean probability, and half the variance of their
// logits, by which that mean departs from a single token's at other temperatures than 1.
// Returns how many of each entry stay, and what one of them then has. What stays is
// always a beginning: temperature keeps the order.
const sample = ({ logps, rest }, { temperature, top_k, top_p }) => {
  const entries = [...logps.map((logp) => [1, logp, 0]), ...rest];
  const inverse = 1 / temperature;
  const weights = entries.map(([, logp, spread]) =>
    Math.exp((logp - logps[0] + spread * (inverse - 1)) * inverse));
  const mass = (counts) => sum(counts.map((count, i) => count * weights[i]));

  let places = top_k ?? Infinity;
  const largest = entries.map(([size]) => {
    const count = Math.min(size, places);
    places -= count;
    return count;
  });

  const total = mass(largest);
  const wanted = top_p < 1 ? top_p * (1 - 1e-6) : Infinity; // as in keep_nucleus
  let reached = 0;
  const kept = largest.map((size, i) => {
    const each = weights[i] / total;
    const needed = reached < wanted ? Math.ceil((wanted - reached) / each) : 0;
    reached += size * each;
    return Math.min(size, needed);
  });

  const left = mass(kept);
  return { kept, probabilities: weights.map((weight) => weight / left) };
};

const entropy = (counts, probabilities) =>
  -sum(probabilities.map((p, i) => (p > 0 ? counts[i] * p * Math.log(p) : 0)));

const whole = (n) => n.toLocaleString("en");
const number = (p) => (p < 0.0005 ? "<0.001" : p.toFixed(3));

// One row: a token's name, its probabilities as numbers and bars, how often it was drawn.
const makeRow = (className = "") => {
  const name = make("bdi");
  const before = make("td");
  const after = make("span");
  const drawn = make("td");
  const tick = make("i", { className: "drawn" });
  const track = make("div", { className: "track", ariaHidden: "true" },
    make("i", { className: "before" }), make("i", { className: "after" }), tick);
  const row = make("tr", { className }, make("th", { scope: "row" }, name), before,
    make("td", { className: "wide" }, make("div", {}, after, track)), drawn);

  const fill = (label, p, now, share, isEdge) => {
    name.textContent = label;
    name.parentElement.title = label;
    before.textContent = number(p);
    after.textContent = now === null ? "cut" : number(now);
    drawn.textContent = share === null ? "" : share.toFixed(3);
    row.classList.toggle("cut", now === null);
    row.classList.toggle("edge", isEdge);
    tick.hidden = !share;
    track.style.setProperty("--before", p);
    track.style.setProperty("--after", now ?? 0);
    track.style.setProperty("--drawn", share ?? 0);
  };
  return { row, fill };
};

// A column's heading, with the sign that its numbers have in the drawing.
const heading = (text, className = "", ...more) => {
  const sign = make("i", { className: text });
  const key = make("span", { className: "key", ariaHidden: "true" }, sign);
  const label = make("span", {}, key, text);
  return make("th", { scope: "col", className }, make("div", {}, label, ...more));
};

// A slider for each knob. At its right end it is off.
const makeKnobs = (size) => [
  { name: "temperature", min: 0.1, max: 3, step: 0.05, start: 1, digits: 2 },
  { name: "top_k", min: 1, max: size + 1, step: 1, start: null, off: null, digits: 0 },
  { name: "top_p", min: 0.05, max: 1, step: 0.01, start: 1, off: 1, digits: 2 },
].map(({ name, min, max, step, start, off, digits }) => {
  const input = make("input", { type: "range", id: name, min, max, step });
  const shown = make("output", { htmlFor: name, ariaLive: "off" });
  const label = make("label", { htmlFor: name, textContent: name.replace("_", "-") });
  const row = make("div", {}, label, input, shown);
  const read = () => {
    const value = input.valueAsNumber;
    return off !== undefined && value === max ? off : value;
  };
  const show = (value) => {
    input.value = value ?? max;
    shown.textContent = value === off ? "off" : value.toFixed(digits);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  return { name, start, input, row, read, show };
});

function render({ model, el }) {
  const contexts = model.get("contexts");
  const size = contexts[0].logps.length;
  const total = size + sum(contexts[0].rest.map(([count]) => count));
  const knobs = makeKnobs(size);
  const starts = Object.fromEntries(knobs.map(({ name, start }) => [name, start]));
  let all = size <= SHOWN;
  let draws = []; // indices of entries
  let waiting; // the timer of the live region

  const rows = contexts[0].logps.map(() => makeRow());
  const others = makeRow("others");
  const select = make("select", { id: "context" },
    ...contexts.map(({ text }, i) => make("option", { value: i, textContent: text })));
  const summary = make("p", { className: "summary" });
  const said = make("p", { className: "said", role: "status", ariaLive: "polite" });
  const caption = make("caption");
  const count = make("p");
  const strip = make("ol", { ariaLabel: "drawn tokens" });
  const one = make("span", { className: "one", ariaHidden: "true", textContent: "1" });
  const more = make("button", { type: "button", hidden: size <= SHOWN });

  const say = (text) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { said.textContent = text; }, 400);
  };
  const context = () => contexts[model.get("context")];
  const chosen = () => Object.fromEntries(knobs.map(({ name }) => [name, model.get(name)]));
  const nameOf = (i) => context().tokens[i] ?? "another";

  const showRows = (now, kept, probabilities) => {
    const visible = all ? size : SHOWN;
    const edge = kept.indexOf(0); // the first to be cut
    const share = (matches) =>
      (draws.length ? draws.filter(matches).length / draws.length : null);
    rows.forEach(({ row, fill }, i) => {
      row.hidden = i >= visible;
      fill(now.tokens[i], Math.exp(now.logps[i]), kept[i] ? probabilities[i] : null,
        share((drawn) => drawn === i), i === edge);
    });
    const left = sum(kept.slice(visible));
    const mass = sum(kept.slice(visible).map((n, i) => n * probabilities[visible + i]));
    const before = 1 - sum(now.logps.slice(0, visible).map(Math.exp));
    const some = left && left < total - visible ? `, ${whole(left)} kept` : "";
    others.row.hidden = visible >= total;
    others.fill(`${whole(total - visible)} others${some}`, Math.max(before, 0), left ? mass : null,
      share((drawn) => drawn >= visible), visible === edge);
  };

  const showDraws = () => {
    count.textContent = `${draws.length} drawn`;
    const cells = draws.slice(-STRIP).map((i) =>
      make("li", {}, make("bdi", { textContent: nameOf(i) })));
    strip.replaceChildren(...cells);
    if (draws.length > STRIP) count.textContent += ", the last:";
    else if (draws.length) count.textContent += ":";
  };

  const update = () => {
    const now = context();
    const { kept, probabilities } = sample(now, chosen());
    const before = sample(now, { temperature: 1, top_k: null, top_p: 1 });
    for (const { name, show } of knobs) show(model.get(name));
    select.value = model.get("context");
    caption.textContent =
      `What may follow “${now.text}”: probabilities before and after the knobs`;
    const nats = entropy(kept, probabilities).toFixed(2);
    const nats0 = entropy(before.kept, before.probabilities).toFixed(2);
    const tokens = `${whole(sum(kept))} of ${whole(total)} tokens kept`;
    summary.textContent = `entropy ${nats} nats (${nats0} before), ${tokens}`;
    more.textContent = all ? `Show ${SHOWN}` : `Show ${size === total ? "all " : ""}${size}`;
    showRows(now, kept, probabilities);
    showDraws();
  };

  // Frequencies of two distributions do not mix: a changed knob starts the count anew.
  const changed = () => {
    draws = [];
    update();
    say(summary.textContent);
  };
  const set = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
    changed();
  };

  const draw = (times) => {
    const { kept, probabilities } = sample(context(), chosen());
    for (let n = 0; n < times; n += 1) {
      let left = Math.random();
      const found = kept.findIndex((size, i) => (left -= size * probabilities[i]) < 0);
      draws.push(found < 0 ? 0 : found); // rounding left a little: the most probable
    }
    update();
    say(times > 1 ? `${draws.length} drawn` : `drawn: ${nameOf(draws.at(-1))}`);
  };

  for (const { name, input, read } of knobs) {
    input.addEventListener("input", () => set({ [name]: read() }));
  }
  select.addEventListener("change", () => set({ context: Number(select.value) }));
  more.addEventListener("click", () => {
    all = !all;
    update();
  });
  const button = (textContent, click) => {
    const element = make("button", { type: "button", textContent });
    element.addEventListener("click", click);
    return element;
  };

  const panel = make("div", { className: "panel", role: "group", ariaLabel: "sampling panel" },
    make("div", { className: "controls" },
      make("div", {}, make("label", { htmlFor: "context", textContent: "text so far" }), select),
      ...knobs.map(({ row }) => row)),
    summary,
    make("table", {}, caption,
      make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "token" }),
        heading("before"), heading("after", "wide", one), heading("drawn"))),
      make("tbody", {}, ...rows.map(({ row }) => row), others.row)),
    make("div", { className: "buttons" },
      button("Draw", () => draw(1)),
      button("Draw 100", () => draw(100)),
      button("Reset", () => set(starts)),
      more),
    make("div", { className: "strip" }, count, strip),
    said);

  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's keys stay outside
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  root.replaceChildren(make("style", { textContent: STYLE }), panel);
  update();

  const traits = ["context", ...knobs.map(({ name }) => name)];
  for (const name of traits) model.on(`change:${name}`, changed);
  return () => {
    clearTimeout(waiting);
    for (const name of traits) model.off(`change:${name}`, changed);
  };
}

export default { render };
