// Finished sections of the phases: ticked on the page, kept in this browser and nowhere
// else. Each has an entry of its own in the browser's storage, so that two tabs do not
// overwrite each other's, and an entry that no section answers to is left alone.
{
  const SECTIONS = {}; // of each page, by their ids: filled in when the book is built
  const TICK = "✓";

  const pageOf = (address) => /(\w+)(\.html)?$/.exec(new URL(address).pathname)?.[1];
  const keyOf = (page, section) => `gpt2-book/done/${page}#${section}`;
  const keysOf = (page) => SECTIONS[page].map((section) => keyOf(page, section));
  const here = Object.hasOwn(SECTIONS, pageOf(location)) ? pageOf(location) : null;
  const known = new Set(Object.keys(SECTIONS).flatMap(keysOf));

  const done = new Set(); // the keys of what is ticked
  let kept = true; // until the browser refuses
  let cleared = []; // what can be brought back

  const inStorage = (act) => {
    try {
      act(localStorage);
    } catch {
      kept = false; // private, full, or a page from a folder: this visit only
    }
  };
  const mark = (key, ticked) => done[ticked ? "add" : "delete"](key);
  const read = () => inStorage((storage) => {
    for (const key of known) mark(key, storage.getItem(key) === "yes");
  });
  const write = (key, ticked) => {
    mark(key, ticked);
    inStorage((storage) => {
      if (ticked) storage.setItem(key, "yes");
      else storage.removeItem(key);
    });
  };

  // Put a mark behind a link of a navigation: what is seen, and what is read aloud.
  const label = (link, seen, heard) => {
    link.querySelector(".done-mark")?.remove();
    link.removeAttribute("aria-label");
    if (!seen) return;
    link.setAttribute("aria-label", `${link.textContent.trim()}, ${heard}`);
    const note = link.appendChild(document.createElement("span"));
    note.className = "done-mark";
    note.append(Object.assign(document.createElement("span"), { textContent: seen }));
  };

  const boxes = document.querySelectorAll(".section-done input");
  const button = document.querySelector(".page-done button");

  const show = () => {
    for (const link of document.querySelectorAll(".bd-links a[href]")) {
      const page = pageOf(link.href);
      if (!Object.hasOwn(SECTIONS, page)) continue;
      const total = SECTIONS[page].length;
      const count = keysOf(page).filter((key) => done.has(key)).length;
      if (count === total) label(link, TICK, "done");
      else label(link, count && `${count} of ${total}`, `${count} of ${total} done`);
    }
    if (!here) return;
    for (const link of document.querySelectorAll(".page-toc a[href^='#']")) {
      const section = decodeURIComponent(link.hash.slice(1));
      label(link, done.has(keyOf(here, section)) && TICK, "done");
    }
    for (const box of boxes) {
      box.checked = done.has(keyOf(here, box.dataset.section));
      const place = box.closest("p");
      place.querySelector("small")?.remove();
      if (kept || !box.checked) continue;
      const note = place.appendChild(document.createElement("small"));
      note.textContent = "For this visit only.";
    }
    const total = boxes.length;
    const count = [...boxes].filter((box) => box.checked).length;
    let words = `${count} of ${total} sections done`;
    if (count === total) words = `All ${total} sections done.`;
    else words += count ? "." : ": tick each at its end.";
    if (!kept) words += " This browser does not keep ticks: they last for this visit.";
    const status = document.querySelector(".page-done [role=status]");
    if (status.textContent !== words) status.textContent = words;
    button.hidden = !count && !cleared.length;
    button.textContent = count ? "Clear these ticks" : "Bring them back";
  };

  for (const box of boxes) {
    box.addEventListener("change", () => {
      cleared = [];
      write(keyOf(here, box.dataset.section), box.checked);
      show();
    });
  }
  button?.addEventListener("click", () => {
    const ticked = keysOf(here).filter((key) => done.has(key));
    for (const key of ticked) write(key, false);
    if (!ticked.length) for (const key of cleared) write(key, true);
    cleared = ticked;
    show();
  });

  // Another tab, or this page come back to.
  const again = () => {
    if (!kept) return;
    read();
    show();
  };
  addEventListener("storage", ({ key }) => (key === null || known.has(key)) && again());
  addEventListener("pageshow", ({ persisted }) => persisted && again());

  read();
  show();
}
