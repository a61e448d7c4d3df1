//! The numbers of the service, in the text format that Prometheus reads (OpenMetrics 1.0).
//!
//! Everything is counted where it happens and read when it is asked for: nothing here keeps a number of its own.

use std::{collections::BTreeMap, fmt};

use audit::AuditStats;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::MetricType,
    registry::Registry,
};
use sandbox::Stats;

/// The content type of [`Snapshot::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What all names begin with.
const PREFIX: &str = "bailiwick";
/// The causes for which the pipeline itself drops events.
const DROPS: [&str; 2] = ["queue_full", "store_failed"];

/// The numbers at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) sandboxes: Stats,
    pub(crate) audit: AuditStats,
}

impl Snapshot {
    /// The numbers as text.
    pub(crate) fn encode(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Self { sandboxes, audit } = self;
        let network = &sandboxes.network;
        let mut out = Out(&mut encoder);
        out.info("build", "The program", ("version", env!("CARGO_PKG_VERSION")))?;

        let help = "Sandboxes that have not ended, by state";
        out.gauges("sandboxes", help, "state", &sandboxes.sandboxes)?;
        out.counter("sandboxes_created", "Sandboxes that were created", sandboxes.created)?;
        out.counter("sandboxes_not_created", "Creations that failed", sandboxes.not_created)?;
        let help = "Sandboxes that were taken over from an earlier daemon";
        out.counter("sandboxes_adopted", help, sandboxes.adopted)?;
        out.counters("sandboxes_ended", "Sandboxes that ended, by why", "reason", &sandboxes.ended)?;

        let help = "Decisions about flows, HTTP requests and DNS queries, repeats included, by kind";
        out.counters("decisions", help, "kind", &audit.decisions)?;
        out.counter("dns_queries", "Messages that came to the resolvers of sandboxes", network.dns_queries)?;
        let flows = BTreeMap::from([("proxy", network.proxied_flows), ("wire", network.wired_flows)]);
        out.gauges("flows_open", "Flows that are open, by the way they go", "path", &flows)?;
        let help = "Connections to ports inside sandboxes that are open";
        out.gauge("port_connections", help, sandboxes.port_connections)?;
        let help = "How often it was proved from inside a sandbox that its rules hold";
        out.counter("rule_proofs", help, network.proofs)?;
        let help = "Proofs that the rules of a sandbox hold that failed: it was cut off and ended";
        out.counter("rule_proofs_failed", help, network.failed_proofs)?;

        let help = "Occurrences that no event counts, by why: what audit_gap events say";
        out.counters("audit_gaps", help, "reason", &audit.dropped)?;
        let dropped = DROPS.iter().filter_map(|cause| audit.dropped.get(cause)).sum();
        let help = "Events that were dropped because the queue was full or the store did not take them";
        out.counter("audit_events_dropped", help, dropped)?;
        out.counter("audit_events_recorded", "Events that were taken in", audit.recorded)?;
        out.counter("audit_events_folded", "Repeats that are counted with an earlier event", audit.folded)?;
        out.counter("audit_events_stored", "Events that were written", audit.stored)?;
        out.counter(
            "audit_write_failures",
            "Writes of events that failed, and were tried again",
            audit.write_failures,
        )?;
        out.gauge("audit_queue", "Events and changes that wait to be written", audit.waiting)
    }
}

/// Writes families of numbers. Of counters the format adds `_total` to the name.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn info(&mut self, name: &str, help: &str, label: (&str, &str)) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&[label])
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&signed(value))
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &BTreeMap<&'static str, u64>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (word, value) in values {
            let labels = [(label, *word)];
            family.encode_family(&labels)?.encode_counter::<[(&str, &str); 0], _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &BTreeMap<&'static str, u64>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (word, value) in values {
            family.encode_family(&[(label, *word)])?.encode_gauge(&signed(*value))?;
        }
        Ok(())
    }
}

/// Gauges are signed.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_told_under_its_name() {
        let mut sandboxes = Stats { created: 3, ..Stats::default() };
        sandboxes.sandboxes.insert("running", 2);
        sandboxes.port_connections = 6;
        sandboxes.ended.insert("rules_do_not_hold", 1);
        (sandboxes.network.dns_queries, sandboxes.network.wired_flows) = (9, 4);
        (sandboxes.network.proofs, sandboxes.network.failed_proofs) = (5, 1);
        let audit = AuditStats {
            decisions: BTreeMap::from([("egress_blocked", 7)]),
            dropped: BTreeMap::from([("queue_full", 2), ("store_failed", 1), ("kernel_counter", 5)]),
            waiting: u64::MAX,
            ..AuditStats::default()
        };
        let text = Snapshot { sandboxes, audit }.encode().unwrap();
        let lines: Vec<_> = text.lines().collect();
        for line in [
            "# TYPE bailiwick_sandboxes gauge",
            "bailiwick_sandboxes{state=\"running\"} 2",
            "# TYPE bailiwick_sandboxes_created counter",
            "bailiwick_sandboxes_created_total 3",
            "bailiwick_sandboxes_ended_total{reason=\"rules_do_not_hold\"} 1",
            "bailiwick_decisions_total{kind=\"egress_blocked\"} 7",
            "bailiwick_dns_queries_total 9",
            "bailiwick_flows_open{path=\"proxy\"} 0",
            "bailiwick_flows_open{path=\"wire\"} 4",
            "bailiwick_port_connections 6",
            "bailiwick_rule_proofs_total 5",
            "bailiwick_rule_proofs_failed_total 1",
            "bailiwick_audit_gaps_total{reason=\"kernel_counter\"} 5",
            "bailiwick_audit_events_dropped_total 3",
            "bailiwick_audit_queue 9223372036854775807",
        ] {
            assert!(lines.contains(&line), "{line}\nis not in\n{text}");
        }
        assert!(text.starts_with("# HELP bailiwick_build "), "{text}");
        assert_eq!(lines.last(), Some(&"# EOF"));
    }
}
