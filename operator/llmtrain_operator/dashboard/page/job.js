// Everything about one job.

import { causes, course, curve, timeline, words } from "./charts.js";
import { h } from "./dom.js";
import { badge, bar } from "./fleet.js";
import { age, clock, duration, number, steps } from "./format.js";

const WIDE = 900; // two charts beside each other
const GAP = 16;
const PADDING = 16;
const FIGURES = new Set(["Detected", "Next round", "Next step", "Cost", "Lost steps"]);

/** The page of the job that `stream` follows, `width` pixels wide. */
export function job(stream, width, redraw) {
  const back = h("p", { class: "back", key: "back" }, h("a", { href: "#/" }, "← All jobs"));
  const { page } = stream;
  if (page === undefined) return [back, h("p", { class: "quiet" }, `Looking for ${stream.job}…`)];
  if (page === null) {
    return [back, h("p", { class: "empty" }, `There is no job ${stream.job} here. Was it deleted, or is it in another namespace? `, h("code", null, "-A"), " shows all.")];
  }
  const wide = width >= WIDE;
  const column = Math.max(240, (wide ? (width - GAP) / 2 : width) - 2 * PADDING - 2);
  const full = Math.max(240, width - 2 * PADDING - 2);
  return [
    back, heading(page), trouble(page), failure(page),
    h("div", { class: "columns", key: "charts" }, curves(page, column, redraw)),
    goodput(page, full), incidents(page), members(page), conditions(page),
  ];
}

function heading({ row, facts }) {
  const share = row.maxSteps ? ` (${Math.floor((100 * row.step) / row.maxSteps)}%)` : "";
  const line = [steps(row) && `step ${steps(row)}${share}`, row.eta && `${row.eta} left`, row.nodes && `members ${row.nodes}`,
    `${number(row.restarts)} ${row.restarts === 1 ? "restart" : "restarts"}`, `age ${age(row.created)}`];
  return h("section", { class: "card", key: "heading", "aria-labelledby": "name" },
    h("h1", { id: "name" }, row.name, " ", badge(row.state, row.tone), h("span", { class: "quiet" }, ` ${row.namespace}`)),
    row.maxSteps ? bar(row) : null,
    h("p", { class: "line" }, line.filter(Boolean).join(" · ")),
    h("dl", { class: "facts" }, facts.map((fact) => h("div", { key: fact.name }, h("dt", null, fact.name), h("dd", null, fact.value)))));
}

function trouble({ row }) {
  if (!row.bad.length) return null;
  return h("section", { class: "card warnings", key: "trouble", "aria-label": "What needs attention" },
    h("ul", null, row.bad.map((one) => h("li", { key: one.type }, h("b", null, one.reason, ": "), one.message))));
}

function failure({ row, failure: newest }) {
  if (!newest) return null;
  const where = [newest.member >= 0 && `member ${newest.member}`, newest.rank >= 0 && `rank ${newest.rank}`, `step ${newest.step}`,
    newest.signal && `signal ${newest.signal}`, newest.exitCode && `exit code ${newest.exitCode}`, newest.time && clock(newest.time)];
  return h("section", { class: "card", key: "failure", "aria-label": "Newest failure" },
    h("h2", null, "Newest failure: ", newest.reason),
    h("p", null, newest.message, h("span", { class: "quiet" }, ` (${where.filter(Boolean).join(", ")})`)),
    newest.traceback ? h("details", { open: row.state === "Failed" }, h("summary", null, "Traceback"), h("pre", { tabindex: "0" }, newest.traceback)) : null);
}

function curves({ history, incidents: all }, width, redraw) {
  const marks = all.map((one) => ({ x: one.committedStep, text: `incident ${one.number}: ${one.reason}` }));
  const points = (field) => history.filter((point) => point[field] !== null).map((point) => ({ x: point.step, y: point[field] }));
  return [
    curve({ name: "Loss", unit: "nats per token", points: points("loss"), marks, width, redraw }),
    curve({ name: "Step time", unit: "seconds", points: points("stepSeconds"), marks, width, redraw }),
  ];
}

function goodput({ row, started, timeline: segments, ledger, incidents: all }, width) {
  if (!Object.keys(ledger).length) return null;
  const marks = all.map((one) => ({ x: Date.parse(one.time) / 1000 - started, text: `incident ${one.number}: ${one.reason}` }));
  return h("section", { class: "card", key: "goodput", "aria-label": "Goodput" },
    h("h2", null, "Goodput ", row.goodput, h("span", { class: "quiet" }, " where the time went")),
    segments.length ? timeline({ segments, marks, width }) : null,
    causes(ledger));
}

function section(key, title, ...content) {
  return h("section", { class: "card scroll", key, "aria-label": title }, h("h2", null, title), content);
}

function table(heads, rows) {
  return h("table", null, h("thead", null, h("tr", null, heads.map((name) => h("th", { scope: "col", class: FIGURES.has(name) ? "figure" : null }, name)))), h("tbody", null, rows));
}

function incidents({ incidents: all }) {
  if (!all.length) return section("incidents", "Incidents", h("p", { class: "quiet" }, "None: no round was lost."));
  const heads = ["#", "Time", "Reason", "Member", "Detected", "Next round", "Next step", "Course", "Cost", "Lost steps", "What happened"];
  return section("incidents", "Incidents", table(heads, [...all].reverse().map((one) => {
    const after = (value) => h("td", { class: "figure" }, value === null ? one.outcome || "not yet" : duration(value));
    return h("tr", { key: one.number },
      h("th", { scope: "row" }, String(one.number)), h("td", null, clock(one.time)), h("td", null, badge(one.reason, one.outcome ? "idle" : "bad")),
      h("td", null, one.member < 0 ? "" : String(one.member)), after(one.detectSeconds), after(one.roundSeconds), after(one.trainSeconds), h("td", null, course(one)),
      cost(one.badput),
      h("td", { class: "figure" }, one.lostSteps === null ? "" : number(one.lostSteps)), h("td", { class: "long" }, one.message));
  })));
}

function cost(badput) {
  const all = Object.entries(badput).filter(([, seconds]) => seconds > 0);
  const sum = all.reduce((total, [, seconds]) => total + seconds, 0);
  return h("td", { class: "figure", title: all.map(([cause, seconds]) => `${words(cause)} ${duration(seconds)}`).join(", ") }, all.length ? duration(sum) : "");
}

function members({ members: all }) {
  if (!all.length) return section("members", "Members", h("p", { class: "quiet" }, "None are there."));
  const heads = ["Node", "Member", "Rank", "Pod", "State", "Copies kept by"];
  const sorted = [...all].sort((a, b) => a.node.localeCompare(b.node, "en", { numeric: true }) || a.index - b.index);
  return section("members", "Members on nodes", table(heads, sorted.map((one, i) => h("tr", { key: one.pod },
    h("th", { scope: "row" }, sorted[i - 1]?.node === one.node && one.node ? "" : one.node || "none yet"),
    h("td", null, String(one.index)), h("td", null, one.rank === null ? "–" : String(one.rank)),
    h("td", null, h("code", null, one.pod)), h("td", { class: "long" }, badge(one.state, one.tone)), h("td", null, one.buddies.join(", ") || "–")))));
}

function conditions({ conditions: all }) {
  return section("conditions", "Conditions", table(["Condition", "Status", "Since", "Reason", "Message"], all.map((one) => h("tr", { key: one.type },
    h("th", { scope: "row" }, one.type), h("td", null, badge(one.status, one.bad ? "bad" : "idle")), h("td", null, clock(one.since)),
    h("td", null, one.reason), h("td", { class: "long" }, one.message)))));
}
