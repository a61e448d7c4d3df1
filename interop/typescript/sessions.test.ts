// Terminals and commands with pipes.

import assert from "node:assert/strict";
import { before, test } from "node:test";

import { InvalidArgumentError, NotFoundError, type Sandbox, type StdioProcess } from "@declaw/sdk";

import { Collected, eventually, refused, sandbox } from "./support.ts";

let box: Sandbox;
before(async () => {
  box = await sandbox({ envs: { COLOUR: "green" } });
});

test("a terminal shows what is typed and what it does and ends with its exit code", async () => {
  const shown = new Collected();
  const terminal = await box.pty.create({ size: { cols: 93, rows: 27 }, envs: { SHAPE: "round" }, onData: shown.take });
  await terminal.sendInput("echo $((40 + 2)) $TERM $COLOUR $SHAPE; stty size; id -un; pwd\n");
  await shown.until("42 xterm-256color green round\r\n27 93\r\nuser\r\n/home/user\r\n");
  await terminal.sendInput(new TextEncoder().encode("exit 7\n"));
  assert.deepEqual(await terminal.wait(), { exitCode: 7 });
});

test("a terminal is resized and its programs are told", async () => {
  const shown = new Collected();
  const terminal = await box.pty.create({ onData: shown.take, cwd: "/tmp", user: "root", timeout: 600 });
  await terminal.sendInput("stty size; pwd; id -un\n");
  await shown.until("24 80\r\n/tmp\r\nroot\r\n");
  await terminal.sendInput("sh -c \"trap 'stty size; exit' WINCH; echo set''up; while sleep 0.05; do :; done\"\n");
  await shown.until("setup");
  await terminal.resize({ cols: 101, rows: 41 });
  await shown.until("41 101");
  await box.pty.resize(terminal.pid, { cols: 50, rows: 20 });
  await box.pty.sendStdin(terminal.pid, "stty size\n");
  await shown.until("20 50");
  assert.equal(await terminal.kill(), true);
  assert.equal(await box.pty.kill(terminal.pid), false);
});

test("a terminal is left and found again and the prompt is not lost", async () => {
  const terminal = await box.pty.create();
  let text = "";
  for await (const chunk of terminal.stream()) {
    text += new TextDecoder().decode(chunk);
    if (text.includes("$ ")) break;
  }
  terminal.disconnect();
  const again = new Collected();
  const other = box.pty.connect(terminal.pid, { onData: again.take });
  await eventually("it answers", async () => {
    await other.sendInput("echo ba''ck\n");
    return again.text.includes("back\r\n");
  });
  assert.ok((await box.commands.list()).some((each) => each.pid === terminal.pid && each.isPty));
  await other.sendInput("exit 0\n");
  assert.deepEqual(await other.wait(), { exitCode: 0 });
});

test("two see the same terminal", async () => {
  const [one, two] = [new Collected(), new Collected()];
  const terminal = await box.pty.create({ onData: one.take });
  box.pty.connect(terminal.pid, { onData: two.take });
  await eventually("both see it", async () => {
    await terminal.sendInput("echo bo''th\n");
    return one.text.includes("both\r\n") && two.text.includes("both\r\n");
  });
  assert.equal(await terminal.kill(), true);
});

test("streams of a command with pipes are separate and bytes stay bytes", async () => {
  const [out, err] = [new Collected(), new Collected()];
  const process = await box.stdio.start("printf '\\377\\000a'; echo oh $COLOUR >&2; cat; exit 3", { onStdout: out.take, onStderr: err.take });
  await process.sendStdin(new Uint8Array([0, 254, 10]));
  await process.closeStdin();
  assert.deepEqual(await process.wait(), { exitCode: 3 });
  assert.deepEqual([out.bytes, err.text, process.exitCode], [[255, 0, 97, 0, 254, 10], "oh green\n", 3]);
});

test("a conversation goes both ways while the command runs", async () => {
  const out = new Collected();
  const process = await box.stdio.start("while read line; do echo got $line in $(pwd) as $(id -un) $SHAPE; done", {
    onStdout: out.take,
    cwd: "/usr",
    user: "root",
    envs: { SHAPE: "round" },
  });
  for (const word of ["one", "two"]) {
    await process.sendStdin(`${word}\n`);
    await out.until(`got ${word} in /usr as root round\n`);
  }
  await process.closeStdin();
  assert.equal((await process.wait()).exitCode, 0);
});

test("who comes late to a command with pipes misses nothing", async () => {
  const process = await box.stdio.start("echo one; echo two >&2; touch /tmp/said");
  await eventually("it has spoken", () => box.files.exists("/tmp/said"));
  const [out, err] = [new Collected(), new Collected()];
  assert.deepEqual(await process.stream({ onStdout: out.take, onStderr: err.take }), { exitCode: 0 });
  assert.deepEqual([out.text, err.text], ["one\n", "two\n"]);
  const more = new Collected();
  assert.deepEqual(await process.stream({ onStdout: more.take }), { exitCode: 0 });
  assert.equal(more.text, "", "the client has seen it all and asks for what comes after");
});

test("killing a command with pipes says whether it was there to kill", async () => {
  const process = await box.stdio.start("sleep 300", { onStdout: () => {} });
  assert.equal(await process.kill(), true);
  assert.deepEqual(await process.wait(), { exitCode: 137 });
  assert.equal(await process.kill(), false);
});

test("a session that is wrong or not there is refused by name", async () => {
  await refused(box.pty.create({ size: { cols: 100_000, rows: 24 } }), InvalidArgumentError, /size\.cols/);
  await refused(box.pty.resize(4_194_303, { cols: 80, rows: 24 }), NotFoundError, /4194303/);
  await refused(box.pty.sendStdin(4_194_303, "x"), NotFoundError, /4194303/);
  await refused(box.stdio.start("cat", { user: "nobody-here" }), InvalidArgumentError, /nobody-here/);
  const gone = Object.assign(await box.stdio.start("true"), { cmdId: "4194303" }) as StdioProcess;
  await refused(gone.sendStdin("x"), NotFoundError, /4194303/);
  await refused(gone.wait(), NotFoundError, /4194303/);
});
