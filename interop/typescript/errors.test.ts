// Each class of error that the client has for an answer of the server, and the answers that are none.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiClient, AuthenticationError, ConflictError, ConnectionConfig, InvalidArgumentError, NotEnoughSpaceError, NotFoundError, Sandbox, SandboxError, getSharedClient, resetSharedClients } from "@declaw/sdk";

import { refused, sandbox } from "./support.ts";

test("without a key or with a wrong one nothing is answered", async () => {
  const message = /^HTTP 401: unauthorized: missing or invalid API key$/;
  await refused(new ApiClient(new ConnectionConfig({ apiKey: "dcl_wrong" })).get("/sandboxes"), AuthenticationError, message);
  await refused(Sandbox.create({ apiKey: "dcl_wrong" }), AuthenticationError, message);
  const key = process.env.DECLAW_API_KEY;
  delete process.env.DECLAW_API_KEY;
  const without = new ApiClient(new ConnectionConfig());
  process.env.DECLAW_API_KEY = key;
  await refused(without.get("/sandboxes"), AuthenticationError, message);
  await new ApiClient(new ConnectionConfig()).get("/sandboxes");
});

test("an argument that is wrong is named", async () => {
  await refused(Sandbox.create({ template: "no-such-template" }), InvalidArgumentError, /^HTTP 400: .*template/);
  await refused(Sandbox.create({ timeout: -1 }), InvalidArgumentError, /^HTTP 400: .*timeout/);
  await refused(Sandbox.connect("no/such"), InvalidArgumentError, /^Invalid sandbox ID/);
});

test("a sandbox in the wrong state is a conflict and one that is gone says so", async () => {
  const box = await sandbox();
  await box.pause();
  await refused(box.commands.run("true"), ConflictError, /^HTTP 409: .*paused/);
  await box.resume();
  assert.equal((await box.commands.run("true")).exitCode, 0);
  await box.kill({ wait: true });
  await refused(box.commands.run("true"), SandboxError, /^HTTP 410: /);
  await refused(box.pause(), SandboxError, /^HTTP 4(09|10): /);
});

test("what is too large is refused as that and what is just small enough is not", async () => {
  const box = await sandbox();
  await refused(box.files.write("/tmp/large", "x".repeat(10 * 1024 * 1024)), NotEnoughSpaceError, /^HTTP 413: /);
  assert.equal((await box.files.write("/tmp/large", "x".repeat(10 * 1024 * 1024 - 1000))).size, 10 * 1024 * 1024 - 1000);
});

test("the client talks to the address it is given in each of its forms", async () => {
  const domain = process.env.DECLAW_DOMAIN;
  const apiUrl = process.env.DECLAW_API_URL;
  const box = await sandbox();
  for (const place of [{ domain }, { apiUrl }, { apiUrl: `${apiUrl}/` }]) {
    assert.equal(await (await Sandbox.connect(box.sandboxId, place)).isRunning(), true);
  }
  await refused(Sandbox.list({ apiUrl: "http://127.0.0.1:1" }), SandboxError, /^Request failed after 3 retries/);
});

test("a request that takes longer than it may fails and the sandbox stays", async () => {
  const box = await sandbox();
  await refused(box.commands.run("sleep 300", { requestTimeout: 300 }), SandboxError, /^Request failed after 3 retries/);
  assert.equal(await box.isRunning(), true);
});

test("the plain client reads what the server says and closes", async () => {
  const shared = getSharedClient(new ConnectionConfig());
  const health = (await shared.get("/health")) as Record<string, unknown>;
  assert.equal(typeof health, "object");
  await refused(shared.get("/no/such/route"), NotFoundError, /^HTTP 404: no such route: GET \/no\/such\/route$/);
  await refused(shared.put("/sandboxes", { json: {} }), SandboxError, /^HTTP 405: /);
  resetSharedClients();
  await refused(shared.get("/health"), SandboxError, /^Client has been closed$/);
  assert.ok(Array.isArray((await Sandbox.list()).sandboxes));
});
