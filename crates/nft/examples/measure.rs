//! How long the usual transactions take on this machine. Run it with `--release`, as root.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nft::{
    AddressRange, Batch, Chain, ChainType, Connection, Daddr, Dport, Element, Field, Hook, Log, Policy, Set,
    Table, priority, rule,
};
use sys::netns::NetNs;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut first = Vec::new();
    let mut again = Vec::new();
    for _ in 0..200 {
        let (_namespace, times) = NetNs::create_and(|| -> Outcome<_> {
            let mut connection = Connection::open()?;
            Ok((time(|| connection.commit(sandbox()))?, time(|| connection.commit(sandbox()))?))
        })?;
        let (one, other) = times?;
        first.push(one);
        again.push(other);
    }
    report("sandbox table, first in its namespace", first);
    report("sandbox table, replaced", again);
    NetNs::create_and(updates)?.1
}

type Change<'a> = &'a dyn for<'b> Fn(&'b mut Batch, Element) -> &'b mut Batch;

/// One address at a time, in sets of several sizes.
fn updates() -> Outcome<()> {
    let table = Table::inet("fence");
    for size in [100, 10_000, 100_000] {
        let mut connection = Connection::open()?;
        let mut batch = Batch::new();
        batch
            .replace_table(&table)
            .add_set(&table, &Set::new("bound4", [Field::Ipv4]).timeouts())
            .add_elements(
                &table,
                "bound4",
                (0..size).map(|number| Ipv4Addr::from_bits(0x0b00_0000 + number)),
            );
        println!("{:>9.1?}  {size} elements at once", time(|| connection.commit(batch))?);

        let element = |number: u32| {
            let address = Ipv4Addr::from_bits(0xc633_6400 + number);
            Element::new(address).timeout(Duration::from_secs(60))
        };
        let mut each = |label: &str, change: Change<'_>| -> Outcome<()> {
            let mut times = Vec::new();
            for number in 0..2000 {
                times.push(time(|| {
                    let mut batch = Batch::new();
                    change(&mut batch, element(number));
                    connection.commit(batch)
                })?);
            }
            report(&format!("{label} one element, {size} there"), times);
            Ok(())
        };
        each("add", &|batch, element| batch.add_element(&table, "bound4", element))?;
        each("renew", &|batch, element| batch.renew_element(&table, "bound4", element))?;
        each("delete", &|batch, element| batch.del_element(&table, "bound4", element))?;
    }
    let mut connection = Connection::open()?;
    let ranges = (0..10_000).map(|number| {
        AddressRange::new(Ipv4Addr::from_bits(number * 256), Ipv4Addr::from_bits(number * 256 + 127))
    });
    let mut batch = Batch::new();
    batch.replace_table(&table).add_set(&table, &Set::new("nets", [Field::Ipv4]).interval());
    batch.add_ranges(&table, "nets", ranges);
    println!("{:>9.1?}  10000 ranges at once", time(|| connection.commit(batch))?);
    Ok(())
}

/// About what a sandbox gets: four sets, two chains, nine rules.
fn sandbox() -> Batch {
    let table = Table::inet("fence").owned();
    let floor = ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"];
    let floor = floor.iter().filter_map(|net| net.parse::<Ipv4Net>().ok());
    let log = Log { group: 1, prefix: "refused".to_owned(), snaplen: 0, qthreshold: 0 };
    let once = Some(Duration::from_secs(10));
    let key = (Daddr, Dport);
    let output = Chain::base("output", ChainType::Route, Hook::Output, priority::MANGLE, Policy::Drop);
    let arriving =
        Chain::base("arriving", ChainType::Filter, Hook::Prerouting, priority::MANGLE, Policy::Accept);
    let here = Ipv4Addr::new(100, 64, 0, 2);
    let mut batch = Batch::new();
    batch
        .replace_table(&table)
        .add_set(&table, &Set::new("floor4", [Field::Ipv4]).interval())
        .add_set(&table, &Set::new("allow4", [Field::Ipv4]).interval())
        .add_set(&table, &Set::new("bound4", [Field::Ipv4]).timeouts())
        .add_set(&table, &Set::new("seen4", [Field::Ipv4, Field::Port]).dynamic().timeouts().size(4096))
        .add_counter(&table, "refused")
        .add_ranges(&table, "floor4", floor)
        .add_chain(&table, &output)
        .add_chain(&table, &arriving)
        .add_rule(&table, "output", rule().ipv4().daddr(here).accept())
        .add_rule(&table, "output", rule().ipv4().udp().dport(53).set_mark(1).accept())
        .add_rule(&table, "output", rule().ipv4().tcp().daddr_in("bound4").set_mark(1).accept())
        .add_rule(&table, "output", rule().count("refused").end())
        .add_rule(
            &table,
            "output",
            rule().ipv4().tcp().lookup_not("seen4", key).add_to_set("seen4", key, once).log(&log).end(),
        )
        .add_rule(&table, "output", rule().tcp().reset())
        .add_rule(&table, "output", rule().reject(nft::Unreachable::AdminProhibited))
        .add_rule(&table, "arriving", rule().mark(1).ipv4().tcp().tproxy(here, 3128).accept())
        .add_rule(&table, "arriving", rule().mark(1).ipv4().udp().tproxy(here, 53).accept());
    batch
}

fn time(action: impl FnOnce() -> Result<(), nft::Error>) -> Outcome<Duration> {
    let start = Instant::now();
    action()?;
    Ok(start.elapsed())
}

fn report(label: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!("{:>9.1?}  {label} (median; 99 %: {:.1?})", at(50), at(99));
}
