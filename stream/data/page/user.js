// One user: tags, since when, why, and all features.

import { $, h } from "./dom.js";
import { daysSince, featureName, labelOf, moment, t, titleOf, under, valueText } from "./text.js";

const TRIES = 5;
const AGAIN_MS = 5_000; // the one shown is asked for again: numbers move between changes of tags

let shown = null; // {id, user, model}
let asked = 0;

/** Open the panel and ask for a user; ``model`` knows definitions and the last changes. */
export async function look(id, model) {
  shown = { id, user: null, model };
  $("user-title").textContent = id;
  $("user-body").replaceChildren(h("p", { class: "empty" }, t("loading")));
  if (!$("user").open) $("user").showModal();
  $("user-title").focus();
  await ask();
}

/** Something of a user changed: ask again, if it is the one shown. */
export function touched(id) {
  if ($("user").open && shown?.id === id) ask();
}

setInterval(() => { if (shown?.user) touched(shown.id); }, AGAIN_MS);

/** Say all again, in another language. */
export function repaint() {
  if ($("user").open && shown?.user) paint();
}

async function ask() {
  const [turn, about] = [++asked, shown];
  for (let tries = 1; turn === asked && $("user").open; tries++) {
    const answer = await fetch(`users/${encodeURIComponent(about.id)}`).catch(() => null);
    if (turn !== asked) return;
    if (answer?.ok) {
      const user = await answer.json();
      if (turn !== asked || JSON.stringify(user) === JSON.stringify(about.user)) return;
      about.user = user;
      return paint();
    }
    if (answer?.status === 503 && tries < TRIES) {
      tell("moving");
      await new Promise((resolve) => setTimeout(resolve, 1000 * (answer.headers.get("Retry-After") ?? 2)));
      continue;
    }
    return tell(answer?.status === 404 ? "unknownUser" : "failed");
  }
}

function tell(key) {
  $("user-body").replaceChildren(h("p", { class: "empty", role: "alert" }, t(key)));
}

function paint() {
  const { user, model } = shown;
  const held = Object.entries(user.tags);
  const changes = model.changes.filter(({ user_id }) => user_id === shown.id).slice(0, 10);
  const opened = new Set([...$("user-body").querySelectorAll("details[open]")].map((one) => one.dataset.name));
  $("user-body").replaceChildren(
    h("h3", null, t("tags")),
    held.length ? h("ul", { class: "held" }, ...held.map(([name, state]) => tagOf(name, state))) : h("p", { class: "empty" }, t("noTags")),
    ...(changes.length ? [h("h3", null, t("history")), h("ol", { class: "feed" }, ...changes.map((change) => changeLine(change, model, false)))] : []),
    h("h3", null, t("features")),
    ...Object.entries(user.features).map(([domain, features]) =>
      h("details", { "data-name": domain, open: opened.has(domain) }, h("summary", null, under("domains", domain)), values(features))),
  );
}

function tagOf(name, { value, since }) {
  const { user, model, id } = shown;
  const tag = model.tag(name);
  const condition = tag?.conditions.find((one) => one.value === value);
  const known = tag ? { ...user.features[tag.domain], ...heldTags(tag, user) } : {};
  const last = model.last.get(`${id} ${name}`);
  return h("li", null,
    h("p", { class: "line" },
      h("b", null, tag ? titleOf(tag) : name), " ",
      value === true ? null : h("span", { class: "chip" }, labelOf(tag, value)), " ",
      h("span", { class: "note" }, `${t("since", { date: moment(since) })} (${daysSince(since)})`)),
    condition ? h("p", { class: "note" }, `${t("why")}: ${t("whyNow")} `, h("code", null, condition.when)) : null,
    tag ? values(Object.fromEntries(tag.features.filter((read) => read in known).map((read) => [read, known[read]])), readTags(tag, model)) : null,
    last ? h("p", { class: "note" }, `${t("lastChange")} ${moment(last.effective_at)}, ${causeOf(last)}`) : null,
  );
}

/** The model where what is read are tags; elsewhere a feature may have the name of a tag. */
function readTags({ domain }, model) {
  return domain === "profile" ? model : null;
}

/** What a tag made of tags reads. */
function heldTags(tag, user) {
  if (tag.domain !== "profile") return {};
  return Object.fromEntries(tag.features.map((read) => [read, user.tags[read]?.value ?? null]));
}

function values(features, model = null) {
  return h("dl", { class: "values" }, ...Object.entries(features).flatMap(([name, value]) => [
    h("dt", { title: name }, nameOf(name, model)), h("dd", null, valueOf(name, value, model)),
  ]));
}

/** The value of a feature, or of a tag that another one reads. */
function valueOf(name, value, model) {
  const tag = model?.tag(name);
  return tag ? labelOf(tag, value) : valueText(value, name);
}

function nameOf(name, model) {
  const tag = model?.tag(name);
  return tag ? titleOf(tag) : featureName(name);
}

function causeOf({ cause }) {
  return `${under("causes", cause.kind)}${cause.event_id ? ` (${cause.event_id})` : ""}`;
}

/** A change as one line: who, which tag, from what to what, why, on what evidence. */
export function changeLine(change, model, named = true) {
  const tag = model.tag(change.tag);
  const title = tag ? titleOf(tag) : change.tag;
  const out = change.value === null || change.value === false;
  const flag = typeof (change.value ?? change.previous) === "boolean";
  const what = flag
    ? [h("span", { class: "verb" }, t(out ? "left" : "gained")), " ", h("b", null, title)]
    : [h("b", null, `${title}: `),
       change.previous === null ? null : h("span", { class: "chip was" }, labelOf(tag, change.previous)),
       "→ ", h("span", { class: "chip" }, labelOf(tag, change.value))];
  const read = readTags(change, model);
  // Of many yes and no, the yes are what counts.
  const anyYes = Object.values(change.features).includes(true);
  const evidence = Object.entries(change.features).filter(([, value]) => !anyYes || value !== false).map(([name, value]) => `${nameOf(name, read)} ${valueOf(name, value, read)}`);
  return h("li", { "data-way": out ? "out" : flag ? "in" : "over" },
    h("p", { class: "line" },
      named ? userButton(change.user_id) : null, " ", ...what.filter(Boolean), control(change)),
    h("p", { class: "note" },
      h("time", { datetime: change.effective_at }, moment(change.effective_at, change.emitted_at)),
      ` · ${under("causes", change.cause.kind)}${evidence.length ? `: ${evidence.join(" · ")}` : ""}`),
  );
}

/** Opens the panel: the page listens for clicks on it. */
export function userButton(id) {
  return h("button", { type: "button", class: "user", "data-user": id }, id);
}

export function control(record) {
  return record.control ? h("span", { class: "chip quiet", title: t("controlHint") }, t("control")) : null;
}
