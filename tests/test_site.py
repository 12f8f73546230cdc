"""The built book in a browser without a network, as a reader meets it.

The pages are those in `_build/html`; if they are missing or older than their sources,
they are built first. Every page is opened once in light, by an empty cache, then turned
dark, and the tests look at what was found there.
"""

import json
import re
from base64 import b64decode
from collections import namedtuple
from itertools import pairwise
from urllib.parse import unquote, urldefrag

import pytest
import torch
from axe_playwright_python.base import AXE_SCRIPT
from conftest import NOTEBOOKS, ROOT
from in_browser import PHONE, UNFOLD, WIDE, open_tab, weigh

from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.tokenizer import load_tokenizer
from gpt2lib.web import read

Visit = namedtuple("Visit", "page faults axe narrow facts weights")
HEAVIEST, FRONT = 1_500_000, 400_000  # bytes that a page may transfer; not compressed


# What a page says of itself, collected in the page.
FACTS = """() => {
  const all = (selector, of) => [...document.querySelectorAll(selector)].map(of);
  const label = (e) => e.ariaLabel || e.querySelector("title")?.textContent
    || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent || "";
  return {
    title: document.title,
    code: all("main .highlight", (e) => e.textContent).join(" "),
    copied: all("div.highlight:has(.copybtn) pre", (e) => e.textContent),
    ids: all("[id]", (e) => e.id),
    links: all("a[href]", (e) => new URL(e.getAttribute("href"), location).href),
    images: all("img", (e) => [e.getAttribute("alt"), !!e.closest("article"), e.src,
      e.closest("figure")?.querySelector("figcaption")?.innerText ?? ""]),
    tables: all("article table", (e) => [e.querySelectorAll("th").length,
      e.querySelectorAll("th:not([scope])").length, e.innerText.slice(0, 60)]),
    drawings: all('article svg:not([aria-hidden="true"]):not([aria-hidden] *)', label),
    headings: all("main :is(h1, h2, h3, h4, h5, h6)", (e) => e)
      .filter((e) => !e.closest("#jb-print-docs-body")).map((e) => +e.tagName[1]),
    scripts: all("script[src]", (e) => new URL(e.src).pathname.split("/").at(-1)),
  elements: all("*", (e) => e.localName).filter((name) => name.startsWith("gpt2-")),
  marks: all(".export-mark a", (e) => [e.closest("[id]").id, e.href]),
    names: all("dl.py > dt[id]", (e) => [e.id, [
      ...e.parentElement.querySelectorAll(":scope > dd > p a")].map((a) => a.href)]),
  };
}"""

# axe's time grows with the square of the page: formulas become a letter, and code plain
# text, on all pages but one. The colours of code are the same everywhere.
AXE = """async ([rules, everything]) => {
  const flatten = (selector, text) =>
    document.querySelectorAll(selector).forEach((e) => e.replaceChildren(text(e)));
  flatten(".katex", () => "x");
  if (!everything) flatten(".highlight pre", (e) => e.textContent);
  const options = {preload: false, resultTypes: ["violations"]};
  if (rules) options.runOnly = {type: "rule", values: rules};
  const found = await axe.run(options);
  return found.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html}`));
}"""


# A page of code differs from the others in its code alone: one is enough in dark.
def alike(name):
    return name.startswith("gpt2lib/") and name != "gpt2lib/config.html"


# Drawings on a phone: words, share of the drawn size, whether keys scroll a wide one.
DRAWINGS = """() => [...document.querySelectorAll(".drawing > img")].map((e) => {
  const frame = e.parentElement, wide = frame.scrollWidth > frame.clientWidth + 1;
  return [e.alt.slice(0, 40), e.width / e.naturalWidth, !wide || frame.tabIndex === 0];
})"""

# What waits for a reader to come near is asked for, too.
ALL = """async () => {
  for (const it of document.querySelectorAll("[loading=lazy]")) it.loading = "eager";
  scrollTo(0, document.body.scrollHeight);
  await Promise.all([...document.images].map((it) => it.decode().catch(() => {})));
  await document.fonts.ready;
}"""


def visit(tab, faults, weights, base, name):
    """Return a page in light and in dark, each by every rule of axe."""
    faults.clear()
    weights.clear()
    tab.emulate_media(color_scheme="light")
    tab.set_viewport_size(PHONE)
    tab.goto(base + name)
    tab.evaluate(UNFOLD)
    tab.evaluate(ALL)
    narrow = tab.evaluate("document.documentElement.scrollWidth")
    small = tab.evaluate(DRAWINGS)
    tab.set_viewport_size(WIDE)
    facts = tab.evaluate(FACTS) | {"small": small}
    weighed = {file.removeprefix(base): size for file, size in weights.items()}
    tab.evaluate(AXE_SCRIPT)
    everything = name == "gpt2lib/config.html"
    axe = tab.evaluate(AXE, [None, everything])
    light = Visit(name, list(faults), axe, narrow, facts, weighed)
    if alike(name):
        return light, None
    faults.clear()
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    tab.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")
    axe = tab.evaluate(AXE, [None, everything])
    return light, Visit(name, list(faults), axe, narrow, facts, weighed)


@pytest.fixture(scope="module")
def pages(site):
    """Return the names of the book's pages; `index.html` only leads to the first."""
    names = [path.relative_to(site).as_posix() for path in site.rglob("*.html")]
    return sorted(name for name in names if name != "index.html")


@pytest.fixture(scope="module")
def visits(pages, server, browser):
    tab, faults = open_tab(browser, server)
    weights = weigh(tab)
    return [visit(tab, faults, weights, server, name) for name in pages]


@pytest.fixture(scope="module")
def light(visits):
    return [light for light, _ in visits]


@pytest.fixture(scope="module")
def dark(visits):
    return [dark for _, dark in visits if dark]


def report(faults):
    """Fail with one line for each fault."""
    assert not faults, "\n" + "\n".join(sorted(set(faults)))


def test_the_book_has_its_pages(pages):
    wanted = {f"notebooks/{path.stem}.html" for path in NOTEBOOKS}
    wanted |= {"search.html", "book/glossary.html", "gpt2lib/config.html"}
    assert wanted <= set(pages)


def test_nothing_fails_and_nobody_else_is_asked(light, dark):
    report([f"{v.page}: {fault}" for v in light + dark for fault in v.faults])


def test_accessible_in_light_and_dark(light, dark):
    report(
        [f"{v.page} (light): {fault}" for v in light for fault in v.axe]
        + [f"{v.page} (dark): {fault}" for v in dark for fault in v.axe]
    )


def test_dark_follows_the_system(server, browser):
    for scheme in ("light", "dark"):
        tab, _ = open_tab(browser, server, scheme)
        tab.goto(server + "book/index.html")
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme


def test_no_sideways_scroll_on_a_phone(light):
    report(
        [
            f"{v.page}: {v.narrow} pixels wide on a phone of {PHONE['width']}"
            for v in light
            if v.narrow > PHONE["width"]
        ]
    )


def test_drawings_can_be_read_on_a_phone(light):
    """Letters of 12 pixels keep 9; what is wider than the page scrolls, by keys too."""
    drawings = [(v.page, *drawing) for v in light for drawing in v.facts["small"]]
    assert len(drawings) > 30
    report([f"{p}: {a}: {size:.2f}" for p, a, size, _ in drawings if size < 0.74])
    report([f"{p}: {a}: no keys" for p, a, _, reached in drawings if not reached])


def test_pages_are_light(light):
    """Count what an empty cache asks for, from a server that packs nothing."""
    faults = []
    for visit in light:
        most = FRONT if visit.page == "book/index.html" else HEAVIEST
        total = sum(visit.weights.values())
        if total > most:
            heavy = sorted(visit.weights.items(), key=lambda it: -it[1])[:5]
            told = ", ".join(f"{file} {size / 1e3:.0f}" for file, size in heavy)
            faults.append(
                f"{visit.page}: {total / 1e3:.0f} kB, {most / 1e3:.0f} allowed: {told}"
            )
    report(faults)
    assert sum(min(light, key=lambda it: sum(it.weights.values())).weights.values())


def test_images_are_described(light):
    """An alt text says what the figure shows: no path, nothing that is said twice."""
    faults = []
    for visit in light:
        shown = {}
        for alt, in_text, source, caption in visit.facts["images"]:
            told = f"{visit.page}: {source} has the alt text {alt!r}"
            alt = "a/path" if alt is None else alt.strip()
            short = in_text and (len(alt) <= 30 or alt == caption.strip())
            if short or re.search(r"[/\\]|\.(svg|png)$|^_?images", alt):
                faults.append(told)
            elif in_text and shown.setdefault(alt, source) != source:
                faults.append(f"{told}, as has {shown[alt]}")
        faults += [
            f"{visit.page}: an unlabelled drawing"
            for it in visit.facts["drawings"]
            if not it
        ]
    report(faults)
    assert sum(len(visit.facts["images"]) for visit in light) > len(light)


def test_tables_have_headers(light):
    tables = [(visit.page, table) for visit in light for table in visit.facts["tables"]]
    report(
        [
            f"{page}: {heads} headers, {loose} of them without a scope: {text!r}"
            for page, (heads, loose, text) in tables
            if not heads or loose
        ]
    )
    assert tables


def test_headings_in_order(light):
    faults = []
    for page, *_, facts, _ in light:
        levels = facts["headings"]
        if levels[:1] != [1] or levels.count(1) != 1:
            faults.append(f"{page}: headings of levels {levels}, not one h1 in front")
        faults += [f"{page}: h{a}, h{b}" for a, b in pairwise(levels) if b > a + 1]
    report(faults)


def test_links_within_the_book_resolve(light, site, server):
    ids = {v.page: set(v.facts["ids"]) for v in light}
    faults = []
    for page, *_, facts, _ in light:
        for link in facts["links"]:
            address, anchor = urldefrag(link)
            if not address.startswith(server):
                if not address.startswith("https://"):
                    faults.append(f"{page}: {link} leads nowhere")
                continue
            target = unquote(address.removeprefix(server)).partition("?")[0]
            if not (site / target).is_file():
                faults.append(f"{page}: no page {target}")
            elif anchor and unquote(anchor) not in ids.get(target, ()):
                faults.append(f"{page}: {target} has no #{anchor}")
    report(faults)


def test_exported_cells_and_modules_link_to_each_other(light, server):
    found = {v.page: v.facts for v in light}
    faults = []
    for path in NOTEBOOKS:
        page = f"notebooks/{path.stem}.html"
        marks = dict(found[page]["marks"])
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            export = re.match(r"#\| export (\w+)", "".join(cell["source"]))
            if not export:
                continue
            here, there = f"{page}#{cell['id']}", f"gpt2lib/{export[1]}.html"
            if marks.get(cell["id"]) != f"{server}{there}#{cell['id']}":
                faults.append(f"{here}: no mark that leads to its source")
            if dict(found[there]["marks"]).get(cell["id"]) != server + here:
                faults.append(f"{there}: no link back to {here}")
        if "#| export" in found[page]["code"]:
            faults.append(f"{page}: shows an export directive")
    report(faults)


def test_every_public_name_leads_to_its_cell(light, server):
    library = next(v for v in light if v.page == "book/library.html")
    listed = dict(library.facts["names"])
    faults = []
    for path in sorted((ROOT / "gpt2lib").glob("*.py")):
        text = path.read_text("utf-8")
        mark = re.compile(r"^# %% \.\./notebooks/(\w+)\.ipynb #([\w-]+)$", re.M)
        cells = mark.split(text)
        public = re.search(r"^__all__ = (\[.*?\])", text, re.M | re.S)
        for name in re.findall(r"'(\w+)'", public[1] if public else ""):
            mine = re.compile(rf"^(class|def) {name}\b|^{name}\b.*=", re.M)
            for notebook, cell, code in zip(
                cells[1::3], cells[2::3], cells[3::3], strict=True
            ):
                target = f"{server}notebooks/{notebook}.html#{cell}"
                links = listed.get(f"gpt2lib.{path.stem}.{name}", [])
                if mine.search(code) and target not in links:
                    faults.append(f"{path.stem}.{name}: no link to {target}")
    report(faults)


def test_a_page_loads_the_scripts_of_its_elements_and_no_others(light, site):
    ours = {path.name for path in (ROOT / "gpt2lib" / "static").glob("*.js")}
    ours |= {path.name for path in (site / "_static").glob("*.gpt2.js")}
    faults, seen = [], set()
    for page, *_, facts, _ in light:
        wanted = {f"{name.removeprefix('gpt2-')}.js" for name in facts["elements"]}
        loaded = ours.intersection(facts["scripts"])
        if loaded != wanted:
            faults.append(f"{page}: loads {loaded}, holds the elements of {wanted}")
        seen |= wanted
    report(faults)
    assert {"explore.js", "sampling-panel.js", "attention-explorer.js"} <= seen


def test_the_trained_model_comes_with_the_site_in_both_forms(site):
    path = site / "_static" / "shakespeare-char.gpt2"
    model, tokenizer = read(path)
    shipped = GPT2LMHeadModel.from_pretrained(path.stem)
    assert tokenizer.characters == load_tokenizer(path.stem).characters
    for name, tensor in shipped.state_dict().items():
        step = tensor.abs().max() / 127  # at most, of eight bits
        torch.testing.assert_close(
            model.state_dict()[name], tensor, rtol=0, atol=step.item() / 2 + 1e-6
        )
    script = path.with_name(f"{path.name}.js").read_text("utf-8")
    numbers = re.fullmatch(r'.*\["shakespeare-char.gpt2"\] = "(.*)";\n', script)[1]
    assert b64decode(numbers) == path.read_bytes()


def test_javascript_stands_beside_its_python_where_there_is_room(server, browser):
    tab, faults = open_tab(browser, server)
    tab.goto(server + "book/javascript.html")
    boxes = """() => [...document.querySelectorAll(".mirror")]
      .map((pair) => [...pair.children].map((e) => e.getBoundingClientRect().toJSON()))
      .filter((sides) => sides.length > 1)"""
    for width in (1600, 2400):
        tab.set_viewport_size({"width": width, "height": 900})
        for left, right in tab.evaluate(boxes):
            assert left["top"] == right["top"]
            assert left["right"] < right["left"]
            assert right["right"] <= width
    for size in (WIDE, PHONE):
        tab.set_viewport_size(size)
        for above, below in tab.evaluate(boxes):
            assert above["bottom"] < below["top"]
            assert above["left"] == below["left"]
    code = tab.locator(".mirror pre")
    assert code.count() == tab.locator(".mirror .copybtn").count()
    assert code.evaluate_all("""(all) => all.every(
      (e) => e.scrollWidth <= e.clientWidth + 1 || e.tabIndex === 0)""")
    report(faults)


def test_sliders_move(light, server, browser):
    tab, faults = open_tab(browser, server)
    moved = 0
    for page in [v.page for v in light if v.page.startswith("notebooks/")]:
        tab.goto(server + page)
        tab.evaluate(UNFOLD)
        for figure in tab.locator("gpt2-explore").all():
            figure.scroll_into_view_if_needed()
            before = figure.locator(".explore-frame").inner_html()
            slider = figure.locator("input").first
            slider.focus()
            value = slider.input_value()
            tab.keyboard.press("ArrowRight")
            if slider.input_value() == value:
                tab.keyboard.press("ArrowLeft")
            if figure.locator(".explore-frame").inner_html() == before:
                faults.append(f"{page}: a slider that changes nothing")
            moved += 1
    report(faults)
    assert moved, "no page has a slider"


def search(tab, words):
    """Search from the page that is open, by keyboard; return the titles found."""
    tab.keyboard.press("Control+k")
    tab.keyboard.type(words)
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?*")
    tab.wait_for_selector("#search-results li a")
    return tab.locator("#search-results li a").all_text_contents()


# Sphinx's own search, without its page: the documents found for each of some words.
FOUND = """(terms) => terms.map((term) => {
  const [, words, excluded, marked, objects] = Search._parseQuery(term);
  const found = Search._performSearch(term, words, excluded, marked, objects);
  return found.map((it) => it[0]);
})"""


def test_search_finds_the_words_of_the_glossary(server, browser):
    tab, faults = open_tab(browser, server)
    tab.goto(server + "book/index.html")
    assert any("Glossary" in title for title in search(tab, "causal mask"))
    text = (ROOT / "book" / "glossary.md").read_text("utf-8")
    entries = re.search(r"^```\{glossary\}\n(.*?)^```", text, re.M | re.S)[1]
    terms = re.findall(r"^(?! )(.+)$", entries, re.M)
    assert len(terms) > 50
    found = dict(zip(terms, tab.evaluate(FOUND, terms), strict=True))
    faults += [f"{t}: no glossary" for t in terms if "book/glossary" not in found[t]]
    report(faults)


def tab_to(tab, selector, most=400):
    """Press Tab until the focus is on such an element, seen all the way; return it."""
    for _ in range(most):
        tab.keyboard.press("Tab")
        seen, there = tab.evaluate(FOCUS, selector)
        assert seen, f"the focus cannot be seen on the way to {selector}: {there}"
        if there is True:
            return tab.locator(":focus")
    raise AssertionError(f"{most} times Tab do not lead to {selector}")


# Whether the focus can be seen, and is on what is sought; or else what it is on.
FOCUS = """async (selector) => {
  await new Promise((done) => setTimeout(done, 0));
  let here = document.activeElement;
  while (here.shadowRoot?.activeElement) here = here.shadowRoot.activeElement;
  if (here === document.body) return [true, "the page"];
  const style = getComputedStyle(here), box = here.getBoundingClientRect();
  const marked = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
    || style.boxShadow !== "none";
  const inside = box.width > 0 && box.bottom > 0 && box.top < innerHeight;
  return [marked && inside, here.matches(selector) || here.outerHTML.slice(0, 200)];
}"""


def test_all_by_keyboard(server, browser):
    """From the front page, by Tab, Enter and arrows: all that there is to do."""
    tab, faults = open_tab(browser, server)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.emulate_media(reduced_motion="reduce")
    tab.goto(server + "book/index.html")
    skip = tab_to(tab, "*", most=1)
    assert skip.inner_text() == "Skip to main content"
    tab.keyboard.press("Enter")
    tab_to(tab, 'article a[href*="phase0"]', most=20)
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/phase0_foundation.html")
    tab_to(tab, ".dropdown-toggle")
    menu = tab.locator(".dropdown-download-buttons .dropdown-menu")
    tab.keyboard.press("Enter")
    assert menu.is_visible()
    tab_to(tab, ".dropdown-menu a", most=1)
    tab.keyboard.press("Escape")
    assert not menu.is_visible()
    mode = tab_to(tab, ".theme-switch-button", most=1)
    before = tab.evaluate("document.documentElement.dataset.mode")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.documentElement.dataset.mode") != before
    assert mode.is_visible(), "the focus is lost"
    fold = tab_to(tab, "article details:not([open]) > summary")
    tab.keyboard.press("Enter")
    assert fold.evaluate("(summary) => summary.parentElement.open")
    code = tab_to(tab, "article .copybtn").evaluate(COPIED)
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".copybtn.success")
    assert tab.evaluate("navigator.clipboard.readText()").strip() == code.strip()
    slider = tab_to(tab, 'article input[type="range"]')
    value = slider.input_value()
    tab.keyboard.press("ArrowRight")
    assert slider.input_value() != value
    tab.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    tab.goto(server + "book/reading.html")
    tab_to(tab, ".search-button__button", most=20)
    tab.keyboard.press("Enter")
    tab.keyboard.type("residual stream")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results li a")
    tab_to(tab, "#search-results li a")
    tab.keyboard.press("Enter")
    tab.wait_for_url(lambda address: "search.html" not in address)
    report(faults)


# The code that a button copies, as it stands on the page.
COPIED = """(button) => button.closest(".highlight").querySelector("pre").innerText"""


def test_code_is_copied_without_prompts(light):
    """What is copied is the text of a block: so no block may hold a prompt."""
    blocks = re.compile(r"^(?:\$ |>>> |\.\.\. |In ?\[\d*\]: ?).*", re.M)
    report(
        [
            f"{visit.page}: {prompt!r} would be copied"
            for visit in light
            if not visit.page.startswith("gpt2lib/")
            for prompt in blocks.findall("\n".join(visit.facts["copied"]))
        ]
    )
    assert sum(len(visit.facts["copied"]) for visit in light) > len(light)


# How many elements, or what stands before and after one, move or may start to.
MOVING = """() => [...document.querySelectorAll("*")].flatMap((e) =>
  [null, "::before", "::after"].map((part) => getComputedStyle(e, part))
).filter((style) => style.animationName !== "none"
  || style.transitionDuration.split(",").some((time) => parseFloat(time) > 0)
  || style.scrollBehavior === "smooth").length"""


def test_nothing_moves_for_who_asks_for_stillness(server, browser):
    tab, faults = open_tab(browser, server)
    tab.goto(server + "notebooks/phase0_foundation.html")
    assert tab.evaluate(MOVING), "nothing moves for anybody: what is tested here?"
    tab.emulate_media(reduced_motion="reduce")
    assert not tab.evaluate(MOVING)
    tab.reload()
    slider = tab.locator("gpt2-explore input").first
    value = slider.input_value()
    tab.wait_for_timeout(300)
    assert slider.input_value() == value
    report(faults)


def test_opened_from_a_folder(site, browser):
    base = site.as_uri() + "/"
    tab, faults = open_tab(browser, base)
    tab.goto(base + "index.html")
    tab.wait_for_url("**/book/index.html")
    assert search(tab, "attention")
    tab.goto(base + "notebooks/phase1_components.html")
    assert tab.locator(".katex").count()
    tab.locator(".theme-switch-button").first.click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    report(faults)


def test_a_link_opens_the_fold_it_leads_into(server, browser):
    tab, _ = open_tab(browser, server)
    tab.goto(server + "notebooks/phase0_foundation.html")
    fold = "document.querySelector('article details')"
    tab.evaluate(f"{fold}.lastElementChild.id = 'inside'")
    assert not tab.evaluate(f"{fold}.open")
    tab.evaluate("location.hash = 'inside'")
    tab.wait_for_function(f"{fold}.open")
