//! What the own account uses and has used. Nothing of it costs anything.

use api::{Balances, ErrorBody, Overview, TIER, TierLimits, Usage, UsageDays, UsageOfDay, UsedToday};
use axum::{Json, extract::State};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use sandbox::{Filter, State as SandboxIs};
use store::{Day, UsageDay};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::OwnAccount;
use crate::{App, error::ApiError, request::Query};

/// The most days of one answer.
const MOST_DAYS: i32 = 366;
/// The days of an answer if the request does not say which.
const USUAL_DAYS: i32 = 30;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(usage)).routes(routes!(daily)).routes(routes!(overview))
}

/// Tells how long the account's sandboxes ran, together, and how many there were. Pauses do not count.
#[utoipa::path(
    get, path = "/accounts/{account}/usage", tag = "accounts",
    params(
        ("account" = String, Path, description = "The own account"),
        ("start" = Option<String>, Query, description = "From the day (UTC) of this time or date on; default: that of the account's first key"),
        ("end" = Option<String>, Query, description = "Up to the day of this date, or up to this time; whole days count; default: now"),
    ),
    responses(
        (status = 200, description = "What was used", body = Usage),
        (status = 400, description = "A time is wrong; the message names it", body = ErrorBody),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn usage(
    State(app): State<App>,
    OwnAccount(account): OwnAccount,
    query: Query,
) -> Result<Json<Usage>, ApiError> {
    let (start, last) = (first_day(&query)?, last_day(&query)?);
    let first = match start {
        Some(first) => first,
        None => {
            let record = app.store.accounts().get(account.as_str()).await?;
            Day::of(record.map_or(Timestamp::UNIX_EPOCH, |record| record.created_at)).min(last)
        }
    };
    in_order(first, last)?;
    let days = used(&app, account.as_str(), first, last).await?;
    let running_ms: u64 = days.iter().map(|day| day.running_ms).sum();
    let sandboxes = days.iter().map(|day| day.sandboxes).sum();
    let (since, until) = (first.begins().into(), last.next().begins().into());
    Ok(Json(Usage::free(account.to_string(), since, until, running_ms / 1000, sandboxes)))
}

/// Tells the same for each day.
#[utoipa::path(
    get, path = "/accounts/{account}/usage/daily", tag = "accounts",
    params(
        ("account" = String, Path, description = "The own account"),
        ("start" = Option<String>, Query, description = "From the day (UTC) of this time or date on; default: 30 days"),
        ("end" = Option<String>, Query, description = "Up to the day of this date, or up to this time; default: now"),
    ),
    responses(
        (status = 200, description = "Each of the days", body = UsageDays),
        (status = 400, description = "A time is wrong, or there are more than 366 days", body = ErrorBody),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn daily(
    State(app): State<App>,
    OwnAccount(account): OwnAccount,
    query: Query,
) -> Result<Json<UsageDays>, ApiError> {
    let last = last_day(&query)?;
    let first = first_day(&query)?.unwrap_or(Day(last.0.saturating_sub(USUAL_DAYS - 1)));
    in_order(first, last)?;
    if last.0.saturating_sub(first.0) >= MOST_DAYS {
        return Err(ApiError::bad_request(format!("start: more than {MOST_DAYS} days before the end")));
    }
    let used = used(&app, account.as_str(), first, last).await?;
    let days = (first.0..=last.0).map(Day).map(|day| UsageOfDay {
        date: day.begins().strftime("%Y-%m-%d").to_string(),
        usage: of_day(&used, day),
    });
    Ok(Json(UsageDays { days: days.collect() }))
}

/// Tells how many sandboxes the account has, how many it may have, and what it has used today.
#[utoipa::path(
    get, path = "/accounts/{account}/overview", tag = "accounts",
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 200, description = "The account at a glance", body = Overview),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn overview(
    State(app): State<App>,
    OwnAccount(account): OwnAccount,
) -> Result<Json<Overview>, ApiError> {
    let one = Filter { limit: Some(1), ..Filter::default() };
    let active = app.sandboxes.list(account.as_str(), one).await?.total;
    let today = Day::of(Timestamp::now());
    let used = used(&app, account.as_str(), today, today).await?;
    let (sandboxes, limits) = app.sandboxes.capacity();
    Ok(Json(Overview {
        owner_id: account.to_string(),
        tier: TIER.to_owned(),
        active_sandboxes: active,
        tier_limits: TierLimits {
            max_concurrent: sandboxes.into(),
            max_vcpus: u64::from(limits.cpu_millis).div_ceil(1000),
            max_memory_mb: limits.memory_bytes >> 20,
        },
        wallets: Balances::default(),
        wallet: Balances::default(),
        today: of_day(&used, today),
    }))
}

/// What was used on each day that has any, up to now.
async fn used(app: &App, account: &str, first: Day, last: Day) -> Result<Vec<UsageDay>, ApiError> {
    app.sandboxes.settle_usage().await?;
    let present = [SandboxIs::Running, SandboxIs::Paused].map(SandboxIs::as_str);
    Ok(app.store.usage().days(account, first, last, present).await?)
}

fn of_day(used: &[UsageDay], day: Day) -> UsedToday {
    let used = used.iter().find(|used| used.day == day);
    used.map_or_else(UsedToday::default, |used| UsedToday {
        total_seconds: used.running_ms / 1000,
        sandbox_count: used.sandboxes,
        ..UsedToday::default()
    })
}

fn first_day(query: &Query) -> Result<Option<Day>, ApiError> {
    Ok(match date(query, "start")? {
        Some(date) => Some(date),
        None => query.time("start")?.map(Day::of),
    })
}

/// The last day. Of an end at midnight it is the day before.
fn last_day(query: &Query) -> Result<Day, ApiError> {
    if let Some(date) = date(query, "end")? {
        return Ok(date);
    }
    let end = query.time("end")?;
    let last = end.map(|end| end.checked_sub(jiff::SignedDuration::from_micros(1)).unwrap_or(end));
    Ok(Day::of(last.unwrap_or_else(Timestamp::now)))
}

/// A parameter that is a date and not a time.
fn date(query: &Query, name: &str) -> Result<Option<Day>, ApiError> {
    let Some(text) = query.get(name).filter(|text| text.len() == "2026-03-01".len()) else { return Ok(None) };
    let begins = text.parse::<Date>().and_then(|date| date.to_zoned(TimeZone::UTC));
    let begins = begins.map_err(|error| ApiError::bad_request(format!("{name}: {text:?}: {error}")))?;
    Ok(Some(Day::of(begins.timestamp())))
}

fn in_order(first: Day, last: Day) -> Result<(), ApiError> {
    if first > last { Err(ApiError::bad_request("start: is after the end")) } else { Ok(()) }
}
