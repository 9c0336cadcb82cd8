(() => {
  document.documentElement.classList.add("js");
  const bar = document.querySelector(".filter"), form = bar.querySelector("form");
  const text = form.querySelector("#text"), folder = form.querySelector("#folder");
  const reset = form.querySelector("[type=reset]"), output = form.querySelector("output");
  const sheets = [...document.querySelectorAll(".sheet")], bars = document.querySelectorAll(".bars button");
  const known = new Set([...document.querySelectorAll("[data-label]")].map(e => e.dataset.label));
  bar.hidden = false;

  // A text that is a label shows the photos of that label; any other is looked for in names, labels
  // and captions.
  function apply() {
    const wanted = text.value.trim(), lower = wanted.toLowerCase(), place = folder ? folder.value : "";
    const label = known.has(wanted) ? wanted : known.has(lower) ? lower : null;
    let shown = 0, all = 0;
    for (const sheet of sheets) {
      let here = 0;
      for (const tile of sheet.querySelectorAll(".tile")) {
        const labels = tile.dataset.labels;
        const match = !wanted || (label !== null ? labels.includes("|" + label + "|")
          : tile.dataset.name.includes(lower) || labels.toLowerCase().includes(lower)
            || (tile.querySelector(".caption")?.textContent.toLowerCase().includes(lower) ?? false));
        tile.hidden = !match;
        here += match;
        all += 1;
      }
      sheet.hidden = here === 0 || (place !== "" && sheet.id !== place);
      if (!sheet.hidden) shown += here;
    }
    for (const button of bars) button.setAttribute("aria-pressed", String(button.dataset.label === label));
    const active = wanted !== "" || place !== "";
    reset.hidden = !active;
    output.textContent = active ? (shown ? shown + " of the " + all + " pictures on this page" : "Nothing on this page matches") : "";
  }

  function pick(label) {
    text.value = text.value === label ? "" : label;
    apply();
    bar.scrollIntoView();
  }

  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") { form.reset(); }
  });
  document.addEventListener("click", event => {
    const labelled = event.target.closest("[data-label]"), card = event.target.closest("a.folder");
    if (labelled) pick(labelled.dataset.label);
    if (card && folder) {
      folder.value = card.hash.slice(1);
      text.value = "";
      apply();
    }
  });
})();
