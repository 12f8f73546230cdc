// Joins the pages of the book in one: what was a link to a page leads to its place here,
// and what a reader of the site unfolds, moves or ticks becomes something to read.
const faults = [];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const slug = (page) => page.replaceAll(/[/_]/g, "-");
const placeOf = (page, id) => (id ? `${slug(page)}--${id}` : slug(page));
const chapters = [...document.querySelectorAll(".chapter")];
const pages = new Set(chapters.map((chapter) => chapter.dataset.page));

// Two pages may use the same id: here each bears its page's name.
const POINTERS = ["aria-labelledby", "aria-describedby", "for", "headers"];
for (const chapter of chapters) {
  const { page } = chapter.dataset;
  for (const element of chapter.querySelectorAll("[id]")) {
    element.id = placeOf(page, element.id);
  }
  for (const name of POINTERS) {
    for (const element of chapter.querySelectorAll(`[${name}]`)) {
      const ids = element.getAttribute(name).split(/\s+/);
      element.setAttribute(name, ids.map((id) => placeOf(page, id)).join(" "));
    }
  }
}

// Links within the book stay within; those to the library's files lead to the repository.
const { pathname: root } = new URL(FACTS.site);
const redirect = (link, base) => {
  const to = new URL(link.getAttribute("href"), base);
  if (!to.href.startsWith(FACTS.site)) return;
  const page = decodeURIComponent(to.pathname.slice(root.length)).replace(/\.html$/, "");
  const place = placeOf(page, decodeURIComponent(to.hash.slice(1)));
  if (page.startsWith("gpt2lib/")) {
    const file = page.endsWith(".js") ? page : `${page}.py`;
    link.setAttribute("href", `${FACTS.repository}/blob/${FACTS.branch}/${file}`);
  } else if (pages.has(page)) {
    link.setAttribute("href", `#${place}`);
    if (!document.getElementById(place)) faults.push(`no place ${place}`);
  } else link.removeAttribute("href"); // a page that was left out
};
for (const chapter of chapters) {
  const base = new URL(`${chapter.dataset.page}.html`, FACTS.site);
  for (const link of chapter.querySelectorAll("a[href]")) redirect(link, base);
}
for (const link of document.querySelectorAll(".headerlink")) link.remove();
const front = document.querySelector(`#${slug(FACTS.front)} h1`);
if (front) front.textContent = FACTS.about;

// A reference to a page, by the number that the first print found for the place.
const pageOf = (place) => {
  const number = make("b", { textContent: FACTS.numbers[place] ?? "000" });
  return make("a", { href: `#${place}` }, "page ", number);
};

// Hints and solutions of the exercises stand at the end of their chapter.
const FOLD = "details:not(.fold), .cell:has(> details.fold)";
const labelOf = (part) => part.querySelector("summary").textContent.trim();
for (const chapter of chapters) {
  const answers = make("section", { className: "answers" });
  for (const exercise of chapter.querySelectorAll("section > section[id*='--exercise-']")) {
    const parts = [...exercise.querySelectorAll(FOLD)];
    const folded = parts.filter((part) => labelOf(part) !== "Code");
    if (!folded.length) continue;
    const title = exercise.querySelector("h3").cloneNode(true);
    title.id = `${exercise.id}-answer`;
    const labels = [...new Set(folded.map((part) => labelOf(part).toLowerCase()))];
    const words = labels.join(" and ");
    const said = `${words[0].toUpperCase()}${words.slice(1)}: `;
    const note = make("p", { className: "elsewhere" }, said, pageOf(title.id), ".");
    folded[0].before(note);
    answers.append(title, ...folded);
  }
  if (!answers.childElementCount) continue;
  const id = placeOf(chapter.dataset.page, "hints-and-solutions");
  answers.prepend(make("h2", { id, textContent: "Hints and solutions" }));
  chapter.firstElementChild.append(answers);
}

// Everything else that is folded lies open, where it is.
for (const fold of document.querySelectorAll("details")) {
  fold.open = true;
  if (labelOf(fold) !== "Code") continue;
  fold.querySelector("summary").remove();
  fold.replaceWith(...fold.childNodes);
}

// What moves on the page stands still: it says so, and leaves out its buttons.
const STILL = {
  "gpt2-explore": "sliders move it",
  "gpt2-sampling-panel": "its knobs move",
  "gpt2-attention-explorer": "you choose the head, the token and the view",
  "gpt2-play-panel": "the model runs, and you choose the text and the knobs",
};
const still = new CSSStyleSheet();
still.replaceSync(`
  .actions, .buttons, .hint, .facts button, details { display: none; }
  .box, .panel, table, .heads { break-inside: avoid; }
  h2, h3, h4, .about { break-after: avoid; }
`);
const freeze = (element) => {
  element.shadowRoot?.adoptedStyleSheets.push(still);
  for (const inner of element.shadowRoot?.querySelectorAll("*") ?? []) freeze(inner);
};
const moving = [...document.querySelectorAll(Object.keys(STILL).join())];
for (const element of moving) {
  const file = `${element.closest(".chapter").dataset.page}.html`;
  const name = make("code", { className: "literal", textContent: file });
  const rest = `, a page of the site, ${STILL[element.localName]}.`;
  const said = ["On paper, one state of several. In ", name, rest];
  element.after(make("p", { className: "still" }, ...said));
}

// A span for each token of code would be half of the PDF: those without a look of their
// own go.
const looks = new Map();
const look = (element) => {
  const { color, fontWeight, fontStyle, backgroundColor } = getComputedStyle(element);
  return [color, fontWeight, fontStyle, backgroundColor].join();
};
for (const code of document.querySelectorAll("pre, code.literal")) {
  const plain = look(code);
  for (const token of code.querySelectorAll("span:not([id])")) {
    const kind = token.className;
    if (!looks.has(kind)) looks.set(kind, look(token) === plain);
    if (looks.get(kind)) token.replaceWith(...token.childNodes);
  }
  code.normalize();
}

// A short piece of code stays on one page.
for (const code of document.querySelectorAll(".highlight pre")) {
  const lines = code.textContent.trimEnd().split("\n").length;
  if (lines <= 14) code.classList.add("short");
}

const images = [...document.images];
for (const image of images) image.loading = "eager";
const frame = () => new Promise((then) => requestAnimationFrame(then));
const ready = (async () => {
  await document.fonts.ready;
  for (const image of images) {
    await image.decode().catch(() => faults.push(`no image ${image.src}`));
  }
  await frame();
  await frame(); // in which the panels draw
  for (const element of moving) freeze(element);
  return faults;
})();

const headings = () => {
  const found = [...document.querySelectorAll("h1, h2, h3, h4")];
  return found.map((heading) => heading.textContent.trim());
};

// Letters that no font of this machine has: they print as boxes, all alike.
const withoutFont = () => {
  const pen = new OffscreenCanvas(24, 24).getContext("2d", { willReadFrequently: true });
  pen.font = "20px monospace";
  const drawn = (letter) => {
    pen.clearRect(0, 0, 24, 24);
    pen.fillText(letter, 0, 20);
    return pen.getImageData(0, 0, 24, 24).data.join();
  };
  const box = drawn("\u{10fffd}");
  const letters = new Set(document.querySelector("article").innerText.match(/\p{L}/gu));
  return [...letters].filter((letter) => drawn(letter) === box).join("");
};
