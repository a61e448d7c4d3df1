// The life of a sandbox, as the published client sees it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ConflictError, ConnectionConfig, NotFoundError, Sandbox, SandboxError, SandboxPaginator, SandboxState, getSharedClient } from "@declaw/sdk";

import { eventually, refused, sandbox } from "./support.ts";

test("a sandbox is made without options and knows what it is", async () => {
  const box = await sandbox();
  assert.match(box.sandboxId, /^sbx-[A-Za-z0-9]+$/);
  const others = [box.envdAccessToken, box.trafficAccessToken, box.sandboxDomain];
  assert.deepEqual(others, [undefined, undefined, undefined], "only keys open anything, below the server's own address");
  assert.equal(box.config.domain, process.env.DECLAW_DOMAIN?.split(":")[0]);
  const info = await box.getInfo();
  assert.equal(info.sandboxId, box.sandboxId);
  assert.equal(info.state, SandboxState.Running);
  assert.ok(info.templateId);
  assert.ok(info.startedAt && info.endAt);
  const seconds = (info.endAt.getTime() - info.startedAt.getTime()) / 1000;
  assert.ok(seconds >= 300 && seconds < 301, `${seconds}`);
  assert.equal(await box.isRunning(), true);
});

test("what is given is there inside and in the info", async () => {
  const box = await sandbox({ metadata: { owner: "ann" }, envs: { GREETING: "good day" }, secure: true });
  assert.deepEqual((await box.getInfo()).metadata, { owner: "ann" });
  assert.equal((await box.commands.run("echo $GREETING")).stdout, "good day\n");
});

test("a sandbox is found again by its id and is the same", async () => {
  const box = await sandbox();
  await box.files.write("/tmp/mark", "here");
  const again = await Sandbox.connect(box.sandboxId);
  assert.equal(again.sandboxId, box.sandboxId);
  assert.equal(await again.files.read("/tmp/mark"), "here");
  again.close();
  await again[Symbol.asyncDispose]();
  assert.equal(await box.isRunning(), true, "closing a client ends no sandbox");
});

test("the list can be paged and filtered and ends", async () => {
  const owner = `lister${process.pid}`;
  const ids = new Set<string>();
  for (let count = 0; count < 3; count++) ids.add((await sandbox({ metadata: { owner } })).sandboxId);
  const query = { metadata: JSON.stringify({ owner }) };
  const whole = await Sandbox.list({ query });
  assert.deepEqual(new Set(whole.sandboxes.map((info) => info.sandboxId)), ids);
  const first = await Sandbox.list({ query, limit: 2 });
  assert.equal(first.sandboxes.length, 2);
  assert.ok(first.nextToken);
  const rest = await Sandbox.list({ query, limit: 2, nextToken: first.nextToken });
  assert.equal(rest.sandboxes.length, 1);
  assert.equal(rest.nextToken, undefined);
  const pager = new SandboxPaginator(getSharedClient(new ConnectionConfig()), { query, limit: 2 });
  const found: string[] = [];
  for await (const page of pager) found.push(...page.map((info) => info.sandboxId));
  assert.deepEqual([found.length, new Set(found)], [3, ids]);
  assert.equal(pager.hasNext, false);
  await refused(pager.nextItems(), SandboxError, /^No more pages$/);
});

test("killing ends a sandbox whether or not one waits for it", async () => {
  const [waited, queued, byId, byIdQueued] = await Promise.all([sandbox(), sandbox(), sandbox(), sandbox()]);
  assert.equal(await waited.kill({ wait: true }), true);
  assert.equal(await waited.isRunning(), false);
  assert.equal((await waited.getInfo()).state, SandboxState.Killed);
  assert.equal(await queued.kill(), true);
  assert.equal(await Sandbox.kill(byId.sandboxId, { wait: true }), true);
  assert.equal(await Sandbox.kill(byIdQueued.sandboxId), true);
  for (const box of [queued, byId, byIdQueued]) {
    await eventually("it has ended", async () => !(await box.isRunning()));
  }
});

test("many are killed in one call and one that is not there spoils nothing", async () => {
  const [one, two] = await Promise.all([sandbox(), sandbox()]);
  const nobody = "sbx-notthere";
  const results = await Sandbox.killMany([one.sandboxId, nobody, two.sandboxId], { wait: true });
  assert.deepEqual([results[one.sandboxId], results[two.sandboxId]], [{ killed: true }, { killed: true }]);
  assert.match(results[nobody]?.error ?? "", /not found/);
  assert.deepEqual(await Sandbox.killMany([]), {});
  const three = await sandbox();
  assert.deepEqual(await Sandbox.killMany([three.sandboxId]), { [three.sandboxId]: { queued: true } });
});

test("a time-out is set anew and ends a sandbox", async () => {
  const box = await sandbox({ timeout: 600 });
  await box.setTimeout(1000);
  const { startedAt, endAt } = await box.getInfo();
  assert.ok(startedAt && endAt && endAt.getTime() - startedAt.getTime() >= 1_000_000);
  await box.setTimeout(1);
  await eventually("it has ended", async () => !(await box.isRunning()));
});

test("metrics are a list of real samples", async () => {
  const box = await sandbox();
  await box.commands.run("head -c 30000000 /dev/zero > /tmp/file");
  const [sample] = await box.getMetrics();
  assert.ok(sample && sample.timestamp.getTime() > Date.now() - 600_000);
  assert.ok(sample.memoryUsageMb > 0 && sample.cpuUsagePercent >= 0, JSON.stringify(sample));
  const start = new Date(Date.now() - 60_000);
  assert.ok(Array.isArray(await box.getMetrics({ start, end: new Date() })));
});

test("a paused sandbox does nothing until it is resumed", async () => {
  const box = await sandbox({ lifecycle: { onTimeout: "kill", autoResume: false } });
  await box.commands.run("while sleep 0.02; do date +%s%N > /tmp/clock; done", { background: true });
  await eventually("the clock goes", () => box.files.exists("/tmp/clock"));
  await box.pause();
  assert.equal((await box.getInfo()).state, SandboxState.Paused);
  await box.resume();
  assert.equal((await box.getInfo()).state, SandboxState.Running);
  const before = await box.files.read("/tmp/clock");
  await eventually("the clock goes on", async () => (await box.files.read("/tmp/clock")) !== before);
});

test("addresses of a sandbox are below the server and name the port", async () => {
  const box = await sandbox();
  const base = `${process.env.DECLAW_API_URL}/sandboxes/${box.sandboxId}`;
  assert.equal(box.envdApiUrl, base);
  assert.equal(box.getHost(3000), `${base}/ports/3000`);
  assert.equal(box.getMcpUrl(), `${base}/ports/50005/mcp`);
});

test("a sandbox that is not there is not found", async () => {
  const message = /^HTTP 404: sandbox not found$/;
  await refused(Sandbox.connect("sbx-notthere"), NotFoundError, message);
  await refused(Sandbox.kill("sbx-notthere"), NotFoundError, message);
});

test("a service inside is reached at its address with the key and only if the policy says so", async () => {
  const closed = { allowOut: [], denyOut: [], allowPublicTraffic: false };
  const [open, shut] = await Promise.all([sandbox({ template: "python" }), sandbox({ template: "python", network: closed })]);
  const headers = { "X-API-Key": process.env.DECLAW_API_KEY ?? "" };
  for (const box of [open, shut]) {
    await box.files.write("/tmp/served/a file", "from inside");
    await box.commands.run("exec python3 -m http.server --bind 127.0.0.1 --directory /tmp/served 3000", { background: true });
    await eventually("it listens", async () => (await box.commands.run("grep -q :0BB8 /proc/net/tcp")).exitCode === 0);
  }
  const reply = await fetch(`${open.getHost(3000)}/a%20file?with=query`, { headers });
  assert.deepEqual([reply.status, await reply.text()], [200, "from inside"]);
  assert.equal((await fetch(`${open.getHost(3000)}/a%20file`)).status, 401);
  assert.equal((await fetch(`${shut.getHost(3000)}/a%20file`, { headers })).status, 403);
  assert.equal((await fetch(`${open.getMcpUrl()}`, { headers })).status, 502);
});

test("a sandbox whose time is up pauses if that was asked for and wakes by itself only if that was too", async () => {
  const boxes = await Promise.all([true, false].map((autoResume) => sandbox({ timeout: 600, lifecycle: { onTimeout: "pause", autoResume } })));
  for (const box of boxes) {
    await box.files.write("/tmp/kept", "kept");
    await box.setTimeout(1);
    await eventually("it is paused", async () => (await box.getInfo()).state === SandboxState.Paused);
  }
  const [wakes, sleeps] = boxes;
  assert.equal(await wakes?.files.read("/tmp/kept"), "kept");
  await refused(sleeps?.files.read("/tmp/kept") ?? assert.fail(), ConflictError, /^HTTP 409: .*paused/);
  await sleeps?.setTimeout(600);
  await sleeps?.resume();
  assert.equal(await sleeps?.files.read("/tmp/kept"), "kept");
});
