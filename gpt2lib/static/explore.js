// The controls of `explore` (gpt2lib/figures.py) where there is no Python: sliders that
// choose among frames made beforehand. Loaded once by the site, inlined elsewhere.
// Text from Python reaches the page through textContent and attributes only.
(() => {
  if (customElements.get("gpt2-explore")) return;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const drawBars = ({ alt, bars }, columns) => {
    const heads = columns.map((text) => make("th", { scope: "col", textContent: text }));
    const rows = bars.map(([label, number, share]) => {
      const cell = make("td", {}, make("span", { textContent: number }));
      cell.style.setProperty("--share", share);
      return make("tr", {}, make("th", { scope: "row", textContent: label }), cell);
    });
    const table = make("table", { className: "explore-bars" },
      make("caption", { textContent: alt }),
      make("thead", {}, make("tr", {}, ...heads)),
      make("tbody", {}, ...rows));
    const digits = Math.max(...bars.map(([, number]) => number.length));
    table.style.setProperty("--digits", `${digits}ch`);
    return table;
  };

  const drawFrame = (frame, columns) => {
    if (frame.bars) return drawBars(frame, columns);
    if (frame.image) return make("img", { src: frame.image, alt: frame.alt });
    return make("pre", { textContent: frame.text, tabIndex: 0 });
  };

  class Explore extends HTMLElement {
    connectedCallback() {
      // While a page is being parsed, this element's content may be yet to come.
      if (document.readyState !== "loading") this.start();
      else document.addEventListener("DOMContentLoaded", () => this.start(), { once: true });
    }

    start() {
      if (this.frame) return; // moved within the page: it runs already
      this.state = JSON.parse(this.dataset.state);
      this.frame = make("div", { className: "explore-frame" });
      this.said = make("p", { className: "explore-said", role: "status" });
      this.controls = this.state.controls.map(({ name, choices }) => {
        const input = make("input",
          { type: "range", min: 0, max: choices.length - 1, step: 1, value: 0 });
        const shown = make("span", { className: "explore-value", ariaHidden: "true" });
        input.addEventListener("input", () => this.update(true));
        const row = make("label", {}, make("span", { textContent: name }), input, shown);
        return { choices, input, shown, row };
      });
      const title = this.state.title;
      this.replaceChildren(
        ...(title ? [make("p", { className: "explore-title", textContent: title })] : []),
        make("div", { className: "explore-controls" }, ...this.controls.map(({ row }) => row)),
        this.frame, this.said);
      this.update(false);
    }

    update(announce) {
      let index = 0; // the last control turns fastest, as in itertools.product
      for (const { choices, input, shown } of this.controls) {
        const choice = choices[input.valueAsNumber];
        index = index * choices.length + input.valueAsNumber;
        shown.textContent = choice;
        input.setAttribute("aria-valuetext", choice);
      }
      const frame = this.state.frames[index];
      this.frame.replaceChildren(drawFrame(frame, this.state.columns));
      if (announce) this.said.textContent = frame.alt ?? frame.text;
    }
  }

  customElements.define("gpt2-explore", Explore);
})();
