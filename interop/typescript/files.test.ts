// Files: text and bytes, one and many, directories.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { before, test } from "node:test";

import { FileType, InvalidArgumentError, NotFoundError, type Sandbox } from "@declaw/sdk";

import { refused, sandbox } from "./support.ts";

let box: Sandbox;
before(async () => {
  box = await sandbox();
});

test("text comes back as it was written and its size is told in bytes", async () => {
  const written = await box.files.write("/tmp/deep/down/text", "grüße\r\n\n");
  assert.deepEqual(written, { path: "/tmp/deep/down/text", size: 10 });
  assert.equal(await box.files.read("/tmp/deep/down/text"), "grüße\r\n\n");
});

test("every byte comes back as it was written", async () => {
  const bytes = Uint8Array.from({ length: 512 }, (_, index) => index % 256);
  assert.deepEqual(await box.files.write("/tmp/bytes", bytes), { path: "/tmp/bytes", size: 512 });
  assert.deepEqual(await box.files.read("/tmp/bytes", { format: "bytes" }), bytes);
});

test("twenty megabytes come back as they were written", async () => {
  const bytes = new Uint8Array(randomBytes(20_000_000));
  await box.files.write("/tmp/large", bytes);
  const hash = (await box.commands.run("sha256sum /tmp/large")).stdout.slice(0, 64);
  assert.equal(hash, createHash("sha256").update(bytes).digest("hex"));
  const back = await box.files.read("/tmp/large", { format: "bytes" });
  assert.equal(createHash("sha256").update(back).digest("hex"), hash);
});

test("an empty file is empty and a file may be named anything", async () => {
  await box.files.write("/tmp/empty", new Uint8Array());
  assert.equal((await box.files.read("/tmp/empty", { format: "bytes" })).length, 0);
  const odd = "/tmp/a&b=c #d%20 ?é";
  await box.files.write(odd, "odd");
  assert.equal(await box.files.read(odd), "odd");
  await box.files.remove(odd);
  assert.equal(await box.files.exists(odd), false);
});

test("many files of both kinds are written in their order", async () => {
  const written = await box.files.writeFiles([
    { path: "/tmp/many/1", data: "one" },
    { path: "/tmp/many/2", data: new Uint8Array([0, 255]) },
    { path: "/tmp/many/3", data: "three" },
  ]);
  assert.deepEqual(written, [
    { path: "/tmp/many/1", size: 3 },
    { path: "/tmp/many/2", size: 2 },
    { path: "/tmp/many/3", size: 5 },
  ]);
  assert.equal(await box.files.read("/tmp/many/3"), "three");
});

test("a directory is made once and listed and removed with what is in it", async () => {
  assert.equal(await box.files.makeDir("/tmp/tree/one/two"), true);
  assert.equal(await box.files.makeDir("/tmp/tree/one/two"), false);
  await box.files.write("/tmp/tree/one/leaf", "12345");
  const shallow = await box.files.list("/tmp/tree");
  assert.deepEqual(shallow.map((entry) => [entry.name, entry.type]), [["one", FileType.Dir]]);
  const deep = await box.files.list("/tmp/tree", { depth: 2 });
  assert.deepEqual(deep.map((entry) => entry.path).sort(), ["/tmp/tree/one", "/tmp/tree/one/leaf", "/tmp/tree/one/two"]);
  await box.files.remove("/tmp/tree");
  assert.equal(await box.files.exists("/tmp/tree"), false);
});

test("a file is looked at and renamed", async () => {
  await box.files.write("/tmp/before", "12345");
  const info = await box.files.getInfo("/tmp/before");
  assert.deepEqual([info.name, info.path, info.type, info.size], ["before", "/tmp/before", FileType.File, 5]);
  const renamed = await box.files.rename("/tmp/before", "/tmp/after");
  assert.deepEqual([renamed.name, renamed.path], ["after", "/tmp/after"]);
  assert.deepEqual([await box.files.exists("/tmp/before"), await box.files.exists("/tmp/after")], [false, true]);
});

test("files belong to the user for whom they are written", async () => {
  await box.files.write("/tmp/mine", "x");
  await box.files.write("/tmp/roots", "x", { user: "root" });
  const { stdout } = await box.commands.run("stat -c %U /tmp/mine /tmp/roots");
  assert.equal(stdout, "user\nroot\n");
});

test("a user reads what that user may and no more", async () => {
  await refused(box.files.read("/etc/shadow"), InvalidArgumentError, /\/etc\/shadow/);
  assert.ok((await box.files.read("/etc/shadow", { user: "root" })).startsWith("root:"));
  await refused(box.files.write("/etc/mine", "x"), InvalidArgumentError, /\/etc\/mine/);
});

test("what is not there is not found and what is wrong is refused by name", async () => {
  const path = "/tmp/nothing";
  const attempts = [box.files.read(path), box.files.getInfo(path), box.files.list(path), box.files.rename(path, "/tmp/x")];
  await Promise.all(attempts.map((attempt) => refused(attempt, NotFoundError, /\/tmp\/nothing/)));
  await refused(box.files.read("/tmp/bytes", { user: "nobody-here" }), InvalidArgumentError, /nobody-here/);
  await refused(box.files.read("relative"), NotFoundError, /\/home\/user\/relative/);
  await refused(box.files.list("/tmp/bytes"), InvalidArgumentError, /\/tmp\/bytes/);
});

test("a directory can be watched and what cannot be is refused", async () => {
  await box.files.makeDir("/tmp/watched");
  const handle = await box.files.watchDir("/tmp/watched", { recursive: true });
  // The published client never opens the stream of events: it has none to give.
  handle.pushEvent({ type: "create" as never, path: "/tmp/watched/x" });
  assert.equal(handle.getNewEvents().length, 1);
  handle.stop();
  assert.deepEqual(handle.getNewEvents(), []);
  await refused(box.files.watchDir("/tmp/nothing"), NotFoundError, /\/tmp\/nothing/);
});

test("the addresses for raw transfers take any bytes with the key and nothing without", async () => {
  const bytes = new Uint8Array(randomBytes(1000));
  const headers = { "X-API-Key": process.env.DECLAW_API_KEY ?? "" };
  const put = await fetch(box.uploadUrl("/tmp/a raw&file", "root"), { method: "PUT", body: bytes, headers });
  assert.equal(put.status, 200);
  const got = await fetch(box.downloadUrl("/tmp/a raw&file"), { headers });
  assert.deepEqual(new Uint8Array(await got.arrayBuffer()), bytes);
  assert.equal((await fetch(box.downloadUrl("/tmp/a raw&file"))).status, 401);
});
