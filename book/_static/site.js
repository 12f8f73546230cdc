// The few things that the book's pages need a script for.

// Opened from a folder, a browser refuses to fetch: search goes without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Excerpts of search results hold each formula once, not in both of its forms, and not
// the boxes that can be ticked.
if (typeof Search !== "undefined") {
  const plain = Search.htmlToText;
  const twice = /<span class="katex-mathml">.*?<\/span>|<p class="\w+-done .*?<\/p>/gs;
  Search.htmlToText = (html, anchor) => plain(html.replace(twice, ""), anchor);
}

// The marker of searched words fails on words that a drawing holds but does not draw.
for (const unseen of document.querySelectorAll("svg title, svg desc")) {
  unseen.classList.add("nohighlight");
}

// What scrolls sideways can be reached and scrolled with the keyboard.
const wide = ".math, pre, .output, .drawing, .pst-scrollable-table-container";
const markScrollable = () => {
  for (const element of document.querySelectorAll(wide)) {
    const scrolls = element.scrollWidth > element.clientWidth + 1;
    if (scrolls) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }
};
addEventListener("DOMContentLoaded", markScrollable);
addEventListener("resize", markScrollable);
document.addEventListener("toggle", markScrollable, true); // a fold was opened

// A link to a cell that is folded away opens it.
const openTarget = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") node.open = true;
  }
};
addEventListener("DOMContentLoaded", openTarget);
addEventListener("hashchange", openTarget);

// The theme takes the focus from some buttons; who came by keyboard keeps it.
for (const button of document.querySelectorAll(
  ".theme-switch-button, .primary-toggle, .secondary-toggle",
)) {
  button.addEventListener("click", (event) => event.detail || button.focus());
}

// The menu of downloads.
for (const button of document.querySelectorAll('[data-bs-toggle="dropdown"]')) {
  const both = button.parentElement;
  const show = (open) => {
    button.nextElementSibling.classList.toggle("show", open);
    button.setAttribute("aria-expanded", open);
  };
  button.addEventListener("click", () => show(button.ariaExpanded !== "true"));
  addEventListener("click", (event) => both.contains(event.target) || show(false));
  both.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !both.contains(event.relatedTarget)) show(false);
  });
  both.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    show(false);
    button.focus();
  });
}

// Paper is light, and an answer on it cannot be unfolded.
const root = document.documentElement;
let before = null;
addEventListener("beforeprint", () => {
  const folded = [...document.querySelectorAll("article details:not(.fold):not([open])")];
  before = { theme: root.dataset.theme, folded };
  root.dataset.theme = "light";
  for (const fold of folded) fold.open = true;
});
addEventListener("afterprint", () => {
  root.dataset.theme = before.theme;
  for (const fold of before.folded) fold.open = false;
});
