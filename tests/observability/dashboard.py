"""The Grafana dashboard: a line or two per panel here, four thousand lines of JSON there.

    python -m tests.observability.dashboard     # writes k8s/components/monitoring/dashboard.json

This file is the source and the JSON is what it makes: nobody reviews JSON in which a panel is
eighty lines, and most of them layout. A test says when the two differ.

In expressions, ``{}`` stands for the labels chosen above the dashboard, and ``{x="y"}`` keeps
them: every selector gets ``namespace=~"$namespace"``. Where there are no namespaces, "All" means
those series too.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.observability.prometheus import MONITORING

DASHBOARD = MONITORING / "dashboard.json"

COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = 'namespace=~"$namespace"'
DEAD = "applied|late|duplicate|erased"  # what is none
TO_CHANGE = "tagstream_event_to_change_seconds_bucket{}"
CAME = 'tagstream_tag_transitions_total{tag=~"$tag", value!~"false|null"}'
LEFT = 'tagstream_tag_transitions_total{tag=~"$tag", previous!~"false|null"}'
LOOKUPS = 'route=~"/(users|tags)/.+"'

GOOD, FAIR, BAD = "green", "orange", "red"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. ``queries`` are pairs of expression and legend.

    ``near`` is how far an axis without a least goes down even if nothing does. ``levels`` colour a
    figure: ``(from this value on, colour)``, the first from below everything.
    """

    title: str
    says: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 7
    levels: Sequence[tuple[float | None, str]] = ()
    stacked: bool = False
    least: float | None = 0
    near: float | None = None
    most: float | None = None
    decimals: int | None = None


@dataclass(frozen=True)
class Row:
    """A heading and the panels under it, from left to right."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def figure(title: str, says: str, expression: str, legend: str = "", **rest: Any) -> Panel:
    """A single number."""
    return Panel(
        title=title,
        says=says,
        queries=[(expression, legend)],
        kind="stat",
        **{"width": 3, "height": 4, "least": None, **rest},
    )


def bars(title: str, says: str, *queries: tuple[str, str], **rest: Any) -> Panel:
    """Figures of now beside each other, as bars, the largest first."""
    ordered = [(f"sort_desc({expression})", legend) for expression, legend in queries]
    return Panel(title=title, says=says, queries=ordered, kind="bargauge", **rest)


def graph(title: str, says: str, *queries: tuple[str, str], **rest: Any) -> Panel:
    """Something over time."""
    return Panel(title=title, says=says, queries=queries, **rest)


def rate(metric: str, by: str = "", window: str = "$__rate_interval") -> str:
    """How many a second, summed."""
    return f"sum{_by(by)}(rate({metric}[{window}]))"


def quantile(share: float, histogram: str, by: str = "") -> str:
    """A quantile of a histogram, of all workers together; none while nothing is observed."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(histogram, labels)}) >= 0"


def part(some: str, all_: str, matched: str = "") -> str:
    """A share; none where there is nothing to share."""
    return f"{some} / {matched}({all_} > 0)"


def precision(control: str) -> str:
    """Share of a week's warnings that came true, in the control group or among the others."""
    scored = f'tagstream_churn_warnings_total{{status="scored", control="{control}"'
    return part(grown(f'{scored}, right="true"}}', "", "7d"), grown(f"{scored}}}", "", "7d"))


def grown(metric: str, by: str = "", window: str = "1d") -> str:
    """By how much a counter grew over a day or more."""
    return f"sum{_by(by)}(increase({metric}[{window}]))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


HEALTH = Row(
    "Health",
    [
        figure(
            "Workers ready",
            "Workers with all their partitions open. Fewer than there are: some recover or wait.",
            "sum(tagstream_ready{})",
            levels=[(None, BAD), (1, GOOD)],
        ),
        figure(
            "Unowned",
            "Partitions of any domain that no worker has; their users' tags stand still.",
            "max(tagstream_config_partitions{})"
            " - min(count by (domain) (tagstream_applied_offset{}))",
            levels=[(None, GOOD), (1, BAD)],
        ),
        figure(
            "Alerts firing",
            "Critical and warning, of this service. The runbook has a section for each.",
            'count(ALERTS{alertname=~"Tagstream.+", alertstate="firing", severity!="none"})'
            " or vector(0)",
            levels=[(None, GOOD), (1, FAIR)],
        ),
        figure(
            "Error budget left",
            "Of the changes that may take over 500 ms in the range shown (1 %): what is left."
            " Below zero, the objective is missed.",
            "1 - (1 - "
            + part(
                'sum(increase(tagstream_event_to_change_seconds_bucket{le="0.5"}[$__range]))',
                "sum(increase(tagstream_event_to_change_seconds_count{}[$__range]))",
            )
            + ") / 0.01",
            unit="percentunit",
            levels=[(None, BAD), (0, FAIR), (0.25, GOOD)],
        ),
        figure(
            "Events a second",
            "Everything read, dead letters included.",
            rate("tagstream_events_total{}"),
            decimals=1,
        ),
        figure(
            "Records waiting",
            "Not applied yet, of all domains.",
            "sum(tagstream_partition_lag{})",
            levels=[(None, GOOD), (10_000, FAIR), (1_000_000, BAD)],
        ),
        figure(
            "Definitions",
            "Workers by the version of tags.yaml that they run. Two for long: one was not reached.",
            "count by (version) (tagstream_rules_info{})",
            legend="version {{version}}",
        ),
        figure(
            "Youngest worker",
            "How long ago a worker was last started.",
            'time() - max(process_start_time_seconds{job="tagstream"})',
            unit="s",
        ),
    ],
)

FRESHNESS = Row(
    "Freshness",
    [
        graph(
            "From event to change",
            "From the broker's append of an event to the commit of what followed from it. The"
            " objective: 99 % within 500 ms.",
            (quantile(0.5, TO_CHANGE, "domain"), "p50 {{domain}}"),
            (quantile(0.99, TO_CHANGE, "domain"), "p99 {{domain}}"),
            unit="s",
        ),
        graph(
            "Slow changes",
            "Share of the changes that took over 500 ms. At 14.4 % for an hour somebody is paged.",
            (
                "1 - "
                + part(
                    rate('tagstream_event_to_change_seconds_bucket{le="0.5"}', "domain"),
                    rate("tagstream_event_to_change_seconds_count{}", "domain"),
                ),
                "{{domain}}",
            ),
            unit="percentunit",
        ),
        graph(
            "Records waiting",
            "By domain: not applied yet. Not there while no broker says how many.",
            ("sum by (domain) (tagstream_partition_lag{})", "{{domain}}"),
        ),
        graph(
            "Event time behind the clock",
            "How long ago the time is that the slowest partition of a domain has reached: tags"
            " leave, and warnings come, as late. The allowed delay (a minute) is in it.",
            (
                "time() - min by (domain) (tagstream_partition_time_seconds{} > 0)",
                "{{domain}}",
            ),
            unit="s",
        ),
        graph(
            "Longest queues",
            "The five partitions in which most records wait. One alone: all under one key, or"
            " something stands still there.",
            (
                "topk(5, sum by (domain, partition) (tagstream_partition_lag{}))",
                "{{domain}}[{{partition}}]",
            ),
        ),
        graph(
            "Deadlines overdue",
            "How long ago the oldest deadline that has not fired was due. After a midnight with"
            " many, seconds.",
            ("max by (domain) (tagstream_deadline_overdue_seconds{})", "{{domain}}"),
            unit="s",
        ),
    ],
)

FLOW = Row(
    "Flow",
    [
        graph(
            "Events by domain",
            "Records read a second, dead letters included.",
            (rate("tagstream_events_total{}", "domain"), "{{domain}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Events by type",
            "Applied, late ones included.",
            (rate('tagstream_events_total{outcome=~"applied|late"}', "type"), "{{type}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Dead letters and repeats",
            "What was not applied, by reason: codes of dead letters, repeats, and events of users"
            " who had been erased.",
            (rate('tagstream_events_total{outcome!~"applied|late"}', "outcome"), "{{outcome}}"),
            unit="eps",
        ),
        graph(
            "Changes by cause",
            "Tag changes a second: by an event, by time passing, by another tag, by new"
            " definitions, by erasure.",
            (rate("tagstream_tag_transitions_total{}", "cause"), "{{cause}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Deadlines fired",
            "A second. Local midnight is the busy time.",
            (rate("tagstream_deadlines_fired_total{}", "domain"), "{{domain}}"),
            unit="eps",
        ),
        graph(
            "Out of order",
            "How far events come behind the time of their partition, p99: what `allowed_delay` has"
            " to cover.",
            (quantile(0.99, "tagstream_event_lateness_seconds_bucket{}", "domain"), "{{domain}}"),
            unit="s",
        ),
    ],
)

USERS = Row(
    "Business: users and tags",
    [
        figure("Users", "Of whom anything is known.", "sum(tagstream_users{})"),
        figure(
            "Coverage",
            "Share of them with at least one tag; 95 % are wanted.",
            part("sum(tagstream_tagged_users{})", "sum(tagstream_users{})"),
            unit="percentunit",
            levels=[(None, BAD), (0.95, GOOD)],
        ),
        figure(
            "Active in a day",
            "Users active in the last 24 hours, counted once a local day. A history that is loaded"
            " counts when it is.",
            grown('tagstream_active_users_total{period="day"}'),
            decimals=0,
        ),
        figure(
            "Active in a week",
            "In the last seven days, as weeks pass.",
            grown('tagstream_active_users_total{period="week"}', window="7d"),
            decimals=0,
        ),
        figure(
            "Active in a month",
            "In the last thirty days, as months pass.",
            grown('tagstream_active_users_total{period="month"}', window="30d"),
            decimals=0,
        ),
        figure(
            "Stickiness",
            "Active in a day ÷ active in a month.",
            part(
                grown('tagstream_active_users_total{period="day"}'),
                grown('tagstream_active_users_total{period="month"}', window="30d"),
            ),
            unit="percentunit",
        ),
        figure(
            "New in a day",
            "Users who signed up in the last 24 hours.",
            grown("tagstream_registered_users_total{}"),
            decimals=0,
        ),
        figure(
            "Churned in a day",
            "Users who churned in the last 24 hours.",
            grown("tagstream_churned_users_total{}") + " or vector(0)",
            decimals=0,
        ),
        bars(
            "Users by tag",
            "Who has it now. Of a tag with several values, each.",
            ("sum by (tag, value) (tagstream_tag_users{})", "{{tag}} {{value}}"),
            height=12,
        ),
        graph(
            "Entries and exits",
            "In an hour: users who came to have the tags chosen above, with this value, and, below"
            " zero, who do not have it any more.",
            (grown(CAME, "tag, value", "1h"), "{{tag}} {{value}}"),
            ("-" + grown(LEFT, "tag, previous", "1h"), "{{tag}} {{previous}} left"),
            height=12,
            least=None,
        ),
        bars(
            "Way between values, in a day",
            "Of the tags chosen above: how many users went from which value to which.",
            (
                "topk(15, "
                + grown('tagstream_tag_transitions_total{tag=~"$tag"}', "tag, previous, value")
                + " > 0)",
                "{{tag}}: {{previous}} → {{value}}",
            ),
            height=12,
            decimals=0,
        ),
        graph(
            "Population shift (PSI)",
            "How far the shares of a tag's values are from a week ago: below 0.1 nothing much,"
            " above 0.25 another population.",
            ("max by (tag) (namespace_tag:tagstream_tag_users:psi7d{})", "{{tag}}"),
            width=6,
        ),
        bars(
            "Stability",
            "Share of the users with a tag who have had it with the same value for 30 days, as"
            " looked at once a day; of layers, 85 % are wanted.",
            (
                "clamp_max("
                + part(
                    "sum by (tag) (tagstream_stable_users{})",
                    "sum by (tag) (tagstream_tag_users{})",
                )
                + ", 1)",
                "{{tag}}",
            ),
            unit="percentunit",
            most=1,
            width=6,
        ),
        bars(
            "Control groups",
            "Users who have the tag and are left alone, so that what it is used for can be compared"
            " with not using it.",
            ("sum by (tag, value) (tagstream_tag_control_users{})", "{{tag}} {{value}}"),
            width=6,
        ),
        bars(
            "Time in a tag",
            "How long users had had a tag with one value when that ended, on average, in the range"
            " shown.",
            (
                part(
                    grown("tagstream_tag_dwell_seconds_sum{}", "tag", "$__range"),
                    grown("tagstream_tag_dwell_seconds_count{}", "tag", "$__range"),
                ),
                "{{tag}}",
            ),
            unit="s",
            width=6,
        ),
    ],
)

MONEY = Row(
    "Business: churn, retention, spend, reaches",
    [
        graph(
            "Churn warnings",
            "A day, by what became of them: raised; the user came back, from which state; churned.",
            (
                grown('tagstream_churn_warnings_total{status!="scored"}', "status, returned_from"),
                "{{status}} {{returned_from}}",
            ),
        ),
        graph(
            "Precision of warnings",
            "Share of a week's warnings that came true. Nobody contacts the control group, so its"
            " precision is what warnings are worth; 75 % are wanted.",
            (
                part(
                    grown(
                        'tagstream_churn_warnings_total{status="scored", right="true"}',
                        "control",
                        "7d",
                    ),
                    grown('tagstream_churn_warnings_total{status="scored"}', "control", "7d"),
                ),
                "control {{control}}",
            ),
            unit="percentunit",
            most=1,
        ),
        figure(
            "Uplift",
            "Precision in the control group − precision among the others, over a week: the share"
            " of warned users whom contacting them keeps.",
            f"{precision('true')} - {precision('false')}",
            unit="percentunit",
            width=4,
            height=7,
            levels=[(None, FAIR), (0, GOOD)],
        ),
        bars(
            "Retention",
            "Users active exactly 1, 7 and 30 days after they signed up ÷ users who signed up, both"
            " in the range shown: choose one much longer than 30 days.",
            (
                part(
                    grown("tagstream_retained_users_total{}", "day", "$__range"),
                    grown("tagstream_registered_users_total{}", "", "$__range"),
                    "on () group_left () ",
                ),
                "day {{day}}",
            ),
            width=4,
            unit="percentunit",
            most=1,
        ),
        graph(
            "Spend",
            "Yuan a day, by the tag that `breakdown` names in tags.yaml; refunds below zero.",
            (grown("tagstream_spend_yuan_total{}", "value"), "{{value}}"),
            ("-" + grown("tagstream_refunds_yuan_total{}", "value"), "{{value}} refunded"),
            least=None,
            unit="currency:¥",
            stacked=True,
            width=6,
        ),
        graph(
            "Orders",
            "A day, by the same tag.",
            (grown("tagstream_orders_total{}", "value"), "{{value}}"),
            stacked=True,
            width=6,
        ),
        graph(
            "Reaches",
            "A day, by channel.",
            (grown("tagstream_reaches_total{}", "channel"), "{{channel}}"),
            stacked=True,
            width=6,
        ),
        graph(
            "Response rate",
            "Responses ÷ reaches of a day, by channel.",
            (
                part(
                    grown("tagstream_responses_total{}", "channel"),
                    grown("tagstream_reaches_total{}", "channel"),
                ),
                "{{channel}}",
            ),
            unit="percentunit",
            width=6,
        ),
    ],
)

QUALITY = Row(
    "Business: data quality",
    [
        graph(
            "Completeness",
            "Share of a day's events that could be used; 98 % are wanted.",
            (
                part(
                    grown(f'tagstream_events_total{{outcome=~"{DEAD}"}}', "domain"),
                    grown("tagstream_events_total{}", "domain"),
                ),
                "{{domain}}",
            ),
            unit="percentunit",
            least=None,
            near=0.9,
            most=1,
        ),
        graph(
            "Accuracy",
            "Share of a day's events that agree with their users' past; 95 % are wanted.",
            (
                "1 - "
                + part(
                    grown("tagstream_inaccurate_events_total{}", "domain"),
                    grown('tagstream_events_total{outcome=~"applied|late"}', "domain"),
                ),
                "{{domain}}",
            ),
            unit="percentunit",
            least=None,
            near=0.9,
            most=1,
        ),
        graph(
            "Uniqueness",
            "Share of a day's events that were not repeats. Repeats do no harm; they cost.",
            (
                "1 - "
                + part(
                    grown('tagstream_events_total{outcome="duplicate"}', "domain"),
                    grown("tagstream_events_total{}", "domain"),
                ),
                "{{domain}}",
            ),
            unit="percentunit",
            least=None,
            near=0.9,
            most=1,
        ),
        graph(
            "Timeliness",
            "From the time of an event to its append by the broker, p90.",
            (quantile(0.9, "tagstream_arrival_delay_seconds_bucket{}", "domain"), "{{domain}}"),
            unit="s",
        ),
        bars(
            "What disagrees, in a day",
            "Events applied that disagree with their users' past, or contradict another.",
            (grown("tagstream_inaccurate_events_total{}", "check"), "{{check}}"),
            (grown("tagstream_inconsistent_events_total{}", "check"), "contradicts: {{check}}"),
            decimals=0,
        ),
        bars(
            "Fields left out",
            "Share of a day's events without a field that they may leave out.",
            (
                part(
                    grown('tagstream_optional_fields_total{present="false"}', "domain, field"),
                    grown("tagstream_optional_fields_total{}", "domain, field"),
                ),
                "{{domain}} {{field}}",
            ),
            unit="percentunit",
            most=1,
        ),
    ],
)

STATE = Row(
    "State",
    [
        graph(
            "State on disk",
            "Live bytes, of all workers. A volume is to have three times its worker's.",
            ("sum by (domain) (tagstream_state_bytes{})", "{{domain}}"),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "RocksDB in memory",
            "Of each worker: the block cache, and the part of it that waits to be written; bounded"
            " by a quarter of TAGSTREAM_MEMORY_MB.",
            ("tagstream_rocksdb_block_cache_bytes{}", "cache {{instance}}"),
            ("tagstream_rocksdb_memtable_bytes{}", "unwritten {{instance}}"),
            unit="bytes",
        ),
        graph(
            "Compaction",
            "Bytes that RocksDB has still to rewrite.",
            ("tagstream_rocksdb_pending_compaction_bytes{}", "to rewrite {{instance}}"),
            unit="bytes",
            width=4,
        ),
        graph(
            "Write stalls",
            "Share of time in which RocksDB held up writes: the first sign of a slow disk.",
            (
                "sum by (instance) (rate(tagstream_rocksdb_write_stall_seconds_total{}"
                "[$__rate_interval]))",
                "{{instance}}",
            ),
            unit="percentunit",
            width=4,
        ),
        graph(
            "Deadlines pending",
            "Instants at which a tag could change by itself.",
            ("sum by (domain) (tagstream_deadlines_pending{})", "{{domain}}"),
        ),
        graph(
            "Recovery",
            "Changelog records that are still to be read, and read a second.",
            ("sum by (instance) (tagstream_recovery_remaining_records{})", "left {{instance}}"),
            (rate("tagstream_recovered_records_total{}", "instance"), "a second {{instance}}"),
        ),
        bars(
            "Last recovery",
            "How long each worker took the last time, from the start until it was ready.",
            ("tagstream_recovery_seconds{}", "{{instance}}"),
            unit="s",
            width=4,
        ),
        graph(
            "New definitions",
            "Users who are still to be looked at under a changed tags.yaml.",
            ("sum by (instance) (tagstream_rules_sweep_remaining{})", "{{instance}}"),
            width=4,
        ),
    ],
)

WORKERS = Row(
    "Workers",
    [
        graph(
            "CPU",
            "Cores that each worker takes. Applying takes one.",
            (rate('process_cpu_seconds_total{job="tagstream"}', "instance"), "{{instance}}"),
        ),
        graph(
            "Memory",
            "Resident, and what it should stay under: TAGSTREAM_MEMORY_MB and the process itself.",
            ('process_resident_memory_bytes{job="tagstream"}', "{{instance}}"),
            ("max(tagstream_config_memory_bytes{}) + 150 * 2 ^ 20", "should stay under"),
            unit="bytes",
        ),
        graph(
            "Event loop lag",
            "The longest that anything waited for its turn, between two scrapes.",
            ("max by (instance) (tagstream_event_loop_lag_seconds{})", "{{instance}}"),
            unit="s",
        ),
        graph(
            "Where time goes",
            "Seconds of each second, by stage: decode and apply of chunks; encode, produce, commit"
            " and persist of flushes, in which the worker waits.",
            (rate("tagstream_batch_seconds_sum{}", "stage"), "{{stage}}"),
            stacked=True,
            unit="percentunit",
        ),
        graph(
            "Waiting for their commit",
            "Records that are applied and not committed yet: those of the flush under way.",
            (
                "sum by (domain) (tagstream_applied_offset{})"
                " - sum by (domain) (tagstream_committed_offset{})",
                "{{domain}}",
            ),
        ),
        graph(
            "A transaction",
            "How long its stages take, on average.",
            (
                part(
                    rate('tagstream_batch_seconds_sum{domain="all"}', "stage"),
                    rate('tagstream_batch_seconds_count{domain="all"}', "stage"),
                ),
                "{{stage}}",
            ),
            unit="s",
        ),
        graph(
            "Rebalances and failures",
            "In an hour: each rebalance pauses all workers; a transaction given up stops one; a"
            " broker that does not answer stops time.",
            (grown("tagstream_rebalances_total{}", "", "1h"), "rebalances"),
            (grown("tagstream_produce_failures_total{}", "", "1h"), "failed before the commit"),
            (grown("tagstream_commit_failures_total{}", "", "1h"), "failed in the commit"),
            (grown("tagstream_background_failures_total{}", "task", "1h"), "tried again: {{task}}"),
            width=12,
        ),
        figure(
            "A rebalance takes",
            "From its stop until records flow again, on average, in the range shown.",
            part(
                grown("tagstream_rebalance_seconds_sum{}", "", "$__range"),
                grown("tagstream_rebalance_seconds_count{}", "", "$__range"),
            ),
            unit="s",
            width=4,
            height=7,
        ),
        graph(
            "Open files",
            "Share of those that a worker may have: connections and state.",
            (
                'sum by (instance) (process_open_fds{job="tagstream"}'
                ' / process_max_fds{job="tagstream"})',
                "{{instance}}",
            ),
            unit="percentunit",
        ),
    ],
)


REQUESTS = Row(
    "Look-ups",
    [
        graph(
            "Requests",
            "A second, by route and class of answer. 5xx while partitions move is right.",
            (
                rate(
                    'tagstream_http_request_seconds_count{route!~"/healthz|/readyz|/metrics"}',
                    "route, code",
                ),
                "{{route}} {{code}}",
            ),
            unit="reqps",
        ),
        graph(
            "How long look-ups take",
            "On any worker, forwarding included.",
            (quantile(0.5, f"tagstream_http_request_seconds_bucket{{{LOOKUPS}}}"), "p50"),
            (quantile(0.99, f"tagstream_http_request_seconds_bucket{{{LOOKUPS}}}"), "p99"),
            unit="s",
        ),
        graph(
            "Look-ups that fail",
            "Share of 5xx; the objective is 1 in 1,000.",
            (
                part(
                    rate(f'tagstream_http_request_seconds_count{{{LOOKUPS}, code="5xx"}}'),
                    rate(f"tagstream_http_request_seconds_count{{{LOOKUPS}}}"),
                ),
                "failed",
            ),
            unit="percentunit",
            width=4,
        ),
        graph(
            "Sent on to the owner",
            "Look-ups that another worker answered, a second: ok; moved, the partition was not"
            " there any more; failed, the worker was not reached.",
            (rate("tagstream_http_forwards_total{}", "outcome"), "{{outcome}}"),
            unit="reqps",
            width=4,
        ),
    ],
)

ROWS = [HEALTH, FRESHNESS, FLOW, USERS, MONEY, QUALITY, STATE, WORKERS, REQUESTS]


def chosen(expression: str) -> str:
    """The expression with the labels that are chosen above the dashboard in every selector."""

    def keep(match: re.Match[str]) -> str:
        own = match[1]
        return f"{{{CHOSEN}, {own}}}" if own else f"{{{CHOSEN}}}"

    return re.sub(r"\{([^{}]*)\}", keep, expression)


def render() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "id": None,
        "uid": "tagstream",
        "title": "tagstream",
        "description": "Live user tags: is it healthy, is it fresh, what flows, what users do.",
        "tags": ["tagstream"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
    }
    for name, label, query in (
        ("namespace", "Namespace", "label_values(tagstream_ready, namespace)"),
        ("tag", "Tag", f"label_values(tagstream_tag_users{{{CHOSEN}}}, tag)"),
    ):
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
            "hide": 0,
        }


def _panels() -> Iterator[dict[str, Any]]:
    """Rows, and panels in them from left to right; a new line where the next does not fit."""
    number = y = 0
    for row in ROWS:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "gridPos": place,
            "collapsed": False,
            "panels": [],
        }
        y, x, line = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, line = y + line, 0, 0
            number += 1
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            yield _panel(panel, number, place)
            x, line = x + panel.width, max(line, panel.height)
        y += line


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": chosen(expression),
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind](panel),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    levels = panel.levels or [(None, GOOD)]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in levels],
        },
        "color": _COLOURS[panel.kind],
    }
    for name, value in (("min", panel.least), ("max", panel.most), ("decimals", panel.decimals)):
        if value is not None:
            defaults[name] = value
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            # A line at nothing is at the bottom, under a scale that means something.
            "axisSoftMax": _SOFT.get(panel.unit, 1),
        }
        if panel.near is not None:
            defaults["custom"]["axisSoftMin"] = panel.near
    return defaults


_SOFT = {"percentunit": 0.01, "bytes": 1024, "s": 0.01}
_COLOURS = {
    "stat": {"mode": "thresholds"},
    "bargauge": {"mode": "fixed", "fixedColor": "blue"},
    "timeseries": {"mode": "palette-classic"},
}


def _reduced() -> dict[str, Any]:
    return {"calcs": ["lastNotNull"], "fields": "", "values": False}


def _stat(panel: Panel) -> dict[str, Any]:
    return {
        "reduceOptions": _reduced(),
        "orientation": "auto",
        "textMode": "value_and_name" if panel.queries[0][1] else "value",
        "colorMode": "value" if panel.levels else "none",
        "graphMode": "none",
        "justifyMode": "auto",
    }


def _bargauge(panel: Panel) -> dict[str, Any]:
    return {
        "reduceOptions": _reduced(),
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
        "valueMode": "color",
        "namePlacement": "auto",
        "sizing": "auto",
        "minVizHeight": 16,
        "minVizWidth": 8,
        "maxVizHeight": 300,
    }


def _timeseries(panel: Panel) -> dict[str, Any]:
    return {
        "legend": {
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
            "calcs": [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


_OPTIONS = {"stat": _stat, "bargauge": _bargauge, "timeseries": _timeseries}


def written() -> str:
    """The dashboard's file."""
    return json.dumps(render(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(written(), "utf-8")
