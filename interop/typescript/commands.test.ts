// Commands: their results, their output while they run, and commands in the background.

import assert from "node:assert/strict";
import { before, test } from "node:test";

import { CommandExitError, CommandHandle, InvalidArgumentError, NotFoundError, type Sandbox } from "@declaw/sdk";

import { Collected, eventually, refused, sandbox } from "./support.ts";

let box: Sandbox;
before(async () => {
  box = await sandbox({ envs: { COLOUR: "green" } });
});

test("a command gives its output and its exit code and is not an error", async () => {
  const done = await box.commands.run("echo out; echo err >&2; exit 3");
  assert.deepEqual(done, { stdout: "out\n", stderr: "err\n", exitCode: 3 });
});

test("a command is given its user and directory and variables", async () => {
  const command = 'echo "$(id -un) $(pwd) $COLOUR $SHAPE"';
  assert.equal((await box.commands.run(command, { envs: { SHAPE: "round" } })).stdout, "user /home/user green round\n");
  const asRoot = await box.commands.run(command, { user: "root", cwd: "/etc", envs: { COLOUR: "red" } });
  assert.equal(asRoot.stdout, "root /etc red \n");
});

test("lines go to the callbacks of a command", async () => {
  const out: string[] = [];
  const err: string[] = [];
  await box.commands.run("printf 'a\\nb\\n'; echo c >&2", { onStdout: (line) => out.push(line), onStderr: (line) => err.push(line) });
  assert.deepEqual([out, err], [["a\n", "b\n"], ["c\n"]]);
});

test("a command that is out of time is told by exit code 124 and keeps what it said", async () => {
  const done = await box.commands.run("echo begun; sleep 300", { timeout: 1 });
  assert.deepEqual([done.stdout, done.exitCode], ["begun\n", 124]);
  assert.equal((await box.commands.run("echo in time", { timeout: 60 })).exitCode, 0);
});

test("output is streamed while the command runs", async () => {
  const out = new Collected();
  const running = box.commands.runStream("echo begun; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo done; exit 5", { onStdout: out.take });
  await out.until("begun\n");
  await box.files.write("/tmp/go", "");
  assert.deepEqual(await running, { stdout: "begun\ndone\n", stderr: "", exitCode: 5 });
});

test("streamed output is exact in both streams", async () => {
  const err = new Collected();
  const done = await box.commands.runStream('printf "one\\n\\n  two"; echo oh >&2; echo $COLOUR $SHAPE $(pwd) $(id -un)', {
    onStderr: err.take,
    envs: { SHAPE: "square" },
    cwd: "/usr",
    user: "root",
    timeout: 60,
  });
  assert.deepEqual(done, { stdout: "one\n\n  twogreen square /usr root\n", stderr: "oh\n", exitCode: 0 });
  assert.equal(err.text, "oh\n");
});

test("two hundred thousand streamed lines arrive whole and in order", async () => {
  const done = await box.commands.runStream("seq 1 200000");
  const lines = done.stdout.split("\n");
  assert.equal(lines.length, 200_001);
  assert.ok(lines.slice(0, -1).every((line, index) => line === String(index + 1)));
});

test("a streamed command that is out of time ends with 124", async () => {
  const done = await box.commands.runStream("echo begun; sleep 300", { timeout: 1 });
  assert.deepEqual([done.stdout, done.exitCode], ["begun\n", 124]);
});

test("a command in the background is listed and waited for by its number", async () => {
  const handle = await box.commands.run("echo $SHAPE; while [ ! -e /tmp/end ]; do sleep 0.02; done; exit 4", { background: true, envs: { SHAPE: "flat" } });
  assert.ok(handle instanceof CommandHandle);
  const [info] = (await box.commands.list()).filter((each) => each.pid === handle.pid);
  assert.ok(info && !info.isPty && info.cmd.includes("echo $SHAPE"), JSON.stringify(info));
  await box.files.write("/tmp/end", "");
  const out: string[] = [];
  const other = box.commands.connect(handle.pid);
  const error = await refused(other.wait({ onStdout: (line) => out.push(line) }), CommandExitError, /4/);
  assert.deepEqual([error.exitCode, error.stdout, out], [4, "flat\n", ["flat\n"]]);
  await refused(handle.wait(), CommandExitError, /4/);
  handle.disconnect();
  assert.ok(!(await box.commands.list()).some((each) => each.pid === handle.pid));
});

test("waiting for a command that succeeds gives its result", async () => {
  const handle = await box.commands.run("echo fine", { background: true });
  assert.deepEqual(await handle.wait(), { stdout: "fine\n", stderr: "", exitCode: 0 });
});

test("input goes to a command in the background", async () => {
  const handle = await box.commands.run("read line; echo got $line > /tmp/got", { background: true });
  await box.commands.sendStdin(handle.pid, "héllo\n");
  await handle.wait();
  assert.equal(await box.files.read("/tmp/got"), "got héllo\n");
});

test("killing a command says whether it was there to kill", async () => {
  const one = await box.commands.run("sleep 300", { background: true });
  const two = await box.commands.run("sleep 300", { background: true });
  assert.equal(await one.kill(), true);
  assert.equal(await one.kill(), false);
  assert.equal(await box.commands.kill(two.pid), true);
  assert.equal(await box.commands.kill(two.pid), false);
  await refused(two.wait(), CommandExitError, /137/);
});

test("a command whose client goes away is killed and one in the background is not", async () => {
  const kept = await box.commands.run("sleep 301", { background: true });
  const listed = async (text: string) => (await box.commands.list()).some((each) => each.cmd.includes(text));
  const left = box.commands.run("sleep 302", { requestTimeout: 2000 }).catch((error: unknown) => error);
  await eventually("it runs", () => listed("sleep 302"));
  assert.ok((await left) instanceof Error);
  await eventually("it is gone", async () => !(await listed("sleep 302")));
  assert.ok(await listed("sleep 301"));
  assert.equal(await kept.kill(), true);
});

test("a command that cannot be run is refused by name", async () => {
  await refused(box.commands.run("true", { user: "nobody-here" }), InvalidArgumentError, /nobody-here/);
  await refused(box.commands.run("true", { cwd: "/not/there" }), NotFoundError, /\/not\/there/);
  await refused(box.commands.run("true", { envs: { "A=B": "c" } }), InvalidArgumentError, /envs/);
  await refused(box.commands.sendStdin(4_194_303, "x"), NotFoundError, /4194303/);
  await refused(box.commands.runStream("true", { user: "nobody-here" }), InvalidArgumentError, /nobody-here/);
});
