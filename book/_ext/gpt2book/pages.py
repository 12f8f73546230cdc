"""Scripts, style sheets, the trained model, and small mends of the finished pages.

The theme asks for more than a page of this book needs, and a few of its tags trouble
screen readers. The mends below are made on the written HTML, where they do not depend
on the theme's templates. The log of a build names those that found nothing to mend:
when the theme has changed, they can go.
"""

import functools
import re
import shutil
from base64 import b64encode
from pathlib import Path

from sphinx.util import logging

from . import light

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parents[3] / "gpt2lib" / "static"
PANEL, MODEL = "gpt2-play-panel", "shakespeare-char"

# Follow the system's light or dark mode before the first paint.
THEME = """<script>
    (() => {
      let stored = {};
      try { stored = localStorage; } catch { /* refused: use the system's */ }
      const mode = stored.mode || "auto";
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      const root = document.documentElement;
      root.dataset.mode = mode;
      root.dataset.theme = mode === "auto" ? (dark ? "dark" : "light") : mode;
    })();
  </script>"""

# Why, what to find, and what to put there.
MENDS = [
    ("no flash of the wrong theme", r"<script data-cfasync.*?</script>", THEME),
    ("without a script: light", r'(<html [^>]*) data-theme="auto"', r"\1"),
    (
        "1.5 MB of icons that no page shows",
        r"<script[^>]*fontawesome\.js[^>]*></script>",
        "",
    ),
    (
        "81 kB of menus; site.js opens the one there is",
        r"<(script|link)[^>]*/bootstrap\.js[^>]*>(</script>)?",
        "",
    ),
    (
        SEARCH := "search runs on its own page",
        r'<script src="[^"]*(searchtools|language_data|searchindex)\.js"></script>',
        "",
    ),
    (
        "it is there already",
        r'<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        "",
    ),
    (
        "the button's words say more",
        r'(<button class="btn search-button-field[^>]*) aria-label="Search"',
        r"\1",
    ),
    ("an empty cell heads nothing", r"<th[^>]*>(<p></p>)?</th>", "<td></td>"),
    ("what it heads", r'<th (?=class="stub)', "<th scope=row "),
    ("what it heads", r"<th(?=[ >])(?![^>]*scope=)", "<th scope=col"),
    (
        "a landmark for the book's title",
        r'(<div id="pst-primary-sidebar")',
        r'\1 role="region" aria-label="The book"',
    ),
    (
        "ARIA 1.2 has no such role outside a list",
        r'(<div class="citation"[^>]*) role="doc-biblioentry"',
        r'\1 role="listitem"',
    ),
]
UNUSED = [
    "_static/scripts/fontawesome.js*",
    "_static/scripts/bootstrap.js*",
    "_static/vendor/fontawesome/webfonts/*",  # the style sheet draws the few icons
    "_static/**/*.map",
    "_static/*macros.html",
]


def mend_pages(app, error):
    """Apply `MENDS` to every page, and delete what no page loads any more."""
    if error or app.builder.name != "html":
        return
    out, found = Path(app.outdir), dict.fromkeys((why for why, *_ in MENDS), 0)
    for path in out.rglob("*.html"):
        text = path.read_text("utf-8")
        for why, pattern, new in MENDS:
            if path.name == "search.html" and why == SEARCH:
                continue
            text, count = re.subn(pattern, new, text, flags=re.S)
            found[why] += count
        path.write_text(text, "utf-8")
    for pattern in UNUSED:
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / "_static" / "locales", ignore_errors=True)
    for why in (why for why, count in found.items() if not count):
        logger.info("pages: a mend found nothing: %s", why)


def flatten_buttons(app, page, template, context, doctree):
    """Show a menu of one entry as a button."""
    buttons = []
    for button in context.get("header_buttons", []):
        alone = button["type"] == "group" and len(button["buttons"]) == 1
        buttons.append(button["buttons"][0] | {"text": ""} if alone else button)
    context["header_buttons"] = buttons


@functools.cache
def scripts_of_elements():
    """Return {element: path} of the scripts that define one; each is named after it."""
    return {
        f"gpt2-{path.stem}": path
        for path in sorted(STATIC.glob("*.js"))
        if re.search("export default|customElements", path.read_text("utf-8"))
    }


def plain_script(app, path):
    """Return the path of a script that pages opened from a folder run, too.

    A module is wrapped into one: browsers refuse `<script type="module">` there.
    """
    if "export default" not in path.read_text("utf-8"):
        return path
    from gpt2lib.figures import _element_script  # brings matplotlib, as drawing does

    plain = Path(app.doctreedir) / "scripts" / path.name
    plain.parent.mkdir(parents=True, exist_ok=True)
    script = _element_script(path.stem)
    plain.write_text(re.sub(r"^\s+(//.*\n)?|^//.*\n", "", script, flags=re.M), "utf-8")
    return plain


def add_files(app):
    """Load our script and the library's style on every page; copy its scripts."""
    app.add_js_file("site.js", loading_method="defer")
    for path in scripts_of_elements().values():
        app.config.html_static_path.append(str(plain_script(app, path)))
    for path in sorted(STATIC.glob("*.css")):
        app.config.html_static_path.append(str(path))
        app.add_css_file(path.name)


def load_elements(app, page, template, context, doctree):
    """Load the script of an element on the pages that hold it."""
    for element, path in scripts_of_elements().items():
        if re.search(rf"<{element}[ >]", context.get("body", "")):
            app.add_js_file(path.name, loading_method="defer")


def write_model(app, error):
    """Write the trained model, if a page runs it; for `file://`, as a script.

    A page asks for one of the two when its reader does.
    """
    if error or app.builder.format != "html":
        return
    pages = Path(app.outdir).rglob("*.html")
    if not any(f"<{PANEL}" in page.read_text("utf-8") for page in pages):
        return
    path = Path(app.outdir) / "_static" / f"{MODEL}.gpt2"
    script = path.with_name(f"{path.name}.js")
    sources = [STATIC.parent / "web.py", *(STATIC / MODEL).iterdir()]
    written = script.stat().st_mtime if script.exists() else 0
    if written > max(source.stat().st_mtime for source in sources):
        return
    from gpt2lib.language_model import GPT2LMHeadModel  # brings torch: rarely needed
    from gpt2lib.tokenizer import load_tokenizer
    from gpt2lib.web import export

    export(GPT2LMHeadModel.from_pretrained(MODEL), load_tokenizer(MODEL), path)
    numbers = b64encode(path.read_bytes()).decode()
    files = "(globalThis.gpt2Files ??= {})"
    script.write_text(f'{files}["{path.name}"] = "{numbers}";\n', "utf-8")


def setup(app):
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it
    app.connect("builder-inited", add_files)
    app.connect("html-page-context", load_elements)
    app.connect("html-page-context", flatten_buttons, priority=900)
    app.connect("build-finished", write_model)
    app.connect("build-finished", mend_pages, priority=900)
    light.setup(app)
