"use strict";
(function () {
  const { curves, settings } = JSON.parse(document.getElementById("data").textContent);
  const all = function (selector, inside) { return Array.from((inside || document).querySelectorAll(selector)); };
  const isOn = function (element) { return element.offsetParent !== null; };
  const charts = all("svg.chart");
  const drawn = all(".chart [data-path]").map(function (element) {
    return { element: element, curve: curves[Number(element.dataset.curve)] };
  });
  const legend = all(".legend button");

  // What the reader has chosen.
  let split = "train";
  let showUnaligned = true;
  const takenAway = new Set();  // numbers of settings, by a click in the legend
  const chosen = new Map();  // name to the set of its values that are shown; no entry: all of them

  // --- What is shown ---------------------------------------------------------------------------------------------

  function fits(values) {
    return Array.from(chosen).every(function ([name, wanted]) {
      return !(name in values) || wanted.has(values[name]);
    });
  }

  function isShown(curve) {
    const fit = curve.settings.some(function (number) { return fits(settings[number]); });
    const wanted = curve.path === "unaligned" ? showUnaligned : !takenAway.has(curve.settings[0]);
    return curve.split === split && wanted && fit;
  }

  const filtered = all("tbody tr, thead th, .legend button, .surfaces figure").filter(function (element) {
    return "setting" in element.dataset || "values" in element.dataset;
  }).map(function (element) {
    const own = element.dataset;
    return { element: element, values: "setting" in own ? settings[Number(own.setting)] : JSON.parse(own.values) };
  });

  function refresh() {
    for (const one of drawn) one.element.classList.toggle("off", !isShown(one.curve));
    for (const one of filtered) hide(one.element, !fits(one.values));
    for (const button of all("#paths .choice button")) press(button, button.dataset.split === split);
    for (const button of legend) press(button, !takenAway.has(Number(button.dataset.setting)));
    for (const button of all(".filter button")) {
      const wanted = chosen.get(button.dataset.name);
      press(button, wanted !== undefined && wanted.has(button.dataset.is));
    }
    for (const output of all(".filters output")) output.textContent = count(output) + " " + output.dataset.noun;
    for (const button of all(".filters .all")) button.disabled = chosen.size === 0 && takenAway.size === 0;
    for (const table of all("table")) placeStop(table);
  }

  function hide(element, away) {
    if (element.hidden === away) return;
    element.hidden = away;
    if (element.closest("thead") === null) return;
    for (const row of element.closest("table").tBodies[0].rows) row.cells[element.cellIndex].hidden = away;
  }

  function press(button, is) { button.setAttribute("aria-pressed", String(is)); }

  function count(output) {
    if (output.dataset.noun === "settings") return settings.filter(fits).length + " of " + settings.length;
    const cells = all("td[data-tip]", output.closest("section"));
    const shown = cells.filter(function (cell) { return !cell.hidden && !cell.parentElement.hidden; });
    return shown.length + " of " + cells.length;
  }

  for (const button of all(".filter button")) {
    button.addEventListener("click", function () {
      const wanted = chosen.get(button.dataset.name) || new Set();
      if (!wanted.delete(button.dataset.is)) wanted.add(button.dataset.is);
      if (wanted.size > 0) chosen.set(button.dataset.name, wanted);
      else chosen.delete(button.dataset.name);
      refresh();
    });
  }
  for (const button of all(".filters .all")) {
    button.addEventListener("click", function () {
      chosen.clear();
      takenAway.clear();
      refresh();
    });
  }
  for (const button of legend) {
    button.addEventListener("click", function () {
      const setting = Number(button.dataset.setting);
      if (!takenAway.delete(setting)) takenAway.add(setting);
      refresh();
    });
  }
  for (const button of all("#paths .choice button")) {
    button.addEventListener("click", function () { split = button.dataset.split; refresh(); });
  }
  document.getElementById("unaligned").addEventListener("change", function (event) {
    showUnaligned = event.target.checked;
    refresh();
  });

  // --- The tip ---------------------------------------------------------------------------------------------------

  const tip = document.querySelector(".tip");
  let tipOf = null;  // the cell that it belongs to

  function showTip(lines, x, above, below) {
    tip.textContent = "";
    for (const line of lines) tip.appendChild(document.createElement("div")).textContent = line;
    tip.style.display = "block";
    tip.style.left = Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 8)) + "px";
    const top = above - tip.offsetHeight;
    tip.style.top = (top >= 4 ? top : Math.max(4, Math.min(below, innerHeight - tip.offsetHeight - 4))) + "px";
  }

  function hideTip() {
    tip.style.display = "none";
    tipOf = null;
  }

  function showCell(cell) {
    const box = cell.getBoundingClientRect();
    showTip(cell.dataset.tip.split("\n"), box.left, box.top - 4, box.bottom + 4);
    tipOf = cell;
  }

  function cellOf(event) { return event.target instanceof Element ? event.target.closest("[data-tip]") : null; }

  document.addEventListener("mouseover", function (event) {
    const cell = cellOf(event);
    if (cell !== null && cell !== tipOf) showCell(cell);
    else if (cell === null && tipOf !== null) hideTip();
  });
  document.addEventListener("focusin", function (event) {
    const cell = cellOf(event);
    if (cell === null) return;
    cell.closest("table").stop = cell;
    placeStop(cell.closest("table"));
    showCell(cell);
  });
  document.addEventListener("focusout", function () { if (tipOf !== null) hideTip(); });
  document.addEventListener("scroll", function () { if (tipOf !== null) hideTip(); }, { capture: true, passive: true });
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") hideTip();
    const cell = cellOf(event), next = cell === null ? undefined : neighbour(cell, event.key);
    if (next === undefined) return;
    event.preventDefault();
    if (next !== null) next.focus();
  });

  // One cell of a table is reached by Tab, the others from there by the arrow keys.
  function placeStop(table) {
    const next = table.stop && isOn(table.stop) ? table.stop : all("[data-tip]", table).find(isOn);
    const last = table.querySelector("[data-tip][tabindex='0']");
    if (last) last.tabIndex = -1;
    if (next) next.tabIndex = 0;
  }

  // The next cell in the direction of a key: null if there is none, undefined if it is another key.
  function neighbour(cell, key) {
    const step = { ArrowRight: "nextElementSibling", ArrowDown: "nextElementSibling",
                   ArrowLeft: "previousElementSibling", ArrowUp: "previousElementSibling" }[key];
    if (step === undefined) return undefined;
    const along = key === "ArrowRight" || key === "ArrowLeft", column = cell.cellIndex;
    for (let at = along ? cell : cell.parentElement; (at = at[step]) !== null;) {
      const next = along ? at : at.cells[column];
      if (next.dataset.tip !== undefined && isOn(next)) return next;
    }
    return null;
  }
  for (const cell of all("td[data-tip]")) cell.tabIndex = -1;

  // --- The charts ------------------------------------------------------------------------------------------------

  let lit = null;

  function highlight(setting) {
    if (setting === lit) return;
    for (const one of drawn) {
      const own = one.element.dataset.setting;
      if (own !== undefined) one.element.classList.toggle("lit", Number(own) === setting);
    }
    for (const svg of charts) svg.classList.toggle("dim", setting !== null);
    lit = setting;
  }

  // Where a measured point lies in the chart's own units; null if its value is not a number.
  const frames = new Map(charts.map(function (svg) {
    const d = svg.dataset, [left, top, right, bottom] = d.box.split(" ").map(Number);
    const low = Number(d.low), scale = Number(d.factor) * (bottom - top) / (Number(d.high) - low);
    return [svg, { left: left, wide: right - left, zero: bottom + low / Number(d.factor) * scale, scale: scale }];
  }));

  function place(svg, curve, i) {
    const frame = frames.get(svg), value = curve[svg.dataset.metric][i];
    return value === null ? null : { x: frame.left + curve.t[i] * frame.wide, y: frame.zero - value * frame.scale };
  }

  function nearest(svg, event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = null, shortest = 40;
    for (const curve of curves.filter(isShown)) {
      curve.t.forEach(function (t, i) {
        const at = place(svg, curve, i), distance = at === null ? Infinity : Math.hypot(at.x - point.x, at.y - point.y);
        if (distance < shortest) {
          best = { curve: curve, i: i };
          shortest = distance;
        }
      });
    }
    return best;
  }

  function leave() {
    hideTip();
    for (const cursor of all(".chart .cursor")) cursor.style.display = "none";
    highlight(null);
  }

  function point(svg, curve, i) {
    const at = place(svg, curve, i);
    if (at === null) return leave();
    const metric = svg.dataset.metric, factor = Number(svg.dataset.factor), spread = curve[metric + "_deviation"];
    const unit = metric === "loss" ? " nats" : " %", digits = metric === "loss" ? 4 : 2;
    const about = spread === null || spread[i] === null ? "" : " \u00b1 " + (spread[i] * factor).toFixed(digits);
    const cursor = svg.querySelector(".cursor"), screen = new DOMPoint(at.x, at.y).matrixTransform(svg.getScreenCTM());
    for (const other of all(".chart .cursor")) other.style.display = "none";
    cursor.setAttribute("cx", at.x);
    cursor.setAttribute("cy", at.y);
    cursor.style.display = "inline";
    highlight(curve.path === "unaligned" ? null : curve.settings[0]);
    showTip([curve.label, curve.split + " " + metric + " " + (curve[metric][i] * factor).toFixed(digits) + about + unit,
             "t = " + curve.t[i] + ", " + curve.pairs + (curve.pairs === 1 ? " pair" : " pairs")],
            screen.x + 16, screen.y - 12, screen.y + 16);
  }

  // Left and right go along a path, up and down from path to path.
  function step(svg, key) {
    const shown = curves.filter(isShown), at = svg.at || { curve: shown[0], i: -1 };
    if (key === "Escape" || shown.length === 0) return leave();
    const turn = { ArrowUp: -1, ArrowDown: 1 }[key] || 0, move = { ArrowLeft: -1, ArrowRight: 1 }[key] || 0;
    const curve = shown[(Math.max(0, shown.indexOf(at.curve)) + turn + shown.length) % shown.length];
    const last = curve.t.length - 1, to = { Home: 0, End: last }[key];
    svg.at = { curve: curve, i: to === undefined ? Math.max(0, Math.min(last, at.i + move)) : to };
    point(svg, curve, svg.at.i);
  }

  for (const svg of charts) {
    for (const title of all("path > title", svg)) title.remove();  // the tip says more
    svg.addEventListener("mousemove", function (event) {
      const found = nearest(svg, event);
      if (found === null) leave();
      else point(svg, found.curve, found.i);
    });
    svg.addEventListener("mouseleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", function (event) {
      if (!/^(Arrow|Home$|End$|Escape$)/.test(event.key)) return;
      event.preventDefault();
      step(svg, event.key);
    });
  }
  for (const element of all("tbody tr[data-setting], .legend button")) {
    element.addEventListener("mouseenter", function () { highlight(Number(element.dataset.setting)); });
    element.addEventListener("mouseleave", function () { highlight(null); });
  }

  // --- Sorting ---------------------------------------------------------------------------------------------------

  // Numbers by size and before names; what is missing stays at the end in both directions.
  function compare(a, b) {
    const x = Number(a), y = Number(b), words = Number.isNaN(x) - Number.isNaN(y);
    if (words !== 0) return words;
    return Number.isNaN(x) ? a.localeCompare(b, undefined, { numeric: true }) : x === y ? 0 : x < y ? -1 : 1;
  }

  function sort(head) {
    const down = head.getAttribute("aria-sort") === "ascending", body = head.closest("table").tBodies[0];
    for (const other of all("th[aria-sort]", head.closest("table"))) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = Array.from(body.rows, function (row) { return [row.cells[head.cellIndex].dataset.value, row]; });
    keyed.sort(function ([a], [b]) {
      if (a === "" || b === "") return (a === "") - (b === "");
      return down ? compare(b, a) : compare(a, b);
    });
    body.append(...keyed.map(function (pair) { return pair[1]; }));
  }

  for (const head of all("th[aria-sort]")) {
    head.querySelector("button").addEventListener("click", function () { sort(head); });
  }
  refresh();
})();
