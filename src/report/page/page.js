"use strict";
const run = JSON.parse(document.getElementById("run").textContent);
const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const columns = run.time.columns, width = run.time.width;

// Numbers as people read them.
const group = (n) => Math.round(n).toLocaleString("en-US");
const bytes = (pages) => {
  let value = pages * 4, unit = 0;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  while (value >= 1024 && unit < 3) { value /= 1024; unit++; }
  return (value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)) + " " + units[unit];
};
const short = (n) => n >= 1e9 ? +(n / 1e9).toFixed(1) + "G" : n >= 1e6 ? +(n / 1e6).toFixed(1) + "M" : n >= 1e4 ? +(n / 1e3).toFixed(0) + "k" : String(Math.round(n));
const units = (n) => n >= 1e9 ? +(n / 1e9).toFixed(3) + " s" : n >= 1e6 ? +(n / 1e6).toFixed(2) + " ms" : n >= 1e3 ? +(n / 1e3).toFixed(1) + " µs" : group(n) + " ns";
const hex = (n) => "0x" + n.toString(16);
const word = (text) => text.replaceAll("_", " ");

// Elements without markup in strings: names of a guest are text, never HTML.
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "rect", "line", "text", "g"].includes(tag);
  const node = svg ? document.createElementNS("http" + "://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function table(into, heads, rows) {
  const numeric = heads.map((head) => head.startsWith("#"));
  const cell = (tag, text, n) => el(tag, numeric[n] ? { class: "n" } : {}, text instanceof Node ? text : String(text));
  into.replaceChildren(
    el("thead", {}, el("tr", {}, ...heads.map((head, n) => cell("th", head.replace(/^#/, ""), n)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((text, n) => cell("td", text, n))))));
}
function legend(into, entries) {
  into.replaceChildren(...entries.map(([name, color]) => el("span", {}, el("i", { style: "background:" + color }), name)));
}
function tip(event, text) {
  const box = $("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  box.style.left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8) + "px";
  box.style.top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8) + "px";
}
const when = (column) => units(column * width);
const series = (name) => run.series[name] || new Array(columns).fill(0);
const total = (name) => series(name).reduce((sum, n) => sum + n, 0);

// Bars (counts, stacked) or steps (gauges, lines) over the columns of time.
function chart(into, names, kind) {
  const present = names.filter(([name]) => run.series[name] && series(name).some((n) => n > 0));
  if (!present.length) { into.replaceChildren(el("p", { class: "none" }, "none")); return; }
  const W = 540, H = 190, left = 44, bottom = 20, right = 6, top = 8;
  const inner = W - left - right, height = H - top - bottom, step = inner / columns;
  const values = present.map(([name]) => series(name));
  const sums = Array.from({ length: columns }, (_, c) => values.reduce((sum, v) => kind === "bars" ? sum + v[c] : Math.max(sum, v[c]), 0));
  // One column far above all others would hide them: it is cut, and says so.
  const sorted = [...sums].sort((a, b) => b - a), tall = Math.max(1, sorted[0]);
  const next = sorted.find((n) => n < tall / 8), cut = kind === "bars" && next > 0 && sorted.filter((n) => n >= tall / 8).length <= 2;
  const scale = nice(cut ? next : tall);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  const y = (value) => top + height * (1 - Math.min(1, value / scale.top));
  for (const tick of scale.ticks) {
    svg.append(el("line", { x1: left, x2: W - right, y1: y(tick), y2: y(tick), stroke: css(tick ? "--line" : "--axis") }));
    svg.append(el("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const part of [0, 0.5, 1]) {
    svg.append(el("text", { x: left + inner * part, y: H - 4, "text-anchor": part === 1 ? "end" : part ? "middle" : "start" }, when(columns * part)));
  }
  if (kind === "bars") {
    const base = new Array(columns).fill(0);
    present.forEach(([, , color], n) => {
      let d = "";
      for (let c = 0; c < columns; c++) {
        if (!values[n][c]) continue;
        const from = y(base[c]), to = y(base[c] += values[n][c]);
        const x = left + c * step, w = Math.max(step - (step > 4 ? 1 : 0), 0.8);
        d += `M${x.toFixed(2)} ${from.toFixed(2)}V${Math.min(to, from - 0.6).toFixed(2)}h${w.toFixed(2)}V${from.toFixed(2)}z`;
      }
      svg.append(el("path", { d, fill: css(color) }));
    });
    sums.forEach((sum, c) => {
      if (sum <= scale.top) return;
      const right = c > columns * 0.8, x = left + (c + (right ? 0 : 1)) * step;
      svg.append(el("text", { x: x + (right ? -4 : 4), y: top + 4, "text-anchor": right ? "end" : "start" }, "↑ " + short(sum)));
    });
  } else {
    present.forEach(([, , color], n) => {
      let d = `M${left} ${y(values[n][0]).toFixed(2)}`;
      for (let c = 0; c < columns; c++) d += `V${y(values[n][c]).toFixed(2)}h${step.toFixed(3)}`;
      svg.append(el("path", { d, fill: "none", stroke: css(color), "stroke-width": 2, "stroke-linejoin": "round" }));
    });
  }
  const cursor = el("line", { y1: top, y2: top + height, stroke: css("--muted"), visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) * W / box.width - left) / step);
    if (at < 0 || at >= columns) { cursor.setAttribute("visibility", "hidden"); return tip(event, ""); }
    const x = left + (at + 0.5) * step;
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x);
    cursor.setAttribute("visibility", "visible");
    tip(event, when(at) + " to " + when(at + 1) + "\n" + present.map(([, name], n) => name + ": " + group(values[n][at])).join("\n"));
  });
  svg.addEventListener("pointerleave", (event) => { cursor.setAttribute("visibility", "hidden"); tip(event, ""); });
  const key = el("div", { class: "legend" });
  legend(key, present.map(([, name, color]) => [name, css(color)]));
  into.replaceChildren(svg, ...(present.length > 1 ? [key] : []));
}
function nice(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  const step = [0.2, 0.5, 1, 2].map((n) => n * power).find((n) => most / n <= 5) || 2 * power;
  const whole = Math.max(1, Math.round(step)), ticks = [];
  for (let at = 0; at < most + whole; at += whole) ticks.push(at);
  return { top: ticks[ticks.length - 1], ticks };
}

// The picture of memory. A row is a range of guest frames; its states change at columns.
// Neighbours that were always alike are one row, drawn thin: what changes gets the room.
const rows = [];
for (const row of run.memory.rows) {
  const last = rows[rows.length - 1], alike = JSON.stringify(row.states);
  if (last && last.gfn + last.nr_pages === row.gfn && last.alike === alike && last.each === row.nr_pages) {
    last.nr_pages += row.nr_pages;
    last.count++;
  } else rows.push({ ...row, each: row.nr_pages, alike, count: 1 });
}
// What the reverse map says stands at the end, where it says anything.
const padded = (state) => [...state, 0, 0, 0, 0, 0].slice(0, 13);
for (const row of rows) row.states = row.states.map(([at, state]) => [at, padded(state).map((n) => n * row.count)]);
const weight = (row) => row.count > 1 ? Math.min(2.5, 1 + row.count / 40) : 1;
const ALL = { bound: 0, private: 1, m: [2, 3, 4], f: [5, 6, 7], rmp: [8, 9, 10, 11, 12] };
const RMP = [["validated 4K", "--v4"], ["validated 2M", "--v2"], ["assigned 4K", "--a4"], ["assigned 2M", "--a2"], ["immutable", "--fixed"]];
const someRmp = rows.some((row) => row.states.some(([, s]) => ALL.rmp.some((n) => s[n])));
const NAMES = ["4K", "2M", "1G"];
function stateAt(row, column) {
  let found = new Array(13).fill(0);
  for (const [at, state] of row.states) { if (at > column) break; found = state; }
  return found;
}
const mixColor = (a, b, part) => a.map((v, n) => Math.round(v + (b[n] - v) * part));
const rgb = (name) => { const h = css(name).slice(1); return [0, 2, 4].map((n) => parseInt(h.slice(n, n + 2), 16)); };
function bySize(state, of) {
  const pages = of.map((n) => Math.max(0, state[n])), sum = pages.reduce((a, b) => a + b, 0);
  return [pages, sum];
}
const MODES = {
  level: {
    name: "Mapped level", legend: () => [["not mapped", css("--empty")], ["4K leaves", css("--l4")], ["2M leaves", css("--l2")], ["1G leaves", css("--l1")]],
    color(state, pages, c) {
      const [by, sum] = bySize(state, ALL.m);
      return sum ? shade(by, sum, pages, [c.l4, c.l2, c.l1], c) : c.empty;
    },
  },
  sharing: {
    name: "Private and shared", legend: () => [["shared", css("--shared")], ["private", css("--private")], ["pale: no folio behind it", css("--empty")]],
    color(state, pages, c) {
      if (!state[0]) return c.empty;
      const [, backed] = bySize(state, ALL.f);
      const mix = mixColor(c.shared, c.private, Math.min(1, Math.max(0, state[1] / state[0])));
      return mixColor(c.empty, mix, backed ? 0.45 + 0.55 * Math.min(1, backed / pages) : 0.18);
    },
  },
  folio: {
    name: "Folio size", legend: () => [["no folio", css("--empty")], ["4K (order 0)", css("--l4")], ["2M (order 9)", css("--l2")], ["1G (order 18)", css("--l1")]],
    color(state, pages, c) {
      const [by, sum] = bySize(state, ALL.f);
      return sum ? shade(by, sum, pages, [c.l4, c.l2, c.l1], c) : c.empty;
    },
  },
  rmp: {
    name: "RMP", legend: () => [...RMP.map(([name, color]) => [name, css(color)]), ["the hypervisor's, with memory behind it (shared)", css("--shared")], ["the hypervisor's", css("--empty")]],
    color(state, pages, c) {
      const [by, own] = bySize(state, ALL.rmp), [, backed] = bySize(state, ALL.f);
      const all = [...by, Math.max(0, backed - own)], sum = own + all[5];
      return sum ? shade(all, sum, pages, [...c.rmp, c.shared], c) : c.empty;
    },
  },
};
if (!someRmp) delete MODES.rmp;
// The colours of the sizes in their shares, paler the less of the row it is; a single page still shows.
function shade(by, sum, pages, colors, c) {
  const mix = [0, 1, 2].map((n) => colors.reduce((total, color, size) => total + color[n] * by[size] / sum, 0));
  return mixColor(c.empty, mix, 0.3 + 0.7 * Math.min(1, sum / pages));
}
let mode = someRmp ? "rmp" : rows.length && rows.some((row) => row.states.some(([, s]) => s[1] > 0)) ? "sharing" : "level";
const AXIS = 92, BOTTOM = 22, GAP = 5;
// Rows one after another, with a gap where guest frames have a hole.
function layout(height) {
  const holes = rows.filter((row, n) => n && rows[n - 1].gfn + rows[n - 1].nr_pages !== row.gfn).length;
  const each = (height - holes * GAP) / Math.max(1, rows.reduce((sum, row) => sum + weight(row), 0));
  let y = 0;
  return rows.map((row, n) => {
    if (n && rows[n - 1].gfn + rows[n - 1].nr_pages !== row.gfn) y += GAP;
    const place = { row, y, h: each * weight(row) };
    y += place.h;
    return place;
  });
}
const pictureHeight = () => rows.length ? Math.max(90, Math.min(460, rows.length * 14)) : 40;
function paint() {
  const canvas = $("memory"), ratio = devicePixelRatio || 1, W = canvas.parentElement.clientWidth;
  const H = pictureHeight();
  canvas.width = W * ratio; canvas.height = (H + BOTTOM) * ratio; canvas.style.height = H + BOTTOM + "px";
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  g.fillStyle = css("--surface"); g.fillRect(0, 0, W, H + BOTTOM);
  g.font = '11px system-ui, "DejaVu Sans", sans-serif'; g.fillStyle = css("--muted");
  if (!rows.length) { g.fillText("no memory was bound or mapped", 8, 24); return; }
  const c = { empty: rgb("--empty"), l4: rgb("--l4"), l2: rgb("--l2"), l1: rgb("--l1"), private: rgb("--private"), shared: rgb("--shared"), rmp: RMP.map(([, color]) => rgb(color)) };
  const step = (W - AXIS) / columns;
  let labelled = -20;
  for (const [n, { row, y, h }] of layout(H).entries()) {
    let at = 0, state = null;
    for (const [column, next] of [...row.states, [columns, null]]) {
      if (state && column > at) {
        g.fillStyle = `rgb(${MODES[mode].color(state, row.nr_pages, c).join(",")})`;
        const x = AXIS + at * step;
        g.fillRect(x, y, (column - at) * step + 0.5, h + 0.4);
      }
      at = column; state = next;
    }
    const label = Math.max(9, y + 4);
    if (label - labelled > 12) {
      g.fillStyle = css("--muted"); g.textAlign = "right";
      g.fillText(hex(row.gfn * 4096), AXIS - 8, label);
      labelled = label;
    }
  }
  g.fillStyle = css("--muted");
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    g.textAlign = part === 1 ? "right" : part ? "center" : "left";
    g.fillText(when(columns * part), AXIS + (W - AXIS) * part, H + 15);
  }
  const chosen = AXIS + (+$("when").value + 0.5) * step;
  g.strokeStyle = css("--ink"); g.setLineDash([3, 3]);
  g.beginPath(); g.moveTo(chosen, 0); g.lineTo(chosen, H); g.stroke();
  legend($("memory-legend"), MODES[mode].legend());
}
function describe(state, pages) {
  const sizes = (of) => { const [by, sum] = bySize(state, of); return sum ? NAMES.filter((_, n) => by[n]).map((name, n) => name + " " + bytes(by[NAMES.indexOf(name)])).join(", ") : "nothing"; };
  const own = RMP.map(([name], n) => [name, state[ALL.rmp[n]]]).filter(([, pages]) => pages > 0).map(([name, pages]) => `${name} ${bytes(pages)}`);
  return `mapped: ${sizes(ALL.m)}\nfolios: ${sizes(ALL.f)}\nprivate: ${bytes(state[1])} of ${bytes(state[0])}` + (someRmp ? `\nRMP: ${own.join(", ") || "the hypervisor's"}` : "");
}
function showState() {
  const column = +$("when").value;
  $("when-text").textContent = when(column + 1);
  const areas = [];
  for (const row of rows) {
    const last = areas[areas.length - 1], state = stateAt(row, column);
    if (last && last.end === row.gfn) { last.end += row.nr_pages; last.state = last.state.map((v, n) => v + state[n]); }
    else areas.push({ gfn: row.gfn, end: row.gfn + row.nr_pages, state: [...state] });
  }
  const pages = (n) => n > 0 ? bytes(n) : "–";
  // The columns are those of the picture: everything at once is wider than a page.
  const rmp = mode === "rmp";
  const heads = rmp ? RMP.map(([name]) => "#" + name) : ["mapped", "folios"].flatMap((what) => NAMES.map((size) => `#${what} ${size}`));
  table($("state"), ["guest physical", "#size", "#private", "#shared", ...heads],
    areas.map(({ gfn, end, state }) => [el("code", {}, `${hex(gfn * 4096)} – ${hex(end * 4096)}`), pages(state[0]), pages(state[1]), pages(state[0] - state[1]), ...(rmp ? state.slice(8) : state.slice(2, 8)).map(pages)]));
}
function memory() {
  $("modes").replaceChildren(...Object.entries(MODES).map(([key, { name }]) => {
    const button = el("button", { type: "button", "aria-pressed": key === mode }, name);
    button.onclick = () => { mode = key; memory(); showState(); };
    return button;
  }));
  $("memory-note").textContent = rows.length
    ? `Each row is ${bytes(Math.max(...rows.map((row) => row.each)))} of guest physical memory, low addresses at the top, and neighbours that were always alike share one; each column is ${units(width)} of virtual time. Point at a cell for its numbers.`
    : "The trace has no events about memory.";
  paint();
}
$("memory").addEventListener("pointermove", (event) => {
  const box = event.target.getBoundingClientRect(), H = pictureHeight();
  const column = Math.floor((event.clientX - box.left - AXIS) / ((box.width - AXIS) / columns)), y = event.clientY - box.top;
  const hit = layout(H).find((place) => y >= place.y && y < place.y + place.h);
  if (!hit || column < 0 || column >= columns) return tip(event, "");
  const { row } = hit;
  tip(event, `${hex(row.gfn * 4096)} – ${hex((row.gfn + row.nr_pages) * 4096)} at ${when(column + 1)}\n${describe(stateAt(row, column), row.nr_pages)}`);
});
$("memory").addEventListener("pointerleave", (event) => tip(event, ""));
$("memory").addEventListener("click", (event) => {
  const box = event.target.getBoundingClientRect();
  $("when").value = Math.floor((event.clientX - box.left - AXIS) / ((box.width - AXIS) / columns));
  $("when").dispatchEvent(new Event("input"));
});
$("when").max = columns - 1;
$("when").value = columns - 1;
$("when").addEventListener("input", () => { showState(); paint(); });

function header() {
  const name = run.run.image || "a trace";
  document.title = "Bifold run: " + name;
  $("title").textContent = name;
  const facts = ["vm", "cpu", "mmu"].map((key) => run.run[key]).filter(Boolean);
  if (run.run.cpus) facts.unshift(run.run.cpus + (run.run.cpus === "1" ? " vCPU" : " vCPUs"));
  if (run.run.memory) facts.splice(1, 0, `${run.run.memory} in ${run.run.pages} pages`);
  if (run.run.seed !== undefined) facts.push("seed " + run.run.seed);
  if (run.end.outcome) facts.push("ended: " + word(run.end.outcome));
  else facts.push("the trace has no end");
  $("subtitle").textContent = facts.join(" · ");
  const faults = Object.values(run.outcomes).reduce((sum, span) => sum + span.units.count, 0);
  const tiles = [
    [units(run.time.last), "virtual time"], [group(faults), "nested faults"],
    [group(total("spte.set")) + " / " + group(total("spte.zap")), "leaves set / zapped"],
    [group(total("convert.private") + total("convert.shared")), "pages converted"],
    [group(total("flush")), "remote TLB flushes"], [group(run.events), "events"],
    [(run.end.digest || "–").replace("0x", ""), "digest"],
  ];
  $("tiles").replaceChildren(...tiles.map(([value, name]) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name))));
}

const OUTCOMES = [["fixed", "--s1"], ["spurious", "--s3"], ["retry", "--s4"], ["emulate", "--s5"], ["write_protected", "--s6"], ["memory_fault", "--s2"], ["invalid", "--s8"], ["error", "--s7"]];
const someNs = Object.values(run.outcomes).some((span) => span.ns.count) || run.stages.some(({ span }) => span.ns.count);
const mean = (h) => h.count ? h.sum / h.count : 0;
function faults() {
  chart($("faults"), OUTCOMES.map(([name, color]) => ["fault." + name, word(name), color]), "bars");
  chart($("leaves"), [["leaves.4K", "4K", "--l4"], ["leaves.2M", "2M", "--l2"], ["leaves.1G", "1G", "--l1"]], "lines");
  const ns = someNs ? ["#host ns, mean", "#p50 ≤", "#p99 ≤", "#max"] : [];
  table($("outcomes"), ["outcome", "#faults", "#instructions, mean", "#max", ...ns],
    OUTCOMES.filter(([name]) => run.outcomes[name]).map(([name]) => {
      const { units: u, ns: h } = run.outcomes[name];
      return [word(name), group(u.count), mean(u).toFixed(1), group(u.max), ...(someNs ? [group(mean(h)), group(h.p50), group(h.p99), group(h.max)] : [])];
    }));
}
function stages() {
  const entry = run.to_entry;
  $("stage-note").textContent = (entry.count ? `From the fault to the next entry into the guest, in instructions: mean ${mean(entry).toFixed(1)}, longest ${group(entry.max)}, of ${group(entry.count)}. ` : "") +
    "The host's work takes no virtual time, so a stage is measured by what it did" + (someNs ? ", and by the host's clock." : "; record with --trace-host-time for nanoseconds.");
  const most = Math.max(1, ...run.stages.map(({ span }) => mean(span.ns)));
  if (someNs) {
    const W = 1100, h = 22, left = 90, svg = el("svg", { viewBox: `0 0 ${W} ${run.stages.length * h}`, role: "img" });
    run.stages.forEach(({ stage, span }, n) => {
      const w = (W - left - 210) * mean(span.ns) / most;
      svg.append(el("text", { x: left - 8, y: n * h + 15, "text-anchor": "end" }, word(stage)),
        el("rect", { x: left, y: n * h + 4, width: Math.max(1, w), height: h - 8, rx: 3, fill: css("--s1") }),
        el("text", { x: left + w + 8, y: n * h + 15 }, `${group(mean(span.ns))} ns mean, ${group(span.ns.p99)} p99`));
    });
    $("stage-bars").replaceChildren(svg);
  }
  const heads = ["stage", "#passes", "#SPTEs changed", "#folios allocated", "#pages zeroed", "#flushes", "#instructions, max"];
  table($("stages"), someNs ? [...heads, "#host ns, mean", "#p50 ≤", "#p99 ≤", "#max", "#total"] : heads,
    run.stages.map(({ stage, span }) => [word(stage), group(span.units.count), group(span.sptes), group(span.folios), group(span.zeroed), group(span.flushes), group(span.units.max),
      ...(someNs ? [group(mean(span.ns)), group(span.ns.p50), group(span.ns.p99), group(span.ns.max), units(span.ns.sum)] : [])]));
}
const CHANGES = [
  ["Pages converted", "bars", [["convert.private", "to private", "--private"], ["convert.shared", "to shared", "--shared"]]],
  ["Folios", "bars", [["folio.allocated", "allocated", "--s1"], ["folio.removed", "removed", "--s4"], ["folio.split", "split", "--s2"], ["folio.merged", "merged", "--s3"]]],
  ["Leaves set and zapped", "bars", [["spte.set", "set", "--s1"], ["spte.zap", "zapped", "--s2"], ["spte.split", "split", "--s3"]]],
  ["Flushes, invalidations, pages punched", "bars", [["flush", "remote TLB flushes", "--s6"], ["invalidation", "invalidations", "--s3"], ["punch", "pages punched", "--s4"]]],
  ["Dirty logging", "bars", [["dirty.ring", "pushed to rings", "--s1"], ["dirty.pages", "found dirty", "--s2"], ["dirty.rounds", "rounds", "--s3"]]],
];
function changes() {
  const some = CHANGES.filter(([, , names]) => names.some(([name]) => total(name)));
  $("changes").replaceChildren(...some.map(([title, kind, names]) => {
    const into = el("div");
    queueMicrotask(() => chart(into, names, kind));
    return el("figure", {}, el("figcaption", {}, title + ", over time"), into);
  }));
  if (!some.length) $("changes").replaceChildren(el("p", { class: "none" }, "Nothing changed memory."));
  table($("change-table"), ["what", "#in all", "#most in a column", "first at"],
    some.flatMap(([title, , names]) => names.filter(([name]) => total(name)).map(([name, label]) =>
      [`${title}: ${label}`, group(total(name)), group(Math.max(...series(name))), when(series(name).findIndex((n) => n))])));
}
function pools() {
  const sizes = ["2M", "1G"].filter((size) => run.series[`pool.${size}.nr`]);
  $("pool-section").hidden = !sizes.length;
  const names = [["nr", "--s6"], ["free", "--s1"], ["resv", "--s3"], ["surplus", "--s2"]];
  $("pools").replaceChildren(...sizes.map((size) => {
    const into = el("div");
    queueMicrotask(() => chart(into, names.map(([name, color]) => [`pool.${size}.${name}`, name + "_hugepages", color]), "lines"));
    return el("figure", {}, el("figcaption", {}, `The ${size} pool, over time`), into);
  }));
  table($("pool-table"), ["pool", "counter", "#first", "#least", "#most", "#last"], sizes.flatMap((size) => names.map(([name]) => {
    const values = series(`pool.${size}.${name}`);
    return [size, name + "_hugepages", group(values[0]), group(Math.min(...values)), group(Math.max(...values)), group(values[values.length - 1])];
  })));
}
function exits() {
  const names = Object.keys(run.series).filter((name) => name.startsWith("exit.")).sort((a, b) => total(b) - total(a));
  const colors = ["--s1", "--s2", "--s3", "--s4", "--s5", "--s6"];
  chart($("exits"), names.slice(0, 6).map((name, n) => [name, word(name.slice(5)), colors[n]]), "bars");
  const into = el("table");
  table(into, ["reason", "#exits"], names.map((name) => [word(name.slice(5)), group(total(name))]));
  $("exit-table").replaceChildren(into);
}
const byTotal = (prefix) => Object.keys(run.series).filter((name) => name.startsWith(prefix)).sort((a, b) => total(b) - total(a));
function snp() {
  const { causes, others } = run.snp;
  const named = (prefix) => byTotal(prefix).slice(0, 6).map((name, n) => [name, name.slice(prefix.length), "--s" + (n + 1)]);
  const figures = [
    ["Pages of the guest, in 4K", [["snp.assigned", "assigned to it", "--a2"], ["snp.validated", "validated", "--v2"], ["snp.rescinded", "given up", "--s5"], ["snp.returned", "returned", "--shared"], ["snp.launched", "launched", "--fixed"]]],
    ["Page state changes asked for, in 4K", [["snp.to_private", "to private", "--private"], ["snp.to_shared", "to shared", "--shared"]]],
    ["Entries split and merged, faults by the RMP", [["snp.psmash", "PSMASH", "--s2"], ["snp.unsmash", "merged", "--s3"], ["snp.fault", "nested faults by the RMP", "--s7"]]],
    ["#VC, by what is intercepted", named("vc.")],
    ["VMGEXIT, by event", named("vmgexit.")],
  ].filter(([, names]) => names.some(([name]) => total(name)));
  $("snp-section").hidden = !figures.length;
  $("snp").replaceChildren(...figures.map(([title, names]) => {
    const into = el("div");
    queueMicrotask(() => chart(into, names, "bars"));
    return el("figure", {}, el("figcaption", {}, title + ", over time"), into);
  }));
  const counts = ["vc.", "vmgexit."].flatMap((prefix) => byTotal(prefix).map((name) => [prefix === "vc." ? "#VC" : "VMGEXIT", name.slice(prefix.length), group(total(name))]));
  table($("snp-counts"), ["exit", "reason", "#count"], counts);
  table($("snp-causes"), ["what", "instruction at", "#times"], [...causes.map(([what, rip, times]) => [what, el("code", {}, rip || "–"), group(times)]), ...(others ? [["any other", "", group(others)]] : [])]);
}
function lists() {
  const log = run.log;
  $("log-note").textContent = log.length ? `Memslots, conversions, holes, failures and what left to the VMM${run.unlisted ? `: the first ${group(log.length)}; ${group(run.unlisted)} more are in the trace` : ""}.` : "Nothing of that kind happened.";
  if (log.length) table($("log"), ["#time", "task", "event", "fields"], log.map(([time, vcpu, name, fields]) => [units(time), vcpu === null ? "host" : "vCPU " + vcpu, el("code", {}, name), el("code", {}, fields)]));
  table($("kinds"), ["event", "group", "name from", "#count"], run.kinds.map(([name, group_, origin, count]) => [el("code", {}, name), group_, origin, group(count)]));
  table($("facts"), ["configuration", ""], [...Object.entries(run.run), ...Object.entries(run.end)].map(([key, value]) => [key, el("code", {}, value === "" ? "–" : value)]));
}
function draw() { header(); memory(); showState(); faults(); stages(); changes(); pools(); exits(); snp(); lists(); }
draw();
addEventListener("resize", paint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
