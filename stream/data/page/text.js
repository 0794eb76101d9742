// What the page says, in both languages, and how it says numbers, times and names of features.

export const TEXT = {
  en: {
    skip: "Skip to the content",
    tagline: "Live user tags: who just changed, and who is about to leave.",
    language: "Language",
    connecting: "Connecting…",
    lost: "No connection to the worker; trying again. What you see is not up to date.",
    partial: "{seen} of {all} partitions are served now; the others are moving or recovering. Numbers are incomplete.",
    notReady: "Not ready yet: {reason}.",
    reasons: { "recovering state": "recovering state", "waiting for partitions": "waiting for partitions" },
    recovering: "Recovering state: {n} records are still to be read.",
    behind: "Catching up: events wait to be applied, and numbers lag behind.",
    unknown: "Running; how many events wait is not known at the moment.",
    well: "All is well: {all} of {all} partitions served by {workers}, nothing waits.",
    busy: "All is well: {all} of {all} partitions served by {workers}, events are applied as they come.",
    worker: "1 worker", workers: "{n} workers",
    numbers: "Now",
    rate: "Events a second",
    rateNote: "coming in from all sources; the last 2 minutes",
    changed: "Tag changes a second",
    changedNote: "{n} since the start",
    waiting: "Events waiting",
    waitingNone: "everything that came in is applied",
    waitingSome: "not applied yet",
    waitingUnknown: "not known at the moment",
    delay: "From event to tag",
    delayNote: "on average, last 10 seconds",
    delayNone: "no event changed a tag just now",
    known: "{users} users known, {share} % of them with a tag",
    search: "Look up one user",
    searchHint: "user id, or click one below",
    show: "Show",
    changes: "Happening now",
    changesNote: "Each line is a user who just gained or lost a tag, and why. The newest is on top; it stands still while you point at it.",
    changesEmpty: "Nothing has changed yet. The next change appears here by itself.",
    onlyTag: "Tag", allTags: "all tags",
    pause: "Pause", resume: "Go on",
    skipped: "{n} more were too many to show one by one; all of them count.",
    gained: "gained", left: "no longer", control: "control group",
    controlHint: "left alone for comparison: do not contact",
    causes: {
      event: "after an event", time: "as time passed", tag: "as another tag changed",
      rules: "the definitions changed", erase: "the user was erased",
    },
    population: "Users per tag",
    populationNote: "How many users have each tag now; + and − are the last minute. Open one to see its rule.",
    rule: "Rule", use: "Use", owner: "Owner", reads: "Reads",
    warnings: "Churn warnings",
    warningsNote: "Users silent for long are announced here before they are lost; later each warning is judged. Counted since the start; press a number to see only those.",
    warningsEmpty: "No warning yet. The next one appears here by itself.",
    onlyStatus: "Show only",
    totals: { raised: "warned", returned: "came back", churned: "lost", scored: "were right" },
    raised: "may be lost on {date}", returned: "came back with an order",
    returnedLost: "came back after being lost", churnedText: "is lost: no order until {date}",
    right: "warning was right", wrong: "warning was wrong: an order came",
    lastOrder: "last order {date}", orders: "{n} orders",
    health: "Health",
    healthNote: "What comes in is split into partitions, each served by one worker. Waiting should be near 0, and time near now.",
    source: "Source", applied: "Applied", refused: "Refused", lag: "Waiting", time: "Time reached",
    deadlines: "Deadlines",
    byPartition: "By partition", partition: "Partition", servedBy: "Worker",
    partitionSummary: "{seen} of {all} partitions, one by one",
    metrics: "Metrics", definitions: "Definitions", zone: "times are in {zone}",
    close: "Close",
    loading: "Looking…",
    unknownUser: "No event of this user was ever applied.",
    moving: "This user's partition is moving or recovering. Asking again…",
    failed: "The look-up failed; try again.",
    tags: "Tags", noTags: "This user has no tag now.",
    since: "since {date}", days: "{n} days",
    why: "Why", whyNow: "holds now:", lastChange: "Last change:", history: "Seen on this page",
    churnStates: { none: "none", warned: "warned", churned: "lost" },
    features: "All features", yes: "yes", no: "no", none: "–",
    domains: {
      purchases: "Purchases", service: "Service", engagement: "Engagement", outreach: "Outreach",
      profile: "Profile",
    },
  },
  zh: {
    skip: "跳到正文",
    tagline: "实时用户标签：谁刚刚变了，谁快要流失。",
    language: "语言",
    connecting: "正在连接…",
    lost: "与服务的连接中断，正在重试。当前显示的不是最新数据。",
    partial: "目前 {seen}/{all} 个分区在服务，其余正在迁移或恢复；数字不完整。",
    notReady: "尚未就绪：{reason}。",
    reasons: { "recovering state": "正在恢复状态", "waiting for partitions": "正在等待分区分配" },
    recovering: "正在恢复状态：还需读取 {n} 条记录。",
    behind: "正在追赶：还有事件未处理，数字会滞后。",
    unknown: "运行中；暂时不知道还有多少事件未处理。",
    well: "一切正常：{all}/{all} 个分区由 {workers}提供服务，没有积压。",
    busy: "一切正常：{all}/{all} 个分区由 {workers}提供服务，事件随到随处理。",
    worker: "1 个工作进程", workers: "{n} 个工作进程",
    numbers: "当前数字",
    rate: "每秒事件",
    rateNote: "所有来源合计；最近 2 分钟",
    changed: "每秒标签变化",
    changedNote: "启动以来 {n} 次",
    waiting: "等待处理的事件",
    waitingNone: "收到的都已处理",
    waitingSome: "尚未处理",
    waitingUnknown: "暂时未知",
    delay: "从事件到标签",
    delayNote: "最近 10 秒平均",
    delayNone: "刚才没有事件引起标签变化",
    known: "已知 {users} 位用户，其中 {share} % 有标签",
    search: "查询用户",
    searchHint: "用户 ID，或点击下方任一用户",
    show: "查询",
    changes: "正在发生",
    changesNote: "每一行是一位刚刚获得或失去标签的用户，以及原因；最新的在最上面，鼠标指向时停住不动。",
    changesEmpty: "还没有变化；下一次变化会自动出现在这里。",
    onlyTag: "标签", allTags: "全部标签",
    pause: "暂停", resume: "继续",
    skipped: "另有 {n} 条变化太快，没有逐条显示，但都已计入。",
    gained: "获得", left: "失去", control: "对照组",
    controlHint: "留作对比，请勿触达",
    causes: {
      event: "因为一个事件", time: "因为时间推移", tag: "因为另一个标签变化",
      rules: "因为标签定义变更", erase: "因为用户数据被删除",
    },
    population: "各标签用户数",
    populationNote: "现在拥有每个标签的用户数；+ 和 − 为最近一分钟的变化。展开可看规则。",
    rule: "规则", use: "用途", owner: "负责人", reads: "依据",
    warnings: "流失预警",
    warningsNote: "长时间沉默的用户在流失之前会出现在这里；之后每条预警都会被评判对错。数字为启动以来的累计，点按可只看该类。",
    warningsEmpty: "还没有预警；下一条会自动出现在这里。",
    onlyStatus: "只看",
    totals: { raised: "已预警", returned: "已回归", churned: "已流失", scored: "预警正确" },
    raised: "可能在 {date} 流失", returned: "已回来下单",
    returnedLost: "流失后又回来了", churnedText: "已流失：到 {date} 没有下单",
    right: "预警正确", wrong: "预警错误：用户又下单了",
    lastOrder: "上次下单 {date}", orders: "共 {n} 单",
    health: "运行状况",
    healthNote: "数据分成若干分区，每个分区由一个工作进程负责。等待应接近 0，时间应接近现在。",
    source: "来源", applied: "已处理", refused: "已拒绝", lag: "等待", time: "处理到",
    deadlines: "待触发",
    byPartition: "按分区", partition: "分区", servedBy: "工作进程",
    partitionSummary: "{seen}/{all} 个分区的明细",
    metrics: "监控指标", definitions: "标签定义", zone: "时间均为 {zone} 时区",
    close: "关闭",
    loading: "正在查询…",
    unknownUser: "从未处理过该用户的事件。",
    moving: "该用户所在分区正在迁移或恢复，正在重试…",
    failed: "查询失败，请重试。",
    tags: "标签", noTags: "该用户目前没有标签。",
    since: "自 {date} 起", days: "{n} 天",
    why: "原因", whyNow: "目前成立：", lastChange: "最近一次变化：", history: "本页看到的变化",
    churnStates: { none: "无", warned: "已预警", churned: "已流失" },
    features: "全部特征", yes: "是", no: "否", none: "–",
    domains: {
      purchases: "购买", service: "客服", engagement: "互动", outreach: "触达", profile: "画像",
    },
  },
};

// Features by what stands before their window: [Chinese, English].
const FEATURES = {
  purchase_streak_days: ["连续购买天数", "Days bought in a row"],
  orders: ["订单数", "Orders"],
  repurchases: ["复购次数", "Repurchases"],
  spend: ["消费额（元）", "Spend (yuan)"],
  avg_order: ["平均每单（元）", "Average order (yuan)"],
  coupon_rate: ["用券比例", "Orders with a coupon"],
  active_days: ["活跃天数", "Active days"],
  days_since_order: ["距上次下单（天）", "Days since the last order"],
  days_since_first_order: ["距首次下单（天）", "Days since the first order"],
  days_since_registered: ["距注册（天）", "Days since registration"],
  days_since_active: ["距上次活跃（天）", "Days since last active"],
  churn_state: ["流失状态", "Churn state"],
  contacts: ["客服联系", "Contacts"],
  consults: ["咨询", "Questions"],
  complaints: ["投诉", "Complaints"],
  watches: ["观看次数", "Watches"],
  watch_seconds: ["观看时长（秒）", "Seconds watched"],
  avg_watch_seconds: ["平均观看时长（秒）", "Seconds a watch"],
  favorites: ["收藏", "Favourites"],
  reviews: ["评价", "Reviews"],
  shares: ["分享", "Shares"],
  views: ["浏览", "Views"],
  searches: ["搜索", "Searches"],
  carts: ["加购", "Put into the cart"],
  avg_rating: ["平均评分", "Average rating"],
  push: ["推送", "Pushes"],
  sms: ["短信", "Text messages"],
  reaches: ["触达", "Reached"],
  responses: ["响应", "Responses"],
  response_rate: ["响应率", "Response rate"],
  unanswered: ["连续未响应", "Unanswered in a row"],
  opted_out: ["已退订", "Opted out"],
  region: ["地区", "Region"],
  age_band: ["年龄段", "Age"],
  gender: ["性别", "Gender"],
  acquisition_channel: ["获客渠道", "Acquired by"],
  persona: ["人群", "Persona"],
  last_order_at: ["上次下单", "Last order"],
};

const CHANNELS = {
  app_push: ["App 推送", "app push"],
  sms: ["短信", "text message"],
  email: ["邮件", "email"],
  wechat: ["微信", "WeChat"],
  wechat_mini: ["小程序", "mini program"],
  store: ["门店", "store"],
  phone: ["电话", "phone"],
};

const UNITS = { d: ["近 {n} 天", "{n} days"], h: ["近 {n} 小时", "{n} hours"] };
const SPANS = { month: ["本月", "this month"], day: ["当天", "today"], total: ["累计", "ever"] };

export let language = "en";

/** Chinese where the browser prefers it, unless somebody chose. */
export function chooseLanguage() {
  const chosen = remembered();
  const preferred = (navigator.languages ?? [navigator.language]).map((tag) => tag.slice(0, 2));
  setLanguage(chosen ?? preferred.find((tag) => tag in TEXT) ?? "en");
}

export function setLanguage(wanted) {
  language = wanted in TEXT ? wanted : "en";
}

/** Have the choice again when the page is opened the next time; some browsers refuse. */
export function remember() {
  try { localStorage.setItem("tagstream.language", language); } catch { /* not this time */ }
}

function remembered() {
  try { return localStorage.getItem("tagstream.language"); } catch { return null; }
}

/** The text of a key, ``{name}`` replaced by what ``values`` has for it. */
export function t(key, values = {}) {
  return fill(TEXT[language][key], values);
}

/** The text of a key below another; the key itself where there is none. */
export function under(key, name) {
  return TEXT[language][key][name] ?? name;
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Translate all that stands in the document. */
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
  for (const node of root.querySelectorAll("[data-t-hint]")) node.placeholder = t(node.dataset.tHint);
}

// Names

export function titleOf(tag) {
  return tag.titles[language] ?? tag.title;
}

/** A value of a tag, as its definition wants it shown. */
export function labelOf(tag, value) {
  const labels = tag?.labels[value] ?? {};
  return labels[language] ?? labels.any ?? valueText(value);
}

/** ``spend_365d`` as "Spend (yuan), 365 days". */
export function featureName(name) {
  const which = language === "zh" ? 0 : 1;
  if (name in FEATURES) return FEATURES[name][which];
  const out = name.match(/^opted_out_(.+)$/);
  if (out) return `${FEATURES.opted_out[which]}: ${CHANNELS[out[1]]?.[which] ?? out[1]}`;
  const [, base, number, unit, span] = name.match(/^(.*)_(?:(\d+)([dh])|(month|day|total))$/) ?? [];
  if (!(base in FEATURES)) return name;
  const window = span ? SPANS[span][which] : fill(UNITS[unit][which], { n: number });
  return language === "zh" ? `${window}${FEATURES[base][which]}` : `${FEATURES[base][which]}, ${window}`;
}

// Values

export function number(value, digits = 0) {
  return value.toLocaleString(language === "zh" ? "zh-CN" : "en", { maximumFractionDigits: digits });
}

/** A rate: one digit where it is small. */
export function perSecond(value) {
  return number(value, value < 10 ? 1 : 0);
}

export function seconds(value) {
  if (value < 1) return `${number(value * 1000)} ms`;
  return value < 100 ? `${number(value, 1)} s` : `${number(value / 60)} min`;
}

export function valueText(value, name = "") {
  if (value === null || value === undefined) return t("none");
  if (value === true || value === "true") return t("yes");
  if (value === false) return t("no");
  if (name === "churn_state") return under("churnStates", value);
  if (typeof value !== "number") return /^\d{4}-\d\d-\d\dT/.test(value) ? moment(value) : String(value);
  return /rate/.test(name) ? `${number(value * 100, 1)} %` : number(value, 2);
}

/** An instant as the outputs write it, in the business's own time zone: only the time, if today. */
export function moment(at, now = "") {
  const [day, time] = [at.slice(0, 10), at.slice(11, 19)];
  return day === now.slice(0, 10) ? time : `${day} ${time.slice(0, 5)}`;
}

/** An instant in epoch milliseconds, in this time zone. */
export function instant(ms, timeZone) {
  const parts = new Intl.DateTimeFormat("sv-SE", { timeZone, dateStyle: "short", timeStyle: "medium" });
  const [now, then] = [parts.format(Date.now()), parts.format(ms)];
  return then.slice(0, 10) === now.slice(0, 10) ? then.slice(11) : then.slice(0, 16);
}

/** Whole days from an instant to now. */
export function daysSince(at) {
  return t("days", { n: number(Math.max(0, Math.floor((Date.now() - Date.parse(at)) / 86_400_000))) });
}
