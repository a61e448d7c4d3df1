// What the tests share: sandboxes that are killed afterwards, waiting for events, the lab's canaries, and a record of
// which of the client's methods were called.

import assert from "node:assert/strict";
import { appendFileSync, readFileSync } from "node:fs";
import { after } from "node:test";

import * as sdk from "@declaw/sdk";

/** Milliseconds that anything that should happen at once may take before the test fails. */
const PATIENCE = 1000 * Number(process.env.BAILIWICK_TEST_PATIENCE ?? "20");

const made: sdk.Sandbox[] = [];

/** A sandbox that is killed when the file's tests are done. */
export async function sandbox(options: sdk.SandboxOpts = {}): Promise<sdk.Sandbox> {
  const box = await sdk.Sandbox.create(options);
  made.push(box);
  return box;
}

after(async () => {
  await sdk.Sandbox.killMany(
    made.map((box) => box.sandboxId),
    { wait: true },
  );
});

/** Waits until `happened` gives something. */
export async function eventually<T>(what: string, happened: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const value = await happened();
    if (value) return value;
    assert.ok(Date.now() < deadline, `did not happen: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What a callback was given. */
export class Collected {
  text = "";
  bytes: number[] = [];
  readonly take = (chunk: Uint8Array | string): void => {
    if (typeof chunk === "string") {
      this.text += chunk;
    } else {
      this.text += new TextDecoder().decode(chunk);
      this.bytes.push(...chunk);
    }
  };

  /** Waits until `wanted` was shown. */
  async until(wanted: string): Promise<void> {
    await eventually(`${JSON.stringify(wanted)} is shown`, () => this.text.includes(wanted));
  }
}

/** One attempt, seen at the far end of the lab's world. */
export interface Arrival {
  destination: string;
  [field: string]: unknown;
}

/** Everything that reached the lab's world and contains `needle`. */
export function seen(needle: string): Arrival[] {
  const path = process.env.BAILIWICK_LAB_SINKS;
  assert.ok(path, "BAILIWICK_LAB_SINKS is not set: these tests run inside pytest");
  return readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => line.includes(needle))
    .map((line) => JSON.parse(line) as Arrival);
}

type Kind<E extends sdk.SandboxError> = new (...parts: never[]) => E;

/** The error that `attempt` ends with: exactly of this class, and with a message that says so. */
export async function refused<E extends sdk.SandboxError>(attempt: Promise<unknown>, kind: Kind<E>, message: RegExp): Promise<E> {
  const error = await attempt.then(
    (value) => assert.fail(`it was not refused: ${JSON.stringify(value)}`),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof kind, `not ${kind.name}: ${error}`);
  assert.equal(error.constructor, kind);
  assert.match(error.message, message);
  return error;
}

/** `attempt` asks for something that the server does not have, and is told so by name. */
export async function absent(attempt: Promise<unknown>, what: string): Promise<void> {
  await refused(attempt, sdk.SandboxError, new RegExp(`^HTTP 501: ${what}: not implemented by this server$`));
}

// Which methods were called: written for the test that wants all of them.

const CLASSES = [
  sdk.Sandbox,
  sdk.SandboxPaginator,
  sdk.SnapshotPaginator,
  sdk.Commands,
  sdk.CommandHandle,
  sdk.Filesystem,
  sdk.WatchHandle,
  sdk.Pty,
  sdk.PtyHandle,
  sdk.Stdio,
  sdk.StdioProcess,
  sdk.Template,
  sdk.TemplateBase,
  sdk.Volumes,
  sdk.VolumeFiles,
  sdk.VolumeLocks,
  sdk.Vault,
  sdk.Governance,
];

const there: string[] = [];
const called = new Set<string>();

function watch(holder: object, label: string): void {
  for (const name of Object.getOwnPropertyNames(holder)) {
    const property = Object.getOwnPropertyDescriptor(holder, name);
    if (!property || name === "constructor" || name === "length" || name === "name" || name === "prototype") continue;
    const id = `${label}.${name}`;
    const original = property.get ?? property.value;
    if (typeof original !== "function") continue;
    there.push(id);
    const counted = function (this: unknown, ...rest: unknown[]) {
      called.add(id);
      return Reflect.apply(original, this, rest);
    };
    Object.defineProperty(holder, name, property.get ? { ...property, get: counted } : { ...property, value: counted });
  }
}

for (const kind of CLASSES) {
  watch(kind, kind.name.replace(/^_/, ""));
  watch(kind.prototype, `${kind.name.replace(/^_/, "")}.prototype`);
}

process.on("exit", () => {
  const path = process.env.BAILIWICK_CALLED;
  if (path) appendFileSync(path, `${JSON.stringify({ there, called: [...called] })}\n`);
});
