// What the server tells, put together again. The connection is taken up again for ever: after the server or the network
// was away, after the machine has slept, and when the page is looked at again (meanwhile it costs nobody anything).

const SILENCE = 15000; // the server speaks every five seconds
const FIRST = 500;
const LONGEST = 5000;

export class Stream {
  /** `changed` is called after everything that is new; see the fields for what there is. */
  constructor(changed) {
    this.changed = changed;
    this.jobs = new Map();
    this.total = 0;
    this.job = "";
    this.page = undefined; // null: there is no such job
    this.problem = null;
    this.known = false; // the list has come
    this.connected = false;
    this.refusal = "";
    this.heard = 0;
    this.delay = FIRST;
    document.addEventListener("visibilitychange", () => this.follow(this.job));
    setInterval(() => this.watch(), 1000);
  }

  /** Read the list, and the page of the job with this key unless it is empty. */
  follow(job) {
    if (job !== this.job) this.page = undefined;
    this.job = job;
    this.stop();
    if (document.hidden) return;
    this.heard = Date.now();
    this.source = new EventSource(`news?job=${encodeURIComponent(job)}`);
    this.source.onmessage = (event) => this.take(JSON.parse(event.data));
    this.source.onerror = () => this.lose();
    this.changed();
  }

  stop() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  watch() {
    if (this.source && Date.now() - this.heard > SILENCE) this.lose();
  }

  take(news) {
    this.heard = Date.now();
    this.connected = true;
    this.refusal = "";
    this.delay = FIRST;
    if ("jobs" in news) this.merge(news);
    this.changed();
  }

  merge(news) {
    if (news.whole) this.jobs.clear();
    for (const [key, row] of Object.entries(news.jobs)) this.jobs.set(key, row);
    for (const key of news.gone) this.jobs.delete(key);
    this.problem = news.problem;
    this.total = news.total;
    this.known ||= news.whole;
    if (news.pageOf && news.pageOf === this.job) this.page = news.page;
  }

  async lose() {
    this.stop();
    this.connected = false;
    this.timer = setTimeout(() => this.follow(this.job), this.delay);
    this.delay = Math.min(LONGEST, this.delay * 2);
    this.refusal = await reason();
    this.changed();
  }
}

/** Why there is no connection. */
async function reason() {
  try {
    const answer = await fetch("icon.svg", { cache: "no-store" });
    if (answer.ok) return "";
    if (answer.status === 503) return "Too many pages are open: close some of them.";
    return await answer.text();
  } catch {
    return "The command `llmtrain dashboard` does not answer. Is it still running? Start it again with the same --port, or open the address that it prints now.";
  }
}
