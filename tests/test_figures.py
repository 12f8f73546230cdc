"""The figures' HTML: well formed, the same everywhere, inert, alive in a browser."""

import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import myst_nb
import nbformat
import pytest
from conftest import HOSTILE, NOTEBOOKS, ROOT
from IPython.core.interactiveshell import InteractiveShell
from myst_nb.ext.glue import extract_glue_data_cell

from gpt2lib import figures
from gpt2lib.figures import explore, glue, gpt2_map, use_style
from tools.run_notebooks import clean

STATIC = ROOT / "gpt2lib/static"
PARTS = list(figures._PARTS)


def html(shown):
    return shown._repr_mimebundle_()["text/html"]


# The style -----------------------------------------------------------------


def test_style_measures_on_the_pages_that_the_site_has():
    site = (ROOT / "book/_static/site.css").read_text("utf-8")
    grounds = re.findall(r"--pst-color-background: (#\w+)", site)
    assert grounds == ["#fff", "#14171a"]
    notebook = (ROOT / "notebooks/appendix_figures.ipynb").read_text("utf-8")
    assert "'#14171a'" in notebook


# Of a figure `svg` on the page: how many points its letters cover whole, and the least
# contrast of one of them with what lies behind it.
LEGIBLE = """async (svg) => {
  const page = getComputedStyle(document.documentElement);
  const img = document.querySelector("img");
  const canvas = document.createElement("canvas");
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  const draw = async (css, ground) => {
    const drawing = new DOMParser().parseFromString(svg, "image/svg+xml");
    const style = drawing.createElementNS("http://www.w3.org/2000/svg", "style");
    style.textContent = css;
    drawing.documentElement.append(style);
    const text = new XMLSerializer().serializeToString(drawing);
    img.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
    await img.decode();
    const size = [2 * img.naturalWidth, 2 * img.naturalHeight];
    [canvas.width, canvas.height] = size;
    brush.fillStyle = ground;
    brush.fillRect(0, 0, ...size);
    brush.filter = getComputedStyle(img).filter;
    brush.drawImage(img, 0, 0, ...size);
    return brush.getImageData(0, 0, ...size).data;
  };
  const letters = "g[id^=text_]";
  const only = `svg * { visibility: hidden } ${letters} * { visibility: visible }`;
  const ink = await draw(only, "transparent");
  const behind = await draw(
    `${letters} { display: none }`, page.getPropertyValue("--pst-color-background"));
  const linear = [...Array(256).keys()].map((byte) =>
    byte <= 10 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (data, i) => 0.2126 * linear[data[i]] +
    0.7152 * linear[data[i + 1]] + 0.0722 * linear[data[i + 2]];
  let points = 0, least = 21;
  for (let i = 0; i < ink.length; i += 4) {
    if (ink[i + 3] < 255) continue;
    const [low, high] = [luminance(ink, i), luminance(behind, i)].sort((a, b) => a - b);
    points += 1;
    least = Math.min(least, (high + 0.05) / (low + 0.05));
  }
  return [points, least];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_of_stored_figures_stand_out_from_what_lies_behind(browser, theme):
    site = (ROOT / "book/_static/site.css").read_text("utf-8")
    page = browser.new_page()
    page.set_content(
        f'<html data-theme="{theme}"><style>{site}</style>'
        '<div class="bd-content"><div class="cell_output"><img></div></div>'
    )
    seen, faint = 0, []
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                svg = output.get("data", {}).get("image/svg+xml")
                if svg is None:
                    continue
                points, least = page.evaluate(LEGIBLE, svg)
                assert points > 200, f"{path.stem}, {cell.id}: where are its letters?"
                seen += 1
                if least < 4.5:
                    faint.append(f"{path.stem}, {cell.id}: {least:.2f}")
    page.close()
    assert not faint, faint
    assert seen > 30


def test_figures_are_the_same_each_time_and_light(book):
    use_style()

    def drawn():
        fig, ax = plt.subplots()
        for power in range(6):
            ax.plot([x**power for x in range(20)], label=f"power {power}")
        ax.legend()
        return figures._frame(fig, "six curves", None, "")["image"]

    first = drawn()
    assert first == drawn()
    assert len(first) < 60_000


def test_figures_have_a_ground_only_outside_of_the_book(book, monkeypatch):
    assert figures._svg_options()["facecolor"] == "none"
    monkeypatch.delenv("GPT2LIB_BOOK")
    assert "facecolor" not in figures._svg_options()


# The map -------------------------------------------------------------------


@pytest.mark.parametrize("lit", [(), *[(part,) for part in PARTS], tuple(PARTS)])
def test_map_marks_what_is_lit_and_names_itself(lit):
    shown = gpt2_map(lit=lit)
    figure = ElementTree.fromstring(html(shown).replace("xmlns=", "ns="))
    marked = figure.iterfind(".//g[@class='lit']")
    assert sorted(group.get("data-part") for group in marked) == sorted(lit)
    assert len(figure.findall(".//li")) == len(lit)
    svg = figure.find("svg")
    assert svg.get("role") == "img"
    ids = {node.get("id"): node for node in figure.iter() if node.get("id")}
    assert len(ids) == 2
    assert ids[svg.get("aria-labelledby")].text == repr(shown)
    assert "residual stream" in ids[svg.get("aria-describedby")].text
    assert "style=" not in html(shown), "colours belong to the style block"


def test_map_is_the_same_for_any_order_and_unlike_for_other_parts():
    one = gpt2_map(lit=("norm1", "attention"))
    assert html(one) == html(gpt2_map(lit=["attention", "norm1", "norm1"]))
    assert html(gpt2_map(lit="norm1")) == html(gpt2_map(lit=("norm1",)))
    ids = [re.findall(r' id="([^"]+)"', html(gpt2_map(lit=(part,)))) for part in PARTS]
    assert len({name for pair in ids for name in pair}) == 2 * len(PARTS)


def test_map_refuses_parts_that_it_does_not_have():
    for wrong in ({"lit": ("atention",)}, {"links": {"atention": "x.html"}}):
        with pytest.raises(ValueError, match=r"atention.*'attention'"):
            gpt2_map(**wrong)


def test_map_links_parts():
    linked = html(gpt2_map(lit="loss", links={"loss": 'a.html?"><script>'}))
    figure = ElementTree.fromstring(linked.replace("xmlns=", "ns="))
    [link] = figure.iterfind(".//a")
    assert link.get("href") == 'a.html?"><script>'
    assert link.find("g").get("data-part") == "loss"
    assert figure.find("svg").get("role") == "group", "an image may hold no links"


# Sliders -------------------------------------------------------------------


def state(shown):
    return json.loads(re.search(r"data-state='([^']*)'", html(shown))[1])


def test_explore_holds_a_frame_for_each_combination_in_order(book):
    shown = explore(lambda a, b: f"{a}{b}", a=[1, 2], b="xy")
    assert [f["text"] for f in state(shown)["frames"]] == ["1x", "1y", "2x", "2y"]
    assert repr(shown) == "explore: a in [1, 2], b in ['x', 'y']"
    assert html(shown) == html(explore(lambda a, b: f"{a}{b}", a=[1, 2], b="xy"))


def test_explore_scales_bars_and_formats_numbers(book):
    def draw(n):
        return {"small": n / 3, "large": 1234.5 * n}

    assert state(explore(draw, n=[1]))["frames"][0] == {
        "bars": [["small", "0.333", 0.0], ["large", "1,234", 1.0]],
        "alt": "most: large, 1,234",
    }
    halved = state(explore(draw, top=lambda n: 2469 * n, spec=".1f", n=[1, 2]))
    assert [f["bars"][1] for f in halved["frames"]] == [
        ["large", "1234.5", 0.5],
        ["large", "2469.0", 0.5],
    ]


def test_explore_in_the_book_stores_no_markup_from_data_and_no_script(book):
    def draw(choice):
        return {HOSTILE: 1}

    shown = explore(
        draw, title=HOSTILE, alt=HOSTILE, columns=(HOSTILE, "b"), choice=[HOSTILE]
    )
    assert "<script" not in html(shown).lower()
    assert "<img" not in html(shown)
    assert state(shown)["frames"][0]["bars"][0][0] == HOSTILE
    ElementTree.fromstring(html(shown))


def test_explore_elsewhere_brings_style_and_script_once(elsewhere):
    alone = html(explore(lambda n: HOSTILE * n, n=[1, 2]))
    assert alone.lower().count("<script") == alone.lower().count("</script") == 1
    assert "<style>" in alone


@pytest.mark.parametrize(
    ("draw", "values", "message"),
    [
        (str, {}, "choices"),
        (str, {"object": []}, "choices"),
        (lambda n: 3, {"n": [1]}, "int, not str"),
        (lambda n: {}, {"n": [1]}, "0 or more"),
        (lambda n: {"a": -1}, {"n": [1]}, "0 or more"),
        (lambda n: plt.figure(), {"n": [1]}, "alt="),
        (lambda n: "x" * 100_000, {"n": [1, 2]}, "300 kB"),
    ],
)
def test_explore_refuses(book, draw, values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        explore(draw, **values)
    plt.close("all")


def test_explore_with_a_kernel_draws_at_each_move(elsewhere, monkeypatch):
    monkeypatch.setattr(figures, "get_ipython", lambda: SimpleNamespace(kernel=1))
    asked = []

    def draw(size, unit):
        asked.append((size, unit))
        return {f"{HOSTILE} {unit}": size}

    controls = explore(draw, title="How large", size=[1, 2, 3], unit=["m", "km"])
    heading, size, unit, shown = controls.children
    assert "How large" in heading.value
    assert asked == [(1, "m")]
    size.value, unit.value = 3, "km"
    assert asked[1:] == [(3, "m"), (3, "km")]
    assert "<span>3</span>" in shown.value
    assert "<img" not in shown.value


# Numbers in the prose ------------------------------------------------------


def test_glue_is_what_the_book_reads(monkeypatch):
    shown = []
    for module in (figures, myst_nb.ext.glue):
        name = "display" if module is figures else "ipy_display"
        monkeypatch.setattr(
            module, name, lambda data, **rest: shown.append((data, rest))
        )
    glue("share", 0.256, ".0%")
    myst_nb.glue("share", "26%", display=False)
    InteractiveShell.clear_instance()  # which myst-nb has made
    (ours, our_rest), (theirs, their_rest) = shown
    assert our_rest == their_rest
    assert list(ours) == list(theirs)


def test_glue_survives_cleaning_and_is_found():
    notebook = nbformat.read(ROOT / "notebooks/appendix_figures.ipynb", as_version=4)
    clean(notebook)
    [cell] = [cell for cell in notebook.cells if cell.id == "glue-example"]
    [(name, found)] = extract_glue_data_cell(cell)
    assert name == "palest-contrast"
    printed = cell.outputs[0].text.strip()
    assert found["data"] == {"text/plain": printed}


# In a browser --------------------------------------------------------------


@pytest.fixture
def show(browser, tmp_path):
    """Open a page of `parts` as the site does: a style sheet, a deferred script."""
    pages = []

    def show(*parts, theme="light", width=1280, assets=True):
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("requestfailed", lambda request: page.faults.append(request.url))
        page.route(re.compile("^(?!file:|data:)"), lambda route: route.abort())
        ink, ground = ("#000", "#fff") if theme == "light" else ("#ddd", "#111")
        head = f"<style>body{{color:{ink};background:{ground};margin:16px}}</style>"
        if assets:
            head += f'<link rel="stylesheet" href="{(STATIC / "book.css").as_uri()}">'
            head += f'<script defer src="{(STATIC / "explore.js").as_uri()}"></script>'
        body = "".join(html(part) for part in parts)
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(
            f'<!doctype html><html lang="en" data-theme="{theme}">'
            f'<meta charset="utf-8"><title>t</title>{head}<body>{body}',
            "utf-8",
        )
        page.goto(path.as_uri())
        return page

    yield show
    for page in pages:
        assert not page.faults
        page.close()


def bars(chosen):
    return {HOSTILE: chosen, "b": 10}


def test_slider_moves_by_keyboard_and_says_so(book, show):
    page = show(explore(bars, columns=("token", "count"), top=10, chosen=[2, 5, 10]))
    slider = page.get_by_role("slider", name="chosen")
    assert slider.get_attribute("aria-valuetext") == "2"
    assert page.get_by_role("group", name="chosen").count() == 1
    assert page.get_by_role("status").inner_text() == "", "quiet until it is used"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "5"
    assert page.locator("tbody td").first.inner_text() == "5"
    assert page.locator("tbody th").first.inner_text() == HOSTILE
    assert page.get_by_role("status").inner_text() == "most: b, 10"
    page.keyboard.press("End")
    assert page.locator("tbody td").first.inner_text() == "10"
    widths = page.locator("tbody td").evaluate_all(
        "cells => cells.map(c => getComputedStyle(c, '::after').inlineSize)"
    )
    assert widths[0] == widths[1]
    assert float(widths[0].removesuffix("px")) > 300


@pytest.mark.parametrize("assets", [True, False], ids=["site", "alone"])
def test_hostile_text_stays_text(show, monkeypatch, assets):
    monkeypatch.delenv("GPT2LIB_BOOK", raising=False)
    if assets:
        monkeypatch.setenv("GPT2LIB_BOOK", "1")
    shown = explore(
        lambda choice: {HOSTILE: 1} if choice == HOSTILE else HOSTILE,
        title=HOSTILE,
        alt=HOSTILE,
        columns=(HOSTILE, "count"),
        choice=[HOSTILE, HOSTILE * 2],
    )
    page = show(shown, assets=assets)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("pre").inner_text() == HOSTILE
    assert page.locator(".explore-value").inner_text() == HOSTILE * 2
    assert page.locator("gpt2-explore :is(img, script)").count() == 0
    assert page.evaluate("window.hit") is None


def test_figure_frames_have_their_own_alt_text(book, show):
    def draw(n):
        fig, ax = plt.subplots()
        ax.plot(range(n))
        return fig

    page = show(explore(draw, alt=lambda n: f"a line to {n}", n=[2, 3]))
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("img", name="a line to 3").is_visible()
    assert page.locator("img").evaluate("image => image.naturalWidth") > 300


def test_without_a_script_the_first_frame_is_there(book, show):
    page = show(explore(bars, columns=("token", "count"), chosen=[2, 5]), assets=False)
    assert page.get_by_role("table", name="most: b, 10").is_visible()
    assert page.get_by_text("chosen: 2").is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_map_follows_the_page_and_shows_what_is_lit(show, theme):
    page = show(gpt2_map(lit=("attention",)), theme=theme)
    style = "(element, name) => getComputedStyle(element)[name]"
    ink = page.locator("body").evaluate(style, "color")
    text = page.get_by_text("attention", exact=True).first
    assert text.evaluate(style, "fill") == ink
    assert text.evaluate(style, "fontWeight") == "700"
    boxes = page.locator("svg .box")
    widths = boxes.evaluate_all("bs => bs.map(b => getComputedStyle(b).strokeWidth)")
    assert sorted(set(widths)) == ["1.2px", "3px"]
    assert widths.count("3px") == 1


def test_map_can_be_read_on_a_phone(show):
    page = show(gpt2_map(lit=PARTS), width=390)
    sizes = page.locator("svg text").evaluate_all(
        "texts => texts.map(text => text.ownerSVGElement.getScreenCTM().a"
        " * parseFloat(getComputedStyle(text).fontSize))"
    )
    assert min(sizes) >= 11
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_map_keeps_its_letters_inside_its_boxes(show):
    """In bold, and in a wide face: other systems' fonts are narrower."""
    page = show(gpt2_map(lit=PARTS))
    page.add_style_tag(
        content=".gpt2-map text { font-family: 'DejaVu Sans' !important }"
    )
    outside = page.evaluate(
        """() => [...document.querySelectorAll("svg g text")].filter(text => {
            const near = [...text.parentNode.querySelectorAll("rect")];
            const a = text.getBoundingClientRect();
            const boxes = near.map(box => box.getBoundingClientRect());
            const touches = b => a.left < b.right && a.right > b.left
                && a.top < b.bottom && a.bottom > b.top;
            const holds = b => a.left > b.left && a.right < b.right;
            return boxes.some(b => touches(b) && !holds(b));
        }).map(text => text.textContent)"""
    )
    assert outside == []


@pytest.mark.parametrize("height", [float("nan"), float("inf"), -1.0])
def test_bars_that_cannot_be_drawn_are_refused(height):
    with pytest.raises(ValueError, match=r"finite numbers of 0 or more"):
        explore(lambda x: {"a": 1.0, "b": height}, x=[1])
