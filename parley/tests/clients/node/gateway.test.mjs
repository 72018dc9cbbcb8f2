// The client against a real server: `parley up` on free ports, its data in a directory of its own. The binary is
// PARLEY_BIN, or the one that `cargo build` or `cargo test` left in target/debug.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const here = fileURLToPath(new URL(".", import.meta.url));
const parley = process.env.PARLEY_BIN ?? join(here, "../../../../target/debug/parley");
const data = mkdtempSync(join(tmpdir(), "parley-node-"));
let server;
let url;

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

async function start() {
  const args = ["up", "--data", data, "--listen", "127.0.0.1:0", "--admin", `127.0.0.1:${await freePort()}`];
  args.push("--shards", "2", "--driver", process.env.PARLEY_TEST_DRIVER ?? "auto");
  server = spawn(parley, args, { stdio: ["ignore", "pipe", "inherit"] });
  let printed = "";
  url = await new Promise((resolve, reject) => {
    server.once("exit", (code) => reject(new Error(`parley up ended with ${code}\n${printed}`)));
    server.stdout.on("data", (chunk) => {
      printed += chunk;
      const ready = printed.match(/^ready (ws:\S+)$/m);
      if (ready) resolve(ready[1]);
    });
  });
}

function stop() {
  return new Promise((resolve) => {
    server.removeAllListeners("exit");
    server.once("exit", (code) => resolve(code));
    server.kill("SIGTERM");
  });
}

async function token(name) {
  return (await run(parley, ["token", "--user", name, "--data", data])).stdout.trim();
}

// Runs the client's command line; the frames that it printed.
async function client(name, ...args) {
  const options = ["--url", url, "--token", await token(name), "--state", join(data, `${name}.json`)];
  const { stdout } = await run(process.execPath, [join(here, "client.mjs"), ...options, ...args]);
  return stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

const texts = (frames) =>
  frames.filter((frame) => frame.type === "event").map((frame) => frame.body.message?.payload.text).filter(Boolean);

before(async () => {
  assert.ok(existsSync(parley), `${parley} is missing: cargo build -p parley`);
  await start();
});

after(async () => {
  await stop();
  rmSync(data, { recursive: true, force: true });
});

test("a message reaches a device that comes later, once, across restarts of the server", async () => {
  await client("alice", "hello");
  await client("bob", "--until-synced", "tail");
  const sent = (await client("alice", "send", "bob", "hello from node")).find((frame) => frame.type === "sent");
  assert.equal(sent.seq, 1);
  assert.equal(await stop(), 0, "SIGTERM ends with exit code 0");
  await start();
  await client("alice", "send", "bob", "after the restart");
  assert.deepEqual(texts(await client("bob", "--confirm", "--until-synced", "tail")), ["hello from node", "after the restart"]);
  assert.deepEqual(texts(await client("bob", "--until-synced", "tail")), [], "nothing comes twice");
});

test("a retry with the same id gets the first answer", async () => {
  const again = ["--client-msg-id", "0123456789abcdef0123456789abcdef", "send", "bob", "only once"];
  const [first] = (await client("alice", ...again)).filter((frame) => frame.type === "sent");
  const [second] = (await client("alice", ...again)).filter((frame) => frame.type === "sent");
  assert.deepEqual(second, first);
});

test("unread counts fall when the chat is read", async () => {
  const list = async () => (await client("bob", "chats")).find((frame) => frame.type === "chat_list").chats[0];
  const before = await list();
  assert.ok(before.unread > 0);
  await client("bob", "read", before.chat_id, String(before.head_seq));
  for (let tries = 0; (await list()).unread !== 0; tries += 1) assert.ok(tries < 50, "the mark is stored");
});

test("a group is made, talked in, and left", async () => {
  const [sent] = (await client("alice", "group-create", "node", "bob")).filter((frame) => frame.type === "sent");
  await client("alice", "send", sent.chat_id, "to the group");
  assert.ok(texts(await client("bob", "--until-synced", "tail")).includes("to the group"));
  await client("bob", "leave", sent.chat_id);
  await assert.rejects(client("bob", "send", sent.chat_id, "still here?"));
});
