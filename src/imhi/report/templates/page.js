"use strict";

// --- theme ---------------------------------------------------------------------------------------------------------
(() => {
  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  // A browser may refuse storage to a file; the choice then lasts as long as the page.
  const stored = (action) => { try { return action(window.localStorage); } catch { return null; } };
  const show = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    button.setAttribute("aria-label", `Colour scheme: ${theme === "system" ? "as the system has it" : theme}; press to change`);
  };
  let theme = stored((storage) => storage.getItem("imhi-theme"));
  if (!themes.includes(theme)) theme = "system";
  show(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    stored((storage) => storage.setItem("imhi-theme", theme));
    show(theme);
  });
})();

// --- answers -------------------------------------------------------------------------------------------------------
(() => {
  const PAGE = 50;
  const SOURCES = { rule: "by rule", classifier: "by classifier" };
  const TRUNCATED = 1;
  const FAILED = 2;
  const at = (id) => document.getElementById(id);
  const numbers = new Intl.NumberFormat("en");
  const controls = {};
  for (const name of ["run", "dataset", "source", "outcome", "gold", "said", "order", "text"]) controls[name] = at(`f-${name}`);

  let data = null; // as imhi.report.browser.browser_data describes it
  let matches = []; // [part, row] pairs
  let first = 0;

  async function unpack() {
    const state = at("browser-state");
    if (!("DecompressionStream" in window)) {
      state.textContent = "This browser cannot unpack the answers; one of 2023 or later can.";
      return;
    }
    state.textContent = "Unpacking the answers …";
    const letters = window.atob(at("answer-data").textContent);
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    data = JSON.parse(await new Response(stream).text());
    state.hidden = true;
    start();
  }

  // --- filters

  function options(select, entries) {
    const before = select.value;
    select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    select.value = entries.some(([value]) => String(value) === before) ? before : String(entries[0][0]);
  }

  const run = () => data.runs[Number(controls.run.value)];
  const rowsOf = (part) => data.sets[part.set];

  function fillRun() {
    const parts = run().parts;
    options(controls.dataset, [["", "all"], ...parts.map((part) => [rowsOf(part).dataset, rowsOf(part).dataset])]);
    const sources = Object.keys(SOURCES).filter((source) => parts.some((part) => part.labels[source]));
    options(controls.source, sources.map((source) => [source, SOURCES[source]]));
    const scores = [...new Set(parts.flatMap((part) => Object.keys(part.scores)))];
    options(controls.order, [
      ["", "as in the file"],
      ...scores.map((name) => [`score ${name}`, `lowest ${name}`]),
      ...(parts.some((part) => part.labels.classifier?.confidence) ? [["confidence", "lowest confidence"]] : []),
      ["longest", "longest answer"],
      ["shortest", "shortest answer"],
    ]);
    fillSource();
  }

  function fillSource() {
    const parts = run().parts;
    const clear = parts.some((part) => part.labels[controls.source.value]?.clear);
    const ends = parts.some((part) => part.ends);
    options(controls.outcome, [
      ["all", "all answers"],
      ["right", "right"],
      ["wrong", "wrong, with a label"],
      ["unparsed", "unparsed"],
      ...(clear ? [["unclear", "unclear"]] : []),
      ...(ends ? [["truncated", "cut short"], ["failed", "failed"]] : []),
      ["empty", "empty"],
    ]);
    fillDataset();
  }

  function fillDataset() {
    const part = run().parts.find((each) => rowsOf(each).dataset === controls.dataset.value);
    const labels = part ? rowsOf(part).labels.map((name, number) => [number, name]) : [];
    options(controls.gold, [["", "any"], ...labels]);
    options(controls.said, [["", "any"], ...labels, ...(part ? [[-1, "unparsed"]] : [])]);
    controls.gold.disabled = controls.said.disabled = !part;
  }

  // --- finding

  const OUTCOMES = {
    all: () => true,
    right: (part, row, said) => said === rowsOf(part).gold[row],
    wrong: (part, row, said) => said >= 0 && said !== rowsOf(part).gold[row],
    unparsed: (part, row, said) => said === -1,
    unclear: (part, row) => part.labels[controls.source.value].clear?.[row] === 0,
    truncated: (part, row) => part.ends?.[row] === TRUNCATED,
    failed: (part, row) => part.ends?.[row] === FAILED,
    empty: (part, row) => !part.answers[row].trim() && part.ends?.[row] !== FAILED,
  };

  const folded = (holder, name) => (holder[`${name} folded`] ??= holder[name].map((text) => text.toLowerCase()));

  function find() {
    const { dataset, source, outcome, gold, said, order, text } = Object.fromEntries(
      Object.entries(controls).map(([name, control]) => [name, control.value])
    );
    const wanted = text.trim().toLowerCase();
    const fits = OUTCOMES[outcome];
    matches = [];
    for (const part of run().parts) {
      const rows = rowsOf(part);
      const labels = part.labels[source];
      if ((dataset && rows.dataset !== dataset) || !labels) continue;
      const texts = wanted ? [folded(part, "answers"), folded(rows, "golds"), ...(rows.queries ? [folded(rows, "queries")] : [])] : [];
      for (let row = 0; row < part.answers.length; row += 1) {
        const label = labels.said[row];
        if (!fits(part, row, label)) continue;
        if (gold !== "" && rows.gold[row] !== Number(gold)) continue;
        if (said !== "" && label !== Number(said)) continue;
        if (wanted && !texts.some((column) => column[row].includes(wanted))) continue;
        matches.push([part, row]);
      }
    }
    arrange(order);
    first = 0;
    render();
  }

  function arrange(order) {
    const column = {
      confidence: (part, row) => part.labels.classifier?.confidence?.[row],
      longest: (part, row) => -part.answers[row].length,
      shortest: (part, row) => part.answers[row].length,
    }[order] ?? ((part, row) => part.scores[order.slice("score ".length)]?.[row]);
    if (!order) return;
    const keyed = matches.map((match, position) => [column(...match) ?? Infinity, position, match]);
    keyed.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
    matches = keyed.map((entry) => entry[2]);
  }

  // --- showing: text only ever becomes a text node

  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function marked(text, wanted) {
    if (!wanted) return [text];
    const lower = text.toLowerCase();
    // Where folding changes the length of a text, positions would not fit it.
    if (lower.length !== text.length) return [text];
    const pieces = [];
    let from = 0;
    for (let found = lower.indexOf(wanted); found >= 0; found = lower.indexOf(wanted, from)) {
      pieces.push(text.slice(from, found), element("mark", "", text.slice(found, found + wanted.length)));
      from = found + wanted.length;
    }
    return [...pieces, text.slice(from)];
  }

  function texts(title, text, wanted, none, className = "") {
    const shown = element("p", text.trim() ? "text" : "text empty", ...(text.trim() ? marked(text, wanted) : [none]));
    shown.tabIndex = 0;
    return element("div", className, element("h4", "", title), shown);
  }

  function card([part, row]) {
    const rows = rowsOf(part);
    const wanted = controls.text.value.trim().toLowerCase();
    const order = controls.order.value;
    const name = (label) => (label < 0 ? "unparsed" : rows.labels[label]);
    const pairs = [["gold", name(rows.gold[row])]];
    for (const [source, labels] of Object.entries(part.labels)) {
      const sure = labels.confidence ? ` ${labels.confidence[row].toFixed(2)}` : "";
      const clear = labels.clear?.[row] === 0 ? ", unclear" : "";
      pairs.push([source, name(labels.said[row]) + sure + clear, order === "confidence" && labels.confidence]);
    }
    if (part.tokens) pairs.push(["tokens", numbers.format(part.tokens[row])]);
    for (const [score, values] of Object.entries(part.scores)) pairs.push([score, values[row].toFixed(3), order === `score ${score}`]);
    const said = part.labels[controls.source.value].said[row];
    const outcome = said === -1 ? "unparsed" : said === rows.gold[row] ? "right" : "wrong";
    const flags = [];
    if (part.ends?.[row] === TRUNCATED) flags.push(element("span", "flag", "cut short by the length limit"));
    if (part.ends?.[row] === FAILED) flags.push(element("span", "flag", "failed"));
    const list = element("dl", "", ...pairs.map(([term, value, chosen]) =>
      element("div", chosen ? "chosen" : "", element("dt", "", term), element("dd", "", value))));
    const id = `${rows.dataset}, row ${numbers.format(rows.index[row] + 1)}`;
    const head = element("header", "", element("span", "id", id), element("span", `outcome ${outcome}`, outcome), ...flags, list);
    const body = element("div", "texts",
      ...(rows.queries ? [texts("Post", rows.queries[row], wanted, "empty", "post")] : []),
      texts("Gold", rows.golds[row], wanted, "empty"),
      texts("Answer", part.answers[row], wanted, "empty answer"));
    const item = element("li", "answer", head, body);
    item.setAttribute("aria-label", `${id}: ${outcome}`);
    return item;
  }

  function render() {
    const shown = matches.slice(first, first + PAGE);
    const total = run().parts.reduce((sum, part) => sum + part.answers.length, 0);
    at("found").textContent = matches.length
      ? `${numbers.format(first + 1)}–${numbers.format(first + shown.length)} of ${numbers.format(matches.length)} answers (of ${numbers.format(total)} in the run)`
      : `No answer fits (of ${numbers.format(total)} in the run)`;
    at("list").replaceChildren(...shown.map(card));
    for (const button of document.querySelectorAll(".pager .previous")) button.disabled = first === 0;
    for (const button of document.querySelectorAll(".pager .next")) button.disabled = first + PAGE >= matches.length;
  }

  function turn(pages) {
    first = Math.max(0, Math.min(first + pages * PAGE, matches.length - 1));
    render();
    at("browser").scrollIntoView({ block: "start" });
  }

  // --- start

  function start() {
    // A run that was kept without its answers has none to show.
    options(controls.run, data.runs.map((each, number) => [number, each.name]).filter(([number]) => data.runs[number].parts.length));
    fillRun();
    controls.source.value = [...controls.source.options].some((option) => option.value === "classifier") ? "classifier" : "rule";
    fillSource();
    const refill = { run: fillRun, source: fillSource, dataset: fillDataset };
    for (const [name, control] of Object.entries(controls)) {
      control.addEventListener(name === "text" ? "input" : "change", () => { refill[name]?.(); find(); });
    }
    at("f-clear").addEventListener("click", () => {
      controls.text.value = controls.dataset.value = controls.order.value = "";
      controls.outcome.value = "all";
      fillDataset();
      controls.gold.value = controls.said.value = "";
      find();
    });
    for (const button of document.querySelectorAll(".pager .previous")) button.addEventListener("click", () => turn(-1));
    for (const button of document.querySelectorAll(".pager .next")) button.addEventListener("click", () => turn(1));
    for (const button of document.querySelectorAll(".matrix button")) button.addEventListener("click", () => fromMatrix(button.dataset));
    at("browser").hidden = false;
    find();
    // The first search in all texts then finds them folded.
    const idle = window.requestIdleCallback ?? ((work) => window.setTimeout(work, 200));
    idle(() => {
      for (const rows of data.sets) folded(rows, "golds");
      for (const each of data.runs) for (const part of each.parts) folded(part, "answers");
    });
  }

  function fromMatrix(cell) {
    controls.run.value = cell.run;
    fillRun();
    controls.source.value = cell.source;
    controls.dataset.value = cell.dataset;
    fillSource();
    controls.outcome.value = "all";
    controls.gold.value = cell.gold;
    controls.said.value = cell.said;
    controls.text.value = controls.order.value = "";
    find();
    at("answers").scrollIntoView({ block: "start" });
    controls.dataset.focus({ preventScroll: true });
  }

  if (at("answer-data")) unpack();
})();
