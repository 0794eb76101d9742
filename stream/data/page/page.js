// The page: listens to /live, and draws what the model knows a few times a second.

import { $, h, say } from "./dom.js";
import { Model } from "./model.js";
import {
  chooseLanguage, instant, labelOf, language, moment, number, perSecond, remember, seconds, setLanguage,
  t, titleOf, translate, under, valueText,
} from "./text.js";
import { changeLine, control, look, repaint, touched, userButton } from "./user.js";

const DRAW_MS = 250;
const LINES = 25;
const STALE_MS = 6_000; // a worker that says nothing for so long is not heard
const BEHIND = 1_000; // events that wait: more is worth a word

const model = new Model();
const held = { changes: false, warnings: false }; // lists that stand still, being pointed at
const drawn = { changes: null, warnings: null };
let paused = false;
let only = null; // the status of warnings that somebody wants to see
let heardAt = 0;

// Listening

function listen() {
  const source = new EventSource("live");
  const on = (kind, take) => source.addEventListener(kind, (event) => {
    model.connected = true;
    heardAt = Date.now();
    take(JSON.parse(event.data));
  });
  on("state", (state) => {
    const known = model.rulesVersion;
    model.state(state);
    if (state.rules_version !== known || !model.tags.length) define();
  });
  on("gone", (gone) => model.gone(gone));
  on("change", (change) => { model.change(change); touched(change.user_id); });
  on("warning", (warning) => model.warning(warning));
  on("skipped", (n) => { model.skipped += n; });
  source.addEventListener("error", () => {
    model.connected = false;
    model.workers.clear();
    // A refusal (503) closes it for good: only then it is ours to try again.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2_000);
  });
  source.addEventListener("open", () => {
    // What happened last is told again.
    model.changes = [];
    model.warnings = [];
  });
}

async function define() {
  const answer = await fetch("tags").catch(() => null);
  if (!answer?.ok) return; // the next state asks again
  model.tags = (await answer.json()).tags;
  drawFilter();
  redraw();
}

// Drawing

function redraw() {
  drawn.changes = drawn.warnings = null;
  draw();
  drawPopulation();
  drawHealth();
}

function draw() {
  drawStatus();
  drawTiles();
  drawFeed("changes", model.changes.filter(({ tag }) => !$("filter").value || tag === $("filter").value), (one) => changeLine(one, model));
  drawFeed("warnings", model.warnings.filter(({ status }) => !only || status === only), warningLine);
  say($("skipped"), model.skipped ? t("skipped", { n: number(model.skipped) }) : "");
}

function drawStatus() {
  const [level, text] = status();
  $("status").dataset.level = level;
  say($("status"), text);
}

function status() {
  if (model.connected === null || (model.connected && !model.workers.size)) return ["wait", t("connecting")];
  if (!model.connected || Date.now() - heardAt > STALE_MS) return ["bad", t("lost")];
  const [all, seen, waiting] = [model.partitionCount, model.partitions.length, model.waiting()];
  if (!model.isWhole) {
    const records = model.total("recovering_records");
    if (records) return ["wait", t("recovering", { n: number(records) })];
    const reason = model.latest.find(({ ready }) => !ready)?.reason;
    return ["wait", seen || !reason ? t("partial", { seen, all }) : t("notReady", { reason: under("reasons", reason) })];
  }
  if (waiting === null) return ["wait", t("unknown")];
  if (waiting > BEHIND) return ["wait", t("behind")];
  const workers = model.workers.size === 1 ? t("worker") : t("workers", { n: model.workers.size });
  // Without the number, which the tile has: a screen reader says this line whenever it changes.
  return ["good", t(waiting ? "busy" : "well", { all, workers })];
}

function drawTiles() {
  const known = model.workers.size > 0;
  const [waiting, delay] = [model.waiting(), model.delay];
  say($("rate"), known ? perSecond(model.rate("events")) : "–");
  say($("changed"), known ? perSecond(model.rate("changes")) : "–");
  say($("changedNote"), known ? t("changedNote", { n: number(model.total("changes")) }) : "");
  say($("waiting"), waiting === null ? "–" : number(waiting));
  say($("waitingNote"), t(waiting === null ? "waitingUnknown" : waiting ? "waitingSome" : "waitingNone"));
  say($("delay"), delay === null ? "–" : seconds(delay));
  say($("delayNote"), t(delay === null ? "delayNone" : "delayNote"));
}

function drawSpark() {
  const most = Math.max(1, ...model.rates);
  const points = model.rates.map((rate, i) => `${120 - model.rates.length + i + 1},${(27 - 25 * rate / most).toFixed(1)}`);
  $("spark").firstElementChild.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
}

function drawFeed(name, records, line) {
  const lines = records.slice(0, LINES);
  if (held[name] || (name === "changes" && paused) || same(lines, drawn[name])) return;
  const [list, focused] = [$(name), document.activeElement];
  if (list.contains(focused) && focused.matches(":focus-visible")) return; // the keyboard is at one
  drawn[name] = lines;
  list.replaceChildren(...lines.map(line));
  $(`${name}-empty`).hidden = lines.length > 0;
}

const same = (a, b) => b !== null && a.length === b.length && a.every((one, i) => one === b[i]);

function warningLine(warning) {
  const { status, evidence, tags } = warning;
  const said = {
    raised: () => t("raised", { date: warning.churn_at.slice(0, 10) }),
    returned: () => t(warning.returned_from === "churned" ? "returnedLost" : "returned"),
    churned: () => t("churnedText", { date: warning.churn_at.slice(0, 10) }),
    scored: () => t(warning.right ? "right" : "wrong"),
  }[status]?.() ?? status;
  const facts = [
    evidence.last_order_at ? t("lastOrder", { date: evidence.last_order_at.slice(0, 10) }) : null,
    evidence.orders_total ? t("orders", { n: number(evidence.orders_total) }) : null,
    warning.probability === null ? null : `${number(warning.probability * 100)} %`,
  ];
  const worth = model.tags.filter(({ name }) => typeof tags?.[name] === "string" && !model.tellsChurn(name)).slice(0, 3);
  return h("li", { "data-way": status === "returned" || warning.right === false ? "in" : "out", "data-status": status },
    h("p", { class: "line" }, userButton(warning.user_id), " ", h("b", null, said), " ",
      ...worth.map((tag) => h("span", { class: "chip", title: titleOf(tag) }, labelOf(tag, tags[tag.name]))), control(warning)),
    h("p", { class: "note" }, h("time", { datetime: warning.at }, moment(warning.at, warning.emitted_at)),
      ...facts.filter(Boolean).map((fact) => ` · ${fact}`)),
  );
}

function drawWarningTotals() {
  const [right, wrong] = [model.warningTotal("right"), model.warningTotal("wrong")];
  const judged = right + wrong ? `${number(100 * right / (right + wrong), 1)} %` : "–";
  for (const button of $("warning-totals").children) {
    const status = button.dataset.status;
    const [count, name] = button.children;
    say(count, status === "scored" ? judged : number(model.warningTotal(status)));
    say(name, under("totals", status));
    button.setAttribute("aria-pressed", String(status === only));
  }
}

function drawPopulation() {
  const [now, before] = [model.population(), model.populations[0]?.users];
  const most = Math.max(1, ...now.values());
  const [users, tagged] = [model.total("users"), model.total("tagged")];
  say($("known"), users ? t("known", { users: number(users), share: number(100 * tagged / users, 1) }) : "");
  const opened = new Set([...$("population").querySelectorAll("details[open]")].map((one) => one.dataset.name));
  const focused = document.activeElement?.closest("#population details")?.dataset.name;
  $("population").replaceChildren(...model.tags.map((tag) => {
    const bars = tag.conditions.map(({ value }) => bar(tag, value, now, before, most));
    return h("details", { "data-name": tag.name, open: opened.has(tag.name) },
      h("summary", { class: tag.conditions.some(({ value }) => value === true) ? "single" : null },
        h("span", { class: "title" }, titleOf(tag)), ...bars),
      h("div", { class: "about" }, ...about(tag)));
  }));
  if (focused) $("population").querySelector(`details[data-name="${CSS.escape(focused)}"] summary`)?.focus();
}

function bar(tag, value, now, before, most) {
  const users = now.get(`${tag.name} ${value}`) ?? 0;
  const grown = before ? users - (before.get(`${tag.name} ${value}`) ?? 0) : 0;
  const meter = h("span", { class: "meter", "aria-hidden": "true" }, h("span"));
  meter.firstChild.style.width = `${100 * users / most}%`;
  return h("span", { class: "bar" },
    value === true ? null : h("span", { class: "value", title: value }, labelOf(tag, value)), meter,
    h("span", { class: "count", "data-none": !users }, number(users)),
    h("span", { class: "grown", "data-way": grown < 0 ? "out" : "in" }, grown ? `${grown > 0 ? "+" : "−"}${number(Math.abs(grown))}` : ""));
}

function about(tag) {
  const rules = tag.conditions.map(({ value, when }) => h("li", null, value === true ? null : `${labelOf(tag, value)}: `, h("code", null, when)));
  return [
    tag.description ? h("p", null, tag.description) : null,
    h("p", null, `${t("rule")}:`), h("ul", null, ...rules),
    tag.use ? h("p", null, `${t("use")}: ${tag.use}`) : null,
    h("p", { class: "note" }, [tag.name, under("domains", tag.domain), tag.owner && `${t("owner")}: ${tag.owner}`].filter(Boolean).join(" · ")),
  ].filter(Boolean);
}

function drawHealth() {
  const domains = model.domains;
  const time = (ms) => (ms === null ? t("none") : instant(ms, model.timeZone));
  const count = (n) => (n === null ? t("none") : number(n));
  table($("domains"), ["source", "applied", "refused", "lag", "time", "deadlines"].map((key) => t(key)),
    domains.map((one) => [under("domains", one.name), number(one.applied), number(one.refused), count(one.waiting), time(one.time), number(one.deadlines)]));
  say($("zone"), t("zone", { zone: model.timeZone }));
  const [all, seen] = [model.partitionCount, model.partitions.length];
  say($("partition-summary"), t("partitionSummary", { seen, all }));
  const byNumber = new Map(model.partitions.map((one) => [one.number, one]));
  table($("partitions"), [t("partition"), t("servedBy"), ...domains.map(({ name }) => `${under("domains", name)}: ${t("lag")}`), t("time")],
    Array.from({ length: all }, (_, n) => {
      const one = byNumber.get(n);
      if (!one) return [n, t("none"), ...domains.map(() => t("none")), t("none")];
      const times = Object.values(one.domains).map(({ time_ms }) => time_ms).filter((ms) => ms !== null);
      return [n, one.worker.replace(/^https?:\/\//, ""), ...domains.map(({ name }) => count(one.domains[name]?.lag ?? null)), time(times.length ? Math.min(...times) : null)];
    }));
}

function table(node, heads, rows) {
  node.replaceChildren(
    h("thead", null, h("tr", null, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", null, ...rows.map(([first, ...rest]) => h("tr", null, h("th", { scope: "row" }, first), ...rest.map((cell) => h("td", null, cell))))),
  );
}

function drawFilter() {
  const chosen = $("filter").value;
  $("filter").replaceChildren(h("option", { value: "" }, t("allTags")), ...model.tags.map((tag) => h("option", { value: tag.name }, titleOf(tag))));
  $("filter").value = model.tags.some(({ name }) => name === chosen) ? chosen : "";
}

// What people do

function speak() {
  translate(document);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
  say($("pause"), t(paused ? "resume" : "pause"));
  drawFilter();
  drawWarningTotals();
  redraw();
  repaint();
}

for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => { setLanguage(button.dataset.language); remember(); speak(); });
}
for (const name of Object.keys(held)) {
  $(name).addEventListener("pointerenter", (event) => { held[name] = event.pointerType === "mouse"; });
  $(name).addEventListener("pointerleave", () => { held[name] = false; });
}
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  say($("pause"), t(paused ? "resume" : "pause"));
});
$("filter").addEventListener("change", draw);
$("warning-totals").addEventListener("click", (event) => {
  const status = event.target.closest("button")?.dataset.status;
  if (!status) return;
  only = status === only ? null : status;
  drawWarningTotals();
  draw();
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  look($("id").value.trim(), model);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-user]");
  if (button) look(button.dataset.user, model);
});
$("close").addEventListener("click", () => $("user").close());
$("user").addEventListener("click", (event) => { if (event.target === $("user")) $("user").close(); });

chooseLanguage();
speak();
listen();
setInterval(draw, DRAW_MS);
setInterval(() => { model.tick(Date.now()); drawSpark(); drawWarningTotals(); drawPopulation(); drawHealth(); }, 1_000);
