// What the server does not have: the client is told so by name, and never that something was done.

import { before, test } from "node:test";

import { ConnectionConfig, Governance, type Sandbox, Sandbox as Sandboxes, SandboxError, SnapshotPaginator, Template, TemplateBase, Vault, VolumeFiles, VolumeLocks, Volumes, createSecurityPolicy, getSharedClient } from "@declaw/sdk";

import { absent, refused, sandbox } from "./support.ts";

let box: Sandbox;
before(async () => {
  box = await sandbox();
});

test("snapshots are not there", async () => {
  const attempts = [
    box.snapshot(),
    box.createSnapshot(),
    box.listSnapshots(),
    box.deleteSnapshot("snap-1"),
    Sandboxes.restore(box.sandboxId),
    Sandboxes.restore(box.sandboxId, { snapshotId: "snap-1" }),
    new SnapshotPaginator(getSharedClient(new ConnectionConfig()), { sandboxId: box.sandboxId, limit: 1 }).nextItems(),
  ];
  await Promise.all(attempts.map((attempt) => absent(attempt, "snapshots")));
  const pages = new SnapshotPaginator(getSharedClient(new ConnectionConfig()));
  await absent(pages[Symbol.asyncIterator]().next(), "snapshots");
});

test("building templates over the API is not there", async () => {
  const template = new TemplateBase()
    .fromBaseImage("debian:12")
    .aptInstall("curl")
    .runCmd(["true"])
    .copy("a", "/b")
    .setEnvs({ A: "b" })
    .setStartCmd("true");
  const what = "building templates over the API";
  await absent(Template.build(template, "mine"), what);
  await absent(Template.buildInBackground(new TemplateBase().fromDockerfile("FROM debian:12"), "mine"), what);
  await absent(Template.getBuildStatus("build-1"), what);
});

test("volumes are not there", async () => {
  const data = new Uint8Array([31, 139]);
  const files: VolumeFiles = Volumes.files("vol-1");
  const locks: VolumeLocks = Volumes.locks("vol-1");
  const attempts: Promise<unknown>[] = [
    Volumes.create("mine"),
    Volumes.create("mine", data),
    Volumes.empty("mine"),
    Volumes.ingest("mine", data),
    Volumes.get("vol-1"),
    Volumes.list(),
    Volumes.download("vol-1"),
    Volumes.delete("vol-1"),
    Volumes.commit(box.sandboxId, "vol-1"),
    Volumes.snapshot(box.sandboxId, "/tmp"),
    files.write("/a", data),
    files.read("/a"),
    files.list("/"),
    files.info("/a"),
    files.exists("/a"),
    files.remove("/a"),
    files.rename("/a", "/b"),
    files.mkdir("/d"),
    locks.acquire("/a"),
    locks.release("/a", "token"),
    locks.renew("/a", "token"),
    locks.status("/a"),
  ];
  await Promise.all(attempts.map((attempt) => absent(attempt, "volumes")));
});

test("the vault is not there", async () => {
  const attempts = [
    Vault.createSecret({ name: "mine", value: "x", scopes: [{ domainRegex: "example.com" }] }),
    Vault.listSecrets(),
    Vault.rotateSecret("mine", "y"),
    Vault.updateScopes("mine", [{ domainRegex: "example.com" }]),
    Vault.deleteSecret("mine"),
    Vault.listPresets(),
  ];
  await Promise.all(attempts.map((attempt) => absent(attempt, "the vault")));
});

test("governance packs are not there", async () => {
  await absent(Governance.listPacks(), "governance packs");
  await absent(Governance.getPack("owasp-llm-top10"), "governance packs");
});

test("a sandbox that asks for inspection of content is refused and not made without it", async () => {
  for (const [part, field] of [
    [{ pii: { enabled: true, types: [], action: "redact", rehydrateResponse: true } }, "pii"],
    [{ injectionDefense: { enabled: true, sensitivity: "medium", action: "block", threshold: 0.9 } }, "injection_defense"],
    [{ transformations: [{ match: "a", replace: "b", direction: "outbound" }] }, "transformations"],
  ] as const) {
    await refused(Sandboxes.create({ security: createSecurityPolicy(part as never) }), SandboxError, new RegExp(`^HTTP 501: .*${field}`));
  }
});
