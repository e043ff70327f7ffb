(() => {
  "use strict";
  const list = document.getElementById("errors");
  if (!list) return;
  const PAGE = 20;
  const rows = [...list.children];
  const form = document.getElementById("filters");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const values = { label: (row) => [row.dataset.label], mistake: (row) => [row.dataset.mistake],
                   counted: (row) => [row.dataset.counted],
                   trait: (row) => JSON.parse(row.dataset.traits) };
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  let shown = PAGE;

  const ofTask = () => rows.filter((row) => !form.task.value || row.dataset.task === form.task.value);

  function fillChoices() {
    for (const [name, get] of Object.entries(values)) {
      const field = form[name], before = field.value;
      const found = new Set(ofTask().flatMap(get).filter(Boolean));
      field.replaceChildren(new Option("all", ""), ...[...found].sort().map((value) => new Option(value, value)));
      field.value = found.has(before) ? before : "";
      field.disabled = found.size === 0;
    }
  }

  function show() {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = ofTask().filter((row) =>
      Object.entries(values).every(([name, get]) => !form[name].value || get(row).includes(form[name].value))
      && words.every((word) => texts.get(row).includes(word)));
    const visible = new Set(fits.slice(0, shown));
    for (const row of rows) row.hidden = !visible.has(row);
    more.hidden = fits.length <= shown;
    count.textContent = `${fits.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} answers`;
  }

  function changed(event) {
    shown = PAGE;
    if (!event || event.target === form.task) fillChoices();
    show();
  }

  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(changed));
  more.addEventListener("click", () => { shown += PAGE; show(); });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-filter]");
    if (!button) return;
    const wanted = JSON.parse(button.dataset.filter);
    form.text.value = "";
    form.task.value = wanted.task;
    for (const name of Object.keys(values)) form[name].value = "";
    fillChoices();
    for (const name of Object.keys(values)) if (name in wanted) form[name].value = wanted[name];
    shown = PAGE;
    show();
    document.getElementById("browse").scrollIntoView();
  });
  form.hidden = false;
  changed();
})();
