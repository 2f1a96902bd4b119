// Which page is shown, what stands above it, and drawing it anew when there is news.

import { patch, h } from "./dom.js";
import { fleet } from "./fleet.js";
import { job } from "./job.js";
import { Stream } from "./stream.js";

const main = document.getElementById("main");
let due = false;

const stream = new Stream(redraw);
window.addEventListener("hashchange", () => {
  stream.follow(chosen());
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
new ResizeObserver(redraw).observe(main);
setInterval(redraw, 5000); // ages
stream.follow(chosen());

function chosen() {
  const [namespace, name] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  return namespace && name ? `${namespace}/${name}` : "";
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

function draw() {
  document.title = stream.job ? `${stream.job.split("/")[1]} · ${stream.jobs.get(stream.job)?.state ?? "llmtrain"}` : "llmtrain";
  const connection = document.getElementById("connection");
  connection.className = stream.connected && !stream.problem ? "live" : "lost";
  patch(connection, stream.connected ? (stream.problem ? "not up to date" : "live") : stream.refusal ? "no connection" : "connecting");
  patch(document.getElementById("problem"), problem());
  patch(main, stream.job ? job(stream, main.clientWidth, redraw) : fleet(stream, redraw));
}

function problem() {
  const title = stream.connected ? stream.problem?.title : stream.refusal && "No connection";
  const text = stream.connected ? stream.problem?.text : stream.refusal;
  if (!title) return null;
  const old = stream.known ? " What is shown below is what was seen last; this page goes on by itself." : "";
  return h("p", { class: "problem" }, h("b", null, title, ". "), text, old);
}
