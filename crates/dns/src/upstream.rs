//! Lookups at the node's upstream servers: shared by all sandboxes, cached within own bounds, coalesced.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    system_conf,
};
use moka::{Expiry, sync::Cache};
use parking_lot::Mutex;
use policy::HostName;
use tokio::sync::OnceCell;

use crate::share::{Asker, Places};

/// The shortest time for which an answer is kept: a TTL of 0 must not make every connection a new lookup.
const MIN_TTL: Duration = Duration::from_secs(60);
/// The longest time for which an answer is kept, whatever its TTL says.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// The bounds for "there is no such name" and "it has no such record" (RFC 2308 section 5).
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How long a failure is remembered, so that a broken zone is not asked again for each query (RFC 9520 section 3.2).
const FAILURE_TTL: Duration = Duration::from_secs(2);
/// The most addresses that one answer may have; the rest is dropped. Each is judged and bound for every reply.
const MAX_ADDRESSES: usize = 32;
/// The most CNAMEs that are followed inside one answer.
const MAX_ALIASES: usize = 8;

/// How and where names are looked up.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// The servers, in order of preference.
    pub servers: Vec<SocketAddr>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How many attempts are made.
    pub attempts: usize,
    /// How many answers are cached, for all sandboxes together.
    pub cache_entries: u64,
    /// How many lookups may be under way at the same time, for all sandboxes together. None may have more of them than
    /// are free.
    pub max_lookups: usize,
}

impl UpstreamConfig {
    /// The defaults (3 s, 2 attempts, 65 536 answers, 512 lookups) with these servers.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            timeout: Duration::from_secs(3),
            attempts: 2,
            cache_entries: 65_536,
            max_lookups: 512,
        }
    }
}

/// Why there is no [`Upstream`].
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No server is configured.
    #[error("no upstream DNS server is configured")]
    NoServers,
    /// `/etc/resolv.conf` cannot be used.
    #[error("reading /etc/resolv.conf: {0}")]
    SystemConfig(NetError),
    /// The resolver could not be set up.
    #[error("setting up the resolver: {0}")]
    Build(NetError),
}

/// The address family of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The addresses, at least one, in the order in which the server gave them.
    pub addresses: Vec<IpAddr>,
    /// For how long they still hold: at most an hour, and at least a minute when they are fresh.
    pub ttl: Duration,
}

/// Why a lookup gave no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The name does not exist (NXDOMAIN).
    #[error("the name does not exist")]
    NoName,
    /// The name has no record of this type.
    #[error("the name has no such record")]
    NoData,
    /// No server could answer.
    #[error("the lookup failed: {0}")]
    Failed(String),
    /// Nothing was asked: whoever asks has as many lookups under way as are free for all.
    #[error("too many lookups are under way")]
    Busy,
}

/// The upstream servers and the cache in front of them. A clone is the same resolver.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    resolver: TokioResolver,
    cache: Cache<Key, Entry>,
    /// The lookups under way: whoever asks the same question waits for the same answer.
    flights: Mutex<HashMap<Key, Weak<OnceCell<Entry>>>>,
    places: Places,
    /// The most time a lookup may take with all its attempts and aliases.
    deadline: Duration,
}

type Key = (HostName, Family);

#[derive(Clone)]
struct Entry {
    outcome: Result<Arc<[IpAddr]>, LookupError>,
    expires: Instant,
}

impl Upstream {
    /// A resolver that asks these servers, over UDP and, where an answer is truncated, TCP.
    ///
    /// # Errors
    /// When there is no server, or the resolver cannot be set up.
    pub fn new(config: UpstreamConfig) -> Result<Self, UpstreamError> {
        if config.servers.is_empty() {
            return Err(UpstreamError::NoServers);
        }
        let servers = config.servers.iter().map(name_server).collect();
        let mut builder = TokioResolver::builder_with_config(
            ResolverConfig::from_name_servers(servers),
            TokioRuntimeProvider::default(),
        );
        *builder.options_mut() = options(&config);
        let resolver = builder.build().map_err(UpstreamError::Build)?;
        let cache = Cache::builder().max_capacity(config.cache_entries).expire_after(AtExpiry).build();
        let attempts = u32::try_from(config.attempts).unwrap_or(u32::MAX).max(1);
        Ok(Self {
            shared: Arc::new(Shared {
                resolver,
                cache,
                flights: Mutex::default(),
                places: Places::new(config.max_lookups),
                deadline: config.timeout.saturating_mul(attempts).saturating_add(Duration::from_secs(1)),
            }),
        })
    }

    /// A resolver that asks the servers of the machine's `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When that file cannot be read or names no server.
    pub fn system() -> Result<Self, UpstreamError> {
        let (system, _) = system_conf::read_system_conf().map_err(UpstreamError::SystemConfig)?;
        let servers = system.name_servers().iter().map(|server| SocketAddr::new(server.ip, 53)).collect();
        Self::new(UpstreamConfig::new(servers))
    }

    /// The addresses of `name`: from the cache, from a lookup already under way, or from a server.
    ///
    /// The addresses are as the server gave them; the caller judges them.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn lookup(
        &self,
        name: &HostName,
        family: Family,
        asker: &Asker,
    ) -> Result<Answer, LookupError> {
        if let Some(outcome) = self.cached(name, family) {
            return outcome;
        }
        let key = (name.clone(), family);
        let flight = Flight::join(&self.shared, &key);
        let fetch = || async {
            // Of those who wait for the same answer one takes a place, and if it gets none the next tries.
            let _place = self.shared.places.take(asker).ok_or(LookupError::Busy)?;
            Ok(self.shared.fetch(&key).await)
        };
        let entry = flight.cell.get_or_try_init(fetch).await?.clone();
        entry.outcome_now(Instant::now())
    }

    /// What [`Self::lookup`] would say without waiting, if the cache knows it.
    pub fn cached(&self, name: &HostName, family: Family) -> Option<Result<Answer, LookupError>> {
        let now = Instant::now();
        let entry = self.shared.cache.get(&(name.clone(), family))?;
        (entry.expires > now).then(|| entry.outcome_now(now))
    }
}

impl Shared {
    /// Asks the servers and remembers what they say.
    async fn fetch(&self, key: &Key) -> Entry {
        let outcome = tokio::time::timeout(self.deadline, self.ask(key)).await.unwrap_or_else(|_| {
            (Err(LookupError::Failed("no server answered in time".to_owned())), FAILURE_TTL)
        });
        let entry = Entry { outcome: outcome.0, expires: Instant::now() + outcome.1 };
        self.cache.insert(key.clone(), entry.clone());
        entry
    }

    async fn ask(&self, (name, family): &Key) -> (Result<Arc<[IpAddr]>, LookupError>, Duration) {
        let failed = |text: String| (Err(LookupError::Failed(text)), FAILURE_TTL);
        let mut query = match Name::from_ascii(name.as_str()) {
            Ok(query) => query,
            Err(error) => return failed(error.to_string()),
        };
        // Complete: no search domain of the machine's is ever appended.
        query.set_fqdn(true);
        match self.resolver.lookup(query.clone(), family.record_type()).await {
            Ok(lookup) => match addresses(&query, *family, lookup.answers()) {
                Some((addresses, ttl)) => (Ok(addresses), ttl.clamp(MIN_TTL, MAX_TTL)),
                None => (Err(LookupError::NoData), NEGATIVE_TTL.0),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let error = match none.response_code {
                    ResponseCode::NXDomain => LookupError::NoName,
                    _ => LookupError::NoData,
                };
                let ttl = none.negative_ttl.map_or(NEGATIVE_TTL.0, |s| Duration::from_secs(u64::from(s)));
                (Err(error), ttl.clamp(NEGATIVE_TTL.0, NEGATIVE_TTL.1))
            }
            Err(error) => failed(error.to_string()),
        }
    }
}

impl Entry {
    fn outcome_now(&self, now: Instant) -> Result<Answer, LookupError> {
        let addresses = self.outcome.clone()?;
        Ok(Answer { addresses: addresses.to_vec(), ttl: self.expires.saturating_duration_since(now) })
    }
}

impl Family {
    fn record_type(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

/// A place among those who wait for one lookup. The first to poll it does the work; if that one goes away,
/// the next takes over.
struct Flight<'a> {
    shared: &'a Shared,
    key: &'a Key,
    cell: Arc<OnceCell<Entry>>,
}

impl<'a> Flight<'a> {
    fn join(shared: &'a Shared, key: &'a Key) -> Self {
        let mut flights = shared.flights.lock();
        let cell = flights.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let cell = Arc::new(OnceCell::new());
            flights.insert(key.clone(), Arc::downgrade(&cell));
            cell
        });
        Self { shared, key, cell }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = self.shared.flights.lock();
        // Under the lock nobody joins: with a count of one we are the last.
        let landed = self.cell.initialized() || Arc::strong_count(&self.cell) == 1;
        let ours =
            flights.get(self.key).is_some_and(|cell| std::ptr::eq(cell.as_ptr(), Arc::as_ptr(&self.cell)));
        if landed && ours {
            flights.remove(self.key);
        }
    }
}

/// Lets the cache drop an entry when its own time is over.
struct AtExpiry;

impl Expiry<Key, Entry> for AtExpiry {
    fn expire_after_create(&self, _: &Key, entry: &Entry, now: Instant) -> Option<Duration> {
        Some(entry.expires.saturating_duration_since(now))
    }

    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Entry,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.expires.saturating_duration_since(now))
    }
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let mut config =
        NameServerConfig::new(server.ip(), true, vec![ConnectionConfig::udp(), ConnectionConfig::tcp()]);
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

fn options(config: &UpstreamConfig) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = config.timeout;
    options.attempts = config.attempts;
    // The machine's own /etc/hosts is not the sandbox's business.
    options.use_hosts_file = ResolveHosts::Never;
    // One cache is enough, and ours has the bounds.
    options.cache_size = 0;
    options
}

/// The addresses at the end of the chain of aliases that starts at `name`, and the least TTL on the way.
/// Records of other owners are none of the answer, whatever section or order they came in.
fn addresses(name: &Name, family: Family, records: &[Record]) -> Option<(Arc<[IpAddr]>, Duration)> {
    let mut owner = name;
    let mut ttl = u32::MAX;
    for _ in 0..=MAX_ALIASES {
        let alias =
            records.iter().filter(|record| record.name == *owner).find_map(|record| match &record.data {
                RData::CNAME(CNAME(target)) => Some((target, record.ttl)),
                _ => None,
            });
        let Some((target, alias_ttl)) = alias else { break };
        ttl = ttl.min(alias_ttl);
        owner = target;
    }
    let mut addresses = Vec::new();
    for record in records.iter().filter(|record| record.name == *owner) {
        let address = match (&record.data, family) {
            (RData::A(a), Family::V4) => IpAddr::V4(a.0),
            (RData::AAAA(aaaa), Family::V6) => IpAddr::V6(aaaa.0),
            _ => continue,
        };
        ttl = ttl.min(record.ttl);
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    (!addresses.is_empty()).then(|| (addresses.into(), Duration::from_secs(u64::from(ttl))))
}
