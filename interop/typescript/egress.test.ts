// What code in a sandbox reaches, by the policies that the published client sends; with the far end as the oracle.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";

import { ALL_TRAFFIC, InvalidArgumentError, type Sandbox, createAuditConfig, createNetworkPolicy, createSecurityPolicy, networkPolicyToOpts, validateNetworkEntry } from "@declaw/sdk";

import { refused, sandbox, seen } from "./support.ts";

const LOCKED = { allowOut: ["api.openai.com"], denyOut: [ALL_TRAFFIC], allowPublicTraffic: true };
const canary = () => `canary${randomBytes(16).toString("hex")}`;

/** One plain HTTP request from inside: what came back, or how connecting failed. */
async function fetched(box: Sandbox, host: string, path: string): Promise<string> {
  const request = `GET /${path} HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n`;
  const command = `exec 3<>/dev/tcp/${host}/80 && printf '${request}' >&3 && cat <&3`;
  const done = await box.commands.run(`bash -c "${command}"`, { timeout: 30 });
  return done.stdout + done.stderr;
}

/** How a bare connection from inside went. */
async function connected(box: Sandbox, host: string, port: number): Promise<string> {
  const done = await box.commands.run(`bash -c 'exec 3<>/dev/tcp/${host}/${port}' && echo connected`, { timeout: 30 });
  return done.stdout + done.stderr;
}

test("a listed host is reached and no other one", async () => {
  const box = await sandbox({ network: LOCKED });
  const [good, bad] = [canary(), canary()];
  assert.match(await fetched(box, "api.openai.com", good), /200 OK/);
  assert.deepEqual(seen(good).map((line) => line.destination), ["162.159.140.245"]);
  assert.doesNotMatch(await fetched(box, "evil.com", bad), /HTTP\/1\.1 200/);
  assert.deepEqual(seen(bad), []);
});

test("a raw connection to what is not listed is refused", async () => {
  const box = await sandbox({ network: LOCKED });
  assert.match(await connected(box, "185.199.108.66", 443), /refused/i);
  assert.match(await connected(box, "evil.com", 443), /refused|not known|resolution|No address/i);
  assert.match(await connected(box, "api.openai.com", 443), /^connected/);
});

test("the metadata service is not reached under any policy and cannot be listed", async () => {
  for (const network of [undefined, { allowOut: ["0.0.0.0/0"], denyOut: [], allowPublicTraffic: true }]) {
    assert.match(await connected(await sandbox({ network }), "169.254.169.254", 80), /refused/i);
  }
  const listed = { allowOut: ["169.254.169.254"], denyOut: [], allowPublicTraffic: true };
  await refused(sandbox({ network: listed }), InvalidArgumentError, /network\.allow_out\[0\]: "169\.254\.169\.254"/);
});

test("without internet access nothing is reached and with it the world is", async () => {
  const [shut, open] = [await sandbox({ allowInternetAccess: false }), await sandbox()];
  const [no, yes] = [canary(), canary()];
  assert.doesNotMatch(await fetched(shut, "example.com", no), /HTTP\/1\.1 200/);
  assert.match(await fetched(open, "example.com", yes), /200 OK/);
  assert.deepEqual([seen(no).length, seen(yes).length], [0, 1]);
});

test("the network of a security policy counts when there is no other", async () => {
  const policy = createNetworkPolicy({ allowOut: ["*.github.com"], denyOut: [ALL_TRAFFIC] });
  const security = createSecurityPolicy({ network: policy, audit: createAuditConfig({ enabled: true }) });
  const box = await sandbox({ security });
  const [no, yes] = [canary(), canary()];
  assert.match(await fetched(box, "raw.github.com", yes), /200 OK/);
  assert.doesNotMatch(await fetched(box, "evil.com", no), /HTTP\/1\.1 200/);
  assert.deepEqual([seen(yes).length, seen(no).length], [1, 0]);
  const other = await sandbox({ security, network: networkPolicyToOpts(createNetworkPolicy({ denyOut: [ALL_TRAFFIC] })) });
  assert.doesNotMatch(await fetched(other, "raw.github.com", canary()), /HTTP\/1\.1 200/);
});

test("two sandboxes share no files and neither has those of the machine", async () => {
  const [one, two] = [await sandbox(), await sandbox()];
  await one.files.write("/tmp/secret", "x");
  assert.equal(await two.files.exists("/tmp/secret"), false);
  assert.match(await one.files.read("/etc/passwd"), /^user:/m);
});

test("an entry that is none is refused by the client or by the server and no sandbox is made", async () => {
  assert.throws(() => validateNetworkEntry("not an entry"), InvalidArgumentError);
  const network = { allowOut: ["exa mple.com"], denyOut: [ALL_TRAFFIC], allowPublicTraffic: true };
  await refused(sandbox({ network }), InvalidArgumentError, /allow_out/);
});
