// What is known of the service: fed by /live, read by page.js. No document here.

const RATE_MS = 5_000; // rates are averages over so long
const DELAY_MS = 10_000;
const MINUTE_MS = 60_000;
const SECONDS = 120; // of the curve
const KEPT = 400; // records of a kind: one tag alone may be looked at
const REMEMBERED = 2_000; // last changes, by user and tag

export class Model {
  constructor() {
    this.connected = null; // null: not yet
    this.tags = []; // definitions
    this.rulesVersion = null;
    this.workers = new Map(); // by name: its states of the last seconds, the newest last
    this.rates = []; // events a second, the newest last
    this.changes = [];
    this.warnings = [];
    this.skipped = 0;
    this.last = new Map(); // the last change of "user tag"
    this.populations = []; // of the last minute: {at, users}
  }

  state(state) {
    const states = this.workers.get(state.worker) ?? [];
    const before = states.at(-1);
    // A worker that began anew counts from 0.
    const kept = before && before.at < state.at && before.changes <= state.changes
      ? states.filter(({ at }) => at > state.at - 2 * DELAY_MS) : [];
    this.workers.set(state.worker, [...kept, state]);
    this.rulesVersion = state.rules_version;
  }

  gone({ worker }) {
    this.workers.delete(worker);
  }

  change(change) {
    if (change.cause.kind === "erase") this.#forget(change.user_id);
    put(this.changes, change);
    const key = `${change.user_id} ${change.tag}`;
    this.last.delete(key); // so that it becomes the youngest
    this.last.set(key, change);
    if (this.last.size > REMEMBERED) this.last.delete(this.last.keys().next().value);
  }

  warning(warning) {
    put(this.warnings, warning);
  }

  #forget(user) {
    this.changes = this.changes.filter(({ user_id }) => user_id !== user);
    this.warnings = this.warnings.filter(({ user_id }) => user_id !== user);
    for (const key of this.last.keys()) if (key.startsWith(`${user} `)) this.last.delete(key);
  }

  /** Once a second. */
  tick(now) {
    if ([...this.workers.values()].some((states) => states.length > 1)) {
      this.rates.push(this.rate("events"));
      this.rates.splice(0, this.rates.length - SECONDS);
    }
    if (this.isWhole) {
      this.populations.push({ at: now, users: this.population() });
      while (this.populations[0].at < now - MINUTE_MS) this.populations.shift();
    } else {
      this.populations = []; // a part is nothing to compare with
    }
  }

  tag(name) {
    return this.tags.find((tag) => tag.name === name);
  }

  /** Whether a tag says what a churn warning says anyway: reads the state, or a tag that does. */
  tellsChurn(name) {
    const tag = this.tag(name);
    return tag?.features.some((read) => read === "churn_state" || (tag.domain === "profile" && this.tellsChurn(read))) ?? false;
  }

  get latest() {
    return [...this.workers.values()].map((states) => states.at(-1));
  }

  get partitionCount() {
    return Math.max(0, ...this.latest.map((state) => state.partition_count));
  }

  get timeZone() {
    return this.latest[0]?.timezone ?? "UTC";
  }

  /** Partitions by number, each with its worker: what was said last, where two say they have it. */
  get partitions() {
    const found = new Map();
    for (const state of this.latest.sort((a, b) => a.at - b.at)) {
      for (const partition of state.partitions) found.set(partition.number, { ...partition, worker: state.worker });
    }
    return [...found.values()].sort((a, b) => a.number - b.number);
  }

  get isWhole() {
    return this.partitionCount > 0 && this.partitions.length === this.partitionCount;
  }

  /** Something that is counted from the start, all workers together. */
  total(name) {
    return this.latest.reduce((sum, state) => sum + counted(state, name), 0);
  }

  /** How much a second it grows. */
  rate(name) {
    return this.#grown(RATE_MS, (state) => counted(state, name)).perSecond;
  }

  /** Seconds from an event to the tags that it changed, on average; null where none did. */
  get delay() {
    const events = this.#grown(DELAY_MS, (state) => state.changing_events).sum;
    return events ? this.#grown(DELAY_MS, (state) => state.changing_seconds).sum / events : null;
  }

  #grown(span, read) {
    let [sum, perSecond] = [0, 0];
    for (const states of this.workers.values()) {
      const last = states.at(-1);
      const first = states.find(({ at }) => at >= last.at - span);
      if (first.at === last.at) continue;
      sum += read(last) - read(first);
      perSecond += (read(last) - read(first)) * 1000 / (last.at - first.at);
    }
    return { sum, perSecond };
  }

  /** Warnings by status, all workers together. */
  warningTotal(status) {
    return this.latest.reduce((sum, state) => sum + (state.warnings[status] ?? 0), 0);
  }

  /** Users by "tag value". */
  population() {
    const users = new Map();
    for (const { population } of this.partitions) {
      for (const [tag, value, n] of population) {
        users.set(`${tag} ${value}`, (users.get(`${tag} ${value}`) ?? 0) + n);
      }
    }
    return users;
  }

  /** Events that wait; null where a partition cannot say. */
  waiting(domain = null) {
    let sum = 0;
    for (const { domains } of this.partitions) {
      for (const [name, { lag }] of Object.entries(domains)) {
        if (domain !== null && name !== domain) continue;
        if (lag === null) return null;
        sum += lag;
      }
    }
    return this.partitions.length ? sum : null;
  }

  /** What a domain says in all partitions together. */
  get domains() {
    const found = new Map();
    for (const { domains } of this.partitions) {
      for (const [name, { time_ms, deadlines }] of Object.entries(domains)) {
        const domain = found.get(name) ?? { name, time: null, deadlines: 0 };
        if (time_ms !== null) domain.time = Math.min(domain.time ?? Infinity, time_ms);
        domain.deadlines += deadlines;
        found.set(name, domain);
      }
    }
    return [...found.values()].map((domain) => ({
      ...domain,
      waiting: this.waiting(domain.name),
      applied: this.latest.reduce((sum, { events }) => sum + (events[domain.name] ?? 0), 0),
      refused: this.latest.reduce((sum, { refused }) => sum + (refused[domain.name] ?? 0), 0),
    }));
  }
}

function counted(state, name) {
  const counts = state[name];
  return typeof counts === "number" ? counts : Object.values(counts).reduce((a, b) => a + b, 0);
}

function put(list, record) {
  list.unshift(record);
  list.length = Math.min(list.length, KEPT);
}
