// The list of jobs.

import { h } from "./dom.js";
import { age, number, steps } from "./format.js";

const MOST_ROWS = 200;
let filter = "";

/** All jobs, the ones in trouble marked. `redraw` is called when the user asks for other rows. */
export function fleet(stream, redraw) {
  if (!stream.known) return h("p", { class: "quiet" }, "Looking for jobs…");
  const rows = [...stream.jobs.values()].sort((a, b) => b.created - a.created || a.key.localeCompare(b.key));
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (row) => words.every((word) => `${row.key} ${row.state} ${row.bad.map((b) => b.reason)}`.toLowerCase().includes(word));
  const found = rows.filter(fits);
  return [
    h("div", { class: "bar", key: "bar" },
      h("h1", null, "Jobs"),
      h("input", {
        type: "search", placeholder: "filter by name or state", "aria-label": "Filter jobs", value: filter,
        oninput: (event) => { filter = event.target.value; redraw(); },
      }),
      h("p", { class: "quiet", role: "status" }, summary(stream, rows, found))),
    rows.length ? table(found.slice(0, MOST_ROWS)) : empty(),
  ];
}

function summary(stream, rows, found) {
  const shown = Math.min(found.length, MOST_ROWS);
  const running = rows.filter((row) => row.state === "Running").length;
  const hidden = shown < stream.total && rows.length ? `, ${number(shown)} of them shown` : "";
  return `${number(stream.total)} ${stream.total === 1 ? "job" : "jobs"}, ${number(running)} running${hidden}`;
}

function empty() {
  return h("p", { class: "empty", key: "empty" }, "There are no jobs here yet. ", h("code", null, "kubectl apply -f job.yaml"),
    " or ", h("code", null, "llmtrain local job.yaml"), " starts one; with ", h("code", null, "-A"), " this page shows all namespaces.");
}

const HEADS = ["Job", "State", "Nodes", "Step", "Loss", "ETA", "Goodput", "Restarts", "Age"];
const FIGURES = new Set(["Nodes", "Step", "Loss", "ETA", "Goodput", "Restarts", "Age"]);

function table(rows) {
  const head = HEADS.map((name) => h("th", { scope: "col", class: FIGURES.has(name) ? "figure" : null }, name));
  return h("div", { class: "scroll card", key: "table" },
    h("table", { class: "jobs" }, h("thead", null, h("tr", null, head)), h("tbody", null, rows.map(line))));
}

function line(row) {
  const figure = (text) => h("td", { class: "figure" }, text);
  return h("tr", { key: row.key },
    h("th", { scope: "row" }, h("a", { href: link(row) }, row.name), h("span", { class: "quiet" }, ` ${row.namespace}`)),
    h("td", null, badge(row.state, row.tone), row.bad.map((one) => h("span", { class: "warning", title: one.message }, one.reason))),
    figure(row.nodes),
    h("td", { class: "figure" }, steps(row), row.maxSteps ? bar(row) : null),
    figure(row.loss === null ? "" : number(row.loss)),
    figure(row.eta), figure(row.goodput), figure(String(row.restarts)), figure(age(row.created)));
}

/** Where a job's page is. */
const link = (row) => `#/${encodeURIComponent(row.namespace)}/${encodeURIComponent(row.name)}`;

/** A word with the colour of how good that is. */
export const badge = (text, tone) => h("span", { class: `badge ${tone}` }, text);

/** How far a job is. */
export function bar(row) {
  return h("progress", { max: row.maxSteps, value: Math.min(row.step, row.maxSteps), "aria-label": `step ${row.step} of ${row.maxSteps}` });
}
