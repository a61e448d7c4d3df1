//! Accounts and their keys. Whoever asks sees the own account only.

use api::{
    Account, AccountInfo, AccountName, ApiKey, ApiKeyCreated, ApiKeyRevoked, ApiKeys, CreateApiKey, Deposits,
    ErrorBody, Me, TIER, Wallet, code,
};
use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
};
use secrecy::ExposeSecret;
use store::{KeyRecord, Revocation};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{App, auth::Caller, error::ApiError, keys, request::JsonBody};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(me))
        .routes(routes!(account))
        .routes(routes!(wallet))
        .routes(routes!(deposits, deposit))
        .routes(routes!(create_key, list_keys))
        .routes(routes!(revoke_key))
}

/// The account in the path, which is that of the caller. Of any other it is not even told whether it exists.
pub(super) struct OwnAccount(pub(super) AccountName);

impl<S: Send + Sync> FromRequestParts<S> for OwnAccount {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let Ok(Path(path)) = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await else {
            return Err(foreign());
        };
        let named = path.iter().find(|(name, _)| name == "account").map(|(_, value)| value.as_str());
        if named != Some(&*caller.account) {
            return Err(foreign());
        }
        // Accounts that an earlier version has made have names that are as good.
        caller.account.parse().map(Self).map_err(|error| ApiError::internal(&error))
    }
}

fn foreign() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden: cannot access another account")
}

/// Says whose the API key is.
#[utoipa::path(
    get, path = "/auth/me", tag = "accounts",
    responses((status = 200, description = "The account, and the key", body = Me))
)]
async fn me(caller: Caller) -> Json<Me> {
    Json(Me { owner_id: caller.account.to_string(), key_id: caller.key.to_string() })
}

/// Describes the account.
#[utoipa::path(
    get, path = "/accounts/{account}", tag = "accounts",
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 200, description = "The account", body = Account),
        (status = 403, description = "It is another one, or there is none", body = ErrorBody),
    )
)]
async fn account(State(app): State<App>, OwnAccount(name): OwnAccount) -> Result<Json<Account>, ApiError> {
    let record = app.store.accounts().get(name.as_str()).await?;
    let record = record.ok_or_else(ApiError::internal_without_cause)?;
    Ok(Json(Account::new(AccountInfo {
        owner_id: record.id,
        email: String::new(),
        tier: TIER.to_owned(),
        created_at: record.created_at.into(),
    })))
}

/// Shows a wallet with nothing in it: nothing is charged for.
#[utoipa::path(
    get, path = "/accounts/{account}/wallet", tag = "accounts",
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 200, description = "It is empty", body = Wallet),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn wallet(_own: OwnAccount) -> Json<Wallet> {
    Json(Wallet::default())
}

/// Lists deposits, of which there are none.
#[utoipa::path(
    get, path = "/accounts/{account}/deposits", tag = "accounts",
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 200, description = "None", body = Deposits),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn deposits(_own: OwnAccount) -> Json<Deposits> {
    Json(Deposits::default())
}

/// Refuses a deposit: nothing is charged for, so there is nothing to pay into.
#[utoipa::path(
    post, path = "/accounts/{account}/deposits", tag = "accounts",
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 400, description = "`no_billing`, always", body = ErrorBody),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn deposit(_own: OwnAccount) -> ApiError {
    let message =
        "deposits are not taken: nothing is charged for on this installation, and no account has a balance";
    ApiError::bad_request(message).with_code(code::NO_BILLING)
}

/// Makes an API key of the account. It is shown this once; what is stored is a hash of it.
#[utoipa::path(
    post, path = "/accounts/{account}/api-keys", tag = "accounts", request_body = CreateApiKey,
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 201, description = "The key", body = ApiKeyCreated),
        (status = 400, description = "The name is wrong", body = ErrorBody),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
        (status = 409, description = "`too_many_keys`: 100 are in force", body = ErrorBody),
    )
)]
async fn create_key(
    State(app): State<App>,
    OwnAccount(account): OwnAccount,
    JsonBody(asked): JsonBody<CreateApiKey>,
) -> Result<(StatusCode, Json<ApiKeyCreated>), ApiError> {
    let name = asked.name()?;
    let made = keys::create(&app.store, &account, &name).await?;
    let api_key = made.secret.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(ApiKeyCreated { key_id: made.id, api_key, name: name.to_string() })))
}

/// Lists the API keys of the account, masked: those in force, and the 100 newest of the revoked ones.
#[utoipa::path(
    get, path = "/accounts/{account}/api-keys", tag = "accounts",
    params(("account" = String, Path, description = "The own account")),
    responses(
        (status = 200, description = "The keys, oldest first", body = ApiKeys),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
    )
)]
async fn list_keys(
    State(app): State<App>,
    OwnAccount(account): OwnAccount,
) -> Result<Json<ApiKeys>, ApiError> {
    let keys = app.store.keys().list(Some(account.as_str())).await?;
    Ok(Json(ApiKeys { api_keys: keys.into_iter().map(shown).collect() }))
}

fn shown(key: KeyRecord) -> ApiKey {
    ApiKey {
        key_id: key.id,
        name: key.name,
        masked_key: key.masked,
        created_at: key.created_at.into(),
        revoked: key.revoked,
    }
}

/// Revokes an API key of the account, also the one that asks. It opens nothing from now on, and answers that it asked for
/// and that are still being sent, such as streams, break off.
#[utoipa::path(
    delete, path = "/accounts/{account}/api-keys/{key}", tag = "accounts",
    params(
        ("account" = String, Path, description = "The own account"),
        ("key" = String, Path, description = "The id of the key"),
    ),
    responses(
        (status = 200, description = "It is revoked; false if it was before", body = ApiKeyRevoked),
        (status = 403, description = "It is another account, or there is none", body = ErrorBody),
        (status = 404, description = "The account has no such key", body = ErrorBody),
    )
)]
async fn revoke_key(
    State(app): State<App>,
    OwnAccount(account): OwnAccount,
    Path((_, key)): Path<(String, String)>,
) -> Result<Json<ApiKeyRevoked>, ApiError> {
    match app.keys.revoke(account.as_str(), &key).await? {
        Revocation::Done => Ok(Json(ApiKeyRevoked { revoked: true })),
        Revocation::Before => Ok(Json(ApiKeyRevoked { revoked: false })),
        Revocation::NoSuchKey => Err(ApiError::new(StatusCode::NOT_FOUND, "API key not found")),
    }
}
